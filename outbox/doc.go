// Package outbox is everything Postgres: the replication slot that brings the
// rows of sync_events in commit order, the journal of which row has which event
// ID, the ownership that lets only one relay assign, and the API with which
// programs in Go write rows.
//
// [Source] implements relay.Source: source.go and publication.go see to the slot
// and the publication, stream.go reads the slot, pgoutput.go decodes what it
// brings, backlog.go reads the rows that it does not bring, and unreadable.go
// gets past those that the server can't send. [Journal] implements
// relay.Journal: ownership.go waits for the ownership, tenure.go writes under
// it, copy.go what is much, and shared.go, find.go and read.go read events back.
// [Insert] is the writer's side. README.md explains replication, journal and
// recovery to the operator.
//
// The package connects with pgx and pglogrepl; it starts no server (see localpg)
// and makes no table (see schema).
package outbox
