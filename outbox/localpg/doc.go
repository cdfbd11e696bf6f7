// Package localpg runs a Postgres of one's own on this machine: a throw-away one
// that leaves nothing behind, or one whose data directory is kept. The dev
// command and the tests use it; production does not.
//
// [Start] is where to start reading. find.go says where the server's programs
// are looked for, and fetch.go gets them where there are none. The server
// listens on the loopback interface and trusts whoever connects there.
package localpg
