package stream

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"time"
)

// asset is an embedded file, served with an ETag that says what is in it: a
// browser asks each time, and is answered that nothing has changed until another
// version of the program runs.
type asset struct {
	content     []byte
	contentType string
	etag        string
}

// contentTypes are the kinds of assets. The system's own table, which package
// mime reads, differs from machine to machine.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// newAsset reads an embedded file.
func newAsset(files fs.FS, name string) *asset {
	content, err := fs.ReadFile(files, name)
	contentType, known := contentTypes[path.Ext(name)]
	if err != nil || !known {
		panic(fmt.Sprintf("no asset: %s: %v", name, err)) // the files are in the program
	}
	sum := sha256.Sum256(content)
	return &asset{content, contentType, `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`}
}

// ServeHTTP is part of [http.Handler].
func (a *asset) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", a.contentType)
	h.Set("Cache-Control", "no-cache") // which is: ask whether it is still so
	h.Set("ETag", a.etag)
	h.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(a.content))
}
