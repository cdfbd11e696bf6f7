package stream

import "sync"

// bufferPools lends out write buffers in two sizes. A connection holds one only
// while it writes; even if thousands of clients are stuck in a write at once,
// that is 32 KiB each.
type bufferPools struct{ small, large sync.Pool }

const (
	smallBuffer = 4<<10 + 128
	largeBuffer = 32 << 10
)

// buffers is shared by all servers, as pools are for. It has no state that
// anybody could see.
var buffers = bufferPools{
	small: sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }},
	large: sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }},
}

// get lends a buffer, of size bytes if that is less than a large one's.
func (p *bufferPools) get(size int) *[]byte {
	if size <= smallBuffer {
		return p.small.Get().(*[]byte) //nolint:forcetypeassert // nothing else is put
	}
	return p.large.Get().(*[]byte) //nolint:forcetypeassert // nothing else is put
}

// put takes a buffer back.
func (p *bufferPools) put(b *[]byte) {
	if len(*b) == smallBuffer {
		p.small.Put(b)
	} else {
		p.large.Put(b)
	}
}
