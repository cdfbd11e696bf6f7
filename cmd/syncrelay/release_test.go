package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// release is what .goreleaser.yaml says, as far as this release uses it. A key that
// is not here is a mistake, or wants to be looked at.
type release struct {
	Version     int
	ProjectName string `yaml:"project_name"`
	Before      struct{ Hooks []string }
	Builds      []struct {
		ID, Main, Binary  string
		Env, Goos, Goarch []string
		Flags, Ldflags    []string
		ModTimestamp      string `yaml:"mod_timestamp"`
	}
	Archives []struct {
		ID              string
		Formats         []string
		FormatOverrides []struct {
			Goos    string
			Formats []string
		} `yaml:"format_overrides"`
		NameTemplate    string `yaml:"name_template"`
		WrapInDirectory bool   `yaml:"wrap_in_directory"`
		Files           []yaml.Node
	}
	Checksum struct {
		NameTemplate string `yaml:"name_template"`
		Algorithm    string
	}
	Sboms    []struct{ ID, Artifacts string }
	Snapshot struct {
		VersionTemplate string `yaml:"version_template"`
	}
	Changelog struct{ Disable bool }
	Release   struct {
		Github     struct{ Owner, Name string }
		Draft      bool
		Prerelease string
	}
}

func readRelease(t testing.TB) (r release) {
	t.Helper()
	text, err := os.ReadFile("../../.goreleaser.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReleaseBuildsAProgramThatKnowsItsVersion(t *testing.T) {
	t.Parallel()
	b := readRelease(t).Builds[0]
	for _, system := range []string{"linux", "darwin", "windows"} {
		if !slices.Contains(b.Goos, system) {
			t.Errorf("nothing is built for %s", system)
		}
	}
	values := strings.NewReplacer("{{ .Version }}", "1.2.3", "{{ .FullCommit }}", "0123abc")
	path := filepath.Join(t.TempDir(), b.Binary)
	args := slices.Concat([]string{"build", "-o", path}, b.Flags, []string{"-ldflags", values.Replace(strings.Join(b.Ldflags, " "))}, []string{b.Main})
	build := exec.Command("go", args...)
	build.Dir, build.Env = "../..", append(os.Environ(), b.Env...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go %q: %v: %s", args, err, out)
	}
	out, err := exec.Command(path, "version", "--json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var got thisProgram
	if err := json.Unmarshal(out, &got); err != nil || got != (thisProgram{"v1.2.3", "0123abc", runtime.Version()}) {
		t.Errorf("it is %+v, %v", got, err)
	}
}

// thisProgram is what version --json prints.
type thisProgram struct{ Version, Commit, Go string }

func TestReleaseCarriesFilesThatExist(t *testing.T) {
	t.Parallel()
	r := readRelease(t)
	var sources []string
	for _, node := range r.Archives[0].Files {
		if node.Kind == yaml.ScalarNode {
			sources = append(sources, node.Value)
			continue
		}
		var file struct{ Src, Dst string }
		if err := node.Decode(&file); err != nil {
			t.Fatal(err)
		}
		sources = append(sources, file.Src)
	}
	for _, source := range sources {
		if found, err := filepath.Glob("../../" + source); err != nil || len(found) == 0 {
			t.Errorf("the archives shall carry %s, and there is no such file", source)
		}
	}
	if r.Checksum.Algorithm != "sha256" || len(r.Sboms) != 1 || r.Sboms[0].Artifacts != "archive" {
		t.Errorf("checksums are %q, lists of what archives are made of %+v", r.Checksum.Algorithm, r.Sboms)
	}
	var workflow struct {
		Jobs map[string]struct {
			Steps []struct {
				Uses string
				With map[string]any
			}
		}
	}
	readYAML(t, "../../.github/workflows/release.yml", &workflow)
	uses := map[string]map[string]any{}
	for _, job := range workflow.Jobs {
		for _, step := range job.Steps {
			name, _, _ := strings.Cut(step.Uses, "@")
			uses[name] = step.With
		}
	}
	if _, found := uses["goreleaser/goreleaser-action"]; !found {
		t.Error("nobody makes the archives")
	}
	if image := uses["docker/build-push-action"]; image["file"] != "configs/Dockerfile" || image["sbom"] != true {
		t.Errorf("the image is built with %v", image)
	}
}

func TestChangelogIsKept(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../.github/CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	versions := regexp.MustCompile(`(?m)^## \[(.*?)\](?: - \d{4}-\d{2}-\d{2})?$`).FindAllStringSubmatch(string(text), -1)
	if len(versions) == 0 || versions[0][1] != "Unreleased" {
		t.Fatalf("the versions are %q, want Unreleased first", versions)
	}
	for _, v := range versions {
		if !strings.Contains(string(text), "\n["+v[1]+"]: https://") {
			t.Errorf("%s leads nowhere", v[1])
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^### (.*)$`).FindAllStringSubmatch(string(text), -1) {
		if !slices.Contains([]string{"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}, m[1]) {
			t.Errorf("%q is no kind of change", m[1])
		}
	}
}
