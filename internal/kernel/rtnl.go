package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
)

// rtnl is an rtnetlink socket in one namespace. It sends requests queued with
// add as one batch: a system call for five messages instead of five, which is
// what the netlink library (whose message builders it uses) cannot do.
type rtnl struct {
	fd    int
	queue []request
	buf   [16 << 10]byte
}

type request struct {
	msg *nl.NetlinkRequest
	// settle decides what the kernel's answer means; nil takes it as it is.
	settle func(error) error
	what   string
}

func dialRtnl() (*rtnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	// Answers without a copy of the request; with the kernel's own words on errors.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &rtnl{fd: fd}, nil
}

func (c *rtnl) close() { unix.Close(c.fd) }

// add queues a request until flush.
func (c *rtnl) add(what string, msg *nl.NetlinkRequest, settle func(error) error) {
	c.queue = append(c.queue, request{msg: msg, settle: settle, what: what})
}

// flush sends the queue and returns the first failure; the kernel works
// through the whole batch regardless.
func (c *rtnl) flush() error {
	if len(c.queue) == 0 {
		return nil
	}
	queue := c.queue
	c.queue = nil
	var out []byte
	at := map[uint32]int{}
	for i, r := range queue {
		r.msg.Flags |= unix.NLM_F_REQUEST | unix.NLM_F_ACK
		at[r.msg.Seq] = i
		out = append(out, r.msg.Serialize()...)
		for len(out)%4 != 0 {
			out = append(out, 0)
		}
	}
	if crash.Enabled {
		return c.flushEach(queue)
	}
	if err := c.send(out); err != nil {
		return err
	}
	return c.answers(queue, at)
}

// flushEach sends one request after another, so that a test can kill between
// any two of them.
func (c *rtnl) flushEach(queue []request) error {
	var errs []error
	for i, r := range queue {
		crash.Point(r.what)
		if err := c.send(r.msg.Serialize()); err != nil {
			return err
		}
		errs = append(errs, c.answers(queue[i:i+1], map[uint32]int{r.msg.Seq: 0}))
	}
	return errors.Join(errs...)
}

func (c *rtnl) send(b []byte) error {
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink send: %w", err)
	}
	return nil
}

func (c *rtnl) answers(queue []request, at map[uint32]int) error {
	var first error
	for left := len(queue); left > 0; {
		n, _, err := unix.Recvfrom(c.fd, c.buf[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("netlink receive: %w", err)
		}
		for b := c.buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				break
			}
			seq := binary.NativeEndian.Uint32(b[8:])
			i, ours := at[seq]
			if ours && binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR && size >= 20 {
				left--
				if err := queue[i].result(b[:size]); err != nil && first == nil {
					first = err
				}
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
	return first
}

func (r request) result(msg []byte) error {
	var err error
	if code := int32(binary.NativeEndian.Uint32(msg[16:])); code != 0 {
		err = unix.Errno(-code)
		if text := extAck(msg); text != "" {
			err = fmt.Errorf("%w (%s)", err, text)
		}
	}
	if r.settle != nil {
		err = r.settle(err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.what, err)
	}
	return nil
}

// extAck is the kernel's explanation of an error (NLMSGERR_ATTR_MSG).
func extAck(msg []byte) string {
	if binary.NativeEndian.Uint16(msg[6:])&unix.NLM_F_ACK_TLVS == 0 || len(msg) < 36 {
		return ""
	}
	attrs, err := nl.ParseRouteAttr(msg[36:])
	if err != nil {
		return ""
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.NLMSGERR_ATTR_MSG {
			return nl.BytesToString(a.Value)
		}
	}
	return ""
}

// link asks for one link by name; ENODEV if there is none.
func (c *rtnl) link(name string) (linkInfo, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if err := c.send(req.Serialize()); err != nil {
		return linkInfo{}, err
	}
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return linkInfo{}, fmt.Errorf("netlink receive: %w", err)
		}
		b := c.buf[:n]
		if n < 20 || binary.NativeEndian.Uint32(b[8:]) != req.Seq {
			continue
		}
		if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
			return linkInfo{}, unix.Errno(-int32(binary.NativeEndian.Uint32(b[16:])))
		}
		return parseLink(b[16:binary.NativeEndian.Uint32(b)])
	}
}

// linkInfo is what sandnet looks at of a link.
type linkInfo struct {
	name   string
	index  int
	up     bool
	mtu    int
	master int
	group  uint32
	mac    string
	kind   string
	// peer is the index of the other end of a veth, in its namespace.
	peer int
	// isolated and hairpin are of a bridge's port.
	isolated, hairpin bool
	// addrGen says that the kernel makes IPv6 addresses for the link.
	addrGen bool
}

func parseLink(b []byte) (linkInfo, error) {
	m := nl.DeserializeIfInfomsg(b)
	l := linkInfo{index: int(m.Index), up: m.Flags&unix.IFF_UP != 0}
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return l, fmt.Errorf("netlink answer: %w", err)
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			l.name = nl.BytesToString(a.Value)
		case unix.IFLA_MTU:
			l.mtu = int(binary.NativeEndian.Uint32(a.Value))
		case unix.IFLA_MASTER:
			l.master = int(binary.NativeEndian.Uint32(a.Value))
		case unix.IFLA_GROUP:
			l.group = binary.NativeEndian.Uint32(a.Value)
		case unix.IFLA_ADDRESS:
			l.mac = macString(a.Value)
		case unix.IFLA_LINK:
			l.peer = int(binary.NativeEndian.Uint32(a.Value))
		case unix.IFLA_AF_SPEC:
			l.addrGen = generates(a.Value)
		case unix.IFLA_LINKINFO:
			info, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return l, fmt.Errorf("netlink answer: %w", err)
			}
			for _, i := range info {
				switch i.Attr.Type {
				case nl.IFLA_INFO_KIND:
					l.kind = nl.BytesToString(i.Value)
				case nl.IFLA_INFO_SLAVE_DATA:
					l.port(i.Value)
				}
			}
		}
	}
	return l, nil
}

// generates looks for the way in which a link gets IPv6 addresses; a kernel
// without IPv6 says nothing.
func generates(spec []byte) bool {
	for family, b := range attrs(spec) {
		if family != unix.AF_INET6 {
			continue
		}
		for typ, v := range attrs(b) {
			if typ == unix.IFLA_INET6_ADDR_GEN_MODE && len(v) > 0 {
				return v[0] != in6AddrGenModeNone
			}
		}
	}
	return false
}

// port reads the attributes of a bridge's port.
func (l *linkInfo) port(b []byte) {
	for typ, v := range attrs(b) {
		switch typ {
		case nl.IFLA_BRPORT_ISOLATED:
			l.isolated = len(v) > 0 && v[0] != 0
		case nl.IFLA_BRPORT_MODE:
			l.hairpin = len(v) > 0 && v[0] != 0
		}
	}
}

// dump asks for everything of a kind and hands the body of each answer to each.
// It is repeated, from reset on, if a change came between its parts.
func (c *rtnl) dump(typ int, header nl.NetlinkRequestData, reset func(), each func(body []byte) error) error {
	return retryInterrupted(func() error {
		reset()
		req := nl.NewNetlinkRequest(typ, unix.NLM_F_DUMP)
		req.AddData(header)
		if err := c.send(req.Serialize()); err != nil {
			return err
		}
		return c.dumped(req.Seq, each)
	})
}

func (c *rtnl) dumped(seq uint32, each func(body []byte) error) error {
	var failed error
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("netlink receive: %w", err)
		}
		for b := c.buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return fmt.Errorf("netlink answer of %d bytes in %d", size, len(b))
			}
			msg := b[:size]
			b = b[min((size+3)&^3, len(b)):]
			if binary.NativeEndian.Uint32(msg[8:]) != seq {
				continue
			}
			if binary.NativeEndian.Uint16(msg[6:])&unix.NLM_F_DUMP_INTR != 0 {
				failed = errInterrupted
			}
			switch binary.NativeEndian.Uint16(msg[4:]) {
			case unix.NLMSG_DONE:
				return failed
			case unix.NLMSG_ERROR:
				return unix.Errno(-int32(binary.NativeEndian.Uint32(msg[16:])))
			}
			if err := each(msg[unix.NLMSG_HDRLEN:]); err != nil && failed == nil {
				failed = err
			}
		}
	}
}

// inNetns runs f on a thread inside the namespace at path.
func inNetns(path string, f func() error) (err error) {
	onOwnThread(func() {
		if err = setnsPath(path); err == nil {
			err = f()
		}
	})
	return err
}

// onOwnThread runs f on a thread of its own and waits for it. f may change the
// thread's namespaces: the thread is never unlocked, so Go ends it with the
// goroutine and no other code runs on it. It is not the main thread, which Go
// cannot end, and whose namespaces are what others see as the process's.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(f) // while this one is taken
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

// setnsPath moves the calling thread, which must be locked and never unlocked,
// into the namespace at path.
func setnsPath(path string) error {
	h, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", path, err)
	}
	defer h.Close()
	if err := netns.Set(h); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}
