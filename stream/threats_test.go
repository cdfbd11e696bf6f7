package stream_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestReadmeNamesForEachThreatATestThatThereIs(t *testing.T) {
	t.Parallel()
	there := make(map[string]bool)
	for _, pattern := range []string{"*_test.go", "../relay/*_test.go", "../outbox/*_test.go", "../configs/*_test.go", "../cmd/syncrelay/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllStringSubmatch(string(text), -1) {
				there[m[1]] = true
			}
		}
	}
	_, section, found := strings.Cut(readme(t), "\n## Threats\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := regexp.MustCompile(`(?m)^\| [^-].*\|$`).FindAllString(section, -1)
	if !found || len(rows) < 15 {
		t.Fatalf("the page has a table of %d threats", len(rows)-1)
	}
	for _, row := range rows[1:] {
		names := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(row, -1)
		if len(names) == 0 {
			t.Errorf("no test shows what stops this: %s", row)
		}
		for _, m := range names {
			if !there[m[1]] {
				t.Errorf("there is no %s", m[1])
			}
		}
	}
}
