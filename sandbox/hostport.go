package sandbox

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/spec"
)

// hostAddresses are those that p is published on, for a sandbox of network n.
func hostAddresses(p spec.Port, n spec.Network) ([]netip.Addr, error) {
	if n.GatewayMode == spec.GatewayIsolated {
		return nil, &spec.InputError{What: "published port", Value: p.String(), Why: "network " + n.Name + " is isolated, even from the host"}
	}
	var all []netip.Addr
	if n.HasIPv4() {
		all = append(all, netip.IPv4Unspecified())
	}
	if n.HasIPv6() {
		all = append(all, netip.IPv6Unspecified())
	}
	if !p.HostIP.IsValid() {
		return all, nil
	}
	if !slices.ContainsFunc(all, func(a netip.Addr) bool { return a.Is4() == p.HostIP.Is4() }) {
		why, hint := n.WithoutFamily(p.HostIP)
		return nil, &spec.InputError{What: "published port", Value: p.String(), Why: why, Hint: hint}
	}
	return []netip.Addr{p.HostIP}, nil
}

// hold binds a port on all the addresses until release, or on none.
func (b *build) hold(p spec.Port, hosts []netip.Addr, port uint16) error {
	var held []func()
	for _, ip := range hosts {
		release, err := b.m.host.ProbePort(string(p.Proto), ip, port)
		if err == nil {
			held = append(held, release)
			// bind(2) tells nothing where the kernel has no SCTP of its own.
			q := p
			if q.HostIP, q.HostPort = ip, port; p.Proto == spec.SCTP && b.m.publisher(q) != "" {
				err = unix.EADDRINUSE
			}
		}
		if err != nil {
			for _, f := range held {
				f()
			}
			return err
		}
	}
	b.held = append(b.held, held...)
	return nil
}
