package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// nfnl is a netlink socket to nf_tables, in the namespace of the thread that
// dials. It does what google/nftables cannot: add elements that must be new,
// look up single elements, dump the rules of a whole table, comment a table.
type nfnl struct {
	fd  int
	seq uint32
	in  []byte
	// verified, unless nil, is told of transactions.
	verified *verified
}

// nfMsg is one answer of the kernel: an object, or an error.
type nfMsg struct {
	seq    uint32
	typ    uint16 // unix.NFT_MSG_*
	family byte
	attrs  []byte
	err    error
}

// errInterrupted says that the rule set changed during a dump.
var errInterrupted = errors.New("dump interrupted by a change")

func dialNfnl() (*nfnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("kernel lacks nf_tables (CONFIG_NF_TABLES): %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("nf_tables socket: %w", err)
	}
	// A batch is one datagram however long, and every answer takes a page;
	// refused only without CAP_NET_ADMIN, which later calls tell better.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	return &nfnl{fd: fd, in: make([]byte, 32<<10)}, nil
}

// close has the kernel close the socket in its own time. A plain close(2), and
// so the end of a process, waits for the memory of everything deleted in the
// namespace's last transactions, whoever's they were: 5 to 20 ms. Therefore the
// socket is left in flight on a unix socket that nobody but itself holds,
// which the kernel's garbage collector finds and clears away.
func (c *nfnl) close() {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		unix.Close(c.fd)
		return
	}
	_ = unix.Sendmsg(pair[1], []byte{0}, unix.UnixRights(c.fd, pair[0]), nil, 0)
	unix.Close(c.fd) // before the collector runs: who is last has to wait
	unix.Close(pair[0])
	unix.Close(pair[1]) // sets off the collector
}

// message appends one nf_tables message with its attributes to out.
func (c *nfnl) message(out []byte, typ, flags uint16, family byte, attrs func([]byte) []byte) []byte {
	return c.header(out, unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, family, 0, attrs)
}

func (c *nfnl) header(out []byte, typ, flags uint16, family byte, res uint16, attrs func([]byte) []byte) []byte {
	at := len(out)
	c.seq++
	out = append(out, make([]byte, unix.NLMSG_HDRLEN)...)
	out = append(out, family, unix.NFNETLINK_V0, byte(res>>8), byte(res))
	if attrs != nil {
		out = attrs(out)
	}
	binary.NativeEndian.PutUint32(out[at:], uint32(len(out)-at))
	binary.NativeEndian.PutUint16(out[at+4:], typ)
	binary.NativeEndian.PutUint16(out[at+6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(out[at+8:], c.seq)
	return out
}

// begin and commit enclose a transaction. Only its last message is
// acknowledged; the kernel reports failures of the others unasked. The result
// is how many elements were made by messages with NLM_F_ECHO.
func (c *nfnl) begin() []byte {
	return c.header(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
}

// beginAt is begin of a transaction that the kernel refuses, with ERESTART,
// unless the rule set still has the generation.
func (c *nfnl) beginAt(generation uint32) []byte {
	return c.header(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, func(b []byte) []byte {
		return attr(b, unix.NFNL_BATCH_GENID, binary.BigEndian.AppendUint32(nil, generation))
	})
}

// generation counts the changes of the namespace's rule set.
func (c *nfnl) generation() (n uint32, err error) {
	err = c.get(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC, nil, func(m nfMsg) error {
		for typ, b := range attrs(m.attrs) {
			if typ == unix.NFTA_GEN_ID {
				n = binary.BigEndian.Uint32(b)
			}
		}
		return nil
	})
	return n, err
}

func (c *nfnl) commit(out []byte) (echoed int, err error) {
	last, end := 0, 0
	for next := 0; next < len(out); next = end {
		last, end = next, next+int(binary.NativeEndian.Uint32(out[next:]))
	}
	binary.NativeEndian.PutUint16(out[last+6:], binary.NativeEndian.Uint16(out[last+6:])|unix.NLM_F_ACK)
	// A refusal of the whole batch is told in answer to its first message: with
	// the number of the last one, it ends the wait too.
	first, wait := binary.NativeEndian.Uint32(out[8:]), c.seq
	copy(out[8:12], out[last+8:last+12])
	out = c.header(out, unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	var failed error
	err = c.exchange(out, first, wait, true, func(m nfMsg) error {
		switch {
		case m.err != nil && failed == nil:
			failed = m.err
		case m.typ == unix.NFT_MSG_NEWSETELEM:
			for range listed(m.attrs) {
				echoed++
			}
		}
		return nil
	})
	return echoed, errors.Join(err, failed)
}

// get sends one request and hands every object of the answer to each. The
// error is the kernel's.
func (c *nfnl) get(typ, flags uint16, family byte, attrs func([]byte) []byte, each func(nfMsg) error) error {
	out := c.message(nil, typ, flags, family, attrs)
	return c.exchange(out, c.seq, c.seq, false, func(m nfMsg) error {
		if m.err != nil {
			return m.err
		}
		return each(m)
	})
}

// exchange sends out, which has the messages first to last, and reads until
// the last one is answered, or acknowledged. Answers to earlier exchanges are
// passed over. An error of each is returned at the end.
func (c *nfnl) exchange(out []byte, first, last uint32, ack bool, each func(nfMsg) error) error {
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	var failed error
	for done := false; !done; {
		n, err := unix.Read(c.fd, c.in)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		for b := c.in[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN+4 || size > len(b) {
				return fmt.Errorf("nf_tables: message of %d bytes in %d", size, len(b))
			}
			typ, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
			m := nfMsg{seq: binary.NativeEndian.Uint32(b[8:])}
			body := b[unix.NLMSG_HDRLEN:size]
			b = b[min(len(b), (size+3)&^3):]
			// An echo of an element has the number 0 since Linux 6.14.
			echo := ack && typ != unix.NLMSG_ERROR
			if m.seq-first > last-first && !echo {
				continue
			}
			if flags&unix.NLM_F_DUMP_INTR != 0 {
				failed = errInterrupted
			}
			ends := typ == unix.NLMSG_ERROR || typ == unix.NLMSG_DONE || !ack && flags&unix.NLM_F_MULTI == 0
			done = done || ends && m.seq == last
			switch typ {
			case unix.NLMSG_DONE:
				continue
			case unix.NLMSG_ERROR:
				if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
					m.err = unix.Errno(-code)
				}
			default:
				m.typ, m.family, m.attrs = typ&0xff, body[0], body[4:]
			}
			if err := each(m); err != nil && failed == nil {
				failed = err
			}
		}
	}
	return failed
}

func attr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return pad4(append(b, data...))
}

func attrString(b []byte, typ uint16, s string) []byte { return attr(b, typ, append([]byte(s), 0)) }

func nest(b []byte, typ uint16, fill func([]byte) []byte) []byte {
	at := len(b)
	b = fill(append(b, 0, 0, 0, 0))
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	binary.NativeEndian.PutUint16(b[at+2:], typ|unix.NLA_F_NESTED)
	return b
}

func pad4(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// attrs walks netlink attributes; a malformed tail ends the walk.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			size := int(binary.NativeEndian.Uint16(b))
			if size < 4 || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:size]) {
				return
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// cString is a NUL-terminated attribute's text.
func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
