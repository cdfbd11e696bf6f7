package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/stream/client"
)

// checkPath looks at the address that clients use, and what stands before it.
func (d *doctor) checkPath(ctx context.Context, s streams) []outbox.Check {
	address := d.address(s)
	ready := checkReadiness(ctx, address)
	checks := []outbox.Check{ready}
	source, _, err := d.source(s, d.config)
	var token string
	if err == nil {
		token, err = source(ctx)
	}
	if err != nil {
		return append(checks, outbox.Fail("public_token", "%v", err))
	}
	o := client.ProbeOptions{URL: address, Token: token, Watch: d.watch}
	webSocket, events := make(chan outbox.Check, 1), make(chan outbox.Check, 1)
	go func() { webSocket <- checkWebSocket(ctx, o) }()
	go func() { events <- checkEvents(ctx, o) }()
	return append(checks, <-webSocket, <-events)
}

// maxStatus bounds what is read of the answer of /readyz.
const maxStatus = 4 << 10

// errNotPublic is the answer of a proxy that passes what clients need and no more.
var errNotPublic = errors.New("it is not passed on")

func decodeStatus(response *http.Response, s *status) error {
	text, err := io.ReadAll(io.LimitReader(response.Body, maxStatus))
	if err != nil {
		return fmt.Errorf("read whether the relay is ready: %w", err)
	}
	if err := json.Unmarshal(text, s); err != nil || s.Phase == "" {
		if response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusForbidden {
			return fmt.Errorf("answered with HTTP status %d: %w", response.StatusCode, errNotPublic)
		}
		return fmt.Errorf("answered with HTTP status %d, and not as a relay does", response.StatusCode)
	}
	return nil
}

func checkReadiness(ctx context.Context, address string) outbox.Check {
	const name = "public_ready"
	s, err := readiness(ctx, address, false)
	switch {
	case errors.Is(err, errNotPublic):
		return outbox.OK(name, "%s/readyz is not for the public; that the relay is ready shows in its streams", address)
	case err != nil:
		return outbox.Warn(name, "%s/readyz: %v", address, err).By("start the relay, or correct --url")
	case s.Status != "ready":
		return outbox.Fail(name, "the relay at %s is not ready: %s (%s)", address, s.Reason, s.Phase).By("mend what it says; the relay's log says more")
	}
	return outbox.OK(name, "the relay at %s is ready", address)
}

// How the proxies are told, for people to paste.
const (
	passUpgrade = `let the proxy pass the upgrade, in nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"`
	noBuffering = `let the proxy pass events at once, in nginx: proxy_buffering off; gzip off (for text/event-stream); and don't ignore the header X-Accel-Buffering`
	noTimeout   = `let the proxy keep quiet connections for longer than stream.heartbeat and stream.ping_interval, in nginx: proxy_read_timeout 3600s; proxy_send_timeout 3600s; or set these two to less`
)

// ofToken reports whether a refusal is about the token, or what it may do, and not
// about the way.
func ofToken(err error) bool {
	var r *client.RefusalError
	return errors.As(err, &r) && r.Code != "" && r.Code != "bad_request"
}

func checkWebSocket(ctx context.Context, o client.ProbeOptions) outbox.Check {
	const name = "public_websocket"
	r, err := client.ProbeWebSocket(ctx, o)
	var refused *client.RefusalError
	switch {
	case err != nil:
		return outbox.Fail(name, "%v", err).By("correct --url")
	case ofToken(r.Refused):
		return outbox.Fail(name, "the relay refuses: %v", r.Refused).By("give another token")
	case errors.As(r.Refused, &refused):
		return outbox.Fail(name, "the WebSocket was not opened: %v", r.Refused).By("%s", passUpgrade)
	case r.Refused != nil:
		return outbox.Fail(name, "%v", r.Refused).By("correct --url, or see to it that the address can be reached from here")
	case r.First == 0:
		return outbox.Fail(name, "the WebSocket was opened, and nothing came on it").By("%s", passUpgrade)
	case r.Ended != nil:
		return outbox.Warn(name, "the quiet WebSocket was cut after %s: %v", r.Lived.Round(time.Second), r.Ended).By("%s", noTimeout)
	}
	watched := ""
	if o.Watch > 0 {
		watched = fmt.Sprintf(", and it lasts (%s watched)", r.Lived.Round(time.Second))
	}
	return outbox.OK(name, "the first message came after %s, a ping is answered within %s%s", r.First.Round(10*time.Microsecond), r.RoundTrip.Round(10*time.Microsecond), watched)
}

// longSilence is how long a stream may bring nothing, not even a heartbeat: two of
// the default, and a little.
const longSilence = 35 * time.Second

func checkEvents(ctx context.Context, o client.ProbeOptions) outbox.Check {
	const name = "public_sse"
	r, err := client.ProbeEvents(ctx, o)
	switch {
	case err != nil:
		return outbox.Fail(name, "%v", err).By("correct --url")
	case ofToken(r.Refused):
		return outbox.Fail(name, "the relay refuses: %v", r.Refused).By("give another token")
	case r.Encoding != "" && r.Encoding != "identity":
		return outbox.Fail(name, "the stream is packed on its way (%s), which holds events back", r.Encoding).By("%s", noBuffering)
	case r.Refused != nil:
		return outbox.Fail(name, "there is no stream of events: %v", r.Refused).By("correct --url, or see to it that the address can be reached from here, and let the proxy pass /api/events")
	case r.First == 0:
		return outbox.Fail(name, "nothing comes on the stream of events: something on the way holds it back").By("%s", noBuffering)
	case r.Ended != nil:
		return outbox.Warn(name, "the quiet stream of events was cut after %s: %v", r.Lived.Round(time.Second), r.Ended).By("%s", noTimeout)
	case r.Silence > longSilence:
		return outbox.Warn(name, "for %s no heartbeat came on the stream of events: something on the way holds it back, or stream.heartbeat is long", r.Silence.Round(time.Second)).By("%s", noBuffering)
	}
	watched := ""
	if o.Watch > 0 {
		watched = fmt.Sprintf(", and it lasts (%s watched)", r.Lived.Round(time.Second))
	}
	return outbox.OK(name, "the first message came after %s, over %s%s", r.First.Round(10*time.Microsecond), r.Protocol, watched)
}
