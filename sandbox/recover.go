package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// cleanUp finishes what killed commands left unfinished, and returns a line for
// each; with dryRun it only does the latter. What cannot be finished is logged
// and left to the next command: it is no reason for this one to fail.
func (m *Manager) cleanUp(ctx context.Context, dryRun bool) ([]string, error) {
	// In this order: a run that was killed while its sandbox was being made is
	// in both, and removing it takes the lock.
	lines, err := m.cleanInterrupted(ctx, dryRun)
	if err != nil {
		return lines, err
	}
	more, err := m.cleanAbandoned(ctx, dryRun)
	return append(lines, more...), err
}

func (m *Manager) cleanInterrupted(ctx context.Context, dryRun bool) (lines []string, err error) {
	owners, unlock, err := m.interrupted(ctx, dryRun)
	defer unlock()
	for owner := range owners {
		m.held[owner] = true
	}
	// Sandboxes before the networks that they are on, the host last.
	for _, owner := range slices.Backward(slices.Sorted(maps.Keys(owners))) {
		release := owners[owner]
		what := "making or removal"
		if m.store.Changing(owner) {
			what = "change"
		}
		lines = append(lines, owner+", whose "+what+" was killed")
		err := error(nil)
		if !dryRun {
			if err = m.recover(ctx, owner); err != nil {
				m.log.Warn("cannot clean up after a command that was killed", "owner", owner, "error", err)
			}
		}
		// The host's lock guards the networks' recovery, too.
		defer func() {
			delete(m.held, owner)
			release(err == nil && !dryRun)
		}()
	}
	return lines, err
}

// interrupted locks the owners whose operation was killed. A network's recovery
// is the host's, too: then the host is among them or, until unlock, locked by
// this process. Its lock comes first, and who has it may be recovering another
// part of the same operation.
func (m *Manager) interrupted(ctx context.Context, dryRun bool) (owners map[string]func(bool), unlock func(), err error) {
	unlock = func() {}
	for {
		owners, err = m.store.Interrupted()
		if owners["host"] != nil || m.held["host"] || dryRun || !hasNetwork(owners) {
			return owners, unlock, err
		}
		for _, release := range owners {
			release(false)
		}
		release, err := m.store.Lock(ctx, "host")
		switch {
		case errors.Is(err, fs.ErrExist): // its holder was killed, too
		case err != nil:
			return nil, unlock, err
		default:
			m.held["host"] = true
			unlock = func() {
				delete(m.held, "host")
				release()
			}
		}
	}
}

func hasNetwork(owners map[string]func(bool)) bool {
	for owner := range owners {
		if strings.HasPrefix(owner, "network/") {
			return true
		}
	}
	return false
}

func (m *Manager) cleanAbandoned(ctx context.Context, dryRun bool) (lines []string, err error) {
	owners, err := m.store.Abandoned()
	for owner, release := range owners {
		name, id, _ := strings.Cut(strings.TrimPrefix(owner, ownerPrefix), "/")
		lines = append(lines, ownerPrefix+name+", whose run was killed")
		err := error(nil)
		if !dryRun {
			if err = m.discard(ctx, name, id); err != nil {
				m.log.Warn("cannot remove a sandbox whose run was killed", "name", name, "error", err)
			}
		}
		release(err == nil && !dryRun)
	}
	return lines, err
}

// recover finishes what a killed command left of owner, which is locked, as is
// the host if it is a network, and had been begun. A sandbox is removed: its
// making was not finished, or its removal was not; unless it was being changed:
// then it becomes what its record says. A network is what its
// definition says: the file is written last and removed first. One that was
// being mended is mended.
func (m *Manager) recover(ctx context.Context, owner string) error {
	if name, ok := strings.CutPrefix(owner, ownerPrefix); ok {
		if m.store.Changing(owner) {
			return m.finish(ctx, name)
		}
		return m.endSandbox(ctx, name)
	}
	if name, ok := strings.CutPrefix(owner, "network/"); ok {
		_, err := m.loadNetwork(name)
		if err == nil {
			return m.mendNetwork(ctx, name) // what is not on record is made on demand
		}
		var missing *NotFoundError
		if !errors.As(err, &missing) {
			return err
		}
		if err := m.store.RemoveDurable(m.paths.network(name)); err != nil {
			return err
		}
		if err := m.engine.Remove(ctx, owner); err != nil {
			return err
		}
		m.dropPool(name)
		return m.dropHostIfUnused(ctx)
	}
	if err := m.dropHostIfUnused(ctx); err != nil || !m.store.Has(owner) {
		return err
	}
	return m.mendHost(ctx)
}

// dropSandbox removes everything of a sandbox. The caller has its lock.
func (m *Manager) dropSandbox(ctx context.Context, name string) error {
	md, p, err := m.load(name)
	recorded := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := m.dropJoinedLinks(ctx, name, p); err != nil {
		return err
	}
	if err := m.engine.Remove(ctx, ownerPrefix+name); err != nil {
		return err
	}
	var errs []error
	if recorded {
		for _, ep := range md.Endpoints {
			addrs := make([]netip.Addr, len(ep.Addresses))
			for i, a := range ep.Addresses {
				addrs[i] = a.Addr()
			}
			errs = append(errs, m.pool(ep.Network).Release(name, addrs...))
		}
		return errors.Join(errs...)
	}
	for _, n := range m.pools() { // killed before the record: any network may be meant
		errs = append(errs, m.pool(n).ReleaseOwner(name))
	}
	return errors.Join(errs...)
}

// dropJoinedLinks removes the links of a sandbox that others have joined: their
// pins keep its namespace alive, and so the addresses in it.
func (m *Manager) dropJoinedLinks(ctx context.Context, name string, p plan.Plan) error {
	joined, err := os.ReadDir(m.paths.joined(name))
	if errors.Is(err, fs.ErrNotExist) || len(joined) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	links := slices.DeleteFunc(slices.Clone(p.Objects), func(o plan.Object) bool { return o.Kind() != plan.KindLink })
	return m.host.Delete(ctx, links)
}

// discard ends a sandbox with all its processes, unless the name has gone to
// another one.
func (m *Manager) discard(ctx context.Context, name, id string) error {
	unlock, err := m.lock(ctx, ownerPrefix+name)
	if err != nil {
		return err
	}
	defer unlock()
	if md, _, err := m.load(name); err != nil || md.Spec.ID != id {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	if err := m.store.Begin(ownerPrefix + name); err != nil {
		return err
	}
	return m.endSandbox(ctx, name)
}

// endSandbox kills everything in a sandbox and removes it: in this order, since
// the record and the pin are what its processes are found by. The caller has
// its lock.
func (m *Manager) endSandbox(ctx context.Context, name string) error {
	if md, _, err := m.load(name); err == nil {
		if err := m.killAll(md); err != nil {
			return err
		}
	}
	return m.dropSandbox(ctx, name)
}

// killAll ends the sandbox's command and everything else in a namespace that
// is the sandbox's alone.
func (m *Manager) killAll(md meta) error {
	if md.Spec.Source != "" {
		return nil // its runtime's business
	}
	if m.running(md) {
		if p, err := os.FindProcess(md.PID); err == nil {
			_ = p.Kill()
		}
	}
	if md.Spec.Mode == spec.ModeBridge || md.Spec.Mode == spec.ModeNone {
		return m.host.KillHolders(md.Netns)
	}
	return nil
}
