package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strconv"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// A sandbox that lives is changed by changing what its record says of it: the
// mode plans anew from that, and the engine turns the old plan into the new
// one. A change that is killed is finished by the next command, to what the
// record says by then; see docs/decisions/007-changes-are-finished.md.

// change has edit change the sandbox that ref names; an edit that changes
// nothing is none. What edit is given is locked, and on bridge networks.
func (m *Manager) change(ctx context.Context, ref string, edit func(b *build) error) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	return m.withFirewall(ctx, func() error { return m.changeOnce(ctx, ref, edit) })
}

func (m *Manager) changeOnce(ctx context.Context, ref string, edit func(b *build) error) error {
	name, err := m.resolve(ref)
	if err != nil {
		return err
	}
	unlock, err := m.lock(ctx, ownerPrefix+name)
	if err != nil {
		return err
	}
	defer unlock()
	md, old, err := m.load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return &NotFoundError{"sandbox", ref}
	}
	if err != nil {
		return err
	}
	if err := changeable(md.Spec); err != nil {
		return err
	}
	if err := m.otherFirewall(); err != nil {
		return err
	}
	b, err := m.rebuild(md, old)
	if err != nil {
		return err
	}
	defer b.release()
	err = edit(b)
	if err == nil && !reflect.DeepEqual(b.meta, md) {
		err = b.become(ctx, old)
	}
	networks := slices.Concat(networks(md.Spec), networks(b.s))
	if err != nil {
		return errors.Join(err, m.releaseUnused(md, networks))
	}
	return m.releaseUnused(b.meta, networks)
}

func networks(s spec.Sandbox) []string {
	var out []string
	for _, a := range s.Attach {
		out = append(out, a.Network)
	}
	return out
}

// changeable refuses a sandbox that has no interfaces of its own to change.
func changeable(s spec.Sandbox) error {
	why := ""
	switch s.Mode {
	case spec.ModeHost:
		why = "with network mode host it has what the host has"
	case spec.ModeContainer:
		why = "with network mode container it has what the other one has"
	case spec.ModeNone:
		why = "with network mode none it has no network, for good"
	default:
		return nil
	}
	return &spec.InputError{What: "sandbox", Value: s.Name, Why: why, Hint: "only a sandbox that was made with --net NETWORK can be changed"}
}

// rebuild is the build that a sandbox's record came from.
func (m *Manager) rebuild(md meta, recorded plan.Plan) (*build, error) {
	b := &build{m: m, s: md.Spec, meta: md, facts: m.facts(md.Spec)}
	b.meta.Endpoints = slices.Clone(md.Endpoints)
	b.facts.Endpoints, b.facts.Rewired = b.meta.Endpoints, md.Rewired
	for _, o := range recorded.Objects {
		// Made of itself the file is the same again, whatever the host has now.
		if f, ok := o.(plan.File); ok && f.Path == b.facts.EtcDir+"/resolv.conf" {
			b.facts.HostResolv = f.Content
		}
	}
	for _, a := range md.Spec.Attach {
		n, err := m.loadNetwork(a.Network)
		if err != nil {
			return nil, err
		}
		b.facts.Networks = append(b.facts.Networks, n)
	}
	return b, nil
}

// begin says that from now on something may have to be taken back or finished.
func (b *build) begin() error { return b.m.store.BeginChange(ownerPrefix + b.s.Name) }

// become makes the sandbox what b.meta says, or, if that fails, what it was.
func (b *build) become(ctx context.Context, old plan.Plan) error {
	if err := b.begin(); err != nil {
		return err
	}
	b.s, b.facts.Endpoints, b.facts.Rewired = b.meta.Spec, b.meta.Endpoints, b.meta.Rewired
	want, err := b.plan()
	if err != nil {
		return err
	}
	if _, err = b.m.engine.Change(ctx, want); err != nil {
		_, undo := b.m.engine.Apply(context.WithoutCancel(ctx), old)
		return errors.Join(err, undo)
	}
	return nil
}

// finish ends a change that was killed: the sandbox, which the caller has
// locked, becomes what its record says. Where that cannot be done it stays as
// it is. It lives, and its record has everything that may exist: `rm` works.
func (m *Manager) finish(ctx context.Context, name string) error {
	md, old, err := m.load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	b, err := m.rebuild(md, old)
	if err == nil {
		var want plan.Plan
		if want, err = b.plan(); err == nil {
			if m.otherFirewall() != nil { // those it has; who changes the firewall makes all anew
				rules := slices.DeleteFunc(old.Objects, func(o plan.Object) bool { return !isRule(o) })
				want.Objects = append(slices.DeleteFunc(want.Objects, isRule), rules...)
			}
			_, err = m.engine.Apply(ctx, want)
		}
	}
	if err != nil {
		m.log.Warn("a change that was killed cannot be finished; the sandbox is not quite what its record says", "name", name, "error", err)
	}
	return m.releaseUnused(md, m.pools())
}

// releaseUnused gives back the addresses of a sandbox on those of the networks
// that it is not on: no longer, or, since a connection failed, not at all.
func (m *Manager) releaseUnused(md meta, networks []string) error {
	var errs []error
	for _, network := range networks {
		if !slices.ContainsFunc(md.Endpoints, func(ep spec.Endpoint) bool { return ep.Network == network }) {
			errs = append(errs, m.pool(network).ReleaseOwner(md.Spec.Name))
		}
	}
	return errors.Join(errs...)
}

// Connect connects a sandbox to one more network.
func (m *Manager) Connect(ctx context.Context, ref string, a spec.Attachment) error {
	return m.change(ctx, ref, func(b *build) error {
		if attachment(b.s, a.Network) >= 0 {
			return fmt.Errorf("sandbox %s is connected to network %s already", b.s.Name, a.Network)
		}
		b.s.Attach = append(slices.Clone(b.s.Attach), a)
		ports := b.takePorts()
		request := b.s
		request.Ports = requested(ports)
		if err := request.Validate(); err != nil {
			return err
		}
		n, _, err := m.findNetwork(a.Network)
		if err != nil {
			return err
		}
		if err := b.begin(); err != nil {
			return err
		}
		b.facts.Networks = append(b.facts.Networks, n)
		ep, err := b.endpoint(ctx, len(b.s.Attach)-1, a)
		if err != nil {
			return err
		}
		i := freeInterface(b.meta.Endpoints)
		ep.Interface, ep.HostInterface = "eth"+strconv.Itoa(i), hostInterface(b.s.ID, i)
		b.meta.Spec.Attach = b.s.Attach
		b.meta.Endpoints = append(b.meta.Endpoints, ep)
		b.meta.Rewired = true
		if err := b.movePorts(ports); err != nil {
			return err
		}
		return m.realize(ctx, n)
	})
}

// Disconnect takes a sandbox off a network. With force it is no error if it is
// not on it.
func (m *Manager) Disconnect(ctx context.Context, ref, network string, force bool) error {
	if err := spec.CheckName("network name", network); err != nil {
		return err
	}
	return m.change(ctx, ref, func(b *build) error {
		i := attachment(b.s, network)
		switch {
		case i < 0 && force:
			return nil
		case i < 0:
			if _, _, err := m.findNetwork(network); err != nil {
				return err
			}
			return fmt.Errorf("sandbox %s is not connected to network %s", b.s.Name, network)
		}
		ports := b.takePorts()
		b.s.Attach = slices.Delete(slices.Clone(b.s.Attach), i, i+1)
		b.facts.Networks = slices.Delete(b.facts.Networks, i, i+1)
		b.meta.Spec.Attach = b.s.Attach
		b.meta.Endpoints = slices.Delete(b.meta.Endpoints, i, i+1)
		b.meta.Rewired = true
		return b.movePorts(ports)
	})
}

func attachment(s spec.Sandbox, network string) int {
	return slices.IndexFunc(s.Attach, func(a spec.Attachment) bool { return a.Network == network })
}

// freeInterface is the lowest N of which there is no ethN.
func freeInterface(endpoints []spec.Endpoint) int {
	for i := 0; ; i++ {
		name := "eth" + strconv.Itoa(i)
		if !slices.ContainsFunc(endpoints, func(ep spec.Endpoint) bool { return ep.Interface == name }) {
			return i
		}
	}
}
