// Package stream is everything that a client touches: the HTTP server, the
// WebSocket and SSE transports, tokens and identity, origins, limits, health
// and metrics. It knows nothing of Postgres; it turns requests into subscribers
// of a [relay.Relay] and writes what they are handed to sockets.
//
// # The way of a connection
//
//	request ─▶ origin ─▶ credentials ─▶ Verifier ─▶ session ─▶ relay.Subscribe
//	                                                   │
//	                       webSocket or eventStream ◀──┘  (a relay.Sink)
//
// A session is what both transports share: who the client is, when its token
// ends, its heartbeat, and the one reason for which it ends (reason.go is the
// table of them all; README.md is the protocol, with an example of every frame,
// and a test holds both to the code).
//
// # What it promises
//
//   - Nothing of a client's is written on the relay's own goroutines: the
//     subscriber's pump writes, for as long as the write deadline at most.
//   - A connection that is idle costs one goroutine, its session, and no buffers.
//   - A token never appears in a log line, an error or a metric.
//
// # Where to start reading
//
// server.go holds the routes, session.go the life of a connection, websocket.go
// and sse.go the transports, wire.go and frames.go what they write, token.go
// and claims.go who may come in.
package stream
