// Package relay is the core of syncrelay: it turns rows, in the order in which
// their transactions committed, into numbered events, and moves cursors over
// them. It knows no SQL, no HTTP and no vendor's types; what it needs from
// outside it asks for through small interfaces ([Source], [Journal], [Sink]).
//
// # The flow
//
//	Source ──rows──▶ Sequencer ──batches──▶ Journal ──▶ Log ──▶ Hub ──▶ Subscriber ──▶ Sink
//	                (event IDs)            (durable)   (ring)  (groups)   (cursor)
//
// A [Source] hands over committed rows, one transaction after another. The
// sequencer, the only writer of the log, skips what the journal already holds,
// gives each remaining row the next event ID and encodes it, once. A committer
// takes whatever has gathered since its last journal transaction, writes it to
// the [Journal] together with the new high-water mark, and only then shows it:
// appends it to the log's ring in memory and offers it to the hub's groups.
// While one journal transaction is under way the next batch gathers, so a lone
// event waits for nobody and a flood is grouped.
//
// A [Subscriber] is a cursor: the ID of the last event that it has passed and
// the groups that it is in. While it is behind the head it reads the log, ring
// or journal; at the head it is handed events through a small bounded queue; a
// queue that overflows is dropped and the cursor reads the log again. Live,
// replay and resume are this one path.
//
// Who hands a subscriber its events: mostly a pusher, one of a few goroutines
// that go from one subscriber to the next and never wait ([Prompt]), or, if those
// who are due are few, the committer itself; and a pump,
// a goroutine of the subscriber's own, for as long as its client takes its time,
// reads the log, or is told something else.
//
// # What makes an ID safe
//
// No event is shown before its journal transaction has committed, so a crash
// of the relay loses nothing that anyone saw. The journal's commits do not wait
// for the disk (they would cost milliseconds each); what a crash of the server
// may take from the journal's tail is sent again by the slot, whose position is
// confirmed only up to what the server has flushed, and gets the same IDs
// again, because the assignment is a pure function: the previous ID, the order
// of the write-ahead log, and the floors (see [Floor]) that a tenure writes
// durably before it assigns anything.
//
// A floor is what keeps an ID from naming two events even when the database is
// put back from an old copy behind the relay's back: everything committed after
// a start of the database server that the journal has not seen before is
// numbered from that start's time in microseconds, which is above every ID that
// was ever counted up one by one before it.
//
// # Where to start reading
//
// event.go and group.go are the nouns, source.go and journal.go the seams,
// relay.go the run loop, sequencer.go the assignment, log.go and ring.go the
// log, hub.go, subscriber.go and pushers.go the fan-out.
package relay
