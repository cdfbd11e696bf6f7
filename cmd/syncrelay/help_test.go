package main

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// commands are all commands that this program has of its own.
func commands(t *testing.T) []*cobra.Command {
	t.Helper()
	root := newRoot(streams{&output{}, &output{}, nil})
	return append(root.Commands(), root)
}

// invocation is a use of this program in a text for people.
var invocation = regexp.MustCompile("(?m)(?:^|[ (`])syncrelay ([a-z]+)((?: [^|&;$\\n#\"`)]*)?)")

// checkUses fails where a text uses a command or a flag that there is not.
func checkUses(t *testing.T, where, text string) (uses int) {
	t.Helper()
	for _, m := range invocation.FindAllStringSubmatch(text, -1) {
		root := newRoot(streams{&output{}, &output{}, nil})
		root.InitDefaultCompletionCmd()
		cmd, _, err := root.Find([]string{m[1]})
		if err != nil || cmd == root {
			t.Errorf("%s uses the command %q, which there is not", where, m[1])
			continue
		}
		uses++
		cmd.InitDefaultHelpFlag()
		for _, word := range strings.Fields(m[2]) {
			if name, ok := strings.CutPrefix(word, "--"); ok {
				name, _, _ = strings.Cut(name, "=")
				if cmd.Flags().Lookup(strings.TrimRight(name, ".,")) == nil {
					t.Errorf("%s uses %s of the command %s, which there is not", where, word, m[1])
				}
			}
		}
	}
	return uses
}

func TestEveryCommandExplainsItselfWithExamplesThatAreRight(t *testing.T) {
	t.Parallel()
	for _, cmd := range commands(t) {
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s lacks a summary, an explanation or an example", cmd.Name())
		}
		if checkUses(t, "the help of "+cmd.Name(), cmd.Example) == 0 {
			t.Errorf("the examples of %s use no command:\n%s", cmd.Name(), cmd.Example)
		}
		for line := range strings.Lines(cmd.Long) {
			if len([]rune(line)) > 90 {
				t.Errorf("%s: %q is too long for a terminal", cmd.Name(), line)
			}
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s does not say what --%s does", cmd.Name(), f.Name)
			}
		})
	}
}

func TestWhatWasMeantIsNamed(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"serv":                  `unknown command or argument "serv", did you mean serve?; see syncrelay --help`,
		"exlpain":               `did you mean explain?`,
		"xyzzy":                 `unknown command or argument "xyzzy"; see syncrelay --help`,
		"tail --cout 5":         `unknown flag: --cout, did you mean --count?; see syncrelay tail --help`,
		"serve --conifg x":      `did you mean --config?`,
		"tail --xyzzyxyzzy":     `unknown flag: --xyzzyxyzzy; see syncrelay tail --help`,
		"tail --count many":     `invalid argument "many" for "--count" flag`,
		"doctor --watch 5s now": `unknown command or argument "now"; see syncrelay doctor --help`,
	} {
		var out, errs output
		code := run(t.Context(), strings.Fields(line), streams{&out, &errs, nil})
		if code != exitUsage || !strings.Contains(errs.String(), want) || out.String() != "" {
			t.Errorf("%s: exit code %d, said %q; want %d and %q", line, code, errs.String(), exitUsage, want)
		}
	}
}

func TestShellsCompleteCommandsFlagsAndValues(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"t|":                       "tail token :4",
		"token --ro|":              "--role :4",
		"token --role |":           "admin training_staff cadet :4",
		"explain --role |":         "admin training_staff cadet :4",
		"tail --color |":           "auto always never :4",
		"tail --type |":            strings.Join(usualTypes, " ") + " :4",
		"serve --config |":         "yaml yml :8",
		"doctor --watch |":         ":4",
		"dev --data |":             ":16", // directories
		"tail --token-file |":      ":0",  // files
		"doctor |":                 ":4",
		"explain --event 5 --use|": "--user :4",
	} {
		args := strings.Split(strings.TrimSuffix(line, "|"), " ")
		text := mustRun(t, nil, append([]string{"__complete"}, args...)...)
		var got []string
		for line := range strings.Lines(text) {
			value, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			got = append(got, value)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s completes to %q, want %q", line, got, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		script := mustRun(t, nil, "completion", shell)
		if !strings.Contains(script, "__complete") {
			t.Errorf("the script for %s is %.200s", shell, script)
		}
		if path, err := exec.LookPath(shell); err == nil && shell != "powershell" {
			check := exec.Command(path, "-n")
			check.Stdin = strings.NewReader(script)
			if said, err := check.CombinedOutput(); err != nil {
				t.Errorf("%s finds a mistake in its script: %v: %s", shell, err, said)
			}
		}
	}
}
