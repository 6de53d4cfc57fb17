// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// MaxTransfer bounds one transfer, in bytes.
const MaxTransfer = 1 << 40

// ErrChecksum tells that what arrived is not what was sent.
var ErrChecksum = errors.New("checksum differs")

// block is the unit of reading and writing.
const block = 256 << 10

// Transfer is the result of a bulk transfer.
type Transfer struct {
	Bytes    int64             `json:"bytes"`
	Duration time.Duration     `json:"duration_ns"`
	SHA256   [sha256.Size]byte `json:"-"`
}

// Mbit is the throughput in Mbit/s.
func (t Transfer) Mbit() float64 {
	if t.Duration <= 0 {
		return 0
	}
	return float64(t.Bytes) * 8 / t.Duration.Seconds() / 1e6
}

// Send sends size bytes of r over conn to a Receive at the other end and
// waits for its checksum, so the time is that of arrival. It calls progress,
// if not nil, with the bytes sent so far. conn stays open.
func Send(ctx context.Context, conn net.Conn, r io.Reader, size int64, progress func(sent int64)) (Transfer, error) {
	if size < 0 || size > MaxTransfer {
		return Transfer{}, fmt.Errorf("send %d bytes: out of range", size)
	}
	defer guard(ctx, conn)()
	began := time.Now()
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, uint64(size))); err != nil {
		return Transfer{}, fmt.Errorf("send size: %w", cause(ctx, err))
	}
	sum := sha256.New()
	buf := make([]byte, block)
	src := io.TeeReader(io.LimitReader(r, size), sum)
	var sent int64
	for sent < size {
		n, err := src.Read(buf)
		if err != nil && (!errors.Is(err, io.EOF) || n == 0) {
			return Transfer{Bytes: sent, Duration: time.Since(began)}, fmt.Errorf("read data: %w", err)
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return Transfer{Bytes: sent, Duration: time.Since(began)}, fmt.Errorf("send data: %w", cause(ctx, err))
		}
		sent += int64(n)
		if progress != nil {
			progress(sent)
		}
	}
	var theirs [sha256.Size]byte
	if _, err := io.ReadFull(conn, theirs[:]); err != nil {
		return Transfer{Bytes: sent, Duration: time.Since(began)}, fmt.Errorf("receive checksum: %w", cause(ctx, err))
	}
	t := Transfer{Bytes: sent, Duration: time.Since(began)}
	copy(t.SHA256[:], sum.Sum(nil))
	if t.SHA256 != theirs {
		return t, fmt.Errorf("send %d bytes: %w", size, ErrChecksum)
	}
	return t, nil
}

// Receive takes one transfer of at most limit bytes into w, if not nil, and
// answers with its checksum. conn stays open.
func Receive(ctx context.Context, conn net.Conn, w io.Writer, limit int64) (Transfer, error) {
	defer guard(ctx, conn)()
	var head [8]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return Transfer{}, fmt.Errorf("receive size: %w", cause(ctx, err))
	}
	size := binary.BigEndian.Uint64(head[:])
	if size > uint64(max(limit, 0)) {
		return Transfer{}, fmt.Errorf("receive %d bytes: more than the %d allowed", size, limit)
	}
	began := time.Now()
	sum := sha256.New()
	dst := io.Writer(sum)
	if w != nil {
		dst = io.MultiWriter(sum, w)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{dst}, io.LimitReader(conn, int64(size)), make([]byte, block))
	t := Transfer{Bytes: n, Duration: time.Since(began)}
	if err == nil && n < int64(size) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return t, fmt.Errorf("receive data: %w", cause(ctx, err))
	}
	copy(t.SHA256[:], sum.Sum(nil))
	if _, err := conn.Write(t.SHA256[:]); err != nil {
		return t, fmt.Errorf("send checksum: %w", cause(ctx, err))
	}
	return t, nil
}

// guard makes the calls on conn fail when ctx ends. The returned function
// lifts it.
func guard(ctx context.Context, conn net.Conn) (lift func()) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// cause prefers the context's error over the timeout that it led to.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Pattern is an endless stream of bytes that look random (they do not
// compress) with the marker, if any, every 512 bytes. The same seed gives the
// same stream.
func Pattern(seed uint64, marker []byte) io.Reader {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	return &pattern{rng: rand.NewChaCha8(key), marker: bytes.Clone(marker)}
}

type pattern struct {
	rng    *rand.ChaCha8
	marker []byte
	rest   []byte
	buf    [512]byte
}

// Read implements io.Reader.
func (p *pattern) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		if len(p.rest) == 0 {
			_, _ = p.rng.Read(p.buf[:])
			copy(p.buf[:], p.marker)
			p.rest = p.buf[:]
		}
		k := copy(b[n:], p.rest)
		n += k
		p.rest = p.rest[k:]
	}
	return n, nil
}
