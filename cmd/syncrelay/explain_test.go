package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// ask asks explain, as a program does.
func (p *product) ask(args ...string) answer {
	p.Helper()
	out := mustRun(p, p.settings(), append([]string{"explain", "--json"}, args...)...)
	var a answer
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		p.Fatalf("%v: %s", err, out)
	}
	return a
}

// identityFlags describes an identity as explain wants it.
func identityFlags(id relay.Identity) []string {
	flags := []string{"--user", fmt.Sprint(id.UserID), "--role", id.Role}
	if id.HasCadet {
		flags = append(flags, "--cadet", fmt.Sprint(id.CadetID))
	}
	return flags
}

// What explain says is what clients are sent: for every kind of audience and of
// user, a real client of a real relay is the judge.
func TestExplainSaysWhatClientsAreSent(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	for _, sql := range []string{
		`cadet_id) VALUES ('a', 17`, `cadet_id) VALUES ('b', 18`, `user_ids) VALUES ('c', '{5}'`, `user_ids) VALUES ('d', '{5,6}'`,
		`roles) VALUES ('e', '{cadet}'`, `roles) VALUES ('f', '{*}'`, `roles) VALUES ('g', '{parent,admin}'`, `payload) VALUES ('h', '{}'`,
		`cadet_id, user_ids) VALUES ('i', 17, '{6}'`, `cadet_id, roles) VALUES ('j', 18, '{parent}'`, `roles) VALUES ('k', '{no such role}'`,
		`user_ids, roles) VALUES ('l', '{}', '{}'`, `user_ids) VALUES ('m', '{NULL}'`, `cadet_id, user_ids, roles) VALUES ('n', 17, '{5}', '{cadet,*}'`,
	} {
		p.exec(`INSERT INTO sync_events (event_type, ` + sql + `)`)
	}
	const events = 14
	people := []relay.Identity{
		{UserID: 1, Role: "admin"}, {UserID: 2, Role: "training_staff"}, {UserID: 5, Role: "cadet", CadetID: 17, HasCadet: true},
		{UserID: 6, Role: "cadet", CadetID: 18, HasCadet: true}, {UserID: 7, Role: "parent"}, {UserID: 8, Role: "admin", CadetID: 18, HasCadet: true},
	}
	eventually(t, "all events", func() bool { return p.daemon.relay.Status().Journaled >= events })
	for _, id := range people {
		token := sign(t, tokenClaims{UserID: id.UserID, Role: id.Role, CadetID: id.CadetID})
		f := follow(t, overSSE, p.address(), token, 0)
		eventually(t, "the replay is complete", func() bool { return f.note("replay_complete") != nil })
		var sent []int64
		for _, m := range f.got() {
			sent = append(sent, m.EventID)
		}
		for event := int64(1); event <= events; event++ {
			for _, flags := range [][]string{identityFlags(id), {"--token", token}} {
				a := p.ask(append(flags, "--event", fmt.Sprint(event))...)
				if a.Sent != slices.Contains(sent, event) || a.Reason == "" || len(a.Notes) > 0 {
					t.Errorf("%+v and event %d: sent is %t (%s), and the client was sent %v; notes %q", id, event, a.Sent, a.Reason, sent, a.Notes)
				}
			}
		}
	}
}

func TestExplainSaysWhyAndWhyNot(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	// An adopted table can hold what a table of our own refuses.
	p.exec(`ALTER TABLE sync_events DROP CONSTRAINT event_type_must_not_be_empty_or_a_word_of_the_protocol`)
	p.start()
	p.exec(`SELECT broadcast_grade_update(17, '{}')`)
	p.exec(`INSERT INTO sync_events (event_type, user_ids) VALUES ('session_revoked', '{5,6}')`)
	p.exec(`INSERT INTO sync_events (event_type) VALUES ('pong')`)
	p.exec(`INSERT INTO sync_events (event_type) VALUES ('gone'), ('changed')`)
	eventually(t, "all events", func() bool { return p.daemon.relay.Status().Journaled >= 5 })
	p.exec(`DELETE FROM sync_events WHERE event_type = 'gone'`)
	p.exec(`UPDATE sync_events SET roles = '{*}' WHERE event_type = 'changed'`)
	tx, err := p.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO sync_events (event_type) VALUES ('never')`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	cadet17, cadet18, admin := []string{"--user", "5", "--role", "cadet", "--cadet", "17"}, []string{"--user", "6", "--role", "cadet", "--cadet", "18"}, []string{"--user", "1", "--role", "admin"}
	bad := []string{"--token", "a.b"}
	unapproved := []string{"--token", strings.TrimSpace(mustRun(t, p.settings(), "token", "--user", "5", "--role", "cadet", "--approved=false"))}
	for _, c := range []struct {
		who    []string
		what   []string
		why    string
		reason string
	}{
		{cadet17, []string{"--event", "1"}, whyCadet, "it is about cadet 17, who this user is"},
		{cadet18, []string{"--event", "1"}, whyOthers, "it is about cadet 17, and this user is cadet 18; the staff are those with the roles admin, training_staff (auth.staff_roles), and this user's is cadet"},
		{admin, []string{"--event", "1"}, whyStaff, "what is about a cadet is for the staff too: the role admin is one of auth.staff_roles (admin, training_staff)"},
		{admin, []string{"--event", "2"}, whyRevocation, "is sent to nobody: it ends the connections of the users 5, 6"},
		{admin, []string{"--event", "3"}, whyReserved, `its event_type is "pong"`},
		{admin, []string{"--event", "4"}, whyRowGone, "was deleted from the table by somebody else"},
		{cadet17, []string{"--event", "5"}, whyOthers, "it names no cadet, users or roles, and then is for the staff only"},
		{cadet17, []string{"--event", "6"}, whyNotYet, "the newest is 5"},
		{bad, []string{"--event", "1"}, whyRefused, "this user is not let in: invalid token"},
		{unapproved, []string{"--event", "1"}, whyRefused, "this user is not let in: user not approved"},
		{admin, []string{"--row", "1"}, whyStaff, "it is about cadet 17"},
		{admin, []string{"--row", "6"}, whyNoRow, "its transaction was rolled back or has not committed yet"},
		{admin, []string{"--row", "1000"}, whyNoRow, "no such row yet: the newest id that was given is 6"},
	} {
		a := p.ask(append(c.what, c.who...)...)
		if a.Why != c.why || !strings.Contains(a.Reason, c.reason) {
			t.Errorf("%v %v: %s, %s; want %s, %s", c.what, c.who, a.Why, a.Reason, c.why, c.reason)
		}
	}
	if a := p.ask(append(cadet17, "--event", "5")...); len(a.Notes) != 1 || !strings.Contains(a.Notes[0], "the row was changed after it was relayed") || !strings.Contains(a.Notes[0], "role_*") {
		t.Errorf("the notes are %q", a.Notes)
	}
	for _, line := range []string{`event     event 1, row 1, type "grade_update", written `, "for       cadet_17, staff\n", "user      6, in user_6, role_cadet, role_*, cadet_18\n", "not sent  it is about cadet 17"} {
		if text := mustRun(t, p.settings(), append([]string{"explain", "--event", "1"}, cadet18...)...); !strings.Contains(text, line) {
			t.Errorf("for people it says\n%swant %q in it", text, line)
		}
	}

	// Rows that no relay has come to, that were never committed, and events that
	// are no more.
	p.stop()
	p.exec(`INSERT INTO sync_events (event_type, created_at) VALUES ('late', now() - interval '1 hour')`)
	var id string
	if err := p.pool.QueryRow(t.Context(), `SELECT max(id)::text FROM sync_events`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	if a := p.ask(append(admin, "--row", id)...); a.Why != whyWaiting || !strings.Contains(a.Reason, "No relay streams now") {
		t.Errorf("a row that waits: %+v", a)
	}
	if a := p.ask(append(cadet17, "--row", id)...); a.Why != whyOthers {
		t.Errorf("a row that waits, for somebody else: %+v", a)
	}
	p.start("SYNCRELAY_RETENTION_WINDOW=30m", "SYNCRELAY_RETENTION_INTERVAL=100ms")
	eventually(t, "retention has deleted the last row", func() bool { return p.text(`SELECT count(*)::text FROM sync_events WHERE event_type = 'late'`) == "0" })
	if a := p.ask(append(admin, "--event", "6")...); a.Why != whyDeleted || !strings.Contains(a.Reason, "past retention") {
		t.Errorf("an event past retention: %+v", a)
	}
	p.exec(`UPDATE syncrelay.state SET deleted_event_id = 0`)
	if a := p.ask(append(admin, "--event", "6")...); a.Why != whyNever {
		t.Errorf("an ID that was never given: %+v", a)
	}
}

func TestExplainAsksTheDatabaseWhoUsersAre(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	p.exec(`CREATE TABLE people (id bigint, role text, cadet_id bigint, is_approved boolean); GRANT SELECT ON people TO syncrelay_relay;
		INSERT INTO people VALUES (5, 'cadet', 17, true), (6, 'cadet', 18, false), (7, 'a b', NULL, true)`)
	database := []string{"SYNCRELAY_AUTH_IDENTITY=database", "SYNCRELAY_AUTH_IDENTITY_QUERY=SELECT * FROM people WHERE id = ANY ($1)"}
	p.start(database...)
	p.exec(`SELECT broadcast_grade_update(17, '{}')`)
	eventually(t, "the event", func() bool { return p.daemon.relay.Status().Journaled >= 1 })
	token := sign(t, tokenClaims{UserID: 5, Role: "admin"}) // whose role does not count
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--user", "5"}, "sent      it is about cadet 17, who this user is"},
		{[]string{"--token", token}, "sent      it is about cadet 17, who this user is"},
		{[]string{"--user", "6"}, "not sent  this user is not let in: user not approved"},
		{[]string{"--user", "7"}, "not sent  this user is not let in: user not known here: "},
		{[]string{"--user", "8"}, "not sent  this user is not let in: user not known here\n"},
	} {
		if text := mustRun(t, append(p.settings(), database...), append([]string{"explain", "--event", "1"}, c.args...)...); !strings.Contains(text, c.want) {
			t.Errorf("%v: got\n%swant %s", c.args, text, c.want)
		}
	}
}

func TestExplainRefusesWhatItCannotAnswer(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--user", "1", "--role", "admin"}, 2, "none of --event and --row"},
		{[]string{"--event", "1", "--row", "1", "--user", "1", "--role", "admin"}, 2, "--event and --row"},
		{[]string{"--event", "0", "--user", "1", "--role", "admin"}, 2, "--event is 0"},
		{[]string{"--event", "1"}, 2, "none of --token"},
		{[]string{"--event", "1", "--user", "1"}, 2, "--role is missing"},
		{[]string{"--event", "1", "--user", "1", "--role", "a b"}, 2, `--role is "a b"`},
		{[]string{"--event", "1", "--user", "1", "--token", "x"}, 2, "several"},
	} {
		var out, errs output
		if code := run(t.Context(), append([]string{"explain"}, c.args...), streams{&out, &errs, p.settings()}); code != c.code || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%v: exit code %d, said %q; want %d and %q", c.args, code, errs.String(), c.code, c.want)
		}
	}
	begun := time.Now()
	var out, errs output
	code := run(t.Context(), []string{"explain", "--event", "1", "--user", "1", "--role", "admin"}, streams{&out, &errs, []string{"SYNCRELAY_DATABASE_URL=postgres://u:hunter2@127.0.0.1:1/x"}})
	if code != 1 || !strings.Contains(errs.String(), "can't be reached") || strings.Contains(errs.String(), "hunter2") || time.Since(begun) > 20*time.Second {
		t.Errorf("without a database: exit code %d, said %q", code, errs.String())
	}
}
