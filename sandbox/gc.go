package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// GC removes what no record names and what no living sandbox owns; it returns
// a line for each thing, also with dryRun, which removes nothing.
func (m *Manager) GC(ctx context.Context, dryRun bool) ([]string, error) {
	if err := m.ready(); err != nil {
		return nil, err
	}
	lines, err := m.cleanUp(ctx, dryRun)
	if err != nil {
		return lines, err
	}
	for _, collect := range []func(context.Context, bool) ([]string, error){m.collectContainers, m.leftovers} {
		more, err := collect(ctx, dryRun)
		if lines = append(lines, more...); err != nil {
			return lines, err
		}
	}
	if dryRun {
		return lines, nil
	}
	// These are other hosts' on this machine, and no longer hold anybody up.
	switch n, err := m.host.ForgetDeadPorts(ctx); {
	case err != nil:
		m.log.Warn("cannot look for ports of network namespaces that are gone", "error", err)
	case n > 0:
		m.log.Info("gave up ports of network namespaces that are gone", "ports", n)
	}
	unlock, err := m.lock(ctx, "host")
	if err != nil {
		return lines, err
	}
	defer unlock()
	if err := m.store.Begin("host"); err != nil {
		return lines, err
	}
	return lines, m.dropHostIfUnused(ctx)
}

// leftovers removes what carries sandnet's mark or lies in its directories, and
// belongs to nobody.
func (m *Manager) leftovers(ctx context.Context, dryRun bool) (lines []string, err error) {
	orphans, err := m.orphans(ctx)
	if err != nil {
		return nil, err
	}
	if !dryRun {
		err = m.sweep(ctx, orphans)
	}
	for _, o := range orphans {
		lines = append(lines, o.Key())
	}
	files, e := m.lostFiles()
	for _, f := range files {
		lines = append(lines, "file "+f.path)
		if !dryRun && e == nil {
			e = m.unlessOwned(ctx, f.owner, func() error { return os.RemoveAll(f.path) })
		}
	}
	addresses, e2 := m.lostAddresses(ctx, dryRun)
	networks, e3 := m.lostNetworks(ctx, dryRun)
	return slices.Concat(lines, addresses, networks), errors.Join(err, e, e2, e3)
}

// lostNetworks removes what is there of networks whose definition is lost, once
// no sandbox is on them.
func (m *Manager) lostNetworks(ctx context.Context, dryRun bool) (lines []string, err error) {
	owners, err := m.store.Owners()
	if err != nil {
		return nil, err
	}
	lost := func(name string) bool {
		_, err := m.loadNetwork(name)
		var missing *NotFoundError
		return errors.As(err, &missing) && m.store.Has(networkOwner(name)) && m.unused(spec.Network{Name: name}) == nil
	}
	for _, owner := range owners {
		name, ok := strings.CutPrefix(owner, "network/")
		// In this order: one that is just being made has its definition by then.
		if !ok || m.store.Locked(owner) || !lost(name) {
			continue
		}
		lines = append(lines, owner)
		if dryRun {
			continue
		}
		err := m.withOwner(ctx, owner, func(plan.Plan) error {
			if !lost(name) {
				return nil
			}
			for _, o := range []string{"host", owner} {
				if err := m.store.Begin(o); err != nil {
					return err
				}
			}
			return m.dropNetwork(ctx, name)
		})
		if err != nil {
			return lines, err
		}
	}
	return lines, nil
}

// orphans are what no record names. Links are looked at twice: the kernel takes
// some 30 ms to free those of a sandbox that was removed just now.
func (m *Manager) orphans(ctx context.Context) ([]plan.Object, error) {
	found, err := m.engine.Orphans(ctx)
	if err == nil && slices.ContainsFunc(found, func(o plan.Object) bool { return o.Kind() == plan.KindLink }) {
		time.Sleep(100 * time.Millisecond)
		found, err = m.engine.Orphans(ctx)
	}
	return found, err
}

// sweep deletes orphans. Each was nobody's when it was looked at; one of the
// same name may have an owner by now. A namespace is therefore deleted with the
// lock of the sandbox of its name; links, whose names are never used twice, and
// what networks share with the host's. A port and its elements have no lock of
// their own: they are looked for again in the records afterwards.
func (m *Manager) sweep(ctx context.Context, orphans []plan.Object) error {
	var errs []error
	var rest []plan.Object
	for _, o := range orphans {
		if ns, ok := o.(plan.Netns); ok {
			errs = append(errs, m.unlessOwned(ctx, filepath.Base(ns.Path), func() error {
				return m.host.Delete(ctx, []plan.Object{ns})
			}))
			continue
		}
		rest = append(rest, o)
	}
	if len(rest) == 0 {
		return errors.Join(errs...)
	}
	rest, err := m.deleteUnowned(ctx, rest)
	errs = append(errs, err)
	owned, err := m.ownersOf(rest)
	errs = append(errs, err)
	for _, o := range rest {
		for _, owner := range owned[o.Key()] {
			_, err := m.repair(ctx, owner)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// deleteUnowned deletes, with the host's lock, those of objs that still are
// nobody's, and returns them.
func (m *Manager) deleteUnowned(ctx context.Context, objs []plan.Object) ([]plan.Object, error) {
	unlock, err := m.lock(ctx, "host")
	if err != nil {
		return nil, err
	}
	defer unlock()
	owned, err := m.ownersOf(objs)
	if err != nil {
		return nil, err
	}
	objs = slices.DeleteFunc(objs, func(o plan.Object) bool { return owned[o.Key()] != nil })
	return objs, m.host.Delete(ctx, objs)
}

// ownersOf says whose the objects are, by their keys, at this moment.
func (m *Manager) ownersOf(objs []plan.Object) (map[string][]string, error) {
	keys := map[string]bool{}
	for _, o := range objs {
		keys[o.Key()] = true
	}
	owners, err := m.store.Owners()
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, owner := range owners {
		p, err := m.store.Load(owner)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, o := range p.Objects {
			if keys[o.Key()] {
				out[o.Key()] = append(out[o.Key()], owner)
			}
		}
	}
	return out, nil
}

// unlessOwned calls remove if there is no sandbox of that name, and while none
// can be made.
func (m *Manager) unlessOwned(ctx context.Context, sandbox string, remove func() error) error {
	unlock, err := m.lock(ctx, ownerPrefix+sandbox)
	if err != nil {
		return err
	}
	defer unlock()
	if m.store.Has(ownerPrefix + sandbox) {
		return nil
	}
	return remove()
}

// lostFile is a file in sandnet's directories whose sandbox has no record.
type lostFile struct{ path, owner string }

// lostFiles have no mark, but lie where nobody else's are.
func (m *Manager) lostFiles() (out []lostFile, err error) {
	lost := func(owner string) bool {
		// In this order: a create that ends in between has its record by then.
		return !m.store.Locked(ownerPrefix+owner) && !m.store.Has(ownerPrefix+owner)
	}
	list := func(dir string) []os.DirEntry {
		entries, e := os.ReadDir(dir)
		if e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
		return entries
	}
	for _, e := range list(m.paths.ids()) {
		path := filepath.Join(m.paths.ids(), e.Name())
		if owner, err := os.Readlink(path); err == nil && lost(owner) {
			out = append(out, lostFile{path, owner})
		}
	}
	for _, e := range list(filepath.Dir(m.paths.etc("x"))) {
		if lost(e.Name()) {
			out = append(out, lostFile{m.paths.etc(e.Name()), e.Name()})
		}
	}
	for _, joined := range list(filepath.Dir(m.paths.joined("x"))) {
		for _, e := range list(m.paths.joined(joined.Name())) {
			if lost(e.Name()) {
				out = append(out, lostFile{filepath.Join(m.paths.joined(joined.Name()), e.Name()), e.Name()})
			}
		}
	}
	if m.paths.EtcLinks != "" {
		for _, e := range list(m.paths.EtcLinks) {
			path := m.paths.etcLink(e.Name())
			if to, err := os.Readlink(path); err == nil && to == m.paths.etc(e.Name()) && lost(e.Name()) {
				out = append(out, lostFile{path, e.Name()})
			}
		}
	}
	for _, network := range list(m.paths.hosts()) {
		for _, e := range list(filepath.Join(m.paths.hosts(), network.Name())) {
			if owner, ok := strings.CutSuffix(e.Name(), ".hosts"); ok && lost(owner) {
				out = append(out, lostFile{filepath.Join(m.paths.hosts(), network.Name(), e.Name()), owner})
			}
		}
	}
	return out, err
}

// lostAddresses gives back the addresses of sandboxes that are no more, and
// takes them out of the hosts files.
func (m *Manager) lostAddresses(ctx context.Context, dryRun bool) (lines []string, err error) {
	for _, network := range m.pools() {
		pool := m.pool(network)
		used, err := pool.InUse()
		if err != nil {
			return lines, err
		}
		for _, u := range used {
			// In this order: a create that ends in between has its record by then.
			if m.store.Locked(ownerPrefix+u.Owner) || m.store.Has(ownerPrefix+u.Owner) {
				continue
			}
			lines = append(lines, fmt.Sprintf("address %s of network %s", u.Addr, network))
			if dryRun {
				continue
			}
			err := m.unlessOwned(ctx, u.Owner, func() error {
				line := plan.HostsLine{Dir: filepath.Join(m.paths.hosts(), network), Addr: u.Addr}
				return errors.Join(m.host.Delete(ctx, []plan.Object{line}), pool.Release(u.Owner, u.Addr))
			})
			if err != nil {
				return lines, err
			}
		}
	}
	return lines, nil
}
