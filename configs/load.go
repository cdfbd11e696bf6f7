package configs

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"
	yamlnodes "go.yaml.in/yaml/v3"
)

// source is where a value came from, for messages.
type source struct {
	koanf *koanf.Koanf
	// name of the place of a key.
	name func(path string) string
}

// Load reads the settings: the environment (entries as of os.Environ) over the
// file, if path is not empty, over the defaults. Every mistake is one line of
// the error: it names the key and where it was found, what was found, and what
// is allowed; never a secret.
//
// What a command cannot do without is checked by [Settings.Require].
func Load(path string, environ []string) (Settings, error) {
	var problems []error
	defaults := make(map[string]any)
	for _, k := range keys {
		if k.normal != "" {
			defaults[k.path] = k.normal
		}
	}
	sources := []source{fromMap(defaults, func(string) string { return "the default" })}
	if path != "" {
		file, err := fromFile(path)
		if err != nil {
			return Settings{}, err
		}
		sources = append(sources, file)
		problems = append(problems, unknownInFile(file)...)
	}
	variables, unknown := fromEnvironment(environ)
	sources = append(sources, variables)
	problems = append(problems, unknown...)

	var s Settings
	for _, k := range keys {
		if err := k.load(&s, sources); err != nil {
			problems = append(problems, err)
		}
	}
	if s.Listen.Address == s.Listen.OpsAddress && !strings.HasSuffix(s.Listen.Address, ":0") {
		problems = append(problems, fmt.Errorf("listen.ops_address: found %q, which is listen.address too; allowed is another address", s.Listen.OpsAddress))
	}
	for _, pair := range [][4]string{
		{"listen.tls_cert_file", s.Listen.TLSCertFile, "listen.tls_key_file", s.Listen.TLSKeyFile},
		{"listen.ops_tls_cert_file", s.Listen.OpsTLSCertFile, "listen.ops_tls_key_file", s.Listen.OpsTLSKeyFile},
	} {
		if (pair[1] == "") != (pair[3] == "") {
			problems = append(problems, fmt.Errorf("%s, %s: found one of them; allowed are both or none", pair[0], pair[2]))
		}
	}
	return s, errors.Join(append(problems, s.Auth.Claims.check()...)...)
}

// check finds claims that would mean two things.
func (c Claims) check() (problems []error) {
	meant := map[string]string{}
	for _, name := range []string{"token_type", "exp", "nbf", "iat", "iss", "aud"} {
		meant[name] = "has a meaning of its own"
	}
	for _, claim := range []struct{ path, name string }{
		{"auth.claims.user_id", c.UserID}, {"auth.claims.role", c.Role}, {"auth.claims.cadet_id", c.CadetID}, {"auth.claims.is_approved", c.IsApproved},
	} {
		if other, twice := meant[claim.name]; twice {
			problems = append(problems, fmt.Errorf("%s: found %q, which %s; allowed is another claim", claim.path, cut(claim.name), other))
		}
		meant[claim.name] = "is " + claim.path + " too"
	}
	return problems
}

func fromMap(values map[string]any, name func(string) string) source {
	k := koanf.New(".")
	_ = k.Load(confmap.Provider(values, "."), nil) // a map can't fail to load
	return source{k, name}
}

// fromFile reads a YAML file.
func fromFile(path string) (source, error) {
	text, err := os.ReadFile(path) //nolint:gosec // the operator's own choice
	if err != nil {
		return source{}, fmt.Errorf("read the settings: %w", err)
	}
	var root yamlnodes.Node
	if err := yamlnodes.Unmarshal(text, &root); err != nil {
		return source{}, fmt.Errorf("%s: not YAML: %s", path, oneLine(err))
	}
	k := koanf.New(".")
	if err := k.Load(rawbytes.Provider(text), yaml.Parser()); err != nil {
		return source{}, fmt.Errorf("%s: not a YAML map of settings: %s", path, oneLine(err))
	}
	lines := make(map[string]int)
	if len(root.Content) > 0 {
		locate(root.Content[0], "", lines)
	}
	return source{k, func(key string) string { return fmt.Sprintf("%s:%d", path, lines[key]) }}, nil
}

// locate notes the line of each key below a node.
func locate(node *yamlnodes.Node, prefix string, lines map[string]int) {
	if node.Kind != yamlnodes.MappingNode {
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		path := prefix + node.Content[i].Value
		lines[path] = node.Content[i].Line
		locate(node.Content[i+1], path+".", lines)
	}
}

// oneLine is an error of the YAML library without its repeated prefix.
func oneLine(err error) string {
	text := strings.ReplaceAll(err.Error(), "yaml: ", "")
	return strings.Join(strings.Fields(text), " ")
}

func unknownInFile(file source) (problems []error) {
	for _, found := range file.koanf.Keys() {
		if slices.Contains(known(), found) {
			continue
		}
		if file.koanf.Get(found) == nil && isSection(found) {
			continue // a section with everything in it commented out
		}
		problems = append(problems, fmt.Errorf("%s (%s): unknown key; %s", found, file.name(found), suggest(found, known())))
	}
	return problems
}

func isSection(path string) bool {
	return slices.ContainsFunc(keys, func(k key) bool { return strings.HasPrefix(k.path, path+".") })
}

// known lists every path that may be given.
func known() (paths []string) {
	for _, k := range keys {
		paths = append(paths, k.path)
		if k.secret {
			paths = append(paths, k.path+fileSuffix)
		}
	}
	return paths
}

// testPrefix begins variables that are for the tests and no settings.
const testPrefix = variablePrefix + "TEST_"

// Variables of the commands that are clients of a relay. They are no settings of a
// relay, and may be there when one is started.
const (
	VariableURL       = variablePrefix + "URL"
	VariableToken     = variablePrefix + "TOKEN"
	VariableTokenFile = variablePrefix + "TOKEN_FILE"
)

// serviceVariable matches what Kubernetes puts into the environment of every
// container beside a service whose name is syncrelay.
var serviceVariable = regexp.MustCompile(`^SYNCRELAY_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=|^SYNCRELAY_PORT=(tcp|udp|sctp)://`)

func fromEnvironment(environ []string) (s source, problems []error) {
	paths := make(map[string]string)
	var names []string
	for _, path := range known() {
		paths[variable(path)] = path
		names = append(names, variable(path))
	}
	values := make(map[string]any)
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, variablePrefix) || serviceVariable.MatchString(entry) || strings.HasPrefix(name, testPrefix) || slices.Contains([]string{VariableURL, VariableToken, VariableTokenFile}, name) {
			continue
		}
		if path, ok := paths[name]; ok {
			values[path] = value
		} else {
			problems = append(problems, fmt.Errorf("%s (environment): unknown key; %s", name, suggest(name, names)))
		}
	}
	return fromMap(values, func(path string) string { return "environment " + variable(path) }), problems
}

// suggest names the known key that a text is most like.
func suggest(text string, from []string) string {
	best := Nearest(text, from)
	if best == "" {
		return "allowed are the keys of configs/syncrelay.yaml"
	}
	return "did you mean " + best + "?"
}

// Nearest is the one of several names that somebody may have meant who has written
// another; empty if none is like it.
func Nearest(text string, from []string) string {
	best, least := "", len(text)/2+1
	for _, candidate := range from {
		if d := distance(text, candidate); d < least {
			best, least = candidate, d
		}
	}
	return best
}

// distance is how many characters must be added, removed or replaced to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// load finds the key's value in the sources, the last of which wins, and sets it.
func (k key) load(s *Settings, sources []source) error {
	for _, from := range slices.Backward(sources) {
		value, given := from.value(k.path)
		if k.secret {
			file, alsoGiven := from.value(k.path + fileSuffix)
			if given && alsoGiven {
				return fmt.Errorf("%s (%s): found together with %s; allowed is one of them", k.path, from.name(k.path), k.path+fileSuffix)
			}
			if alsoGiven {
				return k.loadFile(s, file, from.name(k.path+fileSuffix))
			}
		}
		if given {
			return k.check(s, value, from.name(k.path))
		}
	}
	return nil
}

// value is a source's value of a key, as text; lists are joined with commas.
func (s source) value(path string) (text string, given bool) {
	switch v := s.koanf.Get(path).(type) {
	case nil, map[string]any:
		return "", false // nothing, or keys that are unknown and reported as such
	case []any:
		var items []string
		for _, item := range v {
			items = append(items, fmt.Sprint(item))
		}
		return strings.Join(items, ","), true
	default:
		return fmt.Sprint(v), true
	}
}

func (k key) loadFile(s *Settings, path, where string) error {
	text, err := os.ReadFile(path) //nolint:gosec // the operator's own choice
	if err != nil {
		return fmt.Errorf("%s%s (%s): %w", k.path, fileSuffix, where, err)
	}
	value := strings.TrimRight(string(text), "\r\n")
	if value == "" {
		return fmt.Errorf("%s%s (%s): file %s is empty; allowed is %s", k.path, fileSuffix, where, path, k.allowed)
	}
	if err := k.check(s, value, "file "+path); err != nil {
		return err
	}
	if k.from != nil {
		k.from(s, path)
	}
	return nil
}

// check sets a value, or says in one line why not.
func (k key) check(s *Settings, value, where string) error {
	if k.secret && value == "" {
		return fmt.Errorf("%s (%s): found an empty text; allowed is %s", k.path, where, k.allowed)
	}
	if k.set(s, value) == nil {
		return nil
	}
	found := fmt.Sprintf("%q", cut(value))
	if k.secret {
		found = "a text that can't be read as one (it is not shown, for it may hold a password)"
	}
	return fmt.Errorf("%s (%s): found %s; allowed is %s", k.path, where, found, k.allowed)
}

// cut shortens what is shown of a value.
func cut(value string) string {
	const most = 80
	if len(value) > most {
		return value[:most] + "…"
	}
	return value
}

// Require checks that required settings are there. Paths are as in the file;
// [AnyKey] stands for any of the keys that tokens are checked with.
func (s Settings) Require(paths ...string) error {
	var problems []error
	for _, path := range paths {
		also := ""
		missing := map[string]bool{"database.url": s.Database.URL.Empty(), "auth.hmac_secret": s.Auth.HMACSecret.Empty()}[path]
		if path == AnyKey {
			path, also = "auth.hmac_secret", ", or auth.public_key_file, or auth.jwks_url,"
			missing = s.Auth.HMACSecret.Empty() && s.Auth.PublicKeyFile == "" && s.Auth.JWKSURL == ""
		}
		if missing {
			i := slices.IndexFunc(keys, func(k key) bool { return k.path == path })
			problems = append(problems, fmt.Errorf("%s (environment %s): found nothing, and it%s is required; allowed is %s", path, keys[i].environment(), also, keys[i].allowed))
		}
	}
	return errors.Join(problems...)
}

// AnyKey is a required setting that several others can stand for: something that
// tokens are checked with.
const AnyKey = "auth"
