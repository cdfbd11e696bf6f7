package main

import (
	"github.com/syncrelay/syncrelay/configs"
	"github.com/syncrelay/syncrelay/stream"
)

// streamLimits hands the settings' limits over, in which a zero is none.
func streamLimits(l configs.Limits) stream.Limits {
	return stream.Limits{
		Connections: orNone(l.Connections), ConnectionsPerIP: orNone(l.ConnectionsPerIP), ConnectionsPerUser: orNone(l.ConnectionsPerUser),
		ConnectRatePerIP: orNone(l.ConnectRatePerIP), ConnectBurstPerIP: l.ConnectBurstPerIP,
		FailedAuthRatePerIP: orNone(l.FailedAuthRatePerIP), FailedAuthBurstPerIP: l.FailedAuthBurstPerIP,
		Replays: orNone(l.Replays), ReplaysPerUser: orNone(l.ReplaysPerUser),
		ReplayRatePerUser: orNone(l.ReplayRatePerUser), ReplayBurstPerUser: l.ReplayBurstPerUser,
		ReplayPageRatePerUser: orNone(l.ReplayPageRatePerUser), ReplayPageBurstPerUser: l.ReplayPageBurstPerUser,
		MessageBytes: l.MessageBytes, MessageRate: orNone(l.MessageRate), MessageBurst: l.MessageBurst,
		HeaderBytes: l.HeaderBytes, HeaderTimeout: l.HeaderTimeout,
	}
}

func orNone[N int | float64](n N) N {
	if n == 0 {
		return stream.NoLimit
	}
	return n
}
