package stream

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

// The algorithms that each kind of key is good for (RFC 7518, section 3.1, and
// RFC 8037, section 3.1). A token's own choice counts only among those of a key
// that is there, so that it can neither choose none nor have a public key taken
// for a shared secret.
var (
	secretAlgorithms  = []string{"HS256", "HS384", "HS512"}
	rsaAlgorithms     = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	ed25519Algorithms = []string{"EdDSA"}
	curveAlgorithms   = map[elliptic.Curve]string{elliptic.P256(): "ES256", elliptic.P384(): "ES384", elliptic.P521(): "ES512"}
)

// publicAlgorithms are those of public keys of any kind.
func publicAlgorithms() []string {
	return slices.Concat(rsaAlgorithms, []string{"ES256", "ES384", "ES512"}, ed25519Algorithms)
}

// What an RSA key may measure, in bits. A shorter one can be broken (RFC 7518,
// section 3.3); a longer one makes each check of a token, also of a forged one,
// cost too much.
const minRSABits, maxRSABits = 2048, 8192

// verificationKey is one key that tokens may be signed with.
type verificationKey struct {
	id         string // a JWK's kid; empty for keys that have none
	algorithms []string
	key        any // as golang-jwt wants it
}

// newPublicKey takes a public key of a kind that is understood.
func newPublicKey(key any) (verificationKey, error) {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return verificationKey{}, fmt.Errorf("an RSA key of %d bits; allowed are %d to %d", bits, minRSABits, maxRSABits)
		}
		return verificationKey{algorithms: rsaAlgorithms, key: key}, nil
	case *ecdsa.PublicKey:
		algorithm, ok := curveAlgorithms[key.Curve]
		if !ok {
			return verificationKey{}, fmt.Errorf("an EC key on the curve %s; allowed are P-256, P-384 and P-521", key.Params().Name)
		}
		return verificationKey{algorithms: []string{algorithm}, key: key}, nil
	case ed25519.PublicKey:
		return verificationKey{algorithms: ed25519Algorithms, key: key}, nil
	default:
		return verificationKey{}, fmt.Errorf("a key of the kind %T; allowed are RSA, EC and Ed25519", key)
	}
}

// parsePublicKeys reads a PEM file with one or several public keys or
// certificates, of which only the keys count.
func parsePublicKeys(text []byte) (keys []verificationKey, err error) {
	for n := 1; ; n++ {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		key, err := parsePublicKey(block)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", n, err)
		}
		keys = append(keys, key)
	}
	switch {
	case len(bytes.TrimSpace(text)) > 0:
		return nil, fmt.Errorf("something that is no PEM block follows block %d", len(keys))
	case len(keys) == 0:
		return nil, errors.New("found no PEM block; allowed are PUBLIC KEY, RSA PUBLIC KEY and CERTIFICATE")
	}
	return keys, nil
}

func parsePublicKey(block *pem.Block) (verificationKey, error) {
	var key any
	var err error
	switch block.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		var certificate *x509.Certificate
		if certificate, err = x509.ParseCertificate(block.Bytes); err == nil {
			key = certificate.PublicKey
		}
	default:
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return verificationKey{}, fmt.Errorf("found a %s, which the relay must not have; allowed is its public half (openssl pkey -pubout)", block.Type)
		}
		return verificationKey{}, fmt.Errorf("found %s; allowed are PUBLIC KEY, RSA PUBLIC KEY and CERTIFICATE", quote(block.Type))
	}
	if err != nil {
		return verificationKey{}, fmt.Errorf("a %s that can't be read: %w", block.Type, err)
	}
	return newPublicKey(key)
}

// isPublicKey reports whether a text is a public key. As a shared secret it would
// let everybody sign tokens.
func isPublicKey(text []byte) bool {
	block, _ := pem.Decode(text)
	return block != nil && (strings.HasSuffix(block.Type, "PUBLIC KEY") || block.Type == "CERTIFICATE")
}

// keyring is all keys that tokens may be signed with, whatever they come from.
type keyring struct {
	secrets *sharedSecrets
	file    *keyFile // may be nil
	remote  *keySet  // may be nil
}

// find is the keys that may have signed a token with this algorithm and key ID
// (empty if it has none). The error is an [*AuthError].
func (r *keyring) find(ctx context.Context, algorithm, id string) ([]any, error) {
	found := fitting(r.secrets.current(), algorithm, "")
	if r.file != nil {
		found = append(found, fitting(r.file.current(), algorithm, "")...)
	}
	if r.remote != nil && !slices.Contains(secretAlgorithms, algorithm) {
		more, err := r.remote.find(ctx, algorithm, id)
		if err != nil && len(found) == 0 {
			return nil, err
		}
		found = append(found, more...)
	}
	if len(found) == 0 {
		return nil, invalidToken("no key here fits its algorithm")
	}
	return found, nil
}

// fitting is the keys that are good for an algorithm. An id that is not empty
// leaves only the key of that name.
func fitting(keys []verificationKey, algorithm, id string) (found []any) {
	for _, k := range keys {
		if (id == "" || k.id == id) && slices.Contains(k.algorithms, algorithm) {
			found = append(found, k.key)
		}
	}
	return found
}

// keyFile is the public keys of a PEM file, read again when it has changed.
type keyFile struct {
	path string

	mu   sync.RWMutex
	text []byte
	keys []verificationKey
}

func openKeyFile(path string) (*keyFile, error) {
	f := &keyFile{path: path}
	_, err := f.reload()
	return f, err
}

// reload reads the file. A file that can't be read leaves the keys as they are.
func (f *keyFile) reload() (changed bool, err error) {
	text, err := os.ReadFile(f.path)
	if err != nil {
		return false, fmt.Errorf("read the public keys: %w", err)
	}
	f.mu.RLock()
	same := bytes.Equal(text, f.text)
	f.mu.RUnlock()
	if same {
		return false, nil
	}
	keys, err := parsePublicKeys(text)
	if err != nil {
		return false, fmt.Errorf("read the public keys in %s: %w", f.path, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.text, f.keys = text, keys
	return true, nil
}

func (f *keyFile) current() []verificationKey {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.keys
}
