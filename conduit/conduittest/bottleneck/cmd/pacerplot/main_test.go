// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"testing"
	"time"
)

// TestDraw draws a short part of each figure: it must be an XML document that a page
// can show, and small enough for one.
func TestDraw(t *testing.T) {
	for _, f := range figures() {
		t.Run(f.name, func(t *testing.T) {
			f.scenario.Duration = 3 * time.Second
			b := draw(f)
			if bytes.Contains(b, []byte("NaN")) || bytes.Contains(b, []byte("Inf")) {
				t.Error("a number is none")
			}
			d := xml.NewDecoder(bytes.NewReader(b))
			for {
				if _, err := d.Token(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			full := len(b) * int(figures()[0].scenario.Duration/f.scenario.Duration+1)
			if full > 60e3 {
				t.Errorf("about %d bytes", full)
			}
		})
	}
}
