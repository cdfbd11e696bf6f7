package bench

import "time"

// Scale is how large the measurements are.
type Scale struct {
	// Name stands in the report.
	Name string
	// Rounds is how often those figures are taken, alternately with their floors,
	// that vary most; the median counts.
	Rounds int

	// LatencyRate is in rows a second, for LatencyTime each round.
	LatencyRate   int
	LatencyTime   time.Duration
	LatencyCadets int

	// IngestRows are written live, and again as a backlog.
	IngestRows int

	// FanoutSizes are how large the group is; FanoutDeliveries of events to all of
	// it are counted each round, and BurstDeliveries if they come in bursts of Burst.
	FanoutSizes                       []int
	FanoutDeliveries, BurstDeliveries int
	Burst                             int

	// MemoryConnections are idle.
	MemoryConnections int
	// StormClients come back, each having missed StormEvents.
	StormClients, StormEvents int
	// ArchiveEvents are in the long log, about ArchiveCadets in turn, of whom
	// ArchiveSamples are replayed.
	ArchiveEvents, ArchiveCadets, ArchiveSamples int
	// Connects come as fast as they can.
	Connects int
	// CostConnections are those that don't receive an event, CostGroups the groups
	// that it is not for; rows are written for CostTime.
	CostConnections, CostGroups int
	CostTime                    time.Duration
}

// Quick is for a first look and for a change's before and after: all rows in
// less than two minutes.
func Quick() Scale {
	return Scale{
		Name: "quick", Rounds: 1,
		LatencyRate: 1000, LatencyTime: 3 * time.Second, LatencyCadets: 100,
		IngestRows:  60_000,
		FanoutSizes: []int{1000, 5000}, FanoutDeliveries: 200_000, BurstDeliveries: 400_000, Burst: 20,
		MemoryConnections: 4000, StormClients: 200, StormEvents: 1000, Connects: 4000,
		ArchiveEvents: 200_000, ArchiveCadets: 200, ArchiveSamples: 10,
		CostConnections: 4000, CostGroups: 12_000, CostTime: 2 * time.Second,
	}
}

// Full is what figures are quoted from.
func Full() Scale {
	s := Quick()
	s.Name, s.Rounds = "full", 3
	s.LatencyTime = 4 * time.Second
	s.FanoutDeliveries, s.BurstDeliveries = 400_000, 1_000_000
	s.IngestRows = 300_000
	s.MemoryConnections, s.StormClients, s.Connects = 10_000, 1000, 10_000
	s.ArchiveEvents, s.ArchiveCadets, s.ArchiveSamples = 10_000_000, 10_000, 20
	s.CostConnections, s.CostGroups, s.CostTime = 10_000, 100_000, 2*time.Second
	return s
}
