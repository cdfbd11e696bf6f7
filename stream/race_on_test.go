//go:build race

package stream_test

// slowed: the race detector makes everything several times slower, so that a
// measurement says nothing.
const slowed = true
