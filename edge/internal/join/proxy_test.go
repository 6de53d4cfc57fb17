// SPDX-License-Identifier: Apache-2.0

package join

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
)

// proxy is an HTTP proxy that knows CONNECT only, and one user. It counts tunnels.
type proxy struct {
	*httptest.Server
	tunnels atomic.Int32
}

// newProxy leads to target, or where it is asked to if that is empty.
func newProxy(t *testing.T, user, target string) *proxy {
	t.Helper()
	p := &proxy{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Authorization", r.Header.Get("Proxy-Authorization"))
		if u, pw, _ := r.BasicAuth(); user != "" && u+":"+pw != user {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		if r.Method != http.MethodConnect {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		to := target
		if to == "" {
			to = r.Host
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer out.Close()
		in, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer in.Close()
		_, _ = io.WriteString(in, "HTTP/1.1 200 Connection established\r\n\r\n")
		p.tunnels.Add(1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(out, rw)
			_ = out.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(in, out)
		_ = in.Close()
		<-done
	}))
	t.Cleanup(p.Close)
	return p
}

func TestJoinThroughProxy(t *testing.T) {
	h := hubtest.New(t)
	p := newProxy(t, "bob:secret", "")
	with := strings.Replace(p.URL, "http://", "http://bob:secret@", 1)
	dir := filepath.Join(t.TempDir(), "home")
	cfg := Config{Token: h.Token(1, time.Hour).String(), HubURL: h.URL, Home: dir, Proxy: with}
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	n, err := home.Load(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if p.tunnels.Load() != 1 || n.Config.Hub.Proxy != with {
		t.Errorf("%d tunnels, configured %q", p.tunnels.Load(), n.Config.Hub.Proxy)
	}
	web := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	token := h.Token(1, time.Hour).String()
	for name, tc := range map[string]struct {
		proxy, url string
		want       error
	}{
		"WrongUser":   {strings.Replace(p.URL, "http://", "http://eve:secret@", 1), h.URL, ErrUnreachable},
		"NoProxy":     {"http://127.0.0.1:1", h.URL, ErrUnreachable},
		"NoHub":       {with, "https://127.0.0.1:1", ErrUnreachable},
		"NotAProxy":   {web.URL, h.URL, ErrUnreachable},
		"NotHTTP":     {strings.Replace(web.URL, "https", "http", 1), h.URL, ErrUnreachable},
		"Intercepted": {newProxy(t, "", web.Listener.Addr().String()).URL, h.URL, ErrPin},
		"Malformed":   {"ftp://x", h.URL, ErrProxy},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, Config{Token: token, HubURL: tc.url, Proxy: tc.proxy}, tc.want)
		})
	}
}

func FuzzReadConnect(f *testing.F) {
	f.Add("HTTP/1.1 200 Connection established\r\n\r\n")
	f.Add("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
	f.Add("HTTP/1.1 407 Proxy Authentication Required\r\nTransfer-Encoding: chunked\r\n\r\n")
	f.Add("SSH-2.0-x\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		err := readConnect(strings.NewReader(in), &http.Request{Method: http.MethodConnect})
		if err == nil && !strings.HasSuffix(strings.ReplaceAll(in, "\r", ""), "\n\n") {
			t.Errorf("%q passed with bytes behind the header", in)
		}
	})
}
