package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"time"
)

// openEvents asks for the event stream, waits for the greeting, and reads on in
// a goroutine.
func (c *client) openEvents(who visitor) error {
	request := appendResume([]byte("GET /api/events"), who)
	request = append(request, " HTTP/1.1\r\nHost: "...)
	request = append(request, c.crowd.address...)
	request = appendToken(append(request, "\r\n"...), who)
	if _, err := c.conn.Write(append(request, "\r\n"...)); err != nil {
		return err
	}
	reader := bufio.NewReader(c.conn)
	response, err := http.ReadResponse(reader, nil) //nolint:bodyclose // the goroutine below closes it
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		_ = response.Body.Close()
		return fmt.Errorf("the server answers %s", response.Status)
	}
	body := bufio.NewReader(response.Body)
	for !c.established {
		if err := c.block(body); err != nil {
			_ = response.Body.Close()
			return fmt.Errorf("wait for connection_established: %w", err)
		}
	}
	_ = c.conn.SetDeadline(time.Time{})
	go func() {
		defer close(c.ended)
		defer func() { _ = response.Body.Close() }()
		for {
			if err := c.block(body); err != nil {
				c.crowd.lost(c, err)
				return
			}
		}
	}()
	return nil
}

// block reads the next line of the stream, and takes it if it carries a message.
func (c *client) block(body *bufio.Reader) error {
	line, err := body.ReadSlice('\n')
	if err != nil {
		return err
	}
	text, ok := bytes.CutPrefix(line, []byte("data: "))
	if !ok {
		return nil // a comment, a field of another name, or the end of a block
	}
	isEvent, err := c.message(bytes.TrimRight(text, "\n"), time.Now().UnixNano())
	if err == nil && isEvent {
		c.crowd.count(1)
	}
	return err
}
