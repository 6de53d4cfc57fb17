// SPDX-License-Identifier: Apache-2.0

package engine

import "sync"

// mailbox is a queue of functions for one goroutine. Posters are the packet path
// and ICE callbacks, which must never wait for the engine.
type mailbox struct {
	wake   chan struct{}
	closed chan struct{}

	mu   sync.Mutex // guards the rest
	fns  []func()
	dead bool
}

func (m *mailbox) init() {
	m.wake = make(chan struct{}, 1)
	m.closed = make(chan struct{})
}

// maxOffered bounds what strangers and peers can make wait.
const maxOffered = 4096

// post queues what must not be lost: its number is bounded by what we do.
func (m *mailbox) post(f func()) { m.put(f, false) }

// offer queues what others send, if there is room.
func (m *mailbox) offer(f func()) { m.put(f, true) }

func (m *mailbox) put(f func(), lossy bool) {
	m.mu.Lock()
	if !m.dead && (!lossy || len(m.fns) < maxOffered) {
		m.fns = append(m.fns, f)
	}
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() []func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	fns := m.fns
	m.fns = nil
	return fns
}

// close refuses further posts, drops the pending ones and releases who waits.
func (m *mailbox) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dead {
		m.dead = true
		close(m.closed)
	}
	m.fns = nil
}
