package kernel

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Taken lists every prefix that the host has an address in or a route to, the
// default route excepted, also one split into halves as VPNs do; a network must
// not overlap one. Links that skip names are left out.
func (k *Kernel) Taken(skip func(link string) bool) ([]netip.Prefix, error) {
	routes, err := retryDump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	addrs, err := retryDump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	// The links come last: one that is being made meanwhile has its name then.
	links, err := retryDump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil || skip(names[r.LinkIndex]) {
			continue
		}
		bits, _ := r.Dst.Mask.Size()
		if ip, ok := netip.AddrFromSlice(r.Dst.IP); ok && bits > 1 && r.Dst.String() != allIPv6 {
			out = append(out, netip.PrefixFrom(ip.Unmap(), bits).Masked())
		}
	}
	for _, a := range addrs {
		bits, _ := a.Mask.Size()
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !skip(names[a.LinkIndex]) {
			out = append(out, netip.PrefixFrom(ip.Unmap(), bits).Masked())
		}
	}
	return out, nil
}

// allIPv6 is the whole of IPv6's global addresses, which VPNs route instead of
// a default.
const allIPv6 = "2000::/3"

// RouterLinks are the links that have a route or an address from router
// advertisements, and heed these only as long as the host does not forward
// (accept_ra is 1).
func (k *Kernel) RouterLinks() ([]string, error) {
	routes, err := retryDump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	addrs, err := retryDump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	links, err := retryDump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	learned := map[int]bool{}
	for _, r := range routes {
		if r.Protocol == unix.RTPROT_RA {
			learned[r.LinkIndex] = true
			for _, hop := range r.MultiPath {
				learned[hop.LinkIndex] = true
			}
		}
	}
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_PERMANENT == 0 {
			learned[a.LinkIndex] = true
		}
	}
	var out []string
	for _, l := range links {
		name := l.Attrs().Name
		if !learned[l.Attrs().Index] {
			continue
		}
		b, err := os.ReadFile(procSys + "net/ipv6/conf/" + name + "/accept_ra")
		if err == nil && strings.TrimSpace(string(b)) == "1" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// HasAddr reports whether ip is an address of the host, 127.0.0.0/8 included.
func (k *Kernel) HasAddr(ip netip.Addr) (bool, error) {
	if ip.IsLoopback() {
		return true, nil
	}
	addrs, err := retryDump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return false, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if have, ok := netip.AddrFromSlice(a.IP); ok && have.Unmap() == ip {
			return true, nil
		}
	}
	return false, nil
}

// HasLink reports whether the host has a link of that name, and whether it
// carries our mark.
func (k *Kernel) HasLink(name string) (exists, ours bool, err error) {
	host, err := k.host()
	if err != nil {
		return false, false, err
	}
	l, err := host.link(name)
	if err == unix.ENODEV {
		return false, false, nil
	}
	return err == nil, l.group == k.mark, err
}

// ForeignForward is the iptables chain that would drop our packets, if any.
func (k *Kernel) ForeignForward() (chain string, err error) { return ForeignForward() }

// ProbePort binds a port until release; EADDRINUSE if somebody has it.
func (k *Kernel) ProbePort(proto string, ip netip.Addr, port uint16) (release func(), err error) {
	return ProbePort(proto, ip, port)
}
