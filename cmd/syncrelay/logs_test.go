package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What an operator can look for in the log is listed in configs/README.md, by the
// messages and keys that stand in the code.
func TestReadmeListsEveryLineOfTheLog(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../configs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## The log\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var listed []string
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, " | "); len(cells) == 4 && strings.HasPrefix(cells[0], "| `") {
			listed = append(listed, strings.TrimPrefix(strings.Join(cells[:3], " | "), "| "))
		}
	}
	want := logLines(t, "../../cmd", "../../relay", "../../outbox", "../../stream")
	for _, line := range want {
		if !slices.Contains(listed, line) {
			t.Errorf("the table of the log lacks\n| %s | … |", line)
		}
	}
	for _, line := range listed {
		if !slices.Contains(want, line) {
			t.Errorf("the table of the log has, and the code has not:\n| %s |", line)
		}
	}
}

// logLines are the calls of a logger above debug in some folders: level, message
// and keys, as cells of the table.
func logLines(t *testing.T, folders ...string) (lines []string) {
	t.Helper()
	for _, folder := range folders {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					if line, ok := logLine(call); ok && !slices.Contains(lines, line) {
						lines = append(lines, line)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return lines
}

func logLine(call *ast.CallExpr) (line string, ok bool) {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Info", "Warn", "Error"}, method.Sel.Name) || !strings.HasSuffix(strings.ToLower(lastName(method.X)), "logger") {
		return "", false
	}
	var keys []string
	for i := 1; i < len(call.Args); i++ {
		if attr, isAttr := call.Args[i].(*ast.CallExpr); isAttr && len(attr.Args) == 2 { // an attribute of slog
			keys = append(keys, "`"+literal(attr.Args[0])+"`")
			continue
		}
		if call.Ellipsis.IsValid() { // others, as they come
			break
		}
		keys = append(keys, "`"+literal(call.Args[i])+"`")
		i++ // its value
	}
	return strings.Join([]string{"`" + literal(call.Args[0]) + "`", strings.ToUpper(method.Sel.Name), strings.Join(keys, ", ")}, " | "), true
}

func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// literal is a literal's text; what is added to one is …
func literal(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(e.Value); err == nil {
			return s
		}
	case *ast.BinaryExpr:
		return literal(e.X) + literal(e.Y)
	}
	return "…"
}
