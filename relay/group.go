package relay

import (
	"slices"
	"strconv"
	"strings"
)

// Group is who an event is for and what a subscriber is in: user_5,
// role_admin, cadet_17, or the staff as a whole. Groups are comparable.
type Group struct {
	kind groupKind
	id   int64
	name string
}

type groupKind uint8

const (
	kindStaff groupKind = iota + 1
	kindCadet
	kindUser
	kindRole
)

// everyone is the role that stands for all who are authenticated.
const everyone = "*"

// Staff is the group of the staff roles, whichever the configuration names.
var Staff = Group{kind: kindStaff}

// Everyone is the group role_*, which every subscriber is in.
var Everyone = RoleGroup(everyone)

// CadetGroup is cadet_{id}.
func CadetGroup(id int64) Group { return Group{kind: kindCadet, id: id} }

// UserGroup is user_{id}.
func UserGroup(id int64) Group { return Group{kind: kindUser, id: id} }

// RoleGroup is role_{role}.
func RoleGroup(role string) Group { return Group{kind: kindRole, name: role} }

// Cadet is the group's cadet, if it is a cadet's.
func (g Group) Cadet() (id int64, ok bool) { return g.id, g.kind == kindCadet }

// User is the group's user, if it is a user's.
func (g Group) User() (id int64, ok bool) { return g.id, g.kind == kindUser }

// Role is the group's role, if it is a role's.
func (g Group) Role() (name string, ok bool) { return g.name, g.kind == kindRole }

// String is the group's name as the contract writes it, and as the journal
// stores it.
func (g Group) String() string {
	switch g.kind {
	case kindCadet:
		return "cadet_" + strconv.FormatInt(g.id, 10)
	case kindUser:
		return "user_" + strconv.FormatInt(g.id, 10)
	case kindRole:
		return "role_" + g.name
	case kindStaff:
		return "staff"
	default:
		return "nobody"
	}
}

// ParseGroup reads a group's name, as String writes it.
func ParseGroup(name string) (g Group, ok bool) {
	if name == Staff.String() {
		return Staff, true
	}
	kind, rest, ok := strings.Cut(name, "_")
	if !ok {
		return Group{}, false
	}
	if kind == "role" {
		return RoleGroup(rest), true
	}
	id, err := strconv.ParseInt(rest, 10, 64)
	switch {
	case err != nil:
		return Group{}, false
	case kind == "cadet":
		return CadetGroup(id), true
	case kind == "user":
		return UserGroup(id), true
	}
	return Group{}, false
}

// Shared lists the groups that an event is for and a subscriber is in. The
// subscriber is sent the event if there is one, and then once.
func Shared(event, subscriber []Group) (both []Group) {
	for _, g := range event {
		if slices.Contains(subscriber, g) {
			both = append(both, g)
		}
	}
	return both
}

// Audience is who may see an event: the union of its parts.
type Audience struct {
	// Staff: the staff roles.
	Staff bool
	// CadetID: the cadet's own group, if HasCadet.
	CadetID  int64
	HasCadet bool
	// Users and Roles: those users' and roles' groups.
	Users []int64
	Roles []string

	revoked []int64 // the users whose connections the event ends
}

// maxRole is how many characters a role may have.
const maxRole = 64

// ValidRole reports whether an identity may have the role: 1 to 64 ASCII
// letters, digits, underscores and hyphens (contract, section 6).
func ValidRole(role string) bool {
	if role == "" || len(role) > maxRole {
		return false
	}
	for i := range len(role) {
		switch c := role[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// RowAudience is the routing table of the contract (section 3): a row about a
// cadet goes to the cadet and the staff, a row with users or roles to those, a
// row with several to the union, and a row with none to the staff only. A role
// that no identity can have stands for nobody, and is left out: it could be too
// long for the journal's index. The slices are copies.
func RowAudience(row *Row) Audience {
	return Audience{
		Staff:   row.HasCadet || len(row.UserIDs) == 0 && len(row.Roles) == 0,
		CadetID: row.CadetID, HasCadet: row.HasCadet,
		Users: slices.Clone(row.UserIDs),
		Roles: slices.DeleteFunc(slices.Clone(row.Roles), func(role string) bool { return role != everyone && !ValidRole(role) }),
	}
}

// Empty reports whether nobody at all may see the event.
func (a *Audience) Empty() bool {
	return !a.Staff && !a.HasCadet && len(a.Users) == 0 && len(a.Roles) == 0
}

// Groups lists the audience's groups, each once.
func (a *Audience) Groups() []Group {
	n := len(a.Users) + len(a.Roles) + 2
	groups := make([]Group, 0, n)
	if a.HasCadet {
		groups = append(groups, CadetGroup(a.CadetID))
	}
	if a.Staff {
		groups = append(groups, Staff)
	}
	for _, id := range a.Users {
		groups = append(groups, UserGroup(id))
	}
	for _, role := range a.Roles {
		groups = append(groups, RoleGroup(role))
	}
	if len(a.Users)+len(a.Roles) > 1 {
		seen := make(map[Group]struct{}, n)
		groups = slices.DeleteFunc(groups, func(g Group) bool {
			_, twice := seen[g]
			seen[g] = struct{}{}
			return twice
		})
	}
	return groups
}

// StaffRoles are the roles that see what concerns any cadet: those configured, or
// the contract's if there are none.
func StaffRoles(configured []string) []string {
	if len(configured) == 0 {
		return []string{"admin", "training_staff"}
	}
	return slices.Clone(configured)
}

// Identity is who a subscriber is, as far as routing is concerned.
type Identity struct {
	UserID   int64
	Role     string
	CadetID  int64
	HasCadet bool
}

// Person is a user as the application's database knows it.
type Person struct {
	Identity
	// Approved: the user may connect.
	Approved bool
}

// Groups lists the groups that an identity is in. staffRoles are the roles
// that see what concerns any cadet.
func (id Identity) Groups(staffRoles []string) []Group {
	groups := make([]Group, 3, 4) // hardly anybody is in more
	groups[0], groups[1], groups[2] = UserGroup(id.UserID), RoleGroup(id.Role), Everyone
	if id.HasCadet {
		groups = append(groups, CadetGroup(id.CadetID))
	}
	if slices.Contains(staffRoles, id.Role) {
		groups = append(groups, Staff)
	}
	return groups
}
