package main

import (
	"crypto/rand"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spf13/cobra"

	"github.com/syncrelay/syncrelay/configs"
)

// tokenClaims are what a token says of its user (section 6 of the contract).
type tokenClaims struct {
	UserID   int64
	Role     string
	CadetID  int64 // 0 for none
	Approved bool
}

// signToken makes a token for local use, with the claims' usual names.
func signToken(secret string, c tokenClaims, ttl time.Duration) (string, error) {
	return signTokenFor(configs.Auth{
		HMACSecret: configs.NewSecret(secret),
		Claims:     configs.Claims{UserID: "user_id", Role: "role", CadetID: "cadet_id", IsApproved: "is_approved"},
	}, c, ttl)
}

// signTokenFor makes a token that a relay with these settings takes.
func signTokenFor(auth configs.Auth, c tokenClaims, ttl time.Duration) (string, error) {
	method := jwt.SigningMethodHS256
	if len(auth.Algorithms) > 0 {
		i := slices.IndexFunc(auth.Algorithms, func(name string) bool { return strings.HasPrefix(name, "HS") })
		if i < 0 {
			return "", fmt.Errorf("auth.algorithms is %s; a secret signs with HS256, HS384 or HS512 only", strings.Join(auth.Algorithms, ","))
		}
		method = map[string]*jwt.SigningMethodHMAC{"HS256": jwt.SigningMethodHS256, "HS384": jwt.SigningMethodHS384, "HS512": jwt.SigningMethodHS512}[auth.Algorithms[i]]
	}
	now := time.Now()
	claims := jwt.MapClaims{
		auth.Claims.UserID: c.UserID, auth.Claims.Role: c.Role, auth.Claims.IsApproved: c.Approved,
		"token_type": "access", "iat": now.Unix(), "exp": now.Add(ttl).Unix(), "jti": rand.Text(),
	}
	if c.CadetID != 0 {
		claims[auth.Claims.CadetID] = c.CadetID
	}
	if auth.Issuer != "" {
		claims["iss"] = auth.Issuer
	}
	if auth.Audience != "" {
		claims["aud"] = auth.Audience
	}
	signed, err := jwt.NewWithClaims(method, claims).SignedString([]byte(auth.HMACSecret.Reveal()))
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	return signed, nil
}

var rolePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// check says what is wrong with the claims, by the names of the flags.
func (c tokenClaims) check(cadetGiven bool, ttl time.Duration) error {
	switch {
	case c.UserID <= 0:
		return usageError{fmt.Errorf("--user is %d; allowed is a whole number above 0", c.UserID)}
	case !rolePattern.MatchString(c.Role):
		return usageError{fmt.Errorf("--role is %q; allowed are 1 to 64 letters, digits, _ and -", c.Role)}
	case cadetGiven && c.CadetID <= 0:
		return usageError{fmt.Errorf("--cadet is %d; allowed is a whole number above 0", c.CadetID)}
	case ttl < time.Second:
		return usageError{fmt.Errorf("--ttl is %s; allowed is a duration of 1s or more", ttl)}
	}
	return nil
}

func newToken(s streams) *cobra.Command {
	var config string
	var c tokenClaims
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "token", Short: "Prints a signed token for local use", Args: noArguments,
		Long: `Prints a token that is signed with the settings' auth.hmac_secret, and has the claims
that auth.claims, auth.issuer and auth.audience want, for trying things out. Real tokens
come from the application.`,
		Example: `  SYNCRELAY_TOKEN="$(syncrelay token --user 1 --role admin)" syncrelay tail

  curl -N "http://localhost:8000/api/events?token=$(syncrelay token --user 5 --role cadet --cadet 17)"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.check(cmd.Flags().Changed("cadet"), ttl); err != nil {
				return err
			}
			settings, err := loadSettings(s, config, "auth.hmac_secret")
			if err != nil {
				return err
			}
			token, err := signTokenFor(settings.Auth, c, ttl)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(s.out, token)
			return err
		},
	}
	addConfigFlag(cmd, &config)
	cmd.Flags().Int64Var(&c.UserID, "user", 0, "the user's ID (required)")
	cmd.Flags().StringVar(&c.Role, "role", "", "the user's role, such as admin, training_staff or cadet (required)")
	completeRoles(cmd)
	cmd.Flags().Int64Var(&c.CadetID, "cadet", 0, "the cadet that the user is")
	cmd.Flags().BoolVar(&c.Approved, "approved", true, "whether the user is approved")
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "for how long the token is valid")
	return cmd
}
