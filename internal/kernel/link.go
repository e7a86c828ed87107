package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

func macString(b []byte) string { return net.HardwareAddr(b).String() }

// fullPatience is how long a full bridge may take to become less so.
const fullPatience = time.Second

// ensureLink makes a bridge, or a veth with its peer directly in the target
// namespace: moving an end there afterwards costs 20 ms (an RCU grace period).
func (k *Kernel) ensureLink(l plan.Link) (changed int, err error) {
	host, err := k.host()
	if err != nil {
		return 0, err
	}
	master := 0
	if l.Master != "" {
		br, err := host.link(l.Master)
		if err != nil {
			return 0, fmt.Errorf("bridge %s: %w", l.Master, err)
		}
		master = br.index
	}
	have, err := host.link(l.Name)
	switch {
	case errors.Is(err, unix.ENODEV):
		err := k.createLink(host, l, master)
		// The kernel takes a moment to free the ports of sandboxes just removed.
		for end := time.Now().Add(fullPatience); errors.Is(err, unix.EXFULL) && time.Now().Before(end); {
			time.Sleep(fullPatience / 50)
			err = k.createLink(host, l, master)
		}
		return 1, err
	case err != nil:
		return 0, fmt.Errorf("link %s: %w", l.Name, err)
	case have.group != l.Mark || have.kind != string(l.Type):
		return 0, fmt.Errorf("link %s exists and is not sandnet's: %w", l.Name, unix.EEXIST)
	}
	if l.Type == plan.Veth {
		peer, err := k.inside(l.PeerNetns)
		if err != nil {
			return 0, err
		}
		other, err := peer.link(l.Peer)
		if err != nil { // its other end is somewhere else
			if err := deleteLink(host, l.Name); err != nil {
				return 0, err
			}
			return 1, k.createLink(host, l, master)
		}
		if !other.up { // the last that creating it does
			raise(peer, l.Peer)
			if err := peer.flush(); err != nil {
				return 0, err
			}
			changed = 1
		}
	}
	n, err := k.adjustLink(host, l, have, master)
	return changed + n, err
}

func (k *Kernel) createLink(host *rtnl, l plan.Link, master int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	if err := linkAttrs(req.AddData, l.Name, l.MTU, l.MAC); err != nil {
		return err
	}
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(l.Mark)))
	if master != 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(string(l.Type)))
	if l.Type == plan.Veth {
		ns, err := os.Open(l.PeerNetns)
		if err != nil {
			return fmt.Errorf("link %s: %w", l.Name, err)
		}
		defer ns.Close()
		peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
		nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
		if err := linkAttrs(peer.AddChild, l.Peer, l.MTU, l.PeerMAC); err != nil {
			return err
		}
		peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.Fd())))
	}
	req.AddData(info)
	host.add("link "+l.Name, req, func(err error) error {
		if errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("kernel lacks links of type %s (CONFIG_%s): %w", l.Type, map[plan.LinkType]string{plan.Bridge: "BRIDGE", plan.Veth: "VETH", plan.IFB: "IFB"}[l.Type], err)
		}
		if errors.Is(err, unix.EXFULL) || errors.Is(err, unix.EMLINK) {
			return fmt.Errorf("bridge %s is full (1023 ports): %w", l.Master, err)
		}
		return err
	})
	if l.Isolated || l.Hairpin { // a new port has neither
		setPort(host, l)
	}
	raise(host, l.Name)
	if err := host.flush(); err != nil {
		return err
	}
	if l.Type != plan.Veth {
		return nil
	}
	// The peer comes up in one batch with its addresses and routes.
	peer, err := k.inside(l.PeerNetns)
	if err != nil {
		return err
	}
	raise(peer, l.Peer)
	return nil
}

func linkAttrs(add func(nl.NetlinkRequestData), name string, mtu int, mac string) error {
	add(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if mtu != 0 {
		add(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
	if mac != "" {
		hw, err := net.ParseMAC(mac)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		add(nl.NewRtAttr(unix.IFLA_ADDRESS, hw))
	}
	return nil
}

// raise queues what brings a link up. The kernel reads IFLA_AF_SPEC after the
// flags of the same message, so switching IPv6 addresses off comes first.
func raise(c *rtnl, name string) {
	req := setLink(name, 0)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(in6AddrGenModeNone))
	req.AddData(spec)
	c.add("link "+name+" addrgenmode", req, func(err error) error {
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EINVAL) {
			return nil // a kernel without IPv6 makes no such addresses
		}
		return err
	})
	c.add("link "+name+" up", setLink(name, unix.IFF_UP), nil)
}

// setPort queues what sets the flags of a bridge port. It goes by the port's
// name (IFLA_INFO_SLAVE_DATA), and so into one batch with what makes the link.
func setPort(c *rtnl, l plan.Link) {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(l.Name)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated(string(plan.Bridge)))
	port := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	port.AddRtAttr(nl.IFLA_BRPORT_ISOLATED, boolAttr(l.Isolated))
	port.AddRtAttr(nl.IFLA_BRPORT_MODE, boolAttr(l.Hairpin))
	req.AddData(info)
	c.add("link "+l.Name+" port", req, nil)
}

func boolAttr(on bool) []byte {
	if on {
		return nl.Uint8Attr(1)
	}
	return nl.Uint8Attr(0)
}

func setLink(name string, flags uint32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Flags, msg.Change = flags, flags
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return req
}

// adjustLink mends what differs on a link of ours.
func (k *Kernel) adjustLink(host *rtnl, l plan.Link, have linkInfo, master int) (int, error) {
	req := setLink(l.Name, unix.IFF_UP)
	changed := !have.up
	if have.mtu != l.MTU {
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(l.MTU))))
		changed = true
	}
	if have.master != master {
		req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
		changed = true
	}
	if l.MAC != "" && have.mac != l.MAC {
		hw, err := net.ParseMAC(l.MAC)
		if err != nil {
			return 0, fmt.Errorf("link %s: %w", l.Name, err)
		}
		req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, hw))
		changed = true
	}
	if !have.up {
		raise(host, l.Name)
	}
	if changed {
		host.add("link "+l.Name, req, nil)
		if err := host.flush(); err != nil {
			return 1, err
		}
	}
	// A new master has taken the port's flags.
	if l.Master != "" && (changed || have.isolated != l.Isolated || have.hairpin != l.Hairpin) {
		setPort(host, l)
		return 1, host.flush()
	}
	return boolInt(changed), nil
}

// deleteLink removes a link at once, which costs an RCU grace period for a veth.
func deleteLink(c *rtnl, name string) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	c.add("link delete "+name, req, absentIsFine)
	return c.flush()
}

func absentIsFine(err error) error {
	for _, absent := range []error{unix.ENODEV, unix.ESRCH, unix.EADDRNOTAVAIL, unix.ENOENT} {
		if errors.Is(err, absent) {
			return nil
		}
	}
	return err
}

// ensureAddr queues an address; it goes out with the batch of its namespace.
func (k *Kernel) ensureAddr(a plan.Addr, changed *int) error {
	c, index, err := k.linkIn(a.Netns, a.Link)
	if err != nil {
		return err
	}
	c.add("addr "+a.Addr.String(), addrMsg(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a, index), func(err error) error {
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		if err == nil {
			*changed++
		}
		return err
	})
	return nil
}

func addrMsg(typ, flags int, a plan.Addr, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(typ, flags)
	family := unix.AF_INET
	if a.Addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Index, msg.Prefixlen = uint32(index), uint8(a.Addr.Bits())
	if family == unix.AF_INET6 {
		msg.Flags = unix.IFA_F_NODAD
	}
	req.AddData(msg)
	ip := a.Addr.Addr().AsSlice()
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, ip))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, ip))
	if family == unix.AF_INET && a.Addr.Bits() < 31 {
		last := a.Addr.Addr().As4()
		for i := a.Addr.Bits(); i < 32; i++ {
			last[i/8] |= 1 << (7 - i%8)
		}
		req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, last[:]))
	}
	return req
}

func (k *Kernel) ensureRoute(r plan.Route, changed *int) error {
	c, index, err := k.linkIn(r.Netns, r.Link)
	if err != nil {
		return err
	}
	c.add("route "+r.Dst.String(), routeMsg(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, r, index), func(err error) error {
		if errors.Is(err, unix.EEXIST) {
			k.conflicts = append(k.conflicts, r)
			return nil
		}
		if err == nil {
			*changed++
		}
		return err
	})
	return nil
}

// settleRoutes replaces the routes that were there already with another gateway
// or on another link.
func (k *Kernel) settleRoutes(routes []plan.Route, changed *int) error {
	for _, r := range routes {
		c, index, err := k.linkIn(r.Netns, r.Link)
		if err != nil {
			return err
		}
		family := unix.AF_INET
		if r.Dst.Addr().Is6() {
			family = unix.AF_INET6
		}
		dst := &net.IPNet{IP: r.Dst.Addr().AsSlice(), Mask: net.CIDRMask(r.Dst.Bits(), r.Dst.Addr().BitLen())}
		var have []netlink.Route
		list := func() (err error) {
			have, err = retryDump(func() ([]netlink.Route, error) {
				return netlink.RouteListFiltered(family, &netlink.Route{Dst: dst, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
			})
			return err
		}
		if r.Netns == "" {
			err = list()
		} else {
			err = inNetns(r.Netns, list)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.Key(), err)
		}
		right := slices.ContainsFunc(have, func(o netlink.Route) bool {
			via, _ := netip.AddrFromSlice(o.Gw)
			return o.LinkIndex == index && via.Unmap() == r.Via
		})
		if right {
			continue
		}
		c.add("route replace "+r.Dst.String(), routeMsg(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, r, index), nil)
		if err := c.flush(); err != nil {
			return err
		}
		*changed++
	}
	return nil
}

func routeMsg(typ, flags int, r plan.Route, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(typ, flags)
	msg := nl.NewRtMsg()
	msg.Family = unix.AF_INET
	if r.Dst.Addr().Is6() {
		msg.Family = unix.AF_INET6
	}
	msg.Dst_len = uint8(r.Dst.Bits())
	msg.Protocol = unix.RTPROT_STATIC
	if !r.Via.IsValid() {
		msg.Scope = unix.RT_SCOPE_LINK
	}
	req.AddData(msg)
	if r.Dst.Bits() > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_DST, r.Dst.Addr().AsSlice()))
	}
	if r.Via.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.Via.AsSlice()))
	}
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return req
}

func (k *Kernel) deleteAddr(a plan.Addr) error {
	c, index, err := k.linkIn(a.Netns, a.Link)
	if err != nil {
		return absentIsFine(err)
	}
	c.add("addr delete "+a.Addr.String(), addrMsg(unix.RTM_DELADDR, 0, a, index), absentIsFine)
	return c.flush()
}

func (k *Kernel) deleteRoute(r plan.Route) error {
	c, index, err := k.linkIn(r.Netns, r.Link)
	if err != nil {
		return absentIsFine(err)
	}
	c.add("route delete "+r.Dst.String(), routeMsg(unix.RTM_DELROUTE, 0, r, index), absentIsFine)
	return c.flush()
}

// linkIn is the socket of a namespace ("" the host's) and a link's index there.
func (k *Kernel) linkIn(netns, name string) (*rtnl, int, error) {
	c, err := k.inside(netns)
	if err != nil {
		return nil, 0, err
	}
	if i, ok := k.index[netns+" "+name]; ok {
		return c, i, nil
	}
	l, err := c.link(name)
	if err != nil {
		return nil, 0, fmt.Errorf("link %s: %w", name, err)
	}
	k.index[netns+" "+name] = l.index
	return c, l.index, nil
}

// ownedLinks lists the host's links that carry the mark.
func (k *Kernel) ownedLinks(context.Context) ([]plan.Object, error) {
	links, err := retryDump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []plan.Object
	for _, l := range links {
		if a := l.Attrs(); (a.Group == k.mark || a.Group == doomed(k.mark)) && l.Type() != "loopback" {
			out = append(out, plan.Link{Name: a.Name, Type: plan.LinkType(l.Type()), MTU: a.MTU, Mark: k.mark})
		}
	}
	return out, nil
}

// retryDump repeats a dump that a concurrent change has interrupted.
func retryDump[T any](dump func() ([]T, error)) ([]T, error) {
	for range 10 {
		out, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return out, err
		}
	}
	return dump()
}

// in6AddrGenModeNone is IN6_ADDR_GEN_MODE_NONE of <linux/if_link.h>.
const in6AddrGenModeNone = 1
