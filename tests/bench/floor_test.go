package bench

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// floor is the least that a sandbox on a bridge costs, whoever makes it: a new
// namespace, pinned; a veth whose peer is made directly in it; inside, lo and
// eth0 up, an address and a default route. No records, no rules, no process.
type floor struct {
	// dir has the pins, bridge is the bridge's index, host the namespace's own
	// descriptor; sock is an rtnetlink socket in it.
	dir    string
	bridge int
	host   int
	sock   int
	count  int
}

// newFloor prepares what is there before the first sandbox. The calling thread
// is in the host's namespace, and stays there.
func newFloor(dir string) (*floor, error) {
	host, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	sock, err := dial()
	if err != nil {
		return nil, err
	}
	f := &floor{dir: dir, host: host, sock: sock, bridge: 9999}
	req := newLink("floor0", f.bridge)
	req.AddData(kind("bridge"))
	if err := f.send(sock, req); err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	return f, f.send(sock, addr(f.bridge, "10.254.0.1"))
}

func dial() (int, error) {
	return unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
}

// eth0 is the index of the peer inside; the loopback is 1.
const eth0 = 2

// once makes one, and says how long that took. Batched, what happens inside
// goes in one system call.
func (f *floor) once(batched bool) (time.Duration, error) {
	f.count++
	pin := filepath.Join(f.dir, fmt.Sprint(f.count))
	name := fmt.Sprint("floor", f.count)
	start := time.Now()
	err := f.build(pin, name, batched)
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	if err := unpin(pin); err != nil {
		return 0, err
	}
	return took, gone(name)
}

func unpin(pin string) error {
	if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil {
		return err
	}
	return os.Remove(pin)
}

// crowd makes n and keeps them until clear.
func (f *floor) crowd(n int) error {
	for range n {
		f.count++
		if err := f.build(filepath.Join(f.dir, fmt.Sprint(f.count)), fmt.Sprint("floor", f.count), true); err != nil {
			return err
		}
	}
	return nil
}

// clear lets go of what crowd made.
func (f *floor) clear() {
	pins, _ := filepath.Glob(filepath.Join(f.dir, "*"))
	for _, pin := range pins {
		_ = unpin(pin)
	}
}

func (f *floor) build(pin, name string, batched bool) error {
	if err := os.WriteFile(pin, nil, 0o444); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := unix.Mount("/proc/thread-self/ns/net", pin, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	inside, err := dial()
	if err != nil {
		return err
	}
	defer unix.Close(inside)
	ns, err := unix.Open(pin, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	if err := unix.Setns(f.host, unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := f.send(f.sock, f.veth(name, ns)); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	steps := []*nl.NetlinkRequest{up(1), addr(eth0, "10.254.0.2"), up(eth0), defaultRoute("10.254.0.1")}
	if batched {
		return f.send(inside, steps...)
	}
	for _, s := range steps {
		if err := f.send(inside, s); err != nil {
			return err
		}
	}
	return nil
}

func (f *floor) veth(name string, ns int) *nl.NetlinkRequest {
	req := newLink(name, 0)
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(f.bridge))))
	info := kind("veth")
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC).Index = eth0
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("eth0"))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns)))
	req.AddData(info)
	return req
}

func newLink(name string, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return req
}

func kind(k string) *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(k))
	return info
}

func up(index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	return req
}

func addr(index int, ip string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewIfAddrmsg(unix.AF_INET)
	msg.Index, msg.Prefixlen = uint32(index), 24
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, net.ParseIP(ip).To4()))
	return req
}

func defaultRoute(via string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewRtMsg()
	msg.Family = unix.AF_INET
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, net.ParseIP(via).To4()))
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(eth0)))
	return req
}

// send sends requests as one batch and waits for each answer.
func (f *floor) send(sock int, reqs ...*nl.NetlinkRequest) error {
	var out []byte
	for _, r := range reqs {
		r.Flags |= unix.NLM_F_ACK
		out = append(out, r.Serialize()...)
		for len(out)%4 != 0 {
			out = append(out, 0)
		}
	}
	if err := unix.Sendto(sock, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	var buf [8192]byte
	for left := len(reqs); left > 0; {
		n, _, err := unix.Recvfrom(sock, buf[:], 0)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= 20; left-- {
			if code := int32(binary.NativeEndian.Uint32(b[16:])); code != 0 {
				return unix.Errno(-code)
			}
			b = b[min((int(binary.NativeEndian.Uint32(b))+3)&^3, len(b)):]
		}
	}
	return nil
}

// gone waits until the kernel has freed the links whose name begins with
// prefix, so that its work is not measured with what comes next.
func gone(prefix string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		data, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		if !strings.Contains(string(data), prefix) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("links %s… do not go", prefix)
		}
		time.Sleep(100 * time.Microsecond)
	}
}
