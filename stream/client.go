package stream

import (
	"embed"
	"net/http"
)

//go:embed client/client.js
var clientFiles embed.FS

// pathClient is where the browser client is served, to everybody: it is public
// code, which pages of other sites import too.
const pathClient = "/client.js"

// newClientHandler serves the browser client.
func newClientHandler() http.Handler {
	client := newAsset(clientFiles, "client/client.js")
	return methods(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*") // modules are fetched with CORS
		w.Header().Set("Cross-Origin-Resource-Policy", "cross-origin")
		client.ServeHTTP(w, r)
	}, http.MethodGet, http.MethodHead)
}
