package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

// fewLinks is up to how many are asked for one by one: a host has thousands.
const fewLinks = 4

// place is what a namespace holds, as far as it was asked for.
type place struct {
	conn *rtnl // nil if there is no such namespace
	// single says that links are looked up one by one.
	single bool
	links  map[string]linkInfo
	names  map[int]string
	addrs  map[plan.Addr]bool
	listed map[string]bool // links whose addresses are known; "" is all
	routes map[netip.Prefix][]hop
}

type hop struct{ via, link string }

func (h hop) String() string {
	if h.via == "" {
		return "dev " + h.link
	}
	return "via " + h.via + " dev " + h.link
}

// manyPlaces is how many namespaces are open at once: a host has thousands, and
// a process may have a thousand files. An owner's objects come in a row.
const manyPlaces = 64

// place opens a namespace.
func (c *checker) place(path string) (*place, error) {
	if p := c.places[path]; p != nil {
		return p, nil
	}
	if len(c.places) > manyPlaces {
		for path, p := range c.places {
			if path == "" { // in use while another is opened
				continue
			}
			if p.conn != nil {
				p.conn.close()
			}
			delete(c.places, path)
		}
	}
	p := &place{links: map[string]linkInfo{}, names: map[int]string{}, addrs: map[plan.Addr]bool{}, listed: map[string]bool{}}
	c.places[path] = p
	var err error
	switch {
	case path == "":
		if p.conn, err = c.k.host(); err == nil && c.onHost <= fewLinks {
			p.single = true
			return p, nil
		}
	case pinned(path):
		err = inNetns(path, func() (err error) {
			p.conn, err = dialRtnl()
			return err
		})
		if err != nil && !pinned(path) {
			return p, nil // unpinned by another command, just now
		}
	default:
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	return p, p.loadLinks()
}

func (p *place) loadLinks() error {
	p.single = false
	reset := func() { clear(p.links); clear(p.names) }
	return p.conn.dump(unix.RTM_GETLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), reset, func(b []byte) error {
		l, err := parseLink(b)
		p.links[l.name], p.names[l.index] = l, l.name
		return err
	})
}

func (p *place) link(name string) (l linkInfo, ok bool, err error) {
	if l, ok = p.links[name]; ok || !p.single {
		return l, ok, nil
	}
	l, err = p.conn.link(name)
	if errors.Is(err, unix.ENODEV) {
		return l, false, nil
	}
	p.links[name], p.names[l.index] = l, name
	return l, err == nil, err
}

// name is a link's name, by its index.
func (p *place) name(index int) (string, error) {
	if p.names[index] == "" && index != 0 && p.single {
		if err := p.loadLinks(); err != nil {
			return "", err
		}
	}
	return p.names[index], nil
}

// loadAddrs lists the addresses, of one link where that is enough.
func (p *place) loadAddrs(path, link string) error {
	header := nl.NewIfAddrmsg(unix.AF_UNSPEC)
	if !p.single {
		link = ""
	}
	if p.listed[link] || p.conn == nil {
		return nil
	}
	if p.single {
		l, ok, err := p.link(link)
		if err != nil || !ok {
			return err
		}
		header.Index = uint32(l.index)
	}
	p.listed[link] = true
	return p.conn.dump(unix.RTM_GETADDR, header, func() {}, func(b []byte) error {
		m := nl.DeserializeIfAddrmsg(b)
		var local, address []byte
		for typ, v := range attrs(b[unix.SizeofIfAddrmsg:]) {
			switch typ {
			case unix.IFA_LOCAL:
				local = v
			case unix.IFA_ADDRESS:
				address = v
			}
		}
		if local == nil {
			local = address
		}
		if ip, ok := netip.AddrFromSlice(local); ok {
			p.addrs[plan.Addr{Netns: path, Link: p.names[int(m.Index)], Addr: netip.PrefixFrom(ip, int(m.Prefixlen))}] = true
		}
		return nil
	})
}

// loadRoutes reads the main table.
func (p *place) loadRoutes() error {
	if p.routes != nil || p.conn == nil {
		return nil
	}
	if p.single {
		if err := p.loadLinks(); err != nil {
			return err
		}
	}
	p.routes = map[netip.Prefix][]hop{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		header := &nl.RtMsg{RtMsg: unix.RtMsg{Family: family}}
		routes := map[netip.Prefix][]hop{}
		err := p.conn.dump(unix.RTM_GETROUTE, header, func() { clear(routes) }, func(b []byte) error {
			m := nl.DeserializeRtMsg(b)
			if m.Table != unix.RT_TABLE_MAIN || m.Type != unix.RTN_UNICAST {
				return nil
			}
			dst := netip.IPv4Unspecified()
			if family == unix.AF_INET6 {
				dst = netip.IPv6Unspecified()
			}
			var h hop
			for typ, v := range attrs(b[unix.SizeofRtMsg:]) {
				ip, _ := netip.AddrFromSlice(v)
				switch typ {
				case unix.RTA_DST:
					dst = ip
				case unix.RTA_GATEWAY:
					h.via = ip.String()
				case unix.RTA_OIF:
					h.link = p.names[int(nl.NativeEndian().Uint32(v))]
				}
			}
			to := netip.PrefixFrom(dst, int(m.Dst_len))
			routes[to] = append(routes[to], h)
			return nil
		})
		if err != nil && (family == unix.AF_INET || !errors.Is(err, unix.EOPNOTSUPP)) {
			return fmt.Errorf("list routes: %w", err)
		}
		for to, hops := range routes {
			p.routes[to] = hops
		}
	}
	return nil
}
