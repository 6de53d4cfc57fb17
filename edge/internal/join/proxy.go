// SPDX-License-Identifier: Apache-2.0

package join

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// maxProxyAnswer bounds the header of a proxy's answer, in bytes.
const maxProxyAnswer = 64 << 10

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// through opens a connection to addr through an HTTP proxy (RFC 9110 §9.3.6). The
// proxy is believed nothing: the hub proves itself inside.
func through(ctx context.Context, dial dialer, proxy *url.URL, addr string) (net.Conn, error) {
	port := proxy.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[proxy.Scheme]
	}
	if port == "" {
		return nil, fmt.Errorf("proxy of kind %q: only http and https can be used", proxy.Scheme)
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("reach the proxy: %w", err)
	}
	if proxy.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: proxy.Hostname()})
	}
	// The context ends the exchange too.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = connectProxy(conn, proxy, addr)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	return conn, nil
}

func connectProxy(conn net.Conn, proxy *url.URL, addr string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: make(http.Header)}
	if u := proxy.User; u != nil {
		pw, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+pw)))
	}
	if err := req.Write(conn); err != nil {
		return fmt.Errorf("send CONNECT: %w", err)
	}
	return readConnect(conn, req)
}

// readConnect reads the proxy's answer and not a byte more.
func readConnect(r io.Reader, req *http.Request) error {
	br := bufio.NewReader(io.LimitReader(r, maxProxyAnswer))
	res, err := http.ReadResponse(br, req)
	if err != nil {
		return fmt.Errorf("read the answer to CONNECT: %w", err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %q", res.Status)
	}
	// A TLS server speaks second, so these would be the proxy's own.
	if br.Buffered() > 0 {
		return errors.New("it sent more than an answer to CONNECT")
	}
	return nil
}
