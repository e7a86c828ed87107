package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/sandnet/sandnet/internal/spec"
)

// lockNew locks a new sandbox, and with ModeContainer the one that it joins:
// that must not go meanwhile. Two that are being made may name each other,
// hence the order.
func (m *Manager) lockNew(ctx context.Context, s spec.Sandbox) (unlock func(), joined string, err error) {
	names := []string{s.Name}
	if s.Mode == spec.ModeContainer {
		if joined, _, err = m.joinedBy(s); err != nil {
			return nil, "", err
		}
		if joined != "" && joined != s.Name {
			names = append(names, joined)
		}
	}
	slices.Sort(names)
	var held []func()
	unlock = func() {
		for _, f := range held {
			f()
		}
	}
	for _, name := range names {
		f, err := m.lock(ctx, ownerPrefix+name)
		if err != nil {
			unlock()
			return nil, "", err
		}
		held = append(held, f)
	}
	return unlock, joined, nil
}

// join finds the namespace of ModeContainer.
func (b *build) join() error {
	m := b.m
	name, md, err := m.joinedBy(b.s)
	if err != nil {
		return err
	}
	if name == "" {
		b.facts.JoinPath = processNetns(b.s.Join)
		return nil
	}
	if md.Netns == "" {
		return gone(b.s.Join, "sandbox "+name+" has no namespace of its own; use --net host")
	}
	if !b.dry && name != b.joined {
		return fmt.Errorf("sandbox %s was made anew meanwhile; try again", name)
	}
	b.facts.JoinPath, b.facts.JoinEtcDir = md.Netns, m.paths.etc(name)
	b.facts.JoinedPath = filepath.Join(m.paths.joined(name), b.s.Name)
	return nil
}

func processNetns(pid string) string { return "/proc/" + pid + "/ns/net" }

// joinedBy is the sandbox whose namespace s joins; no name if it is a process's.
func (m *Manager) joinedBy(s spec.Sandbox) (name string, md meta, err error) {
	// A number is a process, unless a sandbox has it for a name.
	if pid, err := strconv.Atoi(s.Join); err == nil && pid > 0 && !m.store.Has(ownerPrefix+s.Join) {
		if _, err := os.Stat(processNetns(s.Join)); err == nil {
			return "", md, nil
		}
	}
	name, err = m.resolve(s.Join)
	if errors.As(err, new(*NotFoundError)) {
		return "", md, gone(s.Join, "there is no such sandbox or process")
	}
	if err != nil {
		return "", md, err
	}
	md, _, err = m.load(name)
	// Who has joined another is in that one's namespace, which goes with it.
	for err == nil && md.Spec.Mode == spec.ModeContainer {
		_, number := strconv.Atoi(md.Spec.Join)
		next, missing := m.resolve(md.Spec.Join)
		if missing != nil || number == nil && next != md.Spec.Join {
			break // it was a process
		}
		name = next
		md, _, err = m.load(name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = gone(s.Join, "there is no such sandbox or process")
	}
	return name, md, err
}

func gone(ref, why string) error {
	return &spec.InputError{What: "network mode", Value: "container:" + ref, Why: why}
}
