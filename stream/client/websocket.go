package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

// farewell bounds the writing of a control frame or of a short message.
const farewell = time.Second

// followWebSocket follows one WebSocket until it ends.
func (f *follower) followWebSocket(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := f.dialWebSocket(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	// The reading below ends when the connection does.
	left := context.AfterFunc(ctx, func() {
		_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(farewell))
		_ = conn.Close()
	})
	defer left()
	for {
		_, text, err := conn.ReadMessage()
		if err != nil {
			return explainEnd(err)
		}
		if err := f.take(text, func() { f.renew(ctx, conn) }); err != nil {
			return err
		}
	}
}

func (f *follower) dialWebSocket(ctx context.Context) (*websocket.Conn, error) {
	u := f.address(webSocketPath)
	u.Scheme = map[string]string{"http": "ws", "https": "wss"}[u.Scheme]
	dialer := websocket.Dialer{NetDialContext: dialPatiently(f.o.Silence), Proxy: http.ProxyFromEnvironment, HandshakeTimeout: connectTimeout}
	conn, response, err := dialer.DialContext(ctx, u.String(), http.Header{"Authorization": {"Bearer " + f.token}}) //nolint:bodyclose // the library has read what there is of it
	switch {
	case errors.Is(err, websocket.ErrBadHandshake) && response != nil:
		return nil, refusedByStatus(response)
	case err != nil:
		return nil, fmt.Errorf("connect to %s: %w", f.base, err)
	}
	return conn, nil
}

// explainEnd turns a close frame into the refusal that it stands for.
func explainEnd(err error) error {
	var closed *websocket.CloseError
	if errors.As(err, &closed) && closed.Code != websocket.CloseAbnormalClosure {
		return refusedByClose(closed.Code, closed.Text)
	}
	return fmt.Errorf("the connection broke: %w", err)
}

// renew sends a new token, if there is one. It is called on the goroutine that
// reads, and nobody else writes messages.
func (f *follower) renew(ctx context.Context, conn *websocket.Conn) {
	fresh, err := f.o.Token(ctx)
	if err != nil || fresh == f.token {
		return // the connection ends with its token, and the relay will say so
	}
	frame, err := json.Marshal(map[string]string{"type": "auth", "token": fresh})
	if err != nil {
		return // a text has a JSON form
	}
	_ = conn.SetWriteDeadline(time.Now().Add(farewell)) // a connection that is gone says so when it is read from
	if conn.WriteMessage(websocket.TextMessage, frame) == nil {
		f.token = fresh
	}
}
