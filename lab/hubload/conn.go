// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// What the connector of a real node announces, so that the hub has the same work.
const (
	streamWindow = 256 << 10
	connWindow   = 1 << 20
	// refresh is how much is consumed before the window is given back.
	refresh = 4 << 10
	// maxEnvelope bounds one message from the hub.
	maxEnvelope = 1 << 20

	flagEnd = 0x02 // of an envelope: the stream's last one, which carries the error

	writeTimeout = 10 * time.Second
)

var (
	errGoAway   = errors.New("hub closes the connection")
	errReset    = errors.New("hub reset the stream")
	errProtocol = errors.New("hub breaks the protocol")
)

// RPCError is an error that the hub answered a call with.
type RPCError struct {
	Code    string
	Message string
}

func (e *RPCError) Error() string { return e.Code + ": " + e.Message }

// conn is one HTTP/2 connection that speaks Connect. It has no goroutine: the
// owner calls read, which runs the streams' callbacks. A client of net/http would
// need several goroutines and some tens of kilobytes for each of ten thousand
// connections. The methods but read are safe for concurrent use.
type conn struct {
	nc        net.Conn
	authority string
	fr        *http2.Framer // reads; its writer side is guarded by mu
	lastRead  atomic.Int64  // as monotonic; see now

	mu         sync.Mutex // guards the following
	out        bytes.Buffer
	hbuf       bytes.Buffer
	henc       *hpack.Encoder
	next       uint32
	streams    map[uint32]*stream
	sendWindow int64
	initWindow int64     // of new streams
	consumed   int       // bytes that the connection's window lacks
	room       sync.Cond // signalled when a window grows or err is set
	err        error
}

// stream is one call.
type stream struct {
	c  *conn
	id uint32
	// message gets each envelope's or, where whole is set, the answer's bytes,
	// which are valid during the call only. It runs in read's goroutine.
	message func([]byte) error
	// ended is called once, with nil for a good end.
	ended func(error)
	whole bool

	sendWindow int64
	consumed   int
	status     string
	buf        []byte // an envelope, or an answer, that is not complete yet
}

// begun is what times are counted from.
var begun = time.Now()

// now is the monotonic time since the program began.
func now() int64 { return int64(time.Since(begun)) }

// newConn greets the server. nc has finished its TLS handshake.
func newConn(nc net.Conn, authority string) (*conn, error) {
	c := &conn{
		nc: nc, authority: authority, next: 1, streams: make(map[uint32]*stream, 2),
		sendWindow: 65535, initWindow: 65535,
	}
	c.room.L = &c.mu
	c.henc = hpack.NewEncoder(&c.hbuf)
	c.fr = http2.NewFramer(&c.out, nc)
	c.fr.SetReuseFrames()
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.fr.MaxHeaderListSize = 64 << 10
	c.lastRead.Store(now())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.WriteString(http2.ClientPreface)
	_ = c.fr.WriteSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 10 << 20},
	)
	_ = c.fr.WriteWindowUpdate(0, connWindow-65535)
	return c, c.flush()
}

// flush sends what is in out. mu is held.
func (c *conn) flush() error {
	if c.err != nil {
		return c.err
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := c.nc.Write(c.out.Bytes())
	c.out.Reset()
	if c.out.Cap() > 4<<10 {
		c.out = bytes.Buffer{}
	}
	c.err = err
	return err
}

func (c *conn) close() { _ = c.nc.Close() }

// open starts a streaming call and sends first as its first message; end also
// ends the request.
func (c *conn) open(path string, first []byte, end bool, message func([]byte) error, ended func(error)) (*stream, error) {
	s := &stream{c: c, message: message, ended: ended}
	return s, c.start(s, path, "application/connect+proto", envelope(first), end)
}

// call starts a unary call; answer gets the response.
func (c *conn) call(path string, req []byte, answer func([]byte, error)) error {
	var got []byte
	s := &stream{c: c, whole: true}
	s.message = func(b []byte) error { got = append(got, b...); return nil }
	s.ended = func(err error) { answer(got, err) }
	return c.start(s, path, "application/proto", req, true)
}

func (c *conn) start(s *stream, path, contentType string, body []byte, end bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	s.id, s.sendWindow = c.next, c.initWindow
	c.next += 2
	c.streams[s.id] = s
	c.hbuf.Reset()
	encoding := "connect-accept-encoding"
	if s.whole {
		encoding = "accept-encoding"
	}
	for _, h := range [...][2]string{
		{":authority", c.authority},
		{":method", "POST"},
		{":path", path},
		{":scheme", "https"},
		{"connect-protocol-version", "1"},
		{"content-type", contentType},
		{encoding, "identity"},
		{"user-agent", "connect-go/1.21.1 (hubload)"},
	} {
		_ = c.henc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: c.hbuf.Bytes(), EndHeaders: true})
	// The first bytes of a stream always fit into its window.
	s.sendWindow -= int64(len(body))
	c.sendWindow -= int64(len(body))
	_ = c.fr.WriteData(s.id, end, body)
	return c.flush()
}

func envelope(b []byte) []byte {
	e := make([]byte, 5, 5+len(b))
	binary.BigEndian.PutUint32(e[1:], uint32(len(b)))
	return append(e, b...)
}

// send sends one message. It waits for the windows, and must not be called by a
// callback.
func (s *stream) send(b []byte) error {
	c, e := s.c, envelope(b)
	n := int64(len(e))
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && (s.sendWindow < n || c.sendWindow < n) {
		c.room.Wait()
	}
	if c.err != nil {
		return c.err
	}
	s.sendWindow -= n
	c.sendWindow -= n
	_ = c.fr.WriteData(s.id, false, e)
	return c.flush()
}

// ping asks the hub for a sign of life.
func (c *conn) ping() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.fr.WritePing(false, [8]byte{'h', 'u', 'b', 'l', 'o', 'a', 'd'})
	return c.flush()
}

// read handles what arrives until the connection ends, and returns why; a
// callback's error ends it too. done, if not nil, ends it well.
func (c *conn) read(done func() bool) error {
	for done == nil || !done() {
		f, err := c.fr.ReadFrame()
		if err == nil {
			c.lastRead.Store(now())
			err = c.frame(f)
		}
		if err != nil {
			c.fail(err)
			return err
		}
	}
	return nil
}

// fail releases senders and tells the streams.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	streams := c.streams
	c.streams = nil
	c.room.Broadcast()
	c.mu.Unlock()
	for _, s := range streams {
		if s.ended != nil {
			s.ended(err)
		}
	}
}

func (c *conn) frame(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.data(f)
	case *http2.MetaHeadersFrame:
		return c.headers(f)
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		if f.IsAck() {
			return nil
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		_ = c.fr.WritePing(true, f.Data)
		return c.flush()
	case *http2.WindowUpdateFrame:
		c.mu.Lock()
		defer c.mu.Unlock()
		if f.StreamID == 0 {
			c.sendWindow += int64(f.Increment)
		} else if s := c.streams[f.StreamID]; s != nil {
			s.sendWindow += int64(f.Increment)
		}
		c.room.Broadcast()
	case *http2.RSTStreamFrame:
		return c.end(f.StreamID, fmt.Errorf("%w: %v", errReset, f.ErrCode))
	case *http2.GoAwayFrame:
		if f.ErrCode != http2.ErrCodeNo {
			return fmt.Errorf("%w: %v", errGoAway, f.ErrCode)
		}
	}
	return nil
}

func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
		for _, s := range c.streams {
			s.sendWindow += int64(v) - c.initWindow
		}
		c.initWindow = int64(v)
		c.room.Broadcast()
	}
	_ = c.fr.WriteSettingsAck()
	return c.flush()
}

func (c *conn) stream(id uint32) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

// end forgets a stream and tells its owner.
func (c *conn) end(id uint32, err error) error {
	c.mu.Lock()
	s := c.streams[id]
	delete(c.streams, id)
	c.mu.Unlock()
	if s != nil && s.ended != nil {
		s.ended(err)
	}
	return nil
}

func (c *conn) headers(f *http2.MetaHeadersFrame) error {
	s := c.stream(f.StreamID)
	if s == nil {
		return nil
	}
	if v := f.PseudoValue("status"); v != "" {
		s.status = v
	}
	if f.StreamEnded() {
		return s.finish()
	}
	return nil
}

func (c *conn) data(f *http2.DataFrame) error {
	s := c.stream(f.StreamID)
	var err error
	if s != nil {
		err = s.take(f.Data())
	}
	if err := c.consume(s, int(f.Length), f.StreamEnded()); err != nil {
		return err
	}
	if err == nil && s != nil && f.StreamEnded() {
		return s.finish()
	}
	return err
}

// consume gives the windows back when enough has been read.
func (c *conn) consume(s *stream, n int, ended bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.consumed += n; c.consumed >= refresh {
		_ = c.fr.WriteWindowUpdate(0, uint32(c.consumed))
		c.consumed = 0
	}
	if s != nil && !ended {
		if s.consumed += n; s.consumed >= refresh {
			_ = c.fr.WriteWindowUpdate(s.id, uint32(s.consumed))
			s.consumed = 0
		}
	}
	if c.out.Len() == 0 {
		return nil
	}
	return c.flush()
}

// take splits what came into envelopes.
func (s *stream) take(b []byte) error {
	if s.whole {
		if len(s.buf)+len(b) > maxEnvelope {
			return fmt.Errorf("%w: answer too large", errProtocol)
		}
		s.buf = append(s.buf, b...)
		return nil
	}
	for len(b) > 0 || len(s.buf) > 0 {
		in := b
		if len(s.buf) > 0 {
			s.buf = append(s.buf, b...)
			in, b = s.buf, nil
		}
		flags, msg, rest, err := cutEnvelope(in)
		switch {
		case err != nil:
			return err
		case msg == nil: // incomplete
			if len(s.buf) == 0 {
				s.buf = append(s.buf, in...)
			}
			return nil
		}
		if flags&flagEnd != 0 {
			return s.c.end(s.id, endError(msg))
		}
		if err := s.message(msg); err != nil {
			return err
		}
		if len(s.buf) > 0 { // it holds all that is left
			s.buf = s.buf[:copy(s.buf, rest)]
			if len(s.buf) == 0 {
				s.buf = nil
			}
			continue
		}
		b = rest
	}
	return nil
}

// cutEnvelope returns the first message of b, which is nil, not empty, where b
// ends before it does.
func cutEnvelope(b []byte) (flags byte, msg, rest []byte, err error) {
	if len(b) < 5 {
		return 0, nil, b, nil
	}
	n := binary.BigEndian.Uint32(b[1:])
	if n > maxEnvelope {
		return 0, nil, nil, fmt.Errorf("%w: message of %d bytes", errProtocol, n)
	}
	if uint32(len(b)-5) < n {
		return 0, nil, b, nil
	}
	return b[0], b[5 : 5+n : 5+n], b[5+n:], nil
}

type wireError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// endError reads the last envelope of a stream.
func endError(b []byte) error {
	var v struct {
		Error *wireError `json:"error"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("%w: end of stream: %w", errProtocol, err)
	}
	if v.Error == nil {
		return nil
	}
	return &RPCError{v.Error.Code, v.Error.Message}
}

// finish is called when the server has ended the stream.
func (s *stream) finish() error {
	code, _ := strconv.Atoi(s.status)
	switch {
	case code != 200:
		e := wireError{Code: "http " + s.status}
		_ = json.Unmarshal(s.buf, &e)
		return s.c.end(s.id, &RPCError{e.Code, e.Message})
	case s.whole:
		if err := s.message(s.buf); err != nil {
			return err
		}
		return s.c.end(s.id, nil)
	}
	// After a last envelope the stream is forgotten already.
	return s.c.end(s.id, fmt.Errorf("%w: stream ends without a last message", errProtocol))
}
