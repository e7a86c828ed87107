package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// forgetFlows deletes conntrack entries of published UDP ports: those that go
// to the sandbox, when the port is unpublished, and those that do not, when it
// has been published. Without such a port, nothing is asked.
func forgetFlows(flows []plan.Flow, unpublished bool) error {
	if len(flows) == 0 {
		return nil
	}
	filter := &flowFilter{flows: flows, unpublished: unpublished, local: map[netip.Addr]bool{}}
	addrs, err := retryDump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			filter.local[ip.Unmap()] = true
		}
	}
	var errs []error
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if !filter.has(family) {
			continue
		}
		crash.Point("conntrack delete")
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		// Without conntrack's netlink part (CONFIG_NF_CT_NETLINK) flows end by timeout.
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("conntrack entries of published UDP ports: %w", err))
		}
	}
	return errors.Join(errs...)
}

// flowFilter picks the entries to delete.
type flowFilter struct {
	flows       []plan.Flow
	unpublished bool
	local       map[netip.Addr]bool
}

func (f *flowFilter) has(family netlink.InetFamily) bool {
	for _, flow := range f.flows {
		if flow.IP.Is4() == (family == unix.AF_INET) {
			return true
		}
	}
	return false
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f *flowFilter) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	if c.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, _ := netip.AddrFromSlice(c.Forward.DstIP)
	src, _ := netip.AddrFromSlice(c.Reverse.SrcIP)
	dst, src = dst.Unmap(), src.Unmap()
	for _, flow := range f.flows {
		switch {
		case flow.Port != c.Forward.DstPort || flow.IP.Is4() != dst.Is4():
		case flow.IP.IsUnspecified() && !f.local[dst] && !dst.IsLoopback(), !flow.IP.IsUnspecified() && flow.IP != dst:
		case f.unpublished == (netip.AddrPortFrom(src, c.Reverse.SrcPort) == flow.To):
			return true
		}
	}
	return false
}
