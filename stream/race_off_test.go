//go:build !race

package stream_test

// slowed: see race_on_test.go.
const slowed = false
