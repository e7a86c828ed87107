package kernel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/firewall"
	"github.com/sandnet/sandnet/internal/spec"
)

// The addresses of the spoof tests: the liar is a sandbox, its neighbour too.
var (
	liarMAC, peerMAC = mac("02:42:ac:1e:00:02"), mac("02:42:ac:1e:00:03")
	liar4, peer4     = netip.MustParseAddr("172.30.0.2"), netip.MustParseAddr("172.30.0.3")
	gateway4         = netip.MustParseAddr("172.30.0.1")
	liar6, peer6     = netip.MustParseAddr("fd00:30::2"), netip.MustParseAddr("fd00:30::3")
	gateway6         = netip.MustParseAddr("fd00:30::1")
	all6             = netip.MustParseAddr("ff02::1")
	none6            = netip.IPv6Unspecified()
)

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

const broadcast = "\xff\xff\xff\xff\xff\xff"

// ether is a frame: to everybody, so that it reaches whoever is there.
func ether(src net.HardwareAddr, typ uint16, payload []byte) []byte {
	b := append([]byte(broadcast), src...)
	return append(binary.BigEndian.AppendUint16(b, typ), payload...)
}

func arpFrame(src, sender net.HardwareAddr, op uint16, ip, target netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, byte(op)}
	b = append(append(b, sender...), ip.AsSlice()...)
	b = append(append(b, make([]byte, 6)...), target.AsSlice()...)
	return ether(src, unix.ETH_P_ARP, b)
}

func ip4Frame(src net.HardwareAddr, from, to netip.Addr) []byte {
	b := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	return ether(src, unix.ETH_P_IP, append(b, 0, 1, 0, 9, 0, 8, 0, 0))
}

// ip6Frame is an IPv6 packet with a payload of protocol next.
func ip6Frame(src net.HardwareAddr, from, to netip.Addr, next byte, payload ...byte) []byte {
	b := []byte{0x60, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, next, 255)
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	return ether(src, unix.ETH_P_IPV6, append(b, payload...))
}

// nd is a neighbour discovery message about target, with options.
func nd(typ byte, target netip.Addr, options ...byte) []byte {
	return append(append([]byte{typ, 0, 0, 0, 0x60, 0, 0, 0}, target.AsSlice()...), options...)
}

func option(typ byte, m net.HardwareAddr) []byte { return append([]byte{typ, 1}, m...) }

// TestAntiSpoof sends frames from a sandbox's end of its link and looks which
// of them arrive at a neighbour's.
func TestAntiSpoof(t *testing.T) {
	const icmp6, dest = unix.IPPROTO_ICMPV6, unix.IPPROTO_DSTOPTS
	hidden := func(payload []byte) []byte { return append([]byte{icmp6, 0, 1, 4, 0, 0, 0, 0}, payload...) }
	na, lie := append(nd(136, liar6), option(2, liarMAC)...), append(nd(136, gateway6), option(2, liarMAC)...)
	tagged := func(frame []byte) []byte {
		return append(append(append([]byte{}, frame[:12]...), 0x81, 0, 0, 5), frame[12:]...)
	}
	cases := []struct {
		what  string
		frame []byte
		pass  bool
	}{
		{"own IPv4", ip4Frame(liarMAC, liar4, peer4), true},
		{"IPv4 of the neighbour", ip4Frame(liarMAC, peer4, gateway4), false},
		{"IPv4 with the neighbour's MAC", ip4Frame(peerMAC, liar4, gateway4), false},
		{"IPv4 and MAC of the neighbour", ip4Frame(peerMAC, peer4, gateway4), false},
		{"IPv4 without an address", ip4Frame(liarMAC, netip.IPv4Unspecified(), gateway4), false},
		{"IPv4 in a VLAN", tagged(ip4Frame(liarMAC, liar4, peer4)), false},
		{"own ARP request", arpFrame(liarMAC, liarMAC, 1, liar4, peer4), true},
		{"own ARP reply", arpFrame(liarMAC, liarMAC, 2, liar4, peer4), true},
		{"ARP reply for the gateway", arpFrame(liarMAC, liarMAC, 2, gateway4, peer4), false},
		{"ARP request as the neighbour", arpFrame(liarMAC, liarMAC, 1, peer4, gateway4), false},
		{"ARP with another MAC in it", arpFrame(liarMAC, peerMAC, 2, liar4, gateway4), false},
		{"ARP from another MAC", arpFrame(peerMAC, liarMAC, 2, liar4, gateway4), false},
		{"own IPv6", ip6Frame(liarMAC, liar6, peer6, unix.IPPROTO_UDP, 0, 1, 0, 9, 0, 8, 0, 0), true},
		{"own link-local IPv6", ip6Frame(liarMAC, netip.MustParseAddr("fe80::42:acff:fe1e:2"), all6, icmp6, 128, 0, 0, 0, 0, 1, 0, 1), true},
		{"IPv6 of the neighbour", ip6Frame(liarMAC, peer6, all6, unix.IPPROTO_UDP, 0, 1, 0, 9, 0, 8, 0, 0), false},
		{"solicitation", ip6Frame(liarMAC, liar6, all6, icmp6, append(nd(135, peer6), option(1, liarMAC)...)...), true},
		{"probe for a duplicate of its own address", ip6Frame(liarMAC, none6, all6, icmp6, nd(135, liar6)...), true},
		{"probe that denies the neighbour its address", ip6Frame(liarMAC, none6, all6, icmp6, nd(135, peer6)...), false},
		{"own advertisement", ip6Frame(liarMAC, liar6, all6, icmp6, na...), true},
		{"own advertisement without option", ip6Frame(liarMAC, liar6, all6, icmp6, nd(136, liar6)...), true},
		{"advertisement of the gateway", ip6Frame(liarMAC, liar6, all6, icmp6, lie...), false},
		{"advertisement from the gateway", ip6Frame(liarMAC, gateway6, all6, icmp6, lie...), false},
		{"advertisement with another MAC", ip6Frame(liarMAC, liar6, all6, icmp6, append(nd(136, liar6), option(2, peerMAC)...)...), false},
		{"advertisement with two options", ip6Frame(liarMAC, liar6, all6, icmp6, append(na, option(2, peerMAC)...)...), false},
		{"advertisement with another option", ip6Frame(liarMAC, liar6, all6, icmp6, append(nd(136, liar6), option(1, liarMAC)...)...), false},
		{"advertisement behind an extension header", ip6Frame(liarMAC, liar6, all6, dest, hidden(lie)...), false},
		{"own advertisement behind an extension header", ip6Frame(liarMAC, liar6, all6, dest, hidden(na)...), false},
		{"router advertisement", ip6Frame(liarMAC, netip.MustParseAddr("fe80::42:acff:fe1e:2"), all6, icmp6, append([]byte{134, 0, 0, 0, 64, 0, 7, 8}, make([]byte, 8)...)...), false},
		{"router advertisement behind an extension header", ip6Frame(liarMAC, liar6, all6, dest, hidden(append([]byte{134, 0, 0, 0, 64, 0, 7, 8}, make([]byte, 8)...))...), false},
		{"redirect", ip6Frame(liarMAC, liar6, all6, icmp6, append(nd(137, peer6), liar6.AsSlice()...)...), false},
		{"another protocol", ether(liarMAC, 0x88b5, make([]byte, 46)), false},
		{"spanning tree", append([]byte("\x01\x80\xc2\x00\x00\x00"), ether(liarMAC, 38, []byte{0x42, 0x42, 3})[6:]...), false},
	}
	l := newSpoofLab(t)
	for i, c := range cases {
		if got := l.passes(c.frame, uint32(i)); got != c.pass {
			t.Errorf("%s: arrives %t, want %t", c.what, got, c.pass)
		}
	}
	// Without an IPv6 address nothing of it passes, not even the own link-local.
	l.own(spec.Endpoint{HostInterface: l.port, MAC: liarMAC.String(), Addresses: []netip.Prefix{netip.PrefixFrom(liar6, 64)}}, false)
	for i, c := range cases {
		six := binary.BigEndian.Uint16(c.frame[12:]) == unix.ETH_P_IPV6
		if want := c.pass && !six; l.passes(c.frame, uint32(1000+i)) != want {
			t.Errorf("without IPv6: %s: arrives %t, want %t", c.what, !want, want)
		}
	}
}

// TestSpoofedNeighbour holds the host's own neighbour table true.
func TestSpoofedNeighbour(t *testing.T) {
	l := newSpoofLab(t)
	output(t, "ip", "neigh", "replace", peer4.String(), "lladdr", peerMAC.String(), "dev", "sandnet0", "nud", "reachable")
	output(t, "ip", "neigh", "replace", peer6.String(), "lladdr", peerMAC.String(), "dev", "sandnet0", "nud", "reachable")
	l.send(arpFrame(liarMAC, liarMAC, 2, peer4, gateway4))
	l.send(arpFrame(liarMAC, liarMAC, 1, peer4, peer4))
	l.send(ip6Frame(liarMAC, liar6, all6, unix.IPPROTO_ICMPV6, append(nd(136, peer6), option(2, liarMAC)...)...))
	l.send(ip6Frame(liarMAC, peer6, all6, unix.IPPROTO_ICMPV6, append(nd(135, gateway6), option(1, liarMAC)...)...))
	if !l.passes(arpFrame(liarMAC, liarMAC, 2, liar4, gateway4), 0) {
		t.Fatal("the control does not arrive")
	}
	for _, ip := range []netip.Addr{peer4, peer6} {
		if got := output(t, "ip", "neigh", "show", ip.String(), "dev", "sandnet0"); !strings.Contains(got, peerMAC.String()) {
			t.Errorf("the host's entry for %s is now %s", ip, got)
		}
	}
}

// spoofLab is a bridge with the ports of two sandboxes.
type spoofLab struct {
	t        *testing.T
	port     string
	from, to int // packet sockets in the liar's and in the neighbour's namespace
}

func newSpoofLab(t *testing.T) *spoofLab {
	t.Helper()
	ownNetns(t)
	l := &spoofLab{t: t, port: "sv-liar"}
	group := fmt.Sprint(testMark)
	// br_netfilter would drop what is no whole packet.
	for _, file := range []string{"iptables", "ip6tables"} {
		if name := "/proc/thread-self/root/proc/sys/net/bridge/bridge-nf-call-" + file; os.WriteFile(name, []byte("0"), 0) != nil {
			if _, err := os.Stat(name); err == nil {
				t.Fatal("cannot write ", name)
			}
		}
	}
	output(t, "ip", "link", "add", "sandnet0", "type", "bridge")
	output(t, "ip", "link", "set", "sandnet0", "up")
	output(t, "ip", "addr", "add", gateway4.String()+"/16", "dev", "sandnet0")
	output(t, "ip", "addr", "add", gateway6.String()+"/64", "dev", "sandnet0", "nodad")
	for name, fd := range map[string]*int{"liar": &l.from, "peer": &l.to} {
		ns := fmt.Sprintf("firewall-spoof-%d-%s", os.Getpid(), name)
		output(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { output(t, "ip", "netns", "del", ns) })
		output(t, "ip", "link", "add", "sv-"+name, "group", group, "type", "veth", "peer", "name", "eth0", "netns", ns)
		output(t, "ip", "link", "set", "sv-"+name, "master", "sandnet0", "up")
		output(t, "ip", "-n", ns, "link", "set", "eth0", "up")
		if err := inNetns("/run/netns/"+ns, func() (err error) {
			*fd, err = packetSocket("eth0")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(*fd) })
	}
	mustEnsureNft(t, 1, spoofTable())
	l.own(spec.Endpoint{HostInterface: l.port, MAC: liarMAC.String(),
		Addresses: []netip.Prefix{netip.PrefixFrom(liar4, 16), netip.PrefixFrom(liar6, 64)}}, true)
	// A bridge learns of its ports' carriers in its own time.
	for range 100 {
		if strings.Count(output(t, "bridge", "link", "show"), "state forwarding") == 2 {
			return l
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the bridge does not forward")
	return nil
}

// own gives an endpoint its addresses, or takes them away.
func (l *spoofLab) own(ep spec.Endpoint, add bool) {
	l.t.Helper()
	if add {
		mustEnsureNft(l.t, -1, firewall.Own(ep)...)
	} else if err := deleteNft(firewall.Own(ep)); err != nil {
		l.t.Fatal(err)
	}
}

func packetSocket(link string) (int, error) {
	all := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return -1, err
	}
	i, err := net.InterfaceByName(link)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000}); err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: i.Index})
}

func (l *spoofLab) send(frame []byte) {
	l.t.Helper()
	if _, err := unix.Write(l.from, frame); err != nil {
		l.t.Fatal(err)
	}
}

// passes reports whether the neighbour gets the frame. A frame that always
// passes, with a number in it, comes after: then the other would have been there.
func (l *spoofLab) passes(frame []byte, number uint32) (seen bool) {
	l.t.Helper()
	last := ip4Frame(liarMAC, liar4, gateway4)
	last = binary.BigEndian.AppendUint32(last, number|0x5a000000)
	l.send(frame)
	l.send(last)
	buf := make([]byte, 2048)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		n, err := unix.Read(l.to, buf)
		switch {
		case err != nil:
			continue
		case string(buf[:n]) == string(last):
			return seen
		case string(buf[:n]) == string(frame):
			seen = true
		}
	}
	l.t.Fatal("the control does not arrive")
	return false
}
