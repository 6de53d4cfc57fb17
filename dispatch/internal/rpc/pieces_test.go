// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"bytes"
	"net/http/httptest"
	"testing"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/topology"
)

// flushes counts writes and flushes.
type flushes struct {
	*httptest.ResponseRecorder
	flushed, largest int
}

func (f *flushes) Flush() { f.flushed++ }

func (f *flushes) Write(b []byte) (int, error) {
	f.largest = max(f.largest, len(b))
	return f.ResponseRecorder.Write(b)
}

// TestPieces: events of one batch are flushed once, and no write is large.
func TestPieces(t *testing.T) {
	f := &flushes{ResponseRecorder: httptest.NewRecorder()}
	p := &pieces{ResponseWriter: f}
	var want []byte
	var events []topology.Event
	for i := range 3 {
		raw := bytes.Repeat([]byte{byte(i)}, 3000)
		want = append(want, raw...)
		events = append(events, topology.Event{Raw: raw})
	}
	send := func(raw []byte) error {
		_, err := p.Write(raw)
		p.Flush()
		return err
	}
	hold := func(on bool) { p.held = on }
	for _, batch := range [][]topology.Event{events, events[:1], nil} {
		f.flushed = 0
		if err := sendAll(hold, send, batch); err != nil {
			t.Fatal(err)
		}
		want := 0
		if len(batch) > 0 { // the last one's pieces, each by itself
			want = (len(batch[len(batch)-1].Raw) + pieceLen - 1) / pieceLen
		}
		if f.flushed != want || p.held {
			t.Errorf("%d events: %d flushes, held %v; want %d", len(batch), f.flushed, p.held, want)
		}
	}
	if got := f.Body.Bytes(); !bytes.Equal(got[:len(want)], want) {
		t.Error("the pieces do not make up what was sent")
	}
	if f.largest > pieceLen {
		t.Errorf("a write of %d bytes, want at most %d", f.largest, pieceLen)
	}
}
