// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// screen writes the demo's text. On a terminal it uses colour and one line
// that changes while something is under way; elsewhere plain lines only.
type screen struct {
	w     io.Writer
	live  bool // a terminal that can move the cursor
	color bool

	mu    sync.Mutex
	open  bool // the current line is a changing one
	shown time.Time
}

// redraw is the least time between two states of a changing line.
const redraw = 80 * time.Millisecond

func newScreen(f *os.File) *screen {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	live := err == nil && os.Getenv("TERM") != "dumb"
	return &screen{w: f, live: live, color: live && os.Getenv("NO_COLOR") == ""}
}

const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
)

func (s *screen) paint(code, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// say writes lines that stay.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearLocked()
	fmt.Fprintf(s.w, format+"\n", args...)
}

func (s *screen) title(text string) { s.say("%s\n", s.paint(bold, text)) }

func (s *screen) fail(err error) { s.say("%s %v", s.paint(red, "demo failed:"), err) }

// progress shows the state of something under way on a line that the next
// output replaces. Without a terminal it shows nothing.
func (s *screen) progress(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.live || time.Since(s.shown) < redraw {
		return
	}
	s.shown = time.Now()
	s.clearLocked()
	text := fmt.Sprintf(format, args...)
	if width := s.width(); len(text) >= width {
		text = text[:width-1]
	}
	fmt.Fprint(s.w, s.paint(dim, text))
	s.open = true
}

// endLine leaves a changing line behind, for what the terminal has echoed.
func (s *screen) endLine() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		fmt.Fprintln(s.w)
		s.open = false
	}
}

func (s *screen) clearLocked() {
	if s.open {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.open = false
	}
}

func (s *screen) width() int {
	f, ok := s.w.(*os.File)
	if !ok {
		return 80
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Col < 20 {
		return 80
	}
	return int(ws.Col)
}

// step runs f under a heading and reports how it ended. note shows progress.
func (d *demo) step(name string, f func(note func(format string, args ...any)) error) error {
	s := d.screen
	s.progress("… %s", name)
	if !s.live {
		s.say("… %s", name)
	}
	began := time.Now()
	var last string
	err := f(func(format string, args ...any) {
		last = fmt.Sprintf(format, args...)
		s.progress("… %s: %s", name, last)
	})
	took := fmt.Sprintf("%.1f s", time.Since(began).Seconds())
	if err != nil {
		s.say("%s %s", s.paint(red, "✗"), name)
		return fmt.Errorf("%s: %w", name, err)
	}
	line := s.paint(green, "✓") + " " + name
	if last != "" {
		line += ": " + last
	}
	s.say("%s %s", line, s.paint(dim, "("+took+")"))
	return nil
}

// table formats rows in two columns.
func table(rows [][2]string) string {
	width := 0
	for _, r := range rows {
		width = max(width, len(r[0]))
	}
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "  %-*s  %s\n", width, r[0], r[1])
	}
	return strings.TrimRight(b.String(), "\n")
}
