package main

import (
	"crypto/rand"
	"fmt"
	"regexp"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spf13/cobra"
)

// tokenClaims are the claims of a token (section 6 of the contract).
type tokenClaims struct {
	UserID    int64  `json:"user_id"`
	Role      string `json:"role"`
	CadetID   int64  `json:"cadet_id,omitempty"`
	Approved  bool   `json:"is_approved"`
	TokenType string `json:"token_type"`
	jwt.RegisteredClaims
}

// signToken makes a token for local use.
func signToken(secret string, c tokenClaims, ttl time.Duration) (string, error) {
	now := time.Now()
	c.TokenType = "access"
	c.RegisteredClaims = jwt.RegisteredClaims{
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(ttl)), ID: rand.Text(),
	}
	signed, err := jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString([]byte(secret))
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
		Example: `  curl -N "http://localhost:8000/api/events?token=$(syncrelay token --user 5 --role cadet --cadet 17)"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.check(cmd.Flags().Changed("cadet"), ttl); err != nil {
				return err
			}
			settings, err := loadSettings(s, config, "auth.hmac_secret")
			if err != nil {
				return err
			}
			token, err := signToken(settings.Auth.HMACSecret.Reveal(), c, ttl)
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
	cmd.Flags().Int64Var(&c.CadetID, "cadet", 0, "the cadet that the user is")
	cmd.Flags().BoolVar(&c.Approved, "approved", true, "whether the user is approved")
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "for how long the token is valid")
	return cmd
}
