package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
)

// Values of an answer's Why: the rule by which an event is sent, or what keeps it
// from being sent. They are for programs, and stay.
const (
	whyCadet    = "cadet"
	whyStaff    = "staff"
	whyUser     = "user"
	whyRole     = "role"
	whyEveryone = "everyone"

	whyRefused     = "not_let_in"
	whyOthers      = "for_others"
	whyReserved    = "reserved_type"
	whyRevocation  = "revocation"
	whyUnreadable  = "unreadable"
	whyRowGone     = "row_deleted"
	whyDeleted     = "past_retention"
	whyNotYet      = "not_assigned_yet"
	whyNever       = "never_assigned"
	whyWaiting     = "not_journaled_yet"
	whyNoRow       = "no_such_row"
	whyOtherReason = "not_replayed"
)

// answer is what explain says of one event.
type answer struct {
	Sent   bool   `json:"sent"`
	Why    string `json:"why"`
	Reason string `json:"reason"` // for people

	EventID   int64      `json:"event_id,omitempty"`
	RowID     int64      `json:"row_id,omitempty"`
	EventType string     `json:"event_type,omitempty"`
	CreatedAt *time.Time `json:"created_at,omitempty"`
	// For is the groups that the event is for, In those that the user is in.
	For []string `json:"for,omitempty"`
	In  []string `json:"in,omitempty"`

	UserID  int64    `json:"user_id,omitempty"`
	Role    string   `json:"role,omitempty"`
	CadetID int64    `json:"cadet_id,omitempty"`
	Notes   []string `json:"notes,omitempty"`
}

// lines is the answer for people.
func (a answer) lines() (lines []string) {
	if a.EventID != 0 || a.RowID != 0 {
		var parts []string
		if a.EventID != 0 {
			parts = append(parts, "event "+number(a.EventID))
		}
		if a.RowID != 0 {
			parts = append(parts, "row "+number(a.RowID))
		}
		if a.EventType != "" {
			parts = append(parts, fmt.Sprintf("type %q", a.EventType))
		}
		if a.CreatedAt != nil {
			parts = append(parts, "written "+a.CreatedAt.UTC().Format(time.RFC3339))
		}
		lines = append(lines, "event     "+strings.Join(parts, ", "))
	}
	if len(a.For) > 0 {
		lines = append(lines, "for       "+strings.Join(a.For, ", "))
	}
	if a.UserID != 0 {
		lines = append(lines, fmt.Sprintf("user      %d, in %s", a.UserID, strings.Join(a.In, ", ")))
	}
	verdict := "not sent  "
	if a.Sent {
		verdict = "sent      "
	}
	lines = append(lines, verdict+a.Reason)
	for _, note := range a.Notes {
		lines = append(lines, "note      "+note)
	}
	return lines
}

// explanation decides about one user.
type explanation struct {
	journal    *outbox.Journal
	who        somebody
	staffRoles []string
}

// event explains an event by its ID.
func (c *explanation) event(ctx context.Context, id int64) (answer, error) {
	records, at, err := c.journal.TraceEvent(ctx, id)
	if err != nil {
		return answer{}, err
	}
	if len(records) == 1 {
		return c.judge(ctx, &records[0], at)
	}
	a := c.about()
	a.EventID = id
	switch {
	case id > at.LastID:
		a.Why, a.Reason = whyNotYet, fmt.Sprintf("no event has been given this ID yet: the newest is %d", at.LastID)
	case id <= at.Deleted:
		a.Why, a.Reason = whyDeleted, fmt.Sprintf("it is past retention, or was never there: events up to %d have been deleted, as old as retention.window", at.Deleted)
	default:
		a.Why, a.Reason = whyNever, "no event was ever given this ID: the numbers jump when the database's server is started anew"
	}
	return a, nil
}

// row explains what has become of a row by its id.
func (c *explanation) row(ctx context.Context, id int64) ([]answer, error) {
	records, at, err := c.journal.TraceRow(ctx, id)
	if err != nil {
		return nil, err
	}
	var answers []answer
	for i := range records {
		a, err := c.judge(ctx, &records[i], at)
		if err != nil {
			return nil, err
		}
		answers = append(answers, a)
	}
	if len(answers) > 0 {
		return answers, nil
	}
	a := c.about()
	a.RowID, a.Why = id, whyNoRow
	a.Reason = "there is no such row: its transaction was rolled back or has not committed yet, the row was deleted before it was relayed, or it is past retention (retention.window)"
	if at.LastRowID != 0 && id > at.LastRowID {
		a.Reason = fmt.Sprintf("there is no such row yet: the newest id that was given is %d", at.LastRowID)
	}
	return []answer{a}, nil
}

// about begins an answer with who it is about.
func (c *explanation) about() answer {
	a := answer{UserID: c.who.UserID, Role: c.who.Role, CadetID: c.who.CadetID}
	if c.who.refused == "" {
		a.In = texts(c.who.Groups(c.staffRoles))
	}
	return a
}

// judge decides whether the event of a record is sent to the user.
func (c *explanation) judge(ctx context.Context, r *outbox.Record, at outbox.Standing) (answer, error) {
	a := c.about()
	a.EventID, a.RowID, a.CreatedAt = r.EventID, r.RowID, &r.CreatedAt
	groups := r.Groups
	if r.Event != nil {
		a.EventType = r.Event.Type
		if r.EventID == 0 {
			groups = r.Event.Groups() // as it will be journaled
		}
	}
	a.For = texts(groups)
	if r.EventID != 0 && r.EventID <= at.EpochAfter {
		a.Notes = append(a.Notes, fmt.Sprintf("the event is of an earlier epoch than %s: who resumes from before it is told to refetch", at.Epoch))
	}
	shared := relay.Shared(groups, c.who.Groups(c.staffRoles))
	switch {
	case c.who.refused != "":
		a.Why, a.Reason = whyRefused, "this user is not let in: "+c.who.refused
	case r.Event == nil:
		a.Why, a.Reason = whyRowGone, "its row was deleted from the table by somebody else than retention: who was connected then may have been sent it, a replay can't be"
	case r.Event.Type == relay.TypeSessionRevoked:
		a.Why, a.Reason = whyRevocation, fmt.Sprintf("an event of type %s is sent to nobody: it ends the connections of the users %s", relay.TypeSessionRevoked, joined(r.Row.UserIDs))
	case relay.ReservedType(r.Event.Type):
		a.Why, a.Reason = whyReserved, fmt.Sprintf("its event_type is %q, which is empty or a word of the protocol itself: such a row is sent to nobody", r.Event.Type)
	case len(groups) == 0 && len(r.Event.Groups()) > 0:
		a.Why, a.Reason = whyUnreadable, "it is kept for nobody, although the row names an audience now: the relay could not read the row when it came, or the row was changed later"
	case len(shared) == 0:
		a.Why, a.Reason = whyOthers, c.others(groups, &r.Row)
	case r.EventID == 0:
		a.Why, a.Reason = whyWaiting, c.waiting(at)
	default:
		a.Sent = true
		a.Why, a.Reason = c.rule(shared[0], &r.Row)
	}
	if r.Event != nil && r.EventID != 0 && len(r.Event.Groups()) > 0 && !sameGroups(groups, r.Event.Groups()) {
		a.Notes = append(a.Notes, "the row was changed after it was relayed, and that does not count: now it would be for "+names(r.Event.Groups()))
	}
	if a.Sent || a.Why == whyOthers && r.EventID != 0 {
		return c.confirm(ctx, a)
	}
	return a, nil
}

// confirm reads the event as a replay for this user does, and so makes sure that
// the answer is what happens.
func (c *explanation) confirm(ctx context.Context, a answer) (answer, error) {
	page, err := c.journal.Read(ctx, "", a.EventID-1, a.EventID, c.who.Groups(c.staffRoles), 1)
	if err != nil {
		return a, fmt.Errorf("read the event as a replay does: %w", err)
	}
	if replayed := len(page.Events) == 1; replayed != a.Sent {
		a.Notes = append(a.Notes, a.Reason)
		a.Sent, a.Why, a.Reason = replayed, whyOtherReason, "a replay says otherwise than the rules do; please report that"
	}
	return a, nil
}

// rule says by which rule of the contract (section 3) the event is sent.
func (c *explanation) rule(g relay.Group, row *relay.Row) (why, reason string) {
	if cadet, ok := g.Cadet(); ok {
		return whyCadet, fmt.Sprintf("it is about cadet %d, who this user is", cadet)
	}
	if user, ok := g.User(); ok {
		return whyUser, fmt.Sprintf("its user_ids name user %d", user)
	}
	if g == relay.Everyone {
		return whyEveryone, "its roles have *, which is everyone"
	}
	if role, ok := g.Role(); ok {
		return whyRole, fmt.Sprintf("its roles name %s, the role of this user", role)
	}
	because := "it names no cadet, users or roles, and then is for the staff"
	if row.HasCadet {
		because = fmt.Sprintf("it is about cadet %d, and what is about a cadet is for the staff too", row.CadetID)
	}
	return whyStaff, fmt.Sprintf("%s: the role %s is one of auth.staff_roles (%s)", because, c.who.Role, strings.Join(c.staffRoles, ", "))
}

// others says why an event that is for others is not for this user: for each of
// its groups, and what the user is instead.
func (c *explanation) others(groups []relay.Group, row *relay.Row) string {
	if len(groups) == 0 {
		return "its roles name none that anybody can have, and so it is for nobody"
	}
	var parts []string
	for _, g := range groups {
		if cadet, ok := g.Cadet(); ok {
			instead := "is no cadet"
			if c.who.HasCadet {
				instead = fmt.Sprintf("is cadet %d", c.who.CadetID)
			}
			parts = append(parts, fmt.Sprintf("it is about cadet %d, and this user %s", cadet, instead))
		}
	}
	if slices.Contains(groups, relay.Staff) {
		only := ""
		if !row.HasCadet {
			only = "it names no cadet, users or roles, and then is for the staff only; "
		}
		parts = append(parts, fmt.Sprintf("%sthe staff are those with the roles %s (auth.staff_roles), and this user's is %s", only, strings.Join(c.staffRoles, ", "), c.who.Role))
	}
	if len(row.UserIDs) > 0 {
		parts = append(parts, fmt.Sprintf("its user_ids are %s, and this user is %d", joined(row.UserIDs), c.who.UserID))
	}
	if len(row.Roles) > 0 {
		parts = append(parts, fmt.Sprintf("its roles are %s, and this user's is %s", strings.Join(row.Roles, ", "), c.who.Role))
	}
	return strings.Join(parts, "; ")
}

// waiting says why a committed row has no event ID.
func (c *explanation) waiting(at outbox.Standing) string {
	text := "the row has committed and has not been given an event ID yet; then it will be sent. "
	if at.Streaming {
		return text + "A relay streams and will come to it; if it does not in some seconds, see syncrelay doctor"
	}
	return text + "No relay streams now: start one (syncrelay serve), or see syncrelay doctor"
}

func sameGroups(a, b []relay.Group) bool {
	return len(a) == len(b) && len(relay.Shared(a, b)) == len(a)
}

func texts(groups []relay.Group) []string {
	list := make([]string, len(groups))
	for i, g := range groups {
		list[i] = g.String()
	}
	return list
}

// joined lists IDs, not all of a long list.
func joined(ids []int64) string {
	const most = 10
	list := make([]string, 0, most+1)
	for i, id := range ids {
		if i == most {
			list = append(list, fmt.Sprintf("and %d more", len(ids)-most))
			break
		}
		list = append(list, number(id))
	}
	if len(list) == 0 {
		return "(none)"
	}
	return strings.Join(list, ", ")
}
