// SPDX-License-Identifier: Apache-2.0

package transport

import "errors"

// errFull ends a flush that must not wait.
var errFull = errors.New("socket buffer is full")

// TrySend is Send without the wait for room: it stops where the socket's buffer is
// full, or another call sends, and returns how many of msgs it has dealt with and
// how many of those the kernel took. err is that of a message that was refused, or
// net.ErrClosed; want of room is none.
func (b *linuxBind) TrySend(_ int, msgs []Message) (tried, sent int, err error) {
	if !b.mu.TryLock() {
		return 0, 0, nil
	}
	b.send.try = true
	defer func() {
		b.send.try = false
		b.mu.Unlock()
	}()
	for tried < len(msgs) {
		n := b.plan(msgs[tried:])
		k, e := b.flush(msgs[tried : tried+n])
		sent += k
		switch {
		case errors.Is(e, errFull):
			return tried + b.send.first[b.send.done], sent, err
		case isClosed(e):
			return tried, sent, e
		case e != nil:
			err = e
		}
		tried += n
	}
	return tried, sent, err
}
