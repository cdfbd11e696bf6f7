package stream

import (
	"embed"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
)

//go:embed console
var consoleFiles embed.FS

// Console is the page that shows, at /, what a relay does: the events that
// somebody is sent, and to the staff how the relay is.
type Console struct {
	// Staff are the roles that may see how the relay is.
	Staff []string
	// People makes tokens for those whom the page may be without having a token, on
	// a machine where everybody may be anybody; nil for nobody.
	People func() ([]Person, error)
}

// Person is somebody whom a page may be.
type Person struct {
	Name  string `json:"name"`
	Role  string `json:"role"`
	Token string `json:"token"`
}

// The addresses of the console, which are there only if it is.
const (
	pathConsole       = "/console/"
	pathConsoleHealth = "/api/console/health"
	pathConsolePeople = "/api/console/people"
)

// console serves the page and what it is made of.
func (s *Server) console(mux *http.ServeMux) {
	page := newAsset(consoleFiles, "console/index.html")
	mux.Handle("/{$}", methods(func(w http.ResponseWriter, r *http.Request) {
		pageHeader(w.Header(), r.Host)
		page.ServeHTTP(w, r)
	}, http.MethodGet, http.MethodHead))
	files, err := consoleFiles.ReadDir("console")
	if err != nil {
		panic(err) // the files are in the program
	}
	for _, file := range files {
		if _, served := contentTypes[path.Ext(file.Name())]; served {
			mux.Handle(pathConsole+file.Name(), methods(newAsset(consoleFiles, "console/"+file.Name()).ServeHTTP, http.MethodGet, http.MethodHead))
		}
	}
	mux.Handle(pathConsoleHealth, methods(s.serveConsoleHealth, http.MethodGet))
	if s.options.Console.People != nil {
		mux.Handle(pathConsolePeople, methods(s.serveConsolePeople, http.MethodGet))
	}
}

// plainHost is a Host header that may stand in a policy.
var plainHost = regexp.MustCompile(`^[A-Za-z0-9.:\[\]-]{1,255}$`)

// pageHeader lets the page load its own files and talk to its own relay, and no
// more: no code in the page itself, none made of texts, nothing from elsewhere. A
// payload that got into the page as HTML could do nothing there.
func pageHeader(h http.Header, host string) {
	connect := "'self'"
	if plainHost.MatchString(host) { // some browsers don't take a WebSocket for the same
		connect += " ws://" + host + " wss://" + host
	}
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src "+connect+
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
}

// serveConsolePeople hands out tokens, to the console itself only. A page of
// another site can't read the answer, unless its name has been made to stand for
// this machine (DNS rebinding): so the host must be an address, or localhost.
func (s *Server) serveConsolePeople(w http.ResponseWriter, r *http.Request) {
	if site := r.Header.Get("Sec-Fetch-Site"); !s.origins.Allow(r) || site != "" && site != "same-origin" || !byAddress(r.Host) {
		s.refuseOrigin(w, r)
		return
	}
	people, err := s.options.Console.People()
	if err != nil {
		s.failed("make tokens for the console", err)
		writeReason(w, r, reasonInternal)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"people": people})
}

// byAddress reports whether a Host header names an address rather than a name.
func byAddress(host string) bool {
	u, err := url.Parse("http://" + host)
	if err != nil {
		return false
	}
	name := u.Hostname()
	if strings.EqualFold(name, "localhost") {
		return true
	}
	_, err = netip.ParseAddr(name)
	return err == nil
}

// staffOnly is the code of the answer to those who are not staff.
const staffOnly = "staff_only"

// serveConsoleHealth tells the staff how the relay is: what its metrics say.
func (s *Server) serveConsoleHealth(w http.ResponseWriter, r *http.Request) {
	if !s.origins.Allow(r) {
		s.refuseOrigin(w, r)
		return
	}
	id, visit, err := s.knockAs(w, r, func() (Identity, error) { return s.authenticate(r.Context(), authorization(r)) })
	defer s.depart(visit)
	if err != nil {
		s.refuseToken(w, r, err, func(string) {})
		return
	}
	if !slices.Contains(s.options.Console.Staff, id.Role) {
		writeError(w, http.StatusForbidden, staffOnly, "only the staff may see how the relay is")
		return
	}
	report, err := s.vitals.report()
	if err != nil {
		s.failed("gather the metrics", err)
		writeReason(w, r, reasonInternal)
		return
	}
	writeJSON(w, http.StatusOK, report)
}
