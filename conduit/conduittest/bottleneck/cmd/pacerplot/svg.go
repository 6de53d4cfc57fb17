// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"strconv"
	"time"
)

// Sizes in pixels. Colours are such that they can be read on white and on black.
const (
	width, left, right = 760, 56, 12
	top0, high, gap    = 54, 120, 50
	ink                = "#808890"
	nullColour         = "#e0653a"
	pacedColour        = "#2f8fd0"
)

// plot is an SVG of panels below each other, over one axis of time.
type plot struct {
	body bytes.Buffer
	dur  time.Duration
	next int // where the next panel begins
}

func newPlot(title string, dur time.Duration) *plot {
	p := &plot{dur: dur, next: top0}
	p.text(left, 20, "start", ink, title)
	p.text(width-right-76, 20, "end", nullColour, "Null")
	p.text(width-right, 20, "end", pacedColour, "DelayRate")
	return p
}

// scale maps a value to 0 (bottom) to 1 and names its ticks.
type scale struct {
	of    func(float64) float64
	ticks []float64
}

func logScale(lo, hi float64) scale {
	s := scale{of: func(v float64) float64 {
		return min(1, max(0, math.Log(max(v, lo)/lo)/math.Log(hi/lo)))
	}}
	for t := lo; t <= hi*1.001; t *= 10 {
		s.ticks = append(s.ticks, t)
	}
	return s
}

func linearScale(most float64) scale {
	unit := math.Pow(10, math.Floor(math.Log10(most)))
	for most/unit < 4 {
		unit /= 2
	}
	hi := unit * math.Ceil(most/unit)
	s := scale{of: func(v float64) float64 { return min(1, max(0, v/hi)) }}
	for t := 0.0; t <= hi*1.001; t += unit {
		s.ticks = append(s.ticks, t)
	}
	return s
}

func (p *plot) x(share float64) float64 { return left + share*(width-left-right) }

// panel draws the curves of Null and DelayRate, and a third if there is one.
func (p *plot) panel(name string, s scale, null, paced, third []float64, thirdName string) {
	y0 := p.next
	p.next += high + gap
	y := func(v float64) float64 { return float64(y0) + high*(1-s.of(v)) }
	p.text(left, float64(y0-8), "start", ink, name)
	for _, t := range s.ticks {
		fmt.Fprintf(&p.body, `<path d="M%d %.1fH%d" stroke="%s" stroke-opacity=".3"/>`+"\n", left, y(t), width-right, ink)
		p.text(left-6, y(t)+4, "end", ink, strconv.FormatFloat(math.Round(t*100)/100, 'f', -1, 64))
	}
	every := 5 * time.Second
	for at := time.Duration(0); at <= p.dur; at += every {
		label := fmt.Sprint(int(at / time.Second))
		if at == 0 {
			label = "0 s"
		}
		p.text(p.x(float64(at)/float64(p.dur)), float64(y0+high+16), "middle", ink, label)
	}
	if third != nil {
		p.text(width-right, float64(y0-8), "end", ink, "dashed: "+thirdName)
		p.curve(third, y, ink, ` stroke-dasharray="4 3"`)
	}
	p.curve(null, y, nullColour, "")
	p.curve(paced, y, pacedColour, "")
}

func (p *plot) curve(v []float64, y func(float64) float64, colour, more string) {
	p.body.WriteString(`<path d="M`)
	for i, x := range v {
		if i > 0 {
			p.body.WriteByte('L')
		}
		fmt.Fprintf(&p.body, "%.1f %.1f", p.x((float64(i)+0.5)/float64(len(v))), y(x))
	}
	fmt.Fprintf(&p.body, `" fill="none" stroke="%s" stroke-width="1.4" stroke-linejoin="round"%s/>`+"\n", colour, more)
}

func (p *plot) text(x, y float64, anchor, colour, s string) {
	fmt.Fprintf(&p.body, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">`, x, y, anchor, colour)
	_ = xml.EscapeText(&p.body, []byte(s)) // a Buffer takes all
	p.body.WriteString("</text>\n")
}

func (p *plot) bytes() []byte {
	height := p.next - gap + 24
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	out.Write(p.body.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}
