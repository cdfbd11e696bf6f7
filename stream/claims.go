package stream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/relay"
)

// ClaimNames are the names of the claims that say who somebody is. An empty name
// stands for the one that the field has in the contract (section 6): user_id,
// role, cadet_id, is_approved. Claims stand at the top level of the token.
type ClaimNames struct{ UserID, Role, CadetID, IsApproved string }

func (n *ClaimNames) complete() {
	for _, name := range []struct {
		value     *string
		otherwise string
	}{{&n.UserID, "user_id"}, {&n.Role, "role"}, {&n.CadetID, "cadet_id"}, {&n.IsApproved, "is_approved"}} {
		if *name.value == "" {
			*name.value = name.otherwise
		}
	}
}

// check refuses names that mean two things.
func (n *ClaimNames) check() error {
	seen := []string{"token_type", "exp", "nbf", "iat", "iss", "aud"}
	for _, name := range []string{n.UserID, n.Role, n.CadetID, n.IsApproved} {
		if slices.Contains(seen, name) {
			return fmt.Errorf("the claim %s is to mean two things; allowed is another name for each", quote(name))
		}
		seen = append(seen, name)
	}
	return nil
}

// claims are a token's claims as the contract (section 6) wants them. Decoding
// happens in two steps: UnmarshalJSON keeps the text, so that the signature is
// checked first, and decode looks into it.
type claims struct {
	names    ClaimNames
	userOnly bool
	text     []byte

	userID     int64
	role       string
	cadetID    int64
	hasCadet   bool
	unapproved bool

	expires, notBefore, issued *jwt.NumericDate
	issuer                     string
	audience                   jwt.ClaimStrings
}

// UnmarshalJSON is part of [json.Unmarshaler].
func (c *claims) UnmarshalJSON(text []byte) error {
	c.text = bytes.Clone(text)
	return nil
}

// decode reads the claims. A claim of another shape than it must have is an
// error, which names it and what is allowed.
func (c *claims) decode() error {
	err := eachMember(c.text, func(name string, value json.RawMessage) (err error) {
		switch name {
		case c.names.UserID:
			c.userID, err = claimID(name, value)
		case c.names.CadetID, c.names.Role, c.names.IsApproved:
			if !c.userOnly {
				err = c.decodePerson(name, value)
			}
		case "token_type":
			err = claimTokenType(value)
		case "exp":
			c.expires, err = claimTime(name, value)
		case "nbf":
			c.notBefore, err = claimTime(name, value)
		case "iat":
			c.issued, err = claimTime(name, value)
		case "iss":
			c.issuer, err = claimText(name, value)
		case "aud":
			if json.Unmarshal(value, &c.audience) != nil {
				err = fmt.Errorf("aud is %s; allowed is a text or a list of texts", describe(value))
			}
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case c.userID == 0:
		return fmt.Errorf("%s is missing; it must be %s", c.names.UserID, wantID)
	case c.role == "" && !c.userOnly:
		return fmt.Errorf("%s is missing; it must be %s", c.names.Role, wantRole)
	case c.expires == nil:
		return fmt.Errorf("exp is missing; it must be %s", wantTime)
	}
	return nil
}

// decodePerson reads what a token says of its user. Where the database says it,
// what the token says does not count, and so can't be wrong.
func (c *claims) decodePerson(name string, value json.RawMessage) (err error) {
	switch name {
	case c.names.CadetID:
		if string(value) != "null" {
			c.cadetID, err = claimID(name, value)
			c.hasCadet = true
		}
	case c.names.Role:
		c.role, err = claimRole(name, value)
	case c.names.IsApproved:
		var approved bool
		approved, err = claimBool(name, value)
		c.unapproved = !approved
	}
	return err
}

// What claims may be.
const (
	wantID   = "a positive whole number, or the text of one"
	wantRole = "1 to 64 letters, digits, _ or -"
	wantTime = "a time in seconds since 1970"
)

// claimID reads a positive whole number below 2^63 in plain decimal digits, bare
// or as a text: 5 or "5", and not 5.0, 5e0, "05" or " 5".
func claimID(name string, value json.RawMessage) (int64, error) {
	digits := string(value)
	if value[0] == '"' {
		var ok bool
		if digits, ok = decodeText(value); !ok {
			return 0, fmt.Errorf("%s is a broken text", name)
		}
	}
	id, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || id <= 0 || digits[0] < '1' || digits[0] > '9' {
		return 0, fmt.Errorf("%s is %s; allowed is %s", name, describe(value), wantID)
	}
	return id, nil
}

func claimText(name string, value json.RawMessage) (string, error) {
	s, ok := decodeText(value)
	if !ok {
		return "", fmt.Errorf("%s is %s; allowed is a text", name, describe(value))
	}
	return s, nil
}

func claimRole(name string, value json.RawMessage) (string, error) {
	role, err := claimText(name, value)
	if err != nil || !relay.ValidRole(role) {
		return "", fmt.Errorf("%s is %s; allowed are %s", name, describe(value), wantRole)
	}
	return role, nil
}

func claimBool(name string, value json.RawMessage) (bool, error) {
	switch string(value) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%s is %s; allowed are true and false", name, describe(value))
}

// claimTokenType refuses the refresh tokens of Django SimpleJWT and its like.
func claimTokenType(value json.RawMessage) error {
	kind, err := claimText("token_type", value)
	if err != nil || kind != "access" {
		return fmt.Errorf("token_type is %s; allowed is \"access\"", describe(value))
	}
	return nil
}

// maxTime is the end of the year 9999, in seconds since 1970: what is above it
// is milliseconds, or an attempt to overflow a sum.
const maxTime = 253402300799

// claimTime reads a NumericDate (RFC 7519, section 2).
func claimTime(name string, value json.RawMessage) (*jwt.NumericDate, error) {
	if c := value[0]; c >= '0' && c <= '9' {
		seconds, err := strconv.ParseFloat(string(value), 64)
		if err == nil && seconds <= maxTime {
			whole, part := math.Modf(seconds)
			return &jwt.NumericDate{Time: time.Unix(int64(whole), int64(part*1e9))}, nil
		}
	}
	return nil, fmt.Errorf("%s is %s; allowed is %s", name, describe(value), wantTime)
}

// GetExpirationTime and its siblings are part of [jwt.Claims].
func (c *claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.expires, nil }

// GetNotBefore is part of [jwt.Claims].
func (c *claims) GetNotBefore() (*jwt.NumericDate, error) { return c.notBefore, nil }

// GetIssuedAt is part of [jwt.Claims].
func (c *claims) GetIssuedAt() (*jwt.NumericDate, error) { return c.issued, nil }

// GetIssuer is part of [jwt.Claims].
func (c *claims) GetIssuer() (string, error) { return c.issuer, nil }

// GetSubject is part of [jwt.Claims].
func (c *claims) GetSubject() (string, error) { return "", nil }

// GetAudience is part of [jwt.Claims].
func (c *claims) GetAudience() (jwt.ClaimStrings, error) { return c.audience, nil }
