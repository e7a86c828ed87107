package lab

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Advertise sends one router advertisement (RFC 4861, 4.2) out of a link that
// has a link-local address: its sender is a default router for half an hour,
// and hosts may make themselves addresses of the prefix, a /64.
func (n *NS) Advertise(link string, prefix netip.Prefix) {
	n.t.Helper()
	ra := make([]byte, 16+32)
	ra[0], ra[4] = 134, 64 // type, hop limit for the hosts' packets
	ra[6], ra[7] = 1800>>8, 1800&0xff
	opt := ra[16:]
	opt[0], opt[1], opt[2], opt[3] = 3, 4, 64, 0xc0 // prefix information, /64, on-link and autonomous
	opt[6], opt[10] = 1800>>8, 1800>>8              // valid, preferred lifetime
	addr := prefix.Addr().As16()
	copy(opt[16:], addr[:])
	var err error
	n.Do(func() { err = sendICMPv6(link, ra) })
	if err != nil {
		n.t.Fatalf("%s: router advertisement on %s: %v", n.Name, link, err)
	}
}

// sendICMPv6 sends to all nodes on a link, with the hop limit that neighbour
// discovery asks for.
func sendICMPv6(link string, msg []byte) error {
	l, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for opt, value := range map[int]int{unix.IPV6_MULTICAST_HOPS: 255, unix.IPV6_MULTICAST_IF: l.Index} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, opt, value); err != nil {
			return err
		}
	}
	return unix.Sendto(fd, msg, 0, &unix.SockaddrInet6{Addr: netip.IPv6LinkLocalAllNodes().As16(), ZoneId: uint32(l.Index)})
}
