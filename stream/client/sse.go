package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"time"
)

// connectTimeout bounds a connection's beginning, up to the answer's header.
const connectTimeout = 15 * time.Second

// newTransport makes what one follower sends requests with.
func newTransport(silence time.Duration) *http.Transport {
	return &http.Transport{
		DialContext: dialPatiently(silence), Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: connectTimeout, ResponseHeaderTimeout: connectTimeout,
		DisableCompression: true, // what packs a stream holds it back
	}
}

// patientConn is a connection that breaks when nothing has come for a while.
type patientConn struct {
	net.Conn
	silence time.Duration
}

// Read is part of [net.Conn].
func (c *patientConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func dialPatiently(silence time.Duration) func(context.Context, string, string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: connectTimeout}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &patientConn{conn, silence}, nil
	}
}

// followEvents follows one event stream until it ends.
func (f *follower) followEvents(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	response, err := f.openEvents(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	var goodbye error // what the relay said last
	blocks := blockReader{lines: bufio.NewReaderSize(response.Body, 64<<10)}
	for {
		name, data, err := blocks.next()
		switch {
		case err != nil && goodbye != nil:
			return goodbye
		case errors.Is(err, io.EOF):
			return errors.New("the stream has ended")
		case err != nil:
			return fmt.Errorf("the stream broke: %w", err)
		}
		goodbye = nil
		if name == typeError {
			// An error that ends the stream is told when it is over.
			if goodbye = refusedInStream(data); goodbye != nil {
				continue
			}
		}
		if err := f.take(data, func() {}); err != nil {
			return err
		}
	}
}

func (f *follower) openEvents(ctx context.Context) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.address(ssePath).String(), http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("make a request: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+f.token)
	request.Header.Set("Accept", "text/event-stream")
	response, err := (&http.Client{Transport: f.transport}).Do(request)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", f.base, errors.Unwrap(err)) // a url.Error, whose text has the query in it
	}
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if response.StatusCode != http.StatusOK || kind != "text/event-stream" {
		defer func() { _ = response.Body.Close() }()
		return nil, refusedByStatus(response)
	}
	return response, nil
}

// blockReader reads the blocks of a text/event-stream (HTML, section 9.2.6).
type blockReader struct {
	lines *bufio.Reader
	// heard, if not nil, is called with each line, comments too.
	heard func()
}

// next returns the next block that has data: the event's name, empty for none,
// and its data.
func (r *blockReader) next() (name string, data []byte, err error) {
	var some bool
	for {
		line, err := r.lines.ReadBytes('\n')
		if err != nil {
			return "", nil, err // what has no blank line at its end does not count
		}
		if r.heard != nil {
			r.heard()
		}
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(line) == 0 {
			if some {
				return name, data, nil
			}
			name = ""
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			name = string(value)
		case "data":
			if some {
				data = append(data, '\n')
			}
			data, some = append(data, value...), true
		}
	}
}
