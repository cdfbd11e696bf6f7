package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// ProbeOptions say which relay to probe, and how.
type ProbeOptions struct {
	// URL is the relay's address, as clients have it.
	URL   string
	Token string
	// Patience is how long the first message may take; default 5 s.
	Patience time.Duration
	// Watch is how long the connection is kept then, and looked at, with nothing to
	// do but heartbeats.
	Watch time.Duration
}

// Report is what was seen of one stream.
type Report struct {
	// Refused is why there was no stream.
	Refused error
	// Protocol is the HTTP version of the answer, such as HTTP/1.1.
	Protocol string
	// Encoding is the Content-Encoding of the answer. A stream has none: what packs
	// it holds it back.
	Encoding string
	// First is how long it took from the request to the first message; 0 if none
	// came within the patience, although there was an answer, or nothing refused.
	First time.Duration
	// RoundTrip is the time from a ping to its pong, on a WebSocket.
	RoundTrip time.Duration
	// Lived is for how long the connection was watched, and Ended why it was for
	// less than it should have been.
	Lived time.Duration
	Ended error
	// Silence is the longest time in which nothing came, of Lived.
	Silence time.Duration
}

// probe is one run of a probe.
type probe struct {
	*follower
	o      ProbeOptions
	report Report
	// ended is closed when the stream has ended, because of why.
	ended chan struct{}
	why   error
	heard atomic.Int64 // when something came last, in nanoseconds since begun
	begun time.Time
	quiet atomic.Int64 // the longest silence, in nanoseconds
}

func newProbe(o ProbeOptions) (*probe, error) {
	if o.Patience <= 0 {
		o.Patience = 5 * time.Second
	}
	token := func(context.Context) (string, error) { return o.Token, nil }
	// What is watched may be silent for as long as it likes: that is what is asked.
	f, err := newFollower(Options{URL: o.URL, Token: token, After: -1, Silence: o.Patience + o.Watch + time.Minute}, nil)
	if err != nil {
		return nil, err
	}
	f.token = o.Token
	return &probe{follower: f, o: o, begun: time.Now(), ended: make(chan struct{})}, nil
}

// hear notes that something has come.
func (p *probe) hear() {
	now := int64(time.Since(p.begun))
	p.quiet.Store(max(p.quiet.Load(), now-p.heard.Swap(now)))
}

// ProbeWebSocket opens a WebSocket, and looks at how it goes. The error is of the
// options; what is seen is in the report.
func ProbeWebSocket(ctx context.Context, o ProbeOptions) (Report, error) {
	p, err := newProbe(o)
	if err != nil {
		return Report{}, err
	}
	conn, err := p.dialWebSocket(ctx)
	if err != nil {
		p.report.Refused = err
		return p.report, nil
	}
	defer func() { _ = conn.Close() }()
	p.report.Protocol = "HTTP/1.1"
	pong := make(chan struct{}, 1)
	conn.SetPongHandler(func(string) error {
		select {
		case pong <- struct{}{}:
		default: // nobody asked
		}
		return nil
	})
	answer := conn.PingHandler()
	conn.SetPingHandler(func(data string) error { p.hear(); return answer(data) })
	first := make(chan struct{})
	go func() {
		defer close(p.ended)
		for n := 0; ; n++ {
			_, _, err := conn.ReadMessage()
			if err != nil {
				p.why = explainEnd(err)
				return
			}
			p.hear()
			if n == 0 {
				close(first)
			}
		}
	}()
	stop := func() { _ = conn.Close(); <-p.ended }
	return p.watch(ctx, first, stop, func() {
		sent := time.Now()
		if conn.WriteControl(websocket.PingMessage, nil, sent.Add(farewell)) != nil {
			return // the reading says why
		}
		select {
		case <-pong:
			p.report.RoundTrip = time.Since(sent)
		case <-time.After(p.o.Patience):
		}
	}), nil
}

// ProbeEvents opens an event stream, and looks at how it goes. The error is of the
// options; what is seen is in the report.
func ProbeEvents(ctx context.Context, o ProbeOptions) (Report, error) {
	p, err := newProbe(o)
	if err != nil {
		return Report{}, err
	}
	defer p.transport.CloseIdleConnections()
	p.transport.ResponseHeaderTimeout = 0 // a proxy may hold back the header, too: that is seen below
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first := make(chan struct{})
	answered := make(chan *http.Response, 1)
	connected := make(chan struct{})
	var once sync.Once // of several connections, if the answer names another address
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { once.Do(func() { close(connected) }) }})
	go func() {
		defer close(p.ended)
		p.why = p.readEvents(ctx, answered, first)
	}()
	select { // a connection that takes long is no stream that is held back
	case <-connected:
	case <-p.ended:
	}
	stop := func() { cancel(); <-p.ended }
	report := p.watch(ctx, first, stop, func() {})
	select {
	case response := <-answered:
		report.Protocol, report.Encoding = response.Proto, response.Header.Get("Content-Encoding")
	default:
	}
	return report, nil
}

// readEvents reads an event stream to its end.
func (p *probe) readEvents(ctx context.Context, answered chan<- *http.Response, first chan<- struct{}) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.address(ssePath).String(), http.NoBody)
	if err != nil {
		return fmt.Errorf("make a request: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+p.token)
	request.Header.Set("Accept", "text/event-stream")
	request.Header.Set("Accept-Encoding", "gzip, br") // as browsers do
	response, err := (&http.Client{Transport: p.transport}).Do(request)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", p.base, errors.Unwrap(err))
	}
	defer func() { _ = response.Body.Close() }()
	answered <- response
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if response.StatusCode != http.StatusOK || kind != "text/event-stream" {
		return refusedByStatus(response)
	}
	blocks := blockReader{lines: bufio.NewReader(response.Body), heard: p.hear}
	for n := 0; ; n++ {
		name, data, err := blocks.next()
		if err != nil {
			return fmt.Errorf("the stream broke: %w", err)
		}
		if name == typeError {
			if refused := refusedInStream(data); refused != nil {
				return refused
			}
		}
		if n == 0 {
			close(first)
		}
	}
}

// watch waits for the first message, and then for as long as it should, or until
// the stream has ended. stop ends the stream.
func (p *probe) watch(ctx context.Context, first <-chan struct{}, stop, greet func()) Report {
	r := &p.report
	timer := time.NewTimer(p.o.Patience)
	defer timer.Stop()
	select {
	case <-first:
		r.First = time.Since(p.begun)
	case <-p.ended:
		r.Refused = p.why
		return *r
	case <-timer.C:
		stop()
		return *r
	case <-ctx.Done():
		stop()
		r.Refused = ctx.Err()
		return *r
	}
	greet()
	p.hear()
	p.quiet.Store(0)
	since := time.Now()
	over := time.NewTimer(p.o.Watch)
	defer over.Stop()
	select {
	case <-over.C:
		stop()
	case <-ctx.Done():
		stop()
	case <-p.ended:
		r.Ended = p.why
	}
	p.hear()
	r.Lived, r.Silence = time.Since(since), time.Duration(p.quiet.Load())
	return *r
}
