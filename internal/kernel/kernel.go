// Package kernel makes plan objects real: it is the only package that imports
// netlink, netns, nftables, iptables, BPF or os/exec, enters namespaces and
// starts processes. Everything it offers is idempotent, and it refuses to
// touch what does not carry sandnet's mark.
//
// It decides nothing: what is to exist comes as plan objects, when and in
// which order from package reconcile.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/sandnet/sandnet/internal/plan"
)

// Kernel is one host: the network namespace of the calling process, and the
// namespaces pinned in one directory. It keeps sockets open and is for one
// goroutine and one command; Close it.
type Kernel struct {
	mark     uint32
	netnsDir string
	conns    map[string]*rtnl // by namespace path; "" is the host
	index    map[string]int   // "NETNS LINK" to interface index
	fresh    chan freshNetns  // see PrepareNetns
	// conflicts are routes of which flush found another one in their place.
	conflicts []plan.Route
	verified  verified
}

// New returns the host whose objects carry mark, with namespaces in netnsDir.
func New(mark uint32, netnsDir string) *Kernel {
	return &Kernel{mark: mark, netnsDir: netnsDir, conns: map[string]*rtnl{}, index: map[string]int{}}
}

// Close closes its sockets.
func (k *Kernel) Close() {
	for path := range k.conns {
		k.forget(path)
	}
	if c := k.verified.conn; c != nil {
		c.close()
		k.verified.conn = nil
	}
}

func (k *Kernel) forget(path string) {
	if c := k.conns[path]; c != nil {
		c.close()
		delete(k.conns, path)
	}
	clear(k.index)
}

func (k *Kernel) host() (*rtnl, error) { return k.inside("") }

// inside is the rtnetlink socket of the namespace pinned at path.
func (k *Kernel) inside(path string) (*rtnl, error) {
	if c := k.conns[path]; c != nil {
		return c, nil
	}
	var c *rtnl
	dial := func() (err error) {
		c, err = dialRtnl()
		return err
	}
	err := error(nil)
	if path == "" {
		err = dial()
	} else {
		err = inNetns(path, dial)
	}
	if err != nil {
		return nil, err
	}
	k.conns[path] = c
	return c, nil
}

// flush sends what is queued in every namespace.
func (k *Kernel) flush(changed *int) error {
	var errs []error
	for _, c := range k.conns {
		errs = append(errs, c.flush())
	}
	routes := k.conflicts
	k.conflicts = nil
	if err := errors.Join(errs...); err != nil || len(routes) == 0 {
		return err
	}
	return k.settleRoutes(routes, changed)
}

// Ensure makes objs exist with their properties, in order.
func (k *Kernel) Ensure(ctx context.Context, objs []plan.Object) (changed int, err error) {
	for i := 0; i < len(objs); {
		if err := ctx.Err(); err != nil {
			return changed, err
		}
		n := 1
		for i+n < len(objs) && family(objs[i+n]) == family(objs[i]) {
			n++
		}
		// Addresses and routes are queued; whatever is not netlink may need them.
		if family(objs[i]) != familyRtnl {
			if err := k.flush(&changed); err != nil {
				return changed, err
			}
		}
		c, err := k.ensureGroup(ctx, objs[i:i+n], &changed)
		changed += c
		if err != nil {
			return changed, err
		}
		i += n
	}
	err = k.flush(&changed)
	return changed, err
}

// family says which objects go to the kernel together.
func family(o plan.Object) int {
	switch o.(type) {
	case plan.Netns, plan.Link, plan.Addr, plan.Route:
		return familyRtnl
	case plan.Table, plan.Element, plan.TableChain:
		return familyNft
	case plan.HostPort:
		return familyPort
	case plan.Rule:
		return familyRule
	case plan.Sysctl:
		return familySysctl
	case plan.Chains:
		return familyChains
	case plan.Flow:
		return familyFlow
	}
	return familyFile
}

const (
	familyRtnl = iota
	familyNft
	familyPort
	familyRule
	familySysctl
	familyChains
	familyFlow
	familyFile
)

func (k *Kernel) ensureGroup(ctx context.Context, objs []plan.Object, queued *int) (changed int, err error) {
	switch family(objs[0]) {
	case familyNft:
		return k.verified.ensureNft(objs)
	case familyPort:
		return machinePorts().ensure(ctx, only[plan.HostPort](objs))
	case familyRule:
		err = k.withPrograms(ctx, func() (err error) { changed, err = ensureRules(only[plan.Rule](objs)); return err })
		return changed, err
	case familySysctl:
		return ensureSysctls(only[plan.Sysctl](objs))
	case familyChains:
		err = k.withPrograms(ctx, func() (err error) { changed, err = ensureChains(only[plan.Chains](objs)); return err })
		return changed, err
	case familyFlow:
		return 0, forgetFlows(only[plan.Flow](objs), false)
	}
	for _, o := range objs {
		n, err := k.ensureOne(o, queued)
		changed += n
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

func (k *Kernel) ensureOne(o plan.Object, queued *int) (int, error) {
	switch o := o.(type) {
	case plan.Netns:
		return k.ensureNetns(o)
	case plan.Link:
		return k.ensureLink(o)
	case plan.Addr:
		return 0, k.ensureAddr(o, queued)
	case plan.Route:
		return 0, k.ensureRoute(o, queued)
	case plan.BindGuard:
		return 0, nil // comes with the first HostPort
	case plan.File:
		return ensureFile(o)
	case plan.Symlink:
		return ensureSymlink(o)
	case plan.HostsLine:
		return ensureHostsLine(o)
	case plan.HostsFile:
		return k.ensureHostsFile(o)
	case plan.Qdisc:
		return ensureQdisc(o)
	case plan.Redirect:
		return ensureRedirect(o)
	}
	return 0, fmt.Errorf("%s: this kernel package cannot make it", o.Key())
}

func only[T plan.Object](objs []plan.Object) []T {
	out := make([]T, 0, len(objs))
	for _, o := range objs {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

// Delete removes objs, last first. What lives in a namespace or on a link that
// is itself being deleted goes with it.
func (k *Kernel) Delete(ctx context.Context, objs []plan.Object) error {
	dying := map[string]bool{}
	links := map[string]bool{}
	veths := map[string][]plan.Link{}
	ends := map[[2]string]bool{} // the veths' other ends
	for _, o := range objs {
		switch o := o.(type) {
		case plan.Netns:
			dying[o.Path] = true
		case plan.Link:
			veths[o.PeerNetns] = append(veths[o.PeerNetns], o)
			ends[[2]string{o.PeerNetns, o.Peer}] = true
			links[o.Name] = true
		}
	}
	goesWith := func(o plan.Object) bool {
		switch o := o.(type) {
		case plan.Link:
			return dying[o.PeerNetns]
		case plan.Addr:
			return dying[o.Netns] || ends[[2]string{o.Netns, o.Link}]
		case plan.Route:
			return dying[o.Netns] || ends[[2]string{o.Netns, o.Link}]
		case plan.Sysctl:
			return dying[o.Netns]
		case plan.Qdisc:
			return links[o.Link]
		case plan.Redirect:
			return links[o.Link]
		}
		return false
	}
	var errs []error
	var flows []plan.Flow
	for i := len(objs) - 1; i >= 0; {
		n := 1
		for i-n >= 0 && family(objs[i-n]) == family(objs[i]) {
			n++
		}
		group := objs[i-n+1 : i+1]
		i -= n
		switch family(group[0]) {
		case familyNft:
			errs = append(errs, k.verified.deleteNft(group))
		case familyPort:
			errs = append(errs, machinePorts().delete(ctx, only[plan.HostPort](group)))
		case familyRule:
			errs = append(errs, k.withPrograms(ctx, func() error { return deleteRules(only[plan.Rule](group)) }))
		case familyChains:
			errs = append(errs, k.withPrograms(ctx, func() error { return deleteChains(only[plan.Chains](group)) }))
		case familyFlow:
			// Not before what they follow is gone.
			flows = append(flows, only[plan.Flow](group)...)
		default:
			for j := len(group) - 1; j >= 0; j-- {
				if ns, ok := group[j].(plan.Netns); ok {
					errs = append(errs, k.deleteNetns(ctx, ns, veths[ns.Path]))
				} else if !goesWith(group[j]) {
					errs = append(errs, k.deleteOne(ctx, group[j]))
				}
			}
		}
	}
	errs = append(errs, forgetFlows(flows, true))
	return errors.Join(errs...)
}

func (k *Kernel) deleteOne(ctx context.Context, o plan.Object) error {
	switch o := o.(type) {
	case plan.Link:
		host, err := k.host()
		if err != nil {
			return err
		}
		have, err := host.link(o.Name)
		if err != nil {
			return absentIsFine(err)
		}
		if have.group != o.Mark && have.group != doomed(o.Mark) {
			return nil // somebody else's by now
		}
		clear(k.index)
		return reap(host, o.Name, o.Mark)
	case plan.Addr:
		return k.deleteAddr(o)
	case plan.Route:
		return k.deleteRoute(o)
	case plan.Sysctl:
		return deleteSysctl(o)
	case plan.BindGuard:
		return machinePorts().drop(ctx)
	case plan.File:
		return deleteFile(o.Path)
	case plan.Symlink:
		return remove(o.Path)
	case plan.HostsLine:
		return deleteHostsLine(o)
	case plan.HostsFile:
		return deleteHostsFile(o)
	case plan.Qdisc:
		return deleteQdisc(o)
	case plan.Redirect:
		return deleteRedirect(o)
	}
	return fmt.Errorf("%s: this kernel package cannot delete it", o.Key())
}

// Owned lists everything that carries our mark: links and namespaces by their
// link group, the nftables tables and iptables chains by their comments, with
// what is in them. Reserved ports and rules in foreign chains carry no root's
// mark; they are ours if tables or chains are, which they go with. Files have no mark; records alone know them.
func (k *Kernel) Owned(ctx context.Context) iter.Seq2[plan.Object, error] {
	rules := func(context.Context) ([]plan.Object, error) {
		objs, err := ownedNft(k.mark)
		if err != nil {
			return objs, err
		}
		chains, err := objects(ownedChains(k.mark))
		if objs = append(objs, chains...); err != nil || len(objs) == 0 {
			return objs, err
		}
		ports, err := objects(machinePorts().owned())
		if err != nil {
			return objs, err
		}
		accept, err := objects(ownedRules())
		return slices.Concat(objs, ports, accept), err
	}
	return func(yield func(plan.Object, error) bool) {
		for _, source := range []func(context.Context) ([]plan.Object, error){k.ownedNetns, k.ownedLinks, rules} {
			objs, err := source(ctx)
			if err != nil && !yield(nil, err) {
				return
			}
			for _, o := range objs {
				if !yield(o, nil) {
					return
				}
			}
		}
	}
}

func objects[T plan.Object](in []T, err error) ([]plan.Object, error) {
	out := make([]plan.Object, len(in))
	for i, o := range in {
		out[i] = o
	}
	return out, err
}
