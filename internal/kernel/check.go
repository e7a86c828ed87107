package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

// Check tells in which ways the kernel differs from objs, in their order. It
// changes nothing, and takes one dump per kind and namespace, not a query per
// object. A kind that it does not know is an error: what cannot be looked at
// must not pass for intact.
func (k *Kernel) Check(ctx context.Context, objs []plan.Object) ([]plan.Drift, error) {
	c := checker{k: k, objs: objs, places: map[string]*place{}, saved: map[string]saved{}}
	defer c.close()
	for _, o := range objs {
		switch o := o.(type) {
		case plan.Link:
			c.onHost++
		case plan.Addr:
			if o.Netns == "" {
				c.onHost++
			}
		}
	}
	for i, o := range objs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c.at = i
		if err := c.check(o); err != nil {
			return nil, fmt.Errorf("check %s: %w", o.Key(), err)
		}
	}
	slices.SortStableFunc(c.found, func(a, b found) int { return cmp.Compare(a.at, b.at) })
	var out []plan.Drift
	for _, f := range c.found {
		out = append(out, f.Drift)
	}
	return out, nil
}

// checker is one Check: what it has found, and what it has looked up so far.
type checker struct {
	k     *Kernel
	objs  []plan.Object
	at    int // the object under examination
	found []found
	// onHost is how many of the objects are links of the host or their addresses.
	onHost int

	places map[string]*place // by namespace path; "" is the host
	nft    *nfnl
	saved  map[string]saved // iptables' chains, by program
	// The kinds that are looked up all at once, with the first of them.
	elements, ports, rules, lines bool
}

type found struct {
	at int
	plan.Drift
}

func (c *checker) close() {
	for path, p := range c.places {
		if p.conn != nil && path != "" { // the host's is the kernel's own
			p.conn.close()
		}
	}
	if c.nft != nil {
		c.nft.close()
	}
}

func (c *checker) check(o plan.Object) error {
	switch o := o.(type) {
	case plan.Netns:
		return c.netns(o)
	case plan.Link:
		return c.link(o)
	case plan.Addr:
		return c.addr(o)
	case plan.Route:
		return c.route(o)
	case plan.Sysctl:
		return c.sysctl(o)
	case plan.Table:
		return c.table(o)
	case plan.Element:
		return once(&c.elements, c.allElements)
	case plan.TableChain:
		return c.tableChain(o)
	case plan.Chains:
		return c.chains(o)
	case plan.Qdisc:
		return c.qdisc(o)
	case plan.Redirect:
		return c.redirect(o)
	case plan.Flow:
		return nil // it is what must not be there, and only in the instant of a change
	case plan.Rule:
		return once(&c.rules, c.allRules)
	case plan.HostPort:
		return once(&c.ports, c.allPorts)
	case plan.BindGuard:
		return c.bindGuard()
	case plan.File:
		return c.file(o)
	case plan.Symlink:
		return c.symlink(o)
	case plan.HostsLine:
		return once(&c.lines, c.allHostsLines)
	case plan.HostsFile:
		return c.hostsFile(o)
	}
	return errors.New("this kernel package cannot look at it")
}

func once(done *bool, f func() error) error {
	if *done {
		return nil
	}
	*done = true
	return f()
}

// missing and differs note what is wrong with the object under examination.
func (c *checker) missing() {
	c.found = append(c.found, found{c.at, plan.Drift{Object: c.objs[c.at]}})
}

func (c *checker) differs(property, want, have string) {
	c.found = append(c.found, found{c.at, plan.Drift{Object: c.objs[c.at], Property: property, Want: want, Have: have}})
}

func (c *checker) compare(property, want, have string) {
	if want != have {
		c.differs(property, want, have)
	}
}

// each runs f for every object of a kind, as the one under examination.
func each[T plan.Object](c *checker, f func(T) error) error {
	defer func(at int) { c.at = at }(c.at)
	for i, o := range c.objs {
		if t, ok := o.(T); ok {
			c.at = i
			if err := f(t); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *checker) netns(n plan.Netns) error {
	p, err := c.place(n.Path)
	if err != nil {
		return err
	}
	if p.conn == nil {
		c.missing()
		return nil
	}
	if n.Join == "" {
		lo := p.links["lo"]
		c.compare("mark", strconv.Itoa(int(n.Mark)), strconv.Itoa(int(lo.group)))
		c.compare("loopback", "up", upDown(lo.up))
		return nil
	}
	if !joinsProcess(n) && pinned(n.Join) {
		if want, have := inode(n.Join), inode(n.Path); want != have {
			c.differs("namespace", "that of "+n.Join, "another one")
		}
	}
	return nil
}

// joinsProcess: the number of a process says nothing later. It may have ended,
// and its number gone to another one.
func joinsProcess(n plan.Netns) bool { return strings.HasPrefix(n.Join, "/proc/") }

func inode(path string) (id [2]uint64) {
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		id = [2]uint64{st.Dev, st.Ino}
	}
	return id
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func addrGen(l linkInfo) string {
	if l.addrGen {
		return "on"
	}
	return "none"
}

func (c *checker) link(l plan.Link) error {
	host, err := c.place("")
	if err != nil {
		return err
	}
	have, ok, err := host.link(l.Name)
	if err != nil {
		return err
	}
	if !ok {
		c.missing()
		return nil
	}
	c.compare("type", string(l.Type), have.kind)
	c.compare("group", strconv.Itoa(int(l.Mark)), strconv.Itoa(int(have.group)))
	c.compare("state", "up", upDown(have.up))
	mtu, err := host.mtu(l, have)
	if err != nil {
		return err
	}
	c.compare("mtu", strconv.Itoa(mtu), strconv.Itoa(have.mtu))
	c.compare("addrgenmode", "none", addrGen(have))
	if l.MAC != "" {
		c.compare("mac", l.MAC, have.mac)
	}
	if l.Master != "" && host.single { // it then needs no search by its index
		if _, _, err := host.link(l.Master); err != nil {
			return err
		}
	}
	master, err := host.name(have.master)
	if err != nil {
		return err
	}
	c.compare("master", l.Master, master)
	if l.Master != "" && have.master != 0 { // the flags are the port's
		c.compare("isolated", onOff(l.Isolated), onOff(have.isolated))
		c.compare("hairpin", onOff(l.Hairpin), onOff(have.hairpin))
	}
	if l.Type != plan.Veth {
		return nil
	}
	inside, err := c.place(l.PeerNetns)
	if err != nil {
		return err
	}
	peer, ok := inside.links[l.Peer]
	if !ok || peer.peer != have.index {
		has := ""
		if ok {
			has = "another " + l.Peer
		}
		c.differs("peer", l.Peer+" in "+l.PeerNetns, has)
		return nil
	}
	c.compare("state of "+l.Peer, "up", upDown(peer.up))
	c.compare("addrgenmode of "+l.Peer, "none", addrGen(peer))
	c.compare("mtu of "+l.Peer, strconv.Itoa(l.MTU), strconv.Itoa(peer.mtu))
	if l.PeerMAC != "" {
		c.compare("mac of "+l.Peer, l.PeerMAC, peer.mac)
	}
	return nil
}

// mtu is what a link's should be. The kernel lowers a bridge's to that of its
// smallest port.
func (p *place) mtu(l plan.Link, have linkInfo) (int, error) {
	if l.Type != plan.Bridge || have.mtu >= l.MTU {
		return l.MTU, nil
	}
	if p.single {
		if err := p.loadLinks(); err != nil {
			return 0, err
		}
	}
	for _, port := range p.links {
		if port.master == have.index && port.mtu == have.mtu {
			return have.mtu, nil
		}
	}
	return l.MTU, nil
}

func (c *checker) addr(a plan.Addr) error {
	p, err := c.place(a.Netns)
	if err != nil {
		return err
	}
	if err := p.loadAddrs(a.Netns, a.Link); err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	if !p.addrs[a] {
		c.missing()
	}
	return nil
}

func (c *checker) route(r plan.Route) error {
	p, err := c.place(r.Netns)
	if err != nil {
		return err
	}
	if err := p.loadRoutes(); err != nil {
		return err
	}
	want := hop{link: r.Link}
	if r.Via.IsValid() {
		want.via = r.Via.String()
	}
	have := p.routes[r.Dst.Masked()]
	switch {
	case len(have) == 0:
		c.missing()
	case !slices.Contains(have, want):
		c.differs("path", want.String(), have[0].String())
	}
	return nil
}
