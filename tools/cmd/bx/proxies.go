// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// proxies lets a node join and run through each example proxy that is installed.
// It is no part of `test`: a proxy's Debian package starts a service.
func (e *env) proxies(ctx context.Context) {
	for _, p := range []struct {
		command, config string
		args            []string // before the configuration's name; DIR is the run's folder
	}{
		{"haproxy", "haproxy.cfg", []string{"-db", "-f"}},
		{"nginx", "nginx.conf", []string{"-g", "daemon off; error_log stderr; pid DIR/nginx.pid;", "-c"}},
	} {
		e.do(ctx, "proxy: "+p.command, func(ctx context.Context, log *step.Log) error {
			program, err := exec.LookPath(p.command)
			if err != nil {
				return step.Skip(p.command + " is not installed")
			}
			dir, err := os.MkdirTemp("", "proxy-*")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
			defer cancel()
			ctx, end := context.WithCancelCause(ctx)
			r := &proxyRun{env: e, log: log, dir: dir, end: end}
			defer func() { end(nil); r.running.Wait() }()
			return r.run(ctx, program, p.config, p.args)
		})
	}
}

// proxyRun is a hub, a proxy and a node in one folder.
type proxyRun struct {
	*env
	log     *step.Log
	dir     string
	end     context.CancelCauseFunc // ends the run
	running sync.WaitGroup
}

func (r *proxyRun) run(ctx context.Context, proxy, config string, args []string) error {
	build := step.Cmd{Dir: r.root}
	if err := build.Run(ctx, r.log, "go", "build", "-o", r.dir+"/", "./edge/cmd/bauxite", "./dispatch/cmd/bauxite-dispatch"); err != nil {
		return err
	}
	ports, err := freePorts(4)
	if err != nil {
		return err
	}
	node, metrics, front, web := ports[0], ports[1], ports[2], ports[3]
	text, err := os.ReadFile(r.path("packaging", "proxy", config))
	if err != nil {
		return err
	}
	rendered := strings.NewReplacer("hub.example.org", "localhost", "127.0.0.1:8440", "127.0.0.1:"+node, "check port 8442", "check port "+metrics,
		"bind :443", "bind :"+front, "listen 443", "listen "+front, "30000", "1000" /* what an ordinary limit allows */, "127.0.0.1:8443", "127.0.0.1:"+web).Replace(string(text))
	if err := os.WriteFile(filepath.Join(r.dir, config), []byte(rendered), 0o644); err != nil {
		return err
	}
	data, hub, url := filepath.Join(r.dir, "hub"), filepath.Join(r.dir, "bauxite-dispatch"), "https://localhost:"+front
	if err := r.start(ctx, hub, "serve", "--data", data, "--listen", "127.0.0.1:"+node, "--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:"+metrics,
		"--stun-listen", "off", "--public-url", url); err != nil {
		return err
	}
	args = append([]string{}, args...)
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "DIR", r.dir)
	}
	if err := r.start(ctx, proxy, append(args, filepath.Join(r.dir, config))...); err != nil {
		return err
	}
	var token string
	if err := until(ctx, func() (err error) {
		if err = listens(ctx, front); err == nil {
			token, err = r.answer(ctx, hub, "token", "create", "--data", data)
		}
		return err
	}); err != nil {
		return err
	}
	bauxite := filepath.Join(r.dir, "bauxite")
	// Without a server name the proxy must not lead to the hub.
	if out, err := r.join(ctx, bauxite, filepath.Join(r.dir, "nameless"), token, "https://127.0.0.1:"+front); err == nil {
		return fmt.Errorf("a node joined past the proxy's routing: %s", out)
	}
	home := filepath.Join(r.dir, "node")
	if err := until(ctx, func() error { _, err := r.join(ctx, bauxite, home, token, url); return err }); err != nil {
		return err
	}
	if err := r.start(ctx, bauxite, "run", "--home", home, "--tun", "none"); err != nil {
		return err
	}
	return until(ctx, func() error {
		out, err := r.answer(ctx, hub, "node", "list", "--data", data, "--json")
		if err != nil {
			return err
		}
		var list struct{ Nodes []struct{ Online bool } }
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return err
		}
		if len(list.Nodes) != 1 || !list.Nodes[0].Online {
			return fmt.Errorf("the node is not online: %s", out)
		}
		return nil
	})
}

// join joins with the token on standard input, out of the list of processes.
func (r *proxyRun) join(ctx context.Context, bauxite, home, token, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bauxite, "join", "--home", home, "-", url)
	cmd.Stdin = strings.NewReader(token)
	out, err := cmd.CombinedOutput()
	r.log.Printf("$ bauxite join - %s: %v\n%s", url, err, out)
	if err != nil {
		return string(out), fmt.Errorf("join %s: %w: %s", url, err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

func (r *proxyRun) answer(ctx context.Context, name string, args ...string) (string, error) {
	out, err := step.Cmd{Dir: r.dir}.Output(ctx, r.log, name, args...)
	return strings.TrimSpace(out), err
}

// start runs a program until ctx ends. If it ends before, so does the run.
func (r *proxyRun) start(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.dir, r.log, r.log
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	r.running.Go(func() {
		_ = cmd.Wait()
		r.end(fmt.Errorf("%s ended: %s", filepath.Base(name), cmd.ProcessState))
	})
	return nil
}

// until tries do until it works or ctx ends.
func until(ctx context.Context, do func() error) error {
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		err := do()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-t.C:
		}
	}
}

func listens(ctx context.Context, port string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+port)
	if err == nil {
		err = c.Close()
	}
	return err
}

// freePorts returns TCP ports that nobody listens on now.
func freePorts(n int) ([]string, error) {
	var ports []string
	for range n {
		ln, err := net.Listen("tcp", ":0") //nolint:noctx // nothing to wait for
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		ports = append(ports, strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}
