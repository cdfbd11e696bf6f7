package stream

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
)

// sharedSecrets are the secrets that tokens may be signed with. Those of files are
// read again when they have changed, so that one can be changed for another
// without a restart.
type sharedSecrets struct {
	sources []secretSource

	mu   sync.RWMutex
	keys []verificationKey
}

// secretSource is one secret and the file that it is from, empty for none.
type secretSource struct {
	path string
	text []byte
}

var errPublicSecret = errors.New("the HMAC secret is a public key, with which everybody could sign tokens: give it as a file of public keys")

// openSecrets takes the secrets of the settings. Of one with a file the file counts.
func openSecrets(given ...secretSource) (*sharedSecrets, error) {
	s := &sharedSecrets{}
	for _, source := range given {
		if source.path != "" {
			text, err := readSecret(source.path)
			if err != nil {
				return nil, err
			}
			source.text = text
		}
		if len(source.text) == 0 {
			continue
		}
		if isPublicKey(source.text) {
			return nil, errPublicSecret
		}
		source.text = slices.Clone(source.text)
		s.sources = append(s.sources, source)
	}
	s.keys = s.listed()
	return s, nil
}

// readSecret reads a secret from a file, without the ends of its last line. The
// error holds nothing of it.
func readSecret(path string) ([]byte, error) {
	text, err := os.ReadFile(path) //nolint:gosec // the operator's own choice
	if err != nil {
		return nil, fmt.Errorf("read the secret: %w", err)
	}
	text = bytes.TrimRight(text, "\r\n")
	switch {
	case len(text) == 0:
		return nil, fmt.Errorf("read the secret in %s: it is empty", path)
	case isPublicKey(text):
		return nil, fmt.Errorf("read the secret in %s: %w", path, errPublicSecret)
	}
	return text, nil
}

// listed is the keys of what the sources hold.
func (s *sharedSecrets) listed() (keys []verificationKey) {
	for _, source := range s.sources {
		keys = append(keys, verificationKey{algorithms: secretAlgorithms, key: source.text})
	}
	return keys
}

// reload reads the files, which is for one goroutine at a time. A file that can't be
// read leaves its secret as it is. All that have changed count from the same moment.
func (s *sharedSecrets) reload() (changed bool, err error) {
	for i := range s.sources {
		source := &s.sources[i]
		if source.path == "" {
			continue
		}
		text, problem := readSecret(source.path)
		switch {
		case problem != nil:
			err = errors.Join(err, problem)
		case !bytes.Equal(text, source.text):
			source.text, changed = text, true
		}
	}
	if changed {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.keys = s.listed()
	}
	return changed, err
}

func (s *sharedSecrets) current() []verificationKey {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.keys
}

// fromFiles reports whether there is anything to read again.
func (s *sharedSecrets) fromFiles() bool {
	return slices.ContainsFunc(s.sources, func(source secretSource) bool { return source.path != "" })
}
