// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// kind is which event of WatchTopologyResponse or ExchangeCandidatesResponse a
// message holds: its field number there.
type kind = int

const (
	evChunk    kind = 1
	evSynced   kind = 2
	evDelta    kind = 3
	evPresence kind = 4
	evBookmark kind = 5
	evResync   kind = 6

	sigDelivery      kind = 1
	sigUndeliverable kind = 2
	sigReady         kind = 3
)

// event is what the simulated node looks at of a topology event. Ten thousand
// nodes get the same bytes at one moment in one process, so they are read without
// an allocation.
type event struct {
	kind     kind // 0: of a newer hub
	epoch    uint64
	rv       uint64
	policy   uint64
	snapshot bool
	lazy     bool
	peers    int // of a chunk
	denials  int // of a chunk or a delta
	upserts  int
	deletes  int
}

// parseEvent reads a WatchTopologyResponse.
func parseEvent(b []byte) (event, error) {
	var e event
	err := fields(b, func(num int, _ uint64, sub []byte) error {
		if num > evResync || sub == nil {
			return nil
		}
		e = event{kind: num}
		return e.inner(sub)
	})
	return e, err
}

func (e *event) inner(b []byte) error {
	return fields(b, func(num int, v uint64, _ []byte) error {
		switch e.kind {
		case evChunk:
			switch num {
			case 1:
				e.peers++
			case 2:
				e.denials++
			}
		case evSynced:
			switch num {
			case 1:
				e.epoch = v
			case 2:
				e.rv = v
			case 3:
				e.policy = v
			case 4:
				e.snapshot = v != 0
			case 5:
				e.lazy = v != 0
			}
		case evDelta:
			switch num {
			case 1:
				e.rv = v
			case 2:
				e.upserts++
			case 3:
				e.deletes++
			case 4:
				e.policy = v
			case 5:
				e.denials++
			}
		case evBookmark:
			if num == 1 {
				e.rv = v
			}
		}
		return nil
	})
}

// signalEvent is an ExchangeCandidatesResponse.
type signalEvent struct {
	kind   kind
	body   []byte // of a delivery; valid as long as the message
	seq    uint64 // of an undeliverable
	reason uint64
}

// parseSignal reads an ExchangeCandidatesResponse.
func parseSignal(b []byte) (signalEvent, error) {
	var e signalEvent
	err := fields(b, func(num int, _ uint64, sub []byte) error {
		if num > sigReady || sub == nil {
			return nil
		}
		e = signalEvent{kind: num}
		return fields(sub, func(num int, v uint64, sub []byte) error {
			switch {
			case e.kind == sigDelivery && num == 2 && sub != nil:
				e.body = sub
			case e.kind == sigUndeliverable && num == 2:
				e.seq = v
			case e.kind == sigUndeliverable && num == 3:
				e.reason = v
			}
			return nil
		})
	})
	return e, err
}

// fields calls f with each field of a message: v of a varint, sub, which then is
// not nil, of a length-delimited one.
func fields(b []byte, f func(num int, v uint64, sub []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", errProtocol, protowire.ParseError(n))
		}
		b = b[n:]
		var v uint64
		var sub []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			if sub, n = protowire.ConsumeBytes(b); sub == nil {
				sub = []byte{}
			}
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return fmt.Errorf("%w: %w", errProtocol, protowire.ParseError(n))
		}
		b = b[n:]
		if err := f(int(num), v, sub); err != nil {
			return err
		}
	}
	return nil
}
