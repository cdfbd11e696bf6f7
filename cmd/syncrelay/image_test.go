package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

const dockerfile = "../../configs/Dockerfile"

// stage is the instructions of a stage of the Dockerfile, by their names.
type stage map[string][]*parser.Node

// stages are the stages of the Dockerfile, in their order.
func stages(t testing.TB) []stage {
	t.Helper()
	f, err := os.Open(dockerfile)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	parsed, err := parser.Parse(f)
	if err != nil {
		t.Fatalf("%s: %v", dockerfile, err)
	}
	for _, w := range parsed.Warnings {
		t.Errorf("%s: %s", dockerfile, w.Short)
	}
	var all []stage
	for _, n := range parsed.AST.Children {
		name := strings.ToUpper(n.Value)
		if name == "FROM" {
			all = append(all, stage{})
		}
		all[len(all)-1][name] = append(all[len(all)-1][name], n)
	}
	return all
}

// words are an instruction's arguments.
func words(n *parser.Node) (list []string) {
	for n = n.Next; n != nil; n = n.Next {
		list = append(list, n.Value)
	}
	return list
}

// builtImage is the program as the image has it, built once for all tests.
var builtImage struct {
	sync.Mutex
	dir string
}

// Of the program as the image's build would stamp it.
const imageVersion, imageCommit = "v9.8.7", "0123abc"

// imageBinary builds the program with the very command of the Dockerfile.
func imageBinary(t testing.TB) (path string) {
	t.Helper()
	builtImage.Lock()
	defer builtImage.Unlock()
	if builtImage.dir == "" {
		dir, err := os.MkdirTemp("", "syncrelay-image-")
		if err != nil {
			t.Fatal(err)
		}
		builtImage.dir = dir
		runs := stages(t)[0]["RUN"]
		command := strings.Join(words(runs[len(runs)-1]), " ")
		if !strings.Contains(command, "-o /out/syncrelay") {
			t.Fatalf("the last command of the build does not make /out/syncrelay: %s", command)
		}
		build := exec.Command("sh", "-c", strings.ReplaceAll(command, "/out/", dir+"/"))
		build.Dir = "../.."
		build.Env = append(os.Environ(), "TARGETOS="+runtime.GOOS, "TARGETARCH="+runtime.GOARCH, "VERSION="+imageVersion, "COMMIT="+imageCommit)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	return filepath.Join(builtImage.dir, "syncrelay")
}

func removeImage() {
	builtImage.Lock()
	defer builtImage.Unlock()
	if builtImage.dir != "" {
		_ = os.RemoveAll(builtImage.dir)
	}
}

func TestImageHoldsOneStaticProgramThatRunsAsNobody(t *testing.T) {
	t.Parallel()
	all := stages(t)
	image := all[len(all)-1]
	if from := words(image["FROM"][0]); !slices.Equal(from, []string{"scratch"}) {
		t.Errorf("the image is made from %q, want scratch", from)
	}
	copied := map[string]bool{}
	for _, c := range image["COPY"] {
		if !slices.Equal(c.Flags, []string{"--from=build"}) {
			t.Errorf("%s copies from somewhere else than the build", c.Original)
		}
		w := words(c)
		copied[w[len(w)-1]] = true
	}
	if len(copied) != 2 || !copied["/syncrelay"] || !copied["/etc/ssl/certs/ca-certificates.crt"] {
		t.Errorf("the image holds %v, want the program and the certificates", copied)
	}
	if user := words(image["USER"][0]); !slices.Equal(user, []string{"65532:65532"}) {
		t.Errorf("the image runs as %q: want a number, which an orchestrator can tell from root's", user)
	}
	for _, instruction := range []string{"ENTRYPOINT", "CMD", "HEALTHCHECK"} {
		if len(image[instruction]) != 1 {
			t.Fatalf("the image has %d %s, want 1", len(image[instruction]), instruction)
		}
	}
	if entry := words(image["ENTRYPOINT"][0]); !slices.Equal(entry, []string{"/syncrelay"}) {
		t.Errorf("the entrypoint is %q", entry)
	}
	wantCommand(t, words(image["CMD"][0]))
	check := words(image["HEALTHCHECK"][0])
	if check[0] != "CMD" || check[1] != "/syncrelay" {
		t.Fatalf("the health is checked by %q", check)
	}
	wantCommand(t, check[2:])

	if runtime.GOOS == "linux" {
		program, err := elf.Open(imageBinary(t))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = program.Close() }()
		for _, part := range program.Progs {
			if part.Type == elf.PT_INTERP || part.Type == elf.PT_DYNAMIC {
				t.Errorf("the program is not static: it has a part of type %s", part.Type)
			}
		}
	}
	out, err := exec.Command(imageBinary(t), "version").Output()
	if want := "syncrelay " + imageVersion + ", commit " + imageCommit + ", " + runtime.Version() + "\n"; err != nil || string(out) != want {
		t.Errorf("version prints %q, %v, want %q", out, err, want)
	}
}

// wantCommand fails if a command line is none of syncrelay's.
func wantCommand(t *testing.T, args []string) {
	t.Helper()
	root := newRoot(streams{out: t.Output(), err: t.Output()})
	root.InitDefaultCompletionCmd()
	cmd, rest, err := root.Find(args)
	if err != nil || !cmd.HasParent() {
		t.Errorf("syncrelay %s: no such command: %v", strings.Join(args, " "), err)
		return
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Errorf("syncrelay %s: %v", strings.Join(args, " "), err)
	}
}

func TestImageIsBuiltFromWhatTheProgramNeedsAndNothingElse(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(dockerfile + ".dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	let := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if name, found := strings.CutPrefix(strings.TrimSpace(line), "!"); found {
			let[name] = true
		}
	}
	want := map[string]bool{"go.mod": true, "go.sum": true}
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.Dir}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for dir := range strings.Lines(string(out)) {
		if inside, found := strings.CutPrefix(strings.TrimSpace(dir), top+string(filepath.Separator)); found {
			first, _, _ := strings.Cut(filepath.ToSlash(inside), "/")
			want[first] = true
		}
	}
	for name := range want {
		if !let[name] {
			t.Errorf("%s is needed and is not let into the build", name)
		}
	}
	for name := range let {
		if !want[name] {
			t.Errorf("%s is let into the build and is not needed", name)
		}
	}
}
