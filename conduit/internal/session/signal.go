// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math"

	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// signal seals and opens the candidates of one session. The hub relays them and
// can neither read nor make any.
type signal struct {
	suite      wire.Suite
	send, recv []byte
	seq        uint64
	next       uint64 // least sequence number still accepted
}

func newSignal(suite wire.Suite, send, recv []byte) *signal {
	return &signal{suite: suite, send: send, recv: recv}
}

func (s *signal) seal(sid wire.SID, lines []string, flags wire.CandidateFlags) ([]byte, error) {
	m := wire.Candidates{SID: sid, Seq: s.seq}
	s.seq++
	body := wire.CandidatesBody{Lines: lines, Flags: flags}
	var err error
	if m.Sealed, err = sealOnce(s.suite, s.send, m.Seq, body.Append(nil), m.AppendClear(nil)); err != nil {
		return nil, err
	}
	return m.Append(nil), nil
}

func (s *signal) open(b []byte, sid wire.SID) (*Candidates, error) {
	var m wire.Candidates
	if err := m.Parse(b); err != nil {
		return nil, err
	}
	if m.Seq < s.next || m.Seq == math.MaxUint64 { // after which next would wrap
		return nil, refuse("candidates were seen before")
	}
	plain, err := openOnce(s.suite, s.recv, m.Seq, m.Sealed, m.AppendClear(nil))
	if err != nil {
		return nil, refuse("candidates do not open")
	}
	var body wire.CandidatesBody
	if err := body.Parse(plain); err != nil {
		return nil, err
	}
	s.next = m.Seq + 1
	return &Candidates{
		SID: sid, Lines: body.Lines,
		Done: body.Flags&wire.CandidatesDone != 0, Fresh: body.Flags&wire.CandidatesFresh != 0,
	}, nil
}
