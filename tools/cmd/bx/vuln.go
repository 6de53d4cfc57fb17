// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// database is what govulncheck asks; its index is small.
const database = "https://vuln.go.dev/index/db.json"

func vulnCommand(ctx context.Context, e *env) error {
	flags := flag.NewFlagSet("vuln", flag.ContinueOnError)
	require := flags.Bool("require", false, "fail where the database is out of reach")
	if err := flags.Parse(e.args); err != nil {
		return err
	}
	e.vuln(ctx, *require)
	return e.run.Finish(ctx)
}

// vuln asks, for the two binaries and what they are made of, whether they
// reach a known vulnerability that allow.txt does not answer.
func (e *env) vuln(ctx context.Context, require bool) {
	e.do(ctx, "known vulnerabilities", func(ctx context.Context, log *step.Log) error {
		allowed, err := readAllowed(e.path("tools", "vuln", "allow.txt"))
		if err != nil {
			return err
		}
		if err := reach(ctx, database); err != nil {
			if require {
				return err
			}
			return step.Skip("the database is out of reach")
		}
		c := step.Cmd{Env: []string{"GOWORK=off", "GOBIN=" + e.path(".bin")}}
		if err := c.Run(ctx, log, "go", "-C", e.path("tools", "vuln"), "install", "tool"); err != nil {
			return err
		}
		var unanswered []string
		used := map[string]bool{}
		for _, m := range []string{"conduit", "citadel", "forge", "dispatch", "edge"} {
			out, err := step.Cmd{Dir: e.path(m), Env: alone}.Output(ctx, log, e.path(".bin", "govulncheck"), "-format", "json", "./...")
			if err != nil {
				return err
			}
			ids, err := reached(strings.NewReader(out))
			if err != nil {
				return err
			}
			for _, id := range ids {
				used[id] = true
				if allowed[id] == "" {
					unanswered = append(unanswered, m+" reaches "+id)
				}
			}
		}
		for id := range allowed {
			if !used[id] {
				unanswered = append(unanswered, "allow.txt answers "+id+", which nothing reaches any more")
			}
		}
		if len(unanswered) > 0 {
			slices.Sort(unanswered)
			return errors.New(strings.Join(unanswered, "; "))
		}
		return nil
	})
}

func reach(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("reach the vulnerability database: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("reach the vulnerability database: %s", resp.Status)
	}
	return nil
}

// readAllowed reads lines of an id and the reason why it may stand. A line
// without a reason is an error.
func readAllowed(name string) (map[string]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	allowed := map[string]string{}
	s := bufio.NewScanner(f)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, reason, _ := strings.Cut(line, " ")
		if reason = strings.TrimSpace(reason); reason == "" {
			return nil, fmt.Errorf("read %s:%d: %s has no reason", name, n, id)
		}
		allowed[id] = reason
	}
	return allowed, s.Err()
}

// reached reads govulncheck's JSON and returns the ids of findings whose
// vulnerable function is called, sorted. A vulnerable module that nobody
// calls into is no finding of ours.
func reached(r io.Reader) ([]string, error) {
	dec := json.NewDecoder(r)
	var ids []string
	for {
		var msg struct {
			Finding *struct {
				OSV   string `json:"osv"`
				Trace []struct {
					Function string `json:"function"`
				} `json:"trace"`
			} `json:"finding"`
		}
		if err := dec.Decode(&msg); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("read govulncheck's answer: %w", err)
		}
		if f := msg.Finding; f != nil && len(f.Trace) > 0 && f.Trace[0].Function != "" {
			ids = append(ids, f.OSV)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}
