// Package bench measures the relay on the machine that it runs on, each figure
// beside its floor: what the parts cost alone that the relay can't do without.
//
// Four parties run, in processes of their own, so that it is known what each
// costs: the relay (this program, as serve, with nothing but its defaults),
// Postgres, a floor (this program too, a few dozen lines that use the same
// libraries and nothing of the relay), and this process, which writes the rows,
// plays the clients, and checks what they receive: an event that is lost,
// repeated or out of order fails the run.
//
// A floor and the relay are measured one after the other under the same load,
// never at the same time. Absolute figures drift with the machine and with what
// else runs on it; the ratio of two that were taken within seconds drifts less.
//
// # Where to start reading
//
// bench.go is the run, scale.go how large each measurement is. Each row of the
// table has a file: latency.go, ingest.go, fanout.go, memory.go, storm.go,
// archive.go, connect.go, cost.go. crowd.go and client.go are the load generator,
// checker.go what it holds the stream to, floor.go, floor_reader.go and
// floor_server.go the floors, database.go, daemon.go and child.go what is started
// and stopped, meter.go what it all costs, report.go what is said in the end.
package bench
