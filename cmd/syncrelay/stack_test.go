package main

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"

	"github.com/syncrelay/syncrelay/configs"
	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
)

// localStack reads docker-compose.yml as the engine does, with all profiles.
func localStack(t testing.TB) *types.Project {
	t.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: top, ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(top, "docker-compose.yml")}}, Environment: types.Mapping{},
	}, loader.WithProfiles([]string{"*"}))
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// ours are the stack's services that run this program.
func ours(stack *types.Project) map[string]types.ServiceConfig {
	found := map[string]types.ServiceConfig{}
	for name, s := range stack.Services {
		if s.Build != nil {
			found[name] = s
		}
	}
	return found
}

// environment is a service's, as a process gets it.
func environment(s types.ServiceConfig) (entries []string) {
	for name, value := range s.Environment {
		entries = append(entries, name+"="+*value)
	}
	return entries
}

// settingsOf are the settings that a service of ours runs with.
func settingsOf(t *testing.T, stack *types.Project, name string) configs.Settings {
	t.Helper()
	settings, err := configs.Load("", environment(stack.Services[name]))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return settings
}

func TestLocalStackRunsTheProgramWithCommandsAndSettingsThatExist(t *testing.T) {
	t.Parallel()
	stack := localStack(t)
	roles, err := os.ReadFile("../../configs/stack/roles.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"migrate", "relay", "demo"} {
		if _, found := ours(stack)[want]; !found {
			t.Errorf("the stack has no service %s", want)
		}
	}
	for name, s := range ours(stack) {
		wantCommand(t, s.Command)
		if check := s.HealthCheck; check != nil && !check.Disable {
			if len(check.Test) < 3 || check.Test[1] != "/syncrelay" {
				t.Errorf("%s: its health is checked by %q", name, check.Test)
			} else {
				wantCommand(t, check.Test[2:])
			}
		}
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: the container may do more than it must: read_only %v, cap_drop %v, security_opt %v", name, s.ReadOnly, s.CapDrop, s.SecurityOpt)
		}
		if same, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil || same.IsDir() {
			t.Errorf("%s: no Dockerfile: %v", name, err)
		}
		settings := settingsOf(t, stack, name)
		if s.Command[0] == "serve" {
			if err := settings.Require("database.url", configs.AnyKey); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if warnings := settings.Warnings(); warnings != nil {
				t.Errorf("%s: %q", name, warnings)
			}
			if timeout := s.StopGracePeriod; timeout == nil || time.Duration(*timeout) <= settings.Drain.Timeout {
				t.Errorf("%s: it is killed after %v, before it has drained", name, timeout)
			}
		}
		u, err := url.Parse(settings.Database.URL.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		database := stack.Services["postgres"]
		if u.Host != "postgres:5432" || u.Path != "/"+*database.Environment["POSTGRES_DB"] {
			t.Errorf("%s: its database is %s%s", name, u.Host, u.Path)
		}
		password, _ := u.User.Password()
		if u.User.Username() == "postgres" {
			if password != *database.Environment["POSTGRES_PASSWORD"] {
				t.Errorf("%s: it has another password than the server", name)
			}
		} else if made := fmt.Sprintf("CREATE ROLE %s LOGIN", u.User.Username()); !strings.Contains(string(roles), made) || !strings.Contains(string(roles), "PASSWORD '"+password+"'") {
			t.Errorf("%s: its role %s is not made with its password", name, u.User.Username())
		}
	}
}

func TestLocalStackMountsWhatExistsAndPublishesToThisMachineOnly(t *testing.T) {
	t.Parallel()
	stack := localStack(t)
	for name, s := range stack.Services {
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeBind {
				if _, found := stack.Volumes[v.Source]; !found {
					t.Errorf("%s: there is no volume %s", name, v.Source)
				}
				continue
			}
			if _, err := os.Stat(v.Source); err != nil || !v.ReadOnly {
				t.Errorf("%s: %s is mounted, read-only %v: %v", name, v.Source, v.ReadOnly, err)
			}
		}
		for _, p := range s.Ports {
			if p.HostIP != "127.0.0.1" || p.Published != fmt.Sprint(p.Target) {
				t.Errorf("%s: port %d is published as %s:%s", name, p.Target, p.HostIP, p.Published)
			}
		}
		if _, tag, _ := strings.Cut(s.Image, ":"); tag == "" || tag == "latest" {
			t.Errorf("%s: the image %s is another one every day", name, s.Image)
		}
		if s.Restart == "" && name != "migrate" {
			t.Errorf("%s: it does not come back after the machine's restart", name)
		}
	}
}

func TestLocalStackScrapesTheRelayAndShowsItsDashboard(t *testing.T) {
	t.Parallel()
	stack := localStack(t)
	relay := settingsOf(t, stack, "relay")
	var prometheus struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName       string                       `yaml:"job_name"`
			StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	readYAML(t, mounted(t, stack, "prometheus", "/etc/prometheus/prometheus.yml"), &prometheus)
	for _, file := range prometheus.RuleFiles {
		mounted(t, stack, "prometheus", "/etc/prometheus/"+file)
	}
	_, ops, err := net.SplitHostPort(relay.Listen.OpsAddress)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(prometheus.ScrapeConfigs); got != "[{syncrelay [{[relay:"+ops+"]}]}]" {
		t.Errorf("Prometheus scrapes %s, and the relay's metrics are at port %s", got, ops)
	}
	if got := stack.Services["relay"].Ports[0].Target; ":"+fmt.Sprint(got) != relay.Listen.Address {
		t.Errorf("port %d of the relay is published, and clients are served at %s", got, relay.Listen.Address)
	}
	var sources struct{ Datasources []struct{ UID, URL string } }
	readYAML(t, mounted(t, stack, "grafana", "/etc/grafana/provisioning/datasources/prometheus.yml"), &sources)
	if want := fmt.Sprintf("http://prometheus:%d", stack.Services["prometheus"].Ports[0].Target); sources.Datasources[0].URL != want {
		t.Errorf("Grafana asks %s, want %s", sources.Datasources[0].URL, want)
	}
	var providers struct {
		Providers []struct{ Options struct{ Path string } }
	}
	readYAML(t, mounted(t, stack, "grafana", "/etc/grafana/provisioning/dashboards/syncrelay.yml"), &providers)
	home := *stack.Services["grafana"].Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	if dir := providers.Providers[0].Options.Path; path.Dir(home) != dir {
		t.Errorf("the dashboards are in %s, and the first page is %s", dir, home)
	}
	mounted(t, stack, "grafana", home)
}

// mounted is the file of the repository that a service sees at a path.
func mounted(t *testing.T, stack *types.Project, service, at string) (file string) {
	t.Helper()
	for _, v := range stack.Services[service].Volumes {
		if below, found := strings.CutPrefix(at, v.Target); found && v.Type == types.VolumeTypeBind && (below == "" || below[0] == '/') {
			file = v.Source + below
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("%s sees nothing at %s: %v", service, at, err)
	}
	return file
}

func readYAML(t testing.TB, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// The stack without an engine: its Postgres with its settings and its roles, and
// its services with their commands and settings, as the image runs them.
func TestLocalStackComesUpAndBringsTheDemosEvents(t *testing.T) {
	t.Parallel()
	stack := localStack(t)
	database := stack.Services["postgres"]
	settings := map[string]string{}
	for _, argument := range database.Command[1:] {
		name, value, found := strings.Cut(strings.TrimPrefix(argument, "--"), "=")
		if !found {
			t.Fatalf("postgres is started with %q, want --name=value", argument)
		}
		settings[name] = value
	}
	server := pgtest.Own(t, localpg.Options{Settings: settings})
	admin, err := pgx.Connect(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(t.Context()) }()
	mustExec(t, admin, `CREATE DATABASE `+*database.Environment["POSTGRES_DB"])
	roles, err := os.ReadFile(mounted(t, stack, "postgres", "/docker-entrypoint-initdb.d/roles.sql"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Exec(t.Context(), string(roles), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	up := func(name string, more ...string) *program {
		s := stack.Services[name]
		environ := environment(s)
		for i := range environ {
			environ[i] = strings.Replace(environ[i], "@postgres:5432/", fmt.Sprintf("@127.0.0.1:%d/", server.Port()), 1)
		}
		return launchCommand(t, contained(t, append(environ, more...), s.Command...))
	}
	migrate := up("migrate")
	if code := migrate.wait(); code != 0 || migrate.err.String() != "" {
		t.Fatalf("migrate ended with %d: %s", code, migrate.err)
	}
	relay := up("relay", "SYNCRELAY_LISTEN_ADDRESS=127.0.0.1:0", "SYNCRELAY_LISTEN_OPS_ADDRESS=:0")
	public, ops := relay.addresses()
	healthy := func() bool {
		check := contained(t, append(environment(stack.Services["relay"]), "SYNCRELAY_LISTEN_OPS_ADDRESS="+ops), stack.Services["relay"].HealthCheck.Test[2:]...)
		return check.Run() == nil
	}
	eventually(t, "the relay is healthy", healthy)
	staff, err := signToken(*stack.Services["relay"].Environment["SYNCRELAY_AUTH_HMAC_SECRET"], tokenClaims{UserID: 1, Role: "admin", Approved: true}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	f := follow(t, overSSE, public, staff, -1)
	up("demo", "SYNCRELAY_LOG_LEVEL=info")
	eventually(t, "the demo's events come", func() bool { return f.count() >= 3 })
	if said := relay.err.String(); strings.Contains(said, `"level":"WARN"`) || strings.Contains(said, `"level":"ERROR"`) {
		t.Errorf("the relay is not content with the stack:\n%s", said)
	}
	if err := relay.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := relay.wait(); code != 0 {
		t.Errorf("the relay ended with %d: %s", code, relay.err)
	}
	if healthy() {
		t.Error("a relay that has ended is called healthy")
	}
}
