package stream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

// eachMember calls member for each member of one JSON object. It is stricter
// than encoding/json where leniency lets two readers see two different things:
// names are compared exactly, no name may stand twice, the text must be valid
// UTF-8, and nothing may follow the object. Errors are fit for the sender to see.
func eachMember(text []byte, member func(name string, value json.RawMessage) error) error {
	if !utf8.Valid(text) {
		return errors.New("not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	open, err := dec.Token()
	if err != nil {
		return errors.New("not JSON")
	}
	if open != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	seen := make(map[string]struct{}, 8)
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return errors.New("not JSON")
		}
		name, ok := token.(string)
		if !ok {
			return errors.New("not JSON")
		}
		if _, twice := seen[name]; twice {
			return fmt.Errorf("%s stands twice", quote(name))
		}
		seen[name] = struct{}{}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return errors.New("not JSON")
		}
		if err := member(name, value); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return errors.New("not JSON")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
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
