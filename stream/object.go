package stream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// eachMember calls member for each member of one JSON object. It is stricter
// than encoding/json where leniency lets two readers see two different things:
// names are compared exactly, no name may stand twice, the text must be valid
// UTF-8, and nothing may follow the object. Values are parts of text, which the
// caller may use again. Errors are fit for the sender to see.
func eachMember(text []byte, member func(name string, value json.RawMessage) error) error {
	if !utf8.Valid(text) {
		return errors.New("not valid UTF-8")
	}
	if !json.Valid(text) {
		return notOneValue(text)
	}
	i := skipSpace(text, 0)
	if text[i] != '{' {
		return errors.New("not a JSON object")
	}
	// The text is known to be well formed, so that the ends of its parts are easily
	// found, without decoding them twice.
	var seen names
	for i = skipSpace(text, i+1); text[i] != '}'; i = skipSpace(text, i) {
		if text[i] == ',' {
			i = skipSpace(text, i+1)
		}
		end := endOfText(text, i)
		name, ok := decodeText(text[i:end])
		if !ok {
			return errors.New("not JSON")
		}
		if !seen.add(name) {
			return fmt.Errorf("%s stands twice", quote(name))
		}
		i = skipSpace(text, skipSpace(text, end)+1) // the colon
		end = endOfValue(text, i)
		if err := member(name, text[i:end:end]); err != nil {
			return err
		}
		i = end
	}
	return nil
}

// notOneValue says why a text is not one JSON value.
func notOneValue(text []byte) error {
	var first json.RawMessage
	switch err := json.NewDecoder(bytes.NewReader(text)).Decode(&first); {
	case err != nil:
		return errors.New("not JSON")
	case first[0] != '{':
		return errors.New("not a JSON object")
	default:
		return errors.New("something follows the JSON object")
	}
}

// decodeText is the text that a value of an object is, which eachMember has found to be
// well formed. Most have nothing escaped in them, and are what stands there: to find
// that out costs a thousandth of decoding, which first has a small stack grow.
func decodeText(value json.RawMessage) (s string, ok bool) {
	switch {
	case value[0] != '"':
		return "", false
	case bytes.IndexByte(value, '\\') < 0:
		return string(value[1 : len(value)-1]), true
	}
	return s, json.Unmarshal(value, &s) == nil
}

// names are the names of one object. Most objects are small.
type names struct {
	few  [8]string
	n    int
	many map[string]struct{}
}

// add reports whether the name is a new one.
func (s *names) add(name string) bool {
	if slices.Contains(s.few[:s.n], name) {
		return false
	}
	if s.n < len(s.few) {
		s.few[s.n] = name
		s.n++
		return true
	}
	if s.many == nil {
		s.many = make(map[string]struct{})
	}
	before := len(s.many)
	s.many[name] = struct{}{}
	return len(s.many) > before
}

// skipSpace is the place of the next byte from i on that is no white space of
// JSON's.
func skipSpace(text []byte, i int) int {
	for i < len(text) && (text[i] == ' ' || text[i] == '\t' || text[i] == '\r' || text[i] == '\n') {
		i++
	}
	return i
}

// endOfText is the place behind the text in quotes that begins at i.
func endOfText(text []byte, i int) int {
	for i++; text[i] != '"'; i++ {
		if text[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// endOfValue is the place behind the value that begins at i.
func endOfValue(text []byte, i int) int {
	depth := 0
	for {
		switch text[i] {
		case '"':
			i = endOfText(text, i)
		case '{', '[':
			depth++
			i++
			continue
		case '}', ']':
			depth--
			i++
		case ',', ':', ' ', '\t', '\r', '\n':
			i++
			continue
		default: // a number or a word
			for i < len(text) && strings.IndexByte(",}] \t\r\n", text[i]) < 0 {
				i++
			}
		}
		if depth == 0 {
			return i
		}
	}
}

// quoted is how much of what a stranger sent is repeated to anyone, in bytes.
const quoted = 40

// quote is a stranger's text, cut and safe to put into a log or an answer.
func quote(s string) string {
	if len(s) > quoted {
		s = cut(s, quoted) + "…"
	}
	return strconv.Quote(s)
}

// cut is the first n bytes of s at most, not ending inside a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// describe says what was found where another JSON value was wanted: numbers and
// texts as they are, cut, and of the rest the kind.
func describe(value json.RawMessage) string {
	value = bytes.TrimSpace(value)
	if len(value) == 0 {
		return "missing"
	}
	switch value[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		var s string
		if json.Unmarshal(value, &s) != nil {
			return "a broken text"
		}
		return quote(s)
	default:
		if len(value) > quoted {
			return string(value[:quoted]) + "…"
		}
		return string(value)
	}
}

// wholeNumber is the value of 1 to 16 decimal digits, which is what 2^53 takes.
// A sign, a fraction, an exponent or a space makes it none.
func wholeNumber(s string) (n int64, ok bool) {
	if s == "" || len(s) > 16 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}
