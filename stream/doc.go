// Package stream is everything that a client touches: the HTTP server, the
// WebSocket and SSE transports, tokens and identity, origins, limits, health
// and metrics. It knows nothing of Postgres; it turns requests into subscribers
// of a [relay.Relay] and writes what they are handed to sockets.
//
// # The way of a connection
//
//	request ─▶ origin ─▶ credentials ─▶ Verifier (─▶ Directory) ─▶ session ─▶ relay.Subscribe
//	                                                                  │
//	                                      webSocket or eventStream ◀──┘  (a relay.Sink)
//
// A session is what both transports share: who the client is, when its token
// ends, its heartbeat, and the one reason for which it ends (reason.go is the
// table of them all; README.md is the protocol, with an example of every frame,
// and a test holds both to the code).
//
// # What it promises
//
//   - No client is waited for on the relay's own goroutines, which write what a
//     socket takes at once: the subscriber's pump writes the rest, for as long as
//     the write deadline at most.
//   - A connection that is idle costs one goroutine, its session, no buffers, and on a
//     socket of our own (without TLS or HTTP/2) no timer.
//   - A token never appears in a log line, an error or a metric.
//
// # Where to start reading
//
// server.go holds the routes, session.go the life of a connection and clock.go its
// heartbeat, websocket.go and sse.go the transports, wire.go, frames.go and deflate.go what they write, token.go,
// claims.go, keys.go and jwks.go which tokens count, directory.go who their users
// are where a database says it, limits.go and gate.go how many may come and how
// often, sockets.go what is let go before that, address.go whom it counts for,
// noise.go what the log hears of it all. README.md has the table of threats.
//
// What browsers run is here too: client/ is the browser client, and console/ the
// page that console.go serves. Package clienttest runs both in real browsers.
package stream
