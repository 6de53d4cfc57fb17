// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Draw returns the topology in box characters: each network with what hangs
// on it, by address and with the shape of the cable.
func (l *Lab) Draw() string {
	l.mu.Lock()
	hosts := append([]*Host(nil), l.hosts...)
	l.mu.Unlock()

	below := map[*Host][]*Iface{}
	for _, h := range hosts {
		for _, i := range h.ifaces {
			below[i.network] = append(below[i.network], i)
		}
	}
	var rows [][2]string // tree, details
	var walk func(h *Host, indent string)
	walk = func(h *Host, indent string) {
		for n, i := range below[h] {
			branch, next := "├─ ", "│  "
			if n == len(below[h])-1 {
				branch, next = "└─ ", "   "
			}
			rows = append(rows, [2]string{indent + branch + i.Host.title(), i.describe()})
			if i == i.Host.ifaces[0] { // a second uplink shows the host, not its net again
				walk(i.Host, indent+next)
			}
		}
	}
	for _, h := range hosts {
		if len(h.ifaces) > 0 {
			continue
		}
		t := h.title()
		line := strings.Repeat("─", utf8.RuneCountInString(t)+2)
		rows = append(rows, [2]string{"┌" + line + "┐"}, [2]string{"│ " + t + " │"}, [2]string{"└┬" + line[len("─"):] + "┘"})
		walk(h, " ")
	}
	width := 0
	for _, r := range rows {
		width = max(width, utf8.RuneCountInString(r[0]))
	}
	var b strings.Builder
	for _, r := range rows {
		pad := width - utf8.RuneCountInString(r[0])
		b.WriteString(strings.TrimRight(r[0]+strings.Repeat(" ", pad)+"  "+r[1], " ") + "\n")
	}
	return b.String()
}

func (h *Host) title() string {
	if h.note == "" {
		return h.name
	}
	return h.name + " (" + h.note + ")"
}

func (i *Iface) describe() string {
	s := fmt.Sprintf("%s %v %v", i.Name, i.Addr4, i.Addr6)
	if d := i.link.Up.String(); d != "" {
		s += "  ↑ " + d
	}
	if d := i.link.Down.String(); d != "" {
		s += "  ↓ " + d
	}
	return s
}

// String lists what the shape does, "" for a perfect direction.
func (s Shape) String() string {
	var p []string
	if s.Rate > 0 {
		p = append(p, fmt.Sprintf("%g Mbit/s", float64(s.Rate)/1e6))
	}
	if s.Delay > 0 || s.Jitter > 0 {
		d := s.Delay.String()
		if s.Jitter > 0 {
			d += " ± " + s.Jitter.String()
		}
		p = append(p, d)
	}
	if s.Loss > 0 {
		p = append(p, fmt.Sprintf("%g %% loss", s.Loss*100))
	}
	return strings.Join(p, ", ")
}
