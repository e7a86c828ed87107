package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// Mend puts right what Check has found wrong, in the order of objs, which are
// everything of one owner. Ensure takes some properties as it finds them, since
// it is made to be fast; this does not. It says what was more than putting
// back, a line each, and goes on past failures.
func (k *Kernel) Mend(ctx context.Context, objs []plan.Object, wrong []plan.Drift) (notes []string, err error) {
	broken := map[string][]plan.Drift{}
	for _, d := range wrong {
		broken[d.Object.Key()] = append(broken[d.Object.Key()], d)
	}
	clear(k.index)
	var errs []error
	for _, o := range objs {
		d := broken[o.Key()]
		if len(d) == 0 {
			continue
		}
		note, err := k.mend(ctx, objs, o, d)
		if note != "" {
			notes = append(notes, note)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("mend %s: %w", o.Key(), err))
		}
		clear(k.index)
	}
	return notes, errors.Join(errs...)
}

func (k *Kernel) mend(ctx context.Context, objs []plan.Object, o plan.Object, wrong []plan.Drift) (note string, err error) {
	missing := wrong[0].Missing()
	switch o := o.(type) {
	case plan.Netns:
		return k.mendNetns(ctx, objs, o, missing)
	case plan.Link:
		return "", k.mendLink(ctx, o)
	case plan.Route:
		return "", k.replaceRoute(o)
	case plan.Table:
		if !missing {
			return "", mendTable(o)
		}
	case plan.Symlink:
		if !missing {
			return "", relink(o)
		}
	case plan.BindGuard:
		return "", mendBindGuard(ctx)
	}
	_, err = k.Ensure(ctx, []plan.Object{o})
	return "", err
}

// mendNetns pins the namespace again if anything holds it: another pin, or a
// process. Otherwise the kernel has freed it, and a new one takes its place.
func (k *Kernel) mendNetns(ctx context.Context, objs []plan.Object, n plan.Netns, missing bool) (note string, err error) {
	k.forget(n.Path)
	switch {
	case !missing && n.Join == "":
		if !k.ours(n) {
			return "", fmt.Errorf("namespace %s is not sandnet's: %w", n.Path, unix.EEXIST)
		}
		return "", k.raiseLoopback(n)
	case !missing: // the one it has joined was made anew
		if err := unpin(n.Path); err != nil {
			return "", err
		}
		return "joined the namespace of " + n.Join + " again", pin(n.Join, n.Path)
	case n.Join != "" && (joinsProcess(n) || !pinned(n.Join)):
		return "", fmt.Errorf("nobody knows which namespace it was: remove the sandbox and make it again")
	case n.Join != "":
		_, err := k.Ensure(ctx, []plan.Object{n})
		return "", err
	}
	holder, err := k.holderOf(objs, n)
	if err != nil {
		return "", err
	}
	if holder != "" {
		if err := os.MkdirAll(filepath.Dir(n.Path), 0o755); err != nil {
			return "", err
		}
		if err := pin(holder, n.Path); err != nil {
			return "", err
		}
		return "namespace pinned again, from " + holder, k.raiseLoopback(n)
	}
	_, err = k.Ensure(ctx, []plan.Object{n})
	return "the namespace is gone, with all that was in it: made anew", err
}

func (k *Kernel) raiseLoopback(n plan.Netns) error {
	c, err := k.inside(n.Path)
	if err != nil {
		return err
	}
	c.add("link lo up", setLink("lo", unix.IFF_UP), nil)
	return c.flush()
}

// holderOf finds a path to a namespace whose pin is gone. It is known by the
// link whose other end is on the host; one without links by being the only one
// of ours that nobody has pinned.
func (k *Kernel) holderOf(objs []plan.Object, n plan.Netns) (path string, err error) {
	ends := map[string]int{} // the interfaces inside, with their host ends
	host, err := k.host()
	if err != nil {
		return "", err
	}
	linked := false
	for _, l := range only[plan.Link](objs) {
		if l.PeerNetns != n.Path {
			continue
		}
		linked = true
		if have, err := host.link(l.Name); err == nil && have.group == l.Mark {
			ends[l.Peer] = have.index
		}
	}
	if linked && len(ends) == 0 {
		return "", nil // the kernel has freed it, and the links with it
	}
	var candidates []string
	seen := map[[2]uint64]bool{inode("/proc/self/ns/net"): true, inode("/proc/thread-self/ns/net"): true}
	try := func(path string, pin bool) {
		id := inode(path)
		if seen[id] || id == [2]uint64{} {
			return
		}
		seen[id] = true
		if k.holds(path, n, ends) && (linked || !pin) {
			candidates = append(candidates, path)
		}
	}
	pins, err := os.ReadDir(filepath.Dir(n.Path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, p := range pins { // of sandboxes that have joined it
		if path := filepath.Join(filepath.Dir(n.Path), p.Name()); pinned(path) {
			try(path, true)
		}
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return "", err
	}
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err == nil {
			try("/proc/"+p.Name()+"/ns/net", false)
		}
	}
	if len(candidates) != 1 {
		return "", nil
	}
	return candidates[0], nil
}

// holds reports whether a namespace carries our mark and, if there are any,
// has the inner ends of the links.
func (k *Kernel) holds(path string, n plan.Netns, ends map[string]int) bool {
	var c *rtnl
	err := inNetns(path, func() (err error) {
		c, err = dialRtnl()
		return err
	})
	if err != nil {
		return false
	}
	defer c.close()
	if lo, err := c.link("lo"); err != nil || lo.group != n.Mark {
		return false
	}
	for name, index := range ends {
		if l, err := c.link(name); err != nil || l.peer != index {
			return false
		}
	}
	if len(ends) > 0 {
		return true
	}
	veths := 0
	err = c.dump(unix.RTM_GETLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), func() { veths = 0 }, func(b []byte) error {
		if l, err := parseLink(b); err != nil || l.kind == string(plan.Veth) {
			veths++
		}
		return nil
	})
	return err == nil && veths == 0
}

// mendLink sets every property of the link, and of its other end.
func (k *Kernel) mendLink(ctx context.Context, l plan.Link) error {
	k.forget(l.PeerNetns)
	if _, err := k.Ensure(ctx, []plan.Object{l}); err != nil {
		return err
	}
	host, err := k.host()
	if err != nil {
		return err
	}
	raise(host, l.Name)
	if l.Master != "" {
		setPort(host, l)
	}
	if err := host.flush(); err != nil {
		return err
	}
	if l.Type != plan.Veth {
		return nil
	}
	inside, err := k.inside(l.PeerNetns)
	if err != nil {
		return err
	}
	req := setLink(l.Peer, unix.IFF_UP)
	if err := linkAttrs(req.AddData, l.Peer, l.MTU, l.PeerMAC); err != nil {
		return err
	}
	inside.add("link "+l.Peer, req, nil)
	raise(inside, l.Peer)
	return inside.flush()
}

// replaceRoute makes a route, in the place of one that leads elsewhere.
func (k *Kernel) replaceRoute(r plan.Route) error {
	c, index, err := k.linkIn(r.Netns, r.Link)
	if err != nil {
		return err
	}
	c.add("route "+r.Dst.String(), routeMsg(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, r, index), nil)
	return c.flush()
}

// mendTable makes a table of ours anew but for the elements, and switches it
// on.
func mendTable(t plan.Table) error {
	c, err := dialNfnl()
	if err != nil {
		return err
	}
	defer c.close()
	family, err := nftFamily(t.Family)
	if err != nil {
		return err
	}
	if ours, err := c.isOurs(family, t); err != nil || !ours {
		return errors.Join(err, fmt.Errorf("it was not made by sandnet, or by one with another --root"))
	}
	crash.Point("nft table")
	if err := replaceTable(family, t); err != nil {
		return explainNft(err)
	}
	out := c.message(c.begin(), unix.NFT_MSG_NEWTABLE, 0, family, func(b []byte) []byte {
		b = attrString(b, unix.NFTA_TABLE_NAME, t.Name)
		return attr(b, unix.NFTA_TABLE_FLAGS, []byte{0, 0, 0, 0})
	})
	crash.Point("nft commit")
	_, err = c.commit(out)
	return err
}

// relink replaces a link that leads elsewhere. Where something else has taken
// its place, it is somebody else's.
func relink(s plan.Symlink) error {
	if _, err := os.Readlink(s.Path); err != nil {
		return fmt.Errorf("%s is not sandnet's: %w", s.Path, unix.EEXIST)
	}
	if err := remove(s.Path); err != nil {
		return err
	}
	_, err := ensureSymlink(s)
	return err
}
