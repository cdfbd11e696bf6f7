// Package clienttest runs the browser client where browsers' code runs, in Node
// and in a real Chromium, and lets a test play the application that uses it.
//
// A [Host] is such a place; [NewNode] and [NewPage] make one. In it a test
// connects as many clients as it likes, each an [App], and looks at what these
// were handed.
//
// Where the program that is needed is missing, a test is skipped, unless the
// environment says in [RequireVariable] that it must be there, as CI does.
package clienttest
