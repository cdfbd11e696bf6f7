package stream

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/relay"
)

// Identity is who a client is, and until when that holds.
type Identity struct {
	relay.Identity
	// ExpiresAt is when the token ends, and with it the connection.
	ExpiresAt time.Time
}

// AuthError says why a client is not let in. Its text is fit for that client to
// see: it helps the honest, never holds the token, and tells a stranger nothing
// that it did not bring itself.
type AuthError struct {
	reason *Reason
	detail string
}

// Error is the public text.
func (e *AuthError) Error() string {
	if e.detail == "" {
		return e.reason.Text
	}
	return e.reason.Text + ": " + e.detail
}

// Code is the error's short name, as the body of an HTTP answer carries it.
func (e *AuthError) Code() string { return e.reason.Label }

func invalidToken(format string, args ...any) *AuthError {
	return &AuthError{reasonInvalidToken, fmt.Sprintf(format, args...)}
}

// VerifierOptions say which tokens count.
type VerifierOptions struct {
	// HMACSecret is the shared secret of HS256 tokens. It should be as long as
	// [StrongSecret]; a shorter one is taken, because the application that signs
	// the tokens may have chosen it long ago, but deserves a warning.
	HMACSecret []byte
	// Issuer and Audience, where set, must be the token's iss and one of its aud.
	Issuer, Audience string
	// Leeway is how far the issuer's clock may differ from this one's. It is
	// added to a token's exp and taken from its nbf. Default: none.
	Leeway time.Duration
	// Now is the clock; default [time.Now].
	Now func() time.Time
}

// StrongSecret is the length in bytes from which an HMAC secret is as strong as
// HS256 itself (RFC 7518, section 3.2). A much shorter one can be guessed by
// anybody who has seen one token.
const StrongSecret = 32

// Verifier turns tokens into identities. It is safe for use by many at once.
//
// Which algorithms it takes follows from the keys that it was given and never
// from the token, so that a token can neither choose none nor have a public key
// taken for a shared secret.
type Verifier struct {
	parser  *jwt.Parser
	checker *jwt.Validator
	key     jwt.Keyfunc
	leeway  time.Duration
}

// NewVerifier makes a verifier.
func NewVerifier(o VerifierOptions) (*Verifier, error) {
	if len(o.HMACSecret) == 0 {
		return nil, fmt.Errorf("no key to check tokens with: an HMAC secret is required, of %d random bytes or more (openssl rand -base64 48)", StrongSecret)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	checks := []jwt.ParserOption{jwt.WithExpirationRequired(), jwt.WithLeeway(o.Leeway), jwt.WithTimeFunc(o.Now)}
	if o.Issuer != "" {
		checks = append(checks, jwt.WithIssuer(o.Issuer))
	}
	if o.Audience != "" {
		checks = append(checks, jwt.WithAudience(o.Audience))
	}
	secret := append([]byte(nil), o.HMACSecret...)
	return &Verifier{
		// The claims are checked by Verify, after their shapes.
		parser: jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
			jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation()),
		checker: jwt.NewValidator(checks...),
		key:     func(*jwt.Token) (any, error) { return secret, nil },
		leeway:  o.Leeway,
	}, nil
}

// maxToken bounds a token's length, in bytes.
const maxToken = 8 << 10

// Verify checks a token: form, signature, the shapes of its claims, times,
// approval, in that order. The error is an [*AuthError].
func (v *Verifier) Verify(token string) (Identity, error) {
	if err := checkForm(token); err != nil {
		return Identity{}, err
	}
	var c claims
	if _, err := v.parser.ParseWithClaims(token, &c, v.key); err != nil {
		return Identity{}, publicTokenError(err)
	}
	if err := c.decode(); err != nil {
		return Identity{}, invalidToken("%s", err)
	}
	if err := v.checker.Validate(&c); err != nil {
		return Identity{}, publicTokenError(err)
	}
	if c.unapproved {
		return Identity{}, &AuthError{reason: reasonNotApproved}
	}
	return Identity{
		Identity:  relay.Identity{UserID: c.userID, Role: c.role, CadetID: c.cadetID, HasCadet: c.hasCadet},
		ExpiresAt: c.expires.Add(v.leeway),
	}, nil
}

// checkForm refuses what the library would read too kindly: its base64 skips
// line ends, and its JSON takes the last of two headers of one name.
func checkForm(token string) error {
	if token == "" {
		return &AuthError{reason: reasonNoToken}
	}
	if len(token) > maxToken {
		return invalidToken("longer than %d bytes", maxToken)
	}
	for i := range len(token) {
		c := token[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return invalidToken("not a JSON Web Token")
		}
	}
	head, _, _ := strings.Cut(token, ".")
	text, err := jwt.NewParser(jwt.WithStrictDecoding()).DecodeSegment(head)
	if err != nil {
		return invalidToken("not a JSON Web Token")
	}
	return checkHeader(text)
}

// checkHeader checks the header's form. Whether the algorithm is one of ours is
// the parser's business.
func checkHeader(text []byte) error {
	err := eachMember(text, func(name string, value json.RawMessage) error {
		switch name {
		case "crit":
			// RFC 7515, section 4.1.11: what is critical and not understood
			// makes the token invalid. No extension is understood here.
			return errors.New("crit names extensions that are not supported")
		case "typ":
			typ, err := claimText(name, value)
			if err != nil || !strings.EqualFold(typ, "JWT") && !strings.EqualFold(typ, "at+jwt") {
				return fmt.Errorf("typ is %s; allowed are \"JWT\" and \"at+jwt\"", describe(value))
			}
		}
		return nil
	})
	if err != nil {
		return invalidToken("header: %s", err)
	}
	return nil
}

// publicTokenError is what a client may know of the library's error, whose own
// text may hold parts of the token.
func publicTokenError(err error) *AuthError {
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return &AuthError{reason: reasonTokenExpired}
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return invalidToken("nbf is in the future")
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return invalidToken("iss is not the issuer that is wanted here")
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return invalidToken("aud does not name this service")
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return invalidToken("iss or aud is missing")
	case errors.Is(err, jwt.ErrTokenMalformed):
		return invalidToken("not a JSON Web Token")
	case errors.Is(err, jwt.ErrTokenUnverifiable):
		return invalidToken("its algorithm is not allowed here")
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return invalidToken("signature or algorithm is wrong")
	default:
		return invalidToken("refused")
	}
}
