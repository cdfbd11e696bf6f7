package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/sync/errgroup"

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
	// genuine: the token was signed by who may sign tokens, or the ticket made
	// here. It is no good all the same, but nobody is guessing.
	genuine bool
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
	return &AuthError{reason: reasonInvalidToken, detail: fmt.Sprintf(format, args...)}
}

// VerifierOptions say which tokens count. There must be a key: a secret, a file
// of public keys, or the address of a key set; there may be several.
type VerifierOptions struct {
	// HMACSecret is the shared secret of tokens signed with HS256, HS384 or HS512.
	// It should be as long as [StrongSecret]; a shorter one is taken, because the
	// application that signs the tokens may have chosen it long ago, but deserves
	// a warning. PreviousHMACSecret is good too, so that the application can
	// change from one to the other at its own time.
	HMACSecret, PreviousHMACSecret []byte
	// HMACSecretFile and PreviousHMACSecretFile, where set, name the files that
	// these are in. They are read again when they change.
	HMACSecretFile, PreviousHMACSecretFile string
	// PublicKeyFile names a PEM file with one or several public keys or
	// certificates. It is read again when it changes.
	PublicKeyFile string
	// JWKSURL is where an identity provider publishes its keys, and JWKSRefresh
	// how often they are fetched; default 10 minutes.
	JWKSURL     string
	JWKSRefresh time.Duration
	// Algorithms narrows the algorithms down; default all for which there are
	// keys.
	Algorithms []string
	// Claims names the claims that say who somebody is.
	Claims ClaimNames
	// UserOnly takes only the user from the token; role, cadet and approval are
	// somebody else's business.
	UserOnly bool
	// Issuer and Audience, where set, must be the token's iss and one of its aud.
	Issuer, Audience string
	// Leeway is how far the issuer's clock may differ from this one's. It is
	// added to a token's exp and taken from its nbf. Default: none.
	Leeway time.Duration
	// Now is the clock; default [time.Now].
	Now    func() time.Time
	Logger *slog.Logger
	// Failed is told of a fault in getting keys; default nobody.
	Failed func(component string)
}

func (o *VerifierOptions) complete() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Failed == nil {
		o.Failed = func(string) {}
	}
	if o.JWKSRefresh <= 0 {
		o.JWKSRefresh = 10 * time.Minute
	}
	o.Claims.complete()
}

// genuine is the error of a token that is no forgery.
func genuine(e *AuthError) *AuthError {
	e.genuine = true
	return e
}

// StrongSecret is the length in bytes from which an HMAC secret is as strong as
// HS256 itself (RFC 7518, section 3.2). A much shorter one can be guessed by
// anybody who has seen one token.
const StrongSecret = 32

// Verifier turns tokens into identities. It is safe for use by many at once.
type Verifier struct {
	parser   *jwt.Parser
	checker  *jwt.Validator
	keys     keyring
	names    ClaimNames
	userOnly bool
	leeway   time.Duration
	logger   *slog.Logger
	failed   func(component string)
}

// NewVerifier makes a verifier. Keys that change are kept fresh by its Run.
func NewVerifier(o VerifierOptions) (*Verifier, error) {
	o.complete()
	v := &Verifier{names: o.Claims, userOnly: o.UserOnly, leeway: o.Leeway, logger: o.Logger, failed: o.Failed}
	if err := v.names.check(); err != nil {
		return nil, err
	}
	var err error
	if v.keys.secrets, err = openSecrets(secretSource{o.HMACSecretFile, o.HMACSecret}, secretSource{o.PreviousHMACSecretFile, o.PreviousHMACSecret}); err != nil {
		return nil, err
	}
	if o.PublicKeyFile != "" {
		file, err := openKeyFile(o.PublicKeyFile)
		if err != nil {
			return nil, err
		}
		v.keys.file = file
	}
	if o.JWKSURL != "" {
		v.keys.remote = newKeySet(&o)
	}
	algorithms, err := v.keys.algorithms(o.Algorithms)
	if err != nil {
		return nil, err
	}
	checks := []jwt.ParserOption{jwt.WithExpirationRequired(), jwt.WithLeeway(o.Leeway), jwt.WithTimeFunc(o.Now)}
	if o.Issuer != "" {
		checks = append(checks, jwt.WithIssuer(o.Issuer))
	}
	if o.Audience != "" {
		checks = append(checks, jwt.WithAudience(o.Audience))
	}
	// The claims are checked by Verify, after their shapes.
	v.parser = jwt.NewParser(jwt.WithValidMethods(algorithms), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())
	v.checker = jwt.NewValidator(checks...)
	return v, nil
}

// algorithms is those that the keys are good for, or those of them that are
// wanted.
func (r *keyring) algorithms(wanted []string) (list []string, err error) {
	if len(r.secrets.current()) > 0 {
		list = append(list, secretAlgorithms...)
	}
	if r.file != nil || r.remote != nil {
		list = append(list, publicAlgorithms()...)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no key to check tokens with: an HMAC secret of %d random bytes or more (openssl rand -base64 48), a file of public keys or the address of a key set is required", StrongSecret)
	}
	for _, algorithm := range wanted {
		if !slices.Contains(list, algorithm) {
			return nil, fmt.Errorf("no key is there for the algorithm %s; allowed are %s", quote(algorithm), strings.Join(list, ", "))
		}
	}
	if len(wanted) > 0 {
		return wanted, nil
	}
	return list, nil
}

// reloadInterval is how often files of keys and secrets are looked at.
const reloadInterval = 5 * time.Second

// Run keeps the keys fresh until ctx ends: those of a file that changes, and those
// of an identity provider.
func (v *Verifier) Run(ctx context.Context) error {
	var group errgroup.Group
	if v.keys.remote != nil {
		group.Go(func() error { v.keys.remote.run(ctx); return nil })
	}
	if v.keys.file != nil || v.keys.secrets.fromFiles() {
		group.Go(func() error { v.watch(ctx, reloadInterval); return nil })
	}
	<-ctx.Done()
	return group.Wait()
}

// watch reads the files of keys and secrets again when they have changed. What is no
// good is said once, and what was there stays in use.
func (v *Verifier) watch(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	saidOfKeys, saidOfSecrets := "", ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if v.keys.file != nil {
			changed, err := v.reread(v.keys.file.reload, &saidOfKeys)
			if err != nil {
				v.logger.Error("the public keys for tokens can't be read again; the last ones stay in use", slog.Any("error", err))
			}
			if changed {
				v.logger.Info("read the public keys for tokens again", slog.String("file", v.keys.file.path), slog.Int("keys", len(v.keys.file.current())))
			}
		}
		changed, err := v.reread(v.keys.secrets.reload, &saidOfSecrets)
		if err != nil {
			v.logger.Error("the secrets for tokens can't be read again; the last ones stay in use", slog.Any("error", err))
		}
		if changed {
			v.logger.Info("read the secrets for tokens again", slog.Int("secrets", len(v.keys.secrets.current())))
		}
	}
}

// reread reloads something. The error is nil too if it is the one that was said
// before; it is counted.
func (v *Verifier) reread(reload func() (changed bool, err error), said *string) (changed bool, news error) {
	changed, err := reload()
	switch {
	case err == nil:
		*said = ""
	case err.Error() != *said:
		*said = err.Error()
		v.failed("auth")
		return changed, err
	}
	return changed, nil
}

// Keys is how many keys tokens may be signed with, by where they come from.
type Keys struct{ Secrets, File, Remote int }

// Fetch fetches the identity provider's keys, if there is one, and counts the keys
// that are there. Run does that by itself.
func (v *Verifier) Fetch(ctx context.Context) (n Keys, err error) {
	n.Secrets = len(v.keys.secrets.current())
	if v.keys.file != nil {
		n.File = len(v.keys.file.current())
	}
	if r := v.keys.remote; r != nil {
		r.fetch(ctx, atOnce)
		n.Remote, err = r.count(), r.problem()
	}
	return n, err
}

// Ready is why tokens can't be checked now, empty if they can.
func (v *Verifier) Ready() (reason string) {
	if r := v.keys.remote; r != nil && len(v.keys.secrets.current()) == 0 && v.keys.file == nil && !r.usable() {
		return "the keys for tokens have not been fetched yet"
	}
	return ""
}

// maxToken bounds a token's length, in bytes.
const maxToken = 8 << 10

// Verify checks a token: form, signature, the shapes of its claims, times,
// approval, in that order. It may wait for a key to be fetched, and for ctx. The
// error is an [*AuthError].
func (v *Verifier) Verify(ctx context.Context, token string) (Identity, error) {
	if err := checkForm(token); err != nil {
		return Identity{}, err
	}
	c := claims{names: v.names, userOnly: v.userOnly}
	if _, err := v.parser.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) { return v.find(ctx, t) }); err != nil {
		return Identity{}, publicTokenError(err)
	}
	if err := c.decode(); err != nil {
		return Identity{}, genuine(invalidToken("%s", err))
	}
	if err := v.checker.Validate(&c); err != nil {
		return Identity{}, genuine(publicTokenError(err))
	}
	if c.unapproved {
		return Identity{}, &AuthError{reason: reasonNotApproved}
	}
	return Identity{
		Identity:  relay.Identity{UserID: c.userID, Role: c.role, CadetID: c.cadetID, HasCadet: c.hasCadet},
		ExpiresAt: c.expires.Add(v.leeway),
	}, nil
}

// find is the parser's [jwt.Keyfunc].
func (v *Verifier) find(ctx context.Context, t *jwt.Token) (any, error) {
	id, _ := t.Header["kid"].(string) // checkHeader has seen to it that it is a text
	found, err := v.keys.find(ctx, t.Method.Alg(), id)
	if err != nil {
		return nil, err
	}
	set := jwt.VerificationKeySet{Keys: make([]jwt.VerificationKey, len(found))}
	for i, key := range found {
		set.Keys[i] = key
	}
	return set, nil
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

// maxKeyID bounds a key's name, in bytes.
const maxKeyID = 256

// checkHeader checks the header's form. Whether the algorithm is one of ours is
// the parser's business.
func checkHeader(text []byte) error {
	err := eachMember(text, func(name string, value json.RawMessage) error {
		switch name {
		case "crit":
			// RFC 7515, section 4.1.11: what is critical and not understood
			// makes the token invalid. No extension is understood here.
			return errors.New("crit names extensions that are not supported")
		case "kid":
			if id, err := claimText(name, value); err != nil || id == "" || len(id) > maxKeyID {
				return fmt.Errorf("kid is %s; allowed is a text of 1 to %d bytes", describe(value), maxKeyID)
			}
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
	var ours *AuthError
	switch {
	case errors.As(err, &ours): // from the search for the key
		return ours
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
