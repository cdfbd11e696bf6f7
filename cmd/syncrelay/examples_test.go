package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// section is what stands below a heading of a page, of the second level, up to
// the next one; the whole page if the heading is empty.
func section(t testing.TB, page, heading string) string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if heading == "" {
		return string(text)
	}
	_, below, found := strings.Cut(string(text), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("%s has no section %q", page, heading)
	}
	below, _, _ = strings.Cut(below, "\n## ")
	return below
}

// examples are the fenced blocks of a language in a section of a page.
func examples(t testing.TB, page, heading, language string) (blocks []string) {
	t.Helper()
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(section(t, page, heading), -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) == 0 {
		t.Fatalf("%s, %s: there are no examples of %s", page, heading, language)
	}
	return blocks
}
