package stream_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/syncrelay/syncrelay/stream"
)

// The cases of the Autobahn test suite that apply to a server that does not echo
// but answers {"type":"ping"} with its timestamp, by a client that writes its
// frames by hand. Numbers are the suite's groups.

// frame is one frame of a client's.
type frame struct {
	first   byte // FIN, the reserved bits, the opcode
	payload string
	bare    bool // not masked
}

// Frames by their kinds; more is a frame that is not the last of its message.
func text(s string) frame   { return frame{first: 0x81, payload: s} }
func more(s string) frame   { return frame{first: 0x01, payload: s} }
func middle(s string) frame { return frame{first: 0x00, payload: s} }
func last(s string) frame   { return frame{first: 0x80, payload: s} }
func ping(s string) frame   { return frame{first: 0x89, payload: s} }
func goodbye(code uint16, reason string) frame {
	return frame{first: 0x88, payload: string(binary.BigEndian.AppendUint16(nil, code)) + reason}
}

// encode writes a frame with a mask of its own (RFC 6455, section 5.2).
func (f frame) encode() []byte {
	b := []byte{f.first}
	masked := byte(0x80)
	if f.bare {
		masked = 0
	}
	switch n := len(f.payload); {
	case n <= 125:
		b = append(b, masked|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), uint64(n))
	}
	if f.bare {
		return append(b, f.payload...)
	}
	mask := binary.BigEndian.AppendUint32(nil, rand.Uint32())
	b = append(b, mask...)
	for i := range len(f.payload) {
		b = append(b, f.payload[i]^mask[i%4])
	}
	return b
}

// say is a message whose answer holds s, as JSON.
func say(s string) string  { return `{"type":"ping","timestamp":"` + s + `"}` }
func said(s string) string { return `text {"type":"pong","timestamp":"` + s + `"}` }

// conformanceCase is what a client sends, and what it must be answered: "pong x",
// "text x", and last "close code", of which several may be allowed ("close 1002 1007").
type conformanceCase struct {
	name string
	send []frame
	want []string
}

func conformanceCases() []conformanceCase {
	cases := []conformanceCase{
		{"1.1 an empty text", []frame{text(""), text(say("a"))}, []string{`text {"type":"error","code":"malformed_message","message":"malformed message: not JSON"}`, said("a")}},
		{"1.2 a binary message", []frame{{first: 0x82, payload: say("a")}}, []string{"close 1008"}},
		{"1.2 an empty binary message", []frame{{first: 0x82}}, []string{"close 1008"}},
		{"2.1 an empty ping", []frame{ping("")}, []string{"pong "}},
		{"2.2 a ping with text", []frame{ping("hello")}, []string{"pong hello"}},
		{"2.3 a ping with bytes that are no text", []frame{ping("\x00\xff\xfe\xfd\xfc\xfb\x00\xff")}, []string{"pong \x00\xff\xfe\xfd\xfc\xfb\x00\xff"}},
		{"2.4 the longest ping", []frame{ping(strings.Repeat("\xfe", 125))}, []string{"pong " + strings.Repeat("\xfe", 125)}},
		{"2.5 a ping that is too long", []frame{ping(strings.Repeat("\xfe", 126))}, []string{"close 1002"}},
		{"2.7 a pong that nobody asked for", []frame{{first: 0x8a}, {first: 0x8a, payload: "hello"}, ping("x")}, []string{"pong x"}},
		{"2.10 ten pings", slices.Repeat([]frame{ping("p")}, 10), slices.Repeat([]string{"pong p"}, 10)},
		{"5.1 a ping in two", []frame{{first: 0x09, payload: "a"}, last("b")}, []string{"close 1002"}},
		{"5.2 a pong in two", []frame{{first: 0x0a, payload: "a"}, last("b")}, []string{"close 1002"}},
		{"5.3 a text in two", []frame{more(say("ab")[:9]), last(say("ab")[9:])}, []string{said("ab")}},
		{"5.6 a ping between", []frame{more(say("ab")[:9]), ping("p"), last(say("ab")[9:])}, []string{"pong p", said("ab")}},
		{"5.7 a pong between", []frame{more(say("ab")[:9]), {first: 0x8a, payload: "p"}, last(say("ab")[9:])}, []string{said("ab")}},
		{"5.8 a text in one character each", fragments(say("ab"), 1), []string{said("ab")}},
		{"5.9 a continuation of nothing", []frame{last("a"), text(say("b"))}, []string{"close 1002"}},
		{"5.10 a continuation of nothing, to be continued", []frame{middle("a"), text(say("b"))}, []string{"close 1002"}},
		{"5.12 a continuation after the end", []frame{text(say("a")), middle("b"), text("c")}, []string{said("a"), "close 1002"}},
		{"5.15 a continuation after the last fragment", []frame{more(say("a")[:5]), last(say("a")[5:]), middle("b")}, []string{said("a"), "close 1002"}},
		{"5.18 a text within a text", []frame{more("a"), text("b")}, []string{"close 1002"}},
		{"5.19 pings between five fragments", []frame{more(say("abcd")[:5]), middle(say("abcd")[5:10]), ping("1"), middle(say("abcd")[10:15]), middle(say("abcd")[15:20]), ping("2"), last(say("abcd")[20:])}, []string{"pong 1", "pong 2", said("abcd")}},
		{"6.1 empty fragments", []frame{more(""), middle(""), last("")}, []string{`text {"type":"error","code":"malformed_message","message":"malformed message: not JSON"}`}},
		{"6.1 an empty fragment between", []frame{more(say("a")[:5]), middle(""), last(say("a")[5:])}, []string{said("a")}},
		{"7.1 a close frame", []frame{goodbye(1000, "")}, []string{"close 1000"}},
		{"7.1 two close frames", []frame{goodbye(1000, ""), goodbye(1001, "")}, []string{"close 1000"}},
		{"7.1 a ping after the close frame", []frame{goodbye(1000, ""), ping("x"), text(say("x"))}, []string{"close 1000"}},
		{"7.1 a ping before the close frame", []frame{ping("x"), goodbye(1000, "")}, []string{"pong x", "close 1000"}},
		{"7.1 a close frame within a text", []frame{more(say("a")), goodbye(1000, "")}, []string{"close 1000"}},
		{"7.1 a long message and a close frame", []frame{text(say(strings.Repeat("x", 4000))), goodbye(1000, "")}, []string{said(strings.Repeat("x", 4000)), "close 1000"}},
		{"7.3 a close frame without a code", []frame{{first: 0x88}}, []string{"close 0 1000"}},
		// The WebSocket library takes this one for a close frame without a code.
		{"7.3 a close frame of one byte", []frame{{first: 0x88, payload: "a"}}, []string{"close 0 1002"}},
		{"7.3 a close frame with a reason", []frame{goodbye(1000, "hello ✓")}, []string{"close 1000"}},
		{"7.3 the longest reason", []frame{goodbye(1000, strings.Repeat("*", 123))}, []string{"close 1000"}},
		{"7.3 a reason that is too long", []frame{goodbye(1000, strings.Repeat("*", 124))}, []string{"close 1002"}},
		{"7.5 a reason that is no text", []frame{goodbye(1000, "\xce\xba\xed\xa0\x80")}, []string{"close 1002 1007"}},
		{"7.x a close frame in two", []frame{{first: 0x08, payload: "\x03\xe8"}, last("x")}, []string{"close 1002"}},
		{"9.1 a message of the greatest length", []frame{text(say(strings.Repeat("x", 4096-30)))}, []string{said(strings.Repeat("x", 4096-30))}},
		{"9.1 a message that is too long", []frame{text(say(strings.Repeat("x", 4097-30)))}, []string{"close 1009"}},
		{"9.2 a message of 64 KiB", []frame{text(strings.Repeat("x", 1<<16))}, []string{"close 1009"}},
		{"9.3 a message that is too long in fragments", fragments(say(strings.Repeat("x", 5000)), 64), []string{"close 1009"}},
		{"9.5 a message of the greatest length in fragments", fragments(say(strings.Repeat("x", 4096-30)), 64), []string{said(strings.Repeat("x", 4096-30))}},
		{"5.1 of RFC 6455: a text without a mask", []frame{{first: 0x81, payload: say("a"), bare: true}}, []string{"close 1002"}},
		{"5.1 of RFC 6455: a ping without a mask", []frame{{first: 0x89, payload: "a", bare: true}}, []string{"close 1002"}},
		{"5.1 of RFC 6455: a close frame without a mask", []frame{{first: 0x88, payload: "\x03\xe8", bare: true}}, []string{"close 1002"}},
	}
	for _, n := range []int{1, 125 - 30, 126 - 30, 127 - 30, 128 - 30, 255, 256, 1000, 4096 - 30} {
		cases = append(cases, conformanceCase{fmt.Sprintf("1.1 a text of %d bytes", n+30), []frame{text(say(strings.Repeat("*", n)))}, []string{said(strings.Repeat("*", n))}})
	}
	for rsv := byte(1); rsv <= 7; rsv++ {
		for name, f := range map[string]frame{"text": text(say("b")), "ping": ping("b"), "close frame": goodbye(1000, ""), "empty text": text("")} {
			f.first |= rsv << 4
			cases = append(cases, conformanceCase{fmt.Sprintf("3.%d reserved bits on a %s", rsv, name), []frame{text(say("a")), f, text(say("c"))}, []string{said("a"), "close 1002"}})
		}
	}
	for _, opcode := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		for _, payload := range []string{"", "hello"} {
			cases = append(cases, conformanceCase{fmt.Sprintf("4. opcode %d with %q", opcode, payload), []frame{text(say("a")), {first: 0x80 | opcode, payload: payload}, ping("x")}, []string{said("a"), "close 1002"}})
		}
	}
	return append(cases, slices.Concat(utf8Cases(), closeCases())...)
}

// fragments splits a message.
func fragments(s string, size int) []frame {
	list := []frame{more(s[:size])}
	for s = s[size:]; len(s) > size; s = s[size:] {
		list = append(list, middle(s[:size]))
	}
	return append(list, last(s))
}

// utf8Cases are group 6.
func utf8Cases() (cases []conformanceCase) {
	for _, good := range []string{
		"Hello-µ@ßöäüàá-UTF-8!!", "κόσμε", "\u0080", "\u07ff", "\u0800", "\uffff", "\U00010000", "\U0010ffff", "\ud7ff", "\ue000", "\ufffd", "\ufffe", "\U0001fffe",
	} {
		cases = append(cases,
			conformanceCase{fmt.Sprintf("6.2 %+q", good), []frame{text(say(good))}, []string{said(good)}},
			conformanceCase{fmt.Sprintf("6.2 %+q, cut within characters", good), fragments(say(good), 1), []string{said(good)}})
	}
	for _, bad := range []string{
		"κόσμε\xed\xa0\x80edited", "\xf4\x90\x80\x80", "\xc0\xaf", "\xe0\x80\xaf", "\xf0\x80\x80\xaf", "\xc1\xbf", "\xf8\x88\x80\x80\x80", "\xfc\x84\x80\x80\x80\x80",
		"\x80", "\xbf", "\x80\xbf\x80", "\xc2", "\xe0\xa0", "\xf0\x90\x80", "\xfe", "\xff", "\xed\xaf\xbf", "\xed\xbe\x80", "\xce\xba\xe1\xbd",
	} {
		cases = append(cases,
			conformanceCase{fmt.Sprintf("6.3 %+q", bad), []frame{text(say(bad))}, []string{"close 1007"}},
			conformanceCase{fmt.Sprintf("6.4 %+q, cut within characters", bad), fragments(say(bad), 1), []string{"close 1007"}})
	}
	return cases
}

// closeCases are the codes of group 7.7 and 7.9.
func closeCases() (cases []conformanceCase) {
	for _, code := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999} {
		cases = append(cases, conformanceCase{fmt.Sprintf("7.7 the close code %d", code), []frame{goodbye(code, "bye")}, []string{fmt.Sprint("close ", code)}})
	}
	for _, code := range []uint16{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535} {
		cases = append(cases, conformanceCase{fmt.Sprintf("7.9 the close code %d", code), []frame{goodbye(code, "")}, []string{"close 1002"}})
	}
	return cases
}

// handshake opens a WebSocket on a bare socket and takes its first message.
func (w *world) handshake(t testing.TB) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn := w.raw(t)
	_ = conn.SetDeadline(time.Now().Add(patience))
	request := "GET /ws/updates/?token=" + sign(t, admin) + " HTTP/1.1\r\nHost: " + w.addr +
		"\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The key and its answer are the example of RFC 6455, section 1.3.
	if response.StatusCode != http.StatusSwitchingProtocols || response.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("the handshake was answered with %s %v", response.Status, response.Header)
	}
	if got, err := readAnswer(reader); err != nil || !strings.HasPrefix(got, `text {"type":"connection_established"`) {
		t.Fatalf("the first message is %q, %v", got, err)
	}
	return conn, reader
}

// readAnswer reads one frame of the server's, which must be well formed.
func readAnswer(r *bufio.Reader) (string, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", err
	}
	length := uint64(head[1])
	switch {
	case head[0]&0x70 != 0 || head[0]&0x80 == 0 || head[1]&0x80 != 0:
		return "", fmt.Errorf("a frame begins with %x: reserved bits, a fragment or a mask", head)
	case length == 126:
		var b [2]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return "", err
		}
		length = uint64(binary.BigEndian.Uint16(b[:]))
	case length == 127:
		var b [8]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return "", err
		}
		length = binary.BigEndian.Uint64(b[:])
	}
	if opcode := head[0] & 0x0f; opcode >= 8 && length > 125 {
		return "", fmt.Errorf("a control frame has %d bytes", length)
	}
	payload := make([]byte, length)
	if _, err := io.ReadFull(r, payload); err != nil {
		return "", err
	}
	switch head[0] & 0x0f {
	case 1:
		return "text " + string(payload), nil
	case 9:
		return "ping " + string(payload), nil
	case 10:
		return "pong " + string(payload), nil
	case 8:
		code := 0
		if len(payload) >= 2 {
			code = int(binary.BigEndian.Uint16(payload))
			if !utf8.Valid(payload[2:]) {
				return "", fmt.Errorf("the reason %q is not UTF-8", payload[2:])
			}
		}
		return fmt.Sprint("close ", code), nil
	default:
		return "", fmt.Errorf("a frame of opcode %d", head[0]&0x0f)
	}
}

// matches compares an answer with what is wanted, of which a close frame may
// have one of several codes.
func matches(got, want string) bool {
	codes, isClose := strings.CutPrefix(want, "close ")
	code, closed := strings.CutPrefix(got, "close ")
	if isClose && closed {
		return slices.Contains(strings.Fields(codes), code)
	}
	return got == want
}

func TestWebSocketConformance(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{Limits: stream.Limits{MessageRate: stream.NoLimit}}})
	for _, c := range conformanceCases() {
		for _, chop := range []int{0, 1} { // all at once, and one byte in each packet
			t.Run(fmt.Sprintf("%s/%d", c.name, chop), func(t *testing.T) {
				t.Parallel()
				if chop > 0 && len(c.send) > 0 && len(c.send[0].payload) > 1000 {
					t.Skip("many packets show nothing more")
				}
				conn, reader := w.handshake(t)
				var all []byte
				for _, f := range c.send {
					all = append(all, f.encode()...)
				}
				written := make(chan struct{})
				go func() {
					defer close(written)
					if chop == 0 {
						_, _ = conn.Write(all) // what is refused is seen below
						return
					}
					for i := range all {
						if _, err := conn.Write(all[i : i+1]); err != nil {
							return
						}
					}
				}()
				end := c.want[len(c.want)-1]
				for _, want := range c.want {
					got, err := readAnswer(reader)
					if err != nil || !matches(got, want) && !(strings.HasPrefix(want, "text ") && matches(got, end)) {
						t.Fatalf("got %.200q, %v; want %.200q", got, err, want)
					}
					if matches(got, end) && strings.HasPrefix(end, "close ") {
						break // a close frame may overtake the answer to an earlier message
					}
				}
				<-written
				if !strings.HasPrefix(end, "close ") {
					// It goes on, and can be ended in good order.
					_, _ = conn.Write(goodbye(1000, "").encode())
					if got, err := readAnswer(reader); err != nil || got != "close 1000" {
						t.Fatalf("at the end: got %q, %v", got, err)
					}
				} else if !strings.HasPrefix(c.name, "7.7") && !matches("close 1000", end) {
					_, _ = conn.Write(goodbye(1000, "").encode()) // a client answers a close frame
					// The server lingers, so that nothing of the frame is lost, until
					// the client has nothing more to say.
					_ = conn.(*net.TCPConn).CloseWrite()
				}
				if rest, err := io.ReadAll(reader); len(rest) > 0 {
					t.Fatalf("after the close frame came %q, %v", rest, err)
				}
			})
		}
	}
}

// A few bytes that unpack into gigabytes are refused as what they are on the wire,
// because no compression is ever agreed to.
func TestNothingThatIsCompressedIsTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	for _, offer := range []string{"permessage-deflate", "permessage-deflate; client_max_window_bits, x-webkit-deflate-frame", "permessage-bzip2"} {
		conn := w.raw(t)
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(conn, "GET /ws/updates/?token="+sign(t, admin)+" HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Extensions: "+offer+"\r\n\r\n")
		reader := bufio.NewReader(conn)
		response, err := http.ReadResponse(reader, nil)
		if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%s: got %v, %v", offer, response, err)
		}
		if agreed := response.Header.Values("Sec-Websocket-Extensions"); len(agreed) > 0 {
			t.Errorf("%s: %q is agreed to", offer, agreed)
		}
		bomb := frame{first: 0xc1, payload: strings.Repeat("\x00", 100)} // RSV1: compressed
		if _, err := conn.Write(bomb.encode()); err != nil {
			t.Fatal(err)
		}
		answer := ""
		for err == nil && !strings.HasPrefix(answer, "close ") {
			answer, err = readAnswer(reader)
		}
		if err != nil || !strings.HasPrefix(answer, "close 1002") {
			t.Errorf("%s: a compressed message is answered with %q, %v", offer, answer, err)
		}
	}
	// Nor is a body unpacked, or an answer packed.
	response := w.do(t, http.MethodPost, "http://"+w.addr+"/api/ticket", http.Header{
		"Authorization": {"Bearer " + sign(t, admin)}, "Content-Encoding": {"gzip"}, "Accept-Encoding": {"gzip, br, deflate"},
	})
	if packed := response.Header.Get("Content-Encoding"); response.StatusCode != http.StatusOK || packed != "" {
		t.Errorf("a ticket: %s, packed with %q", response.Status, packed)
	}
	events := w.events(t, "/api/events?token="+sign(t, admin), http.Header{"Accept-Encoding": {"gzip, br, deflate"}})
	if packed := events.Header.Get("Content-Encoding"); packed != "" {
		t.Errorf("a stream is packed with %q", packed)
	}
	nextOf(t, events, "connection_established")
}
