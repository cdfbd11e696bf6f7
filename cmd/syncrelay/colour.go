package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Colours, as a terminal is told them (ECMA-48, SGR).
const (
	plain  = "\x1b[0m"
	bold   = "\x1b[1m"
	faint  = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	blue   = "\x1b[34m"
	cyan   = "\x1b[36m"
)

// Values of the flag --color.
const (
	colourAuto   = "auto"
	colourAlways = "always"
	colourNever  = "never"
)

// coloured decides whether what is written to a stream may have colours: on a
// terminal, unless NO_COLOR (no-color.org) is set.
func (s streams) coloured(mode string, terminal bool) (bool, error) {
	switch mode {
	case colourAlways:
		return true, nil
	case colourNever:
		return false, nil
	case colourAuto:
		return terminal && s.variable("NO_COLOR") == "" && s.variable("TERM") != "dumb", nil
	}
	return false, usageError{fmt.Errorf("--color is %q; allowed are %s, %s and %s", mode, colourAuto, colourAlways, colourNever)}
}

// variable is an environment variable, empty if it is not set.
func (s streams) variable(name string) string {
	for _, entry := range slices.Backward(s.environ) {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

// colourJSON colours a JSON text. All that it adds are colours: taken away again,
// the text is what it was.
func colourJSON(text []byte) []byte {
	var b bytes.Buffer
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case c == '"':
			end := stringEnd(text, i)
			colour := green
			if after := bytes.TrimLeft(text[end:], " \t\r\n"); len(after) > 0 && after[0] == ':' {
				colour = cyan
			}
			b.WriteString(colour)
			b.Write(text[i:end])
			b.WriteString(plain)
			i = end
		case c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z':
			end := i + 1
			for end < len(text) && !strings.ContainsRune(",]} \t\r\n", rune(text[end])) {
				end++
			}
			colour := yellow
			if c >= 'a' {
				colour = blue // true, false, null
			}
			b.WriteString(colour)
			b.Write(text[i:end])
			b.WriteString(plain)
			i = end
		default:
			b.WriteByte(c)
			i++
		}
	}
	return b.Bytes()
}

// stringEnd is where the JSON string that begins at i ends.
func stringEnd(text []byte, i int) int {
	for i++; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(text)
}

// tame writes what a terminal would obey, rather than show, as JSON escapes: a
// payload must not move the cursor or change the window's title. The text stays
// the same JSON.
func tame(text []byte) []byte {
	obeyed := func(r rune) bool {
		return r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
	}
	if !bytes.ContainsFunc(text, obeyed) {
		return text
	}
	var b bytes.Buffer
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if obeyed(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.Write(text[:size])
		}
		text = text[size:]
	}
	return b.Bytes()
}
