package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Run makes a sandbox and runs a command in it. In the foreground it returns
// the command's exit code, and the sandbox is gone: should this process be
// killed, the next command removes it. Detached, it returns once the command
// runs, and the sandbox stays until it is removed.
func (m *Manager) Run(ctx context.Context, s spec.Sandbox, p spec.Process) (v View, code int, err error) {
	m.prepare(s)
	if err := m.begin(ctx); err != nil {
		return v, 0, err
	}
	if err := identify(&s); err != nil {
		return v, 0, err
	}
	if m.store.Has(ownerPrefix + s.Name) {
		return v, 0, duplicate(s.Name)
	}
	if p.Detach {
		p.Stdin, p.Stdout, p.Stderr = nil, nil, nil
	}
	// Until the command has ended or, detached, is on record as running.
	release, err := m.store.Attach(ctx, ownerPrefix+s.Name+"/"+s.ID)
	if err != nil {
		return v, 0, err
	}
	defer release()
	if v, err = m.create(ctx, s); err != nil {
		return v, 0, err
	}
	p.Netns, p.EtcDir, p.Hostname = v.Netns, m.paths.etc(s.Name), m.hostname(s)
	// In a namespace of its own it is found, and ended, by that; elsewhere only
	// the record knows it.
	p.Hold = p.Detach && (s.Mode == spec.ModeHost || s.Mode == spec.ModeContainer)
	p.Started = func(pid int) error { return m.started(ctx, s, pid) }
	code, err = m.host.Run(p)
	if notThere(err) && !m.is(s) {
		err = removedEarly(s.Name)
	}
	if err != nil || !p.Detach {
		err = errors.Join(err, m.discard(context.WithoutCancel(ctx), s.Name, s.ID))
	}
	return v, code, err
}

// started puts the PID of the command into the record.
func (m *Manager) started(ctx context.Context, s spec.Sandbox, pid int) error {
	unlock, err := m.lock(ctx, ownerPrefix+s.Name)
	if err != nil {
		return err
	}
	defer unlock()
	md, p, err := m.load(s.Name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && md.Spec.ID != s.ID {
		return removedEarly(s.Name)
	}
	if err != nil {
		return err
	}
	md.PID, md.Start = pid, m.host.ProcessStart(pid)
	if p.Meta, err = plan.AppendJSON(nil, md); err != nil {
		return err
	}
	return m.store.Save(p)
}

// is reports whether the sandbox of that name still is s.
func (m *Manager) is(s spec.Sandbox) bool {
	md, _, err := m.load(s.Name)
	return err == nil && md.Spec.ID == s.ID
}

func removedEarly(name string) error {
	return fmt.Errorf("sandbox %s was removed before its command ran", name)
}

// notThere reports whether a command was not started for want of a pinned
// namespace.
func notThere(err error) bool {
	if errors.As(err, new(*spec.CommandError)) {
		return false
	}
	// Before it is mounted, and after it is unmounted, the pin is a plain file.
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL)
}

// hostname is what the command sees: with ModeContainer that of the sandbox it
// joins.
func (m *Manager) hostname(s spec.Sandbox) string {
	switch s.Mode {
	case spec.ModeHost:
		return s.Hostname // else the host's
	case spec.ModeContainer:
		name, err := m.resolve(s.Join)
		if err != nil {
			return ""
		}
		md, _, err := m.load(name)
		if err != nil {
			return ""
		}
		return m.hostname(md.Spec)
	}
	return s.HostnameOrID()
}

// Exec runs a command in a sandbox and returns its exit code.
func (m *Manager) Exec(ctx context.Context, ref string, p spec.Process) (code int, err error) {
	if err := m.begin(ctx); err != nil {
		return 0, err
	}
	name, err := m.resolve(ref)
	if err != nil {
		return 0, err
	}
	code, err = m.exec(ctx, name, p)
	if !notThere(err) {
		return code, err
	}
	// The sandbox is on record and yet not there: it is being made or removed.
	unlock, err := m.lock(ctx, ownerPrefix+name)
	if err != nil {
		return 0, err
	}
	unlock()
	if !m.store.Has(ownerPrefix + name) {
		return 0, &NotFoundError{"sandbox", ref}
	}
	return m.exec(ctx, name, p)
}

func (m *Manager) exec(ctx context.Context, name string, p spec.Process) (code int, err error) {
	md, _, err := m.load(name)
	if err != nil {
		return 0, err
	}
	if err := m.mendOne(ctx, name); err != nil {
		return 0, err
	}
	p.Netns, p.EtcDir, p.Hostname = md.Netns, m.paths.etc(name), m.hostname(md.Spec)
	return m.host.Run(p)
}
