package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sandnet/sandnet/internal/spec"
)

// A container's sandbox is one whose namespace a runtime has made and whose
// processes are the runtime's: sandnet networks it, and never kills anything in it.

// AddContainer gives a container its network. Asked again for the same one, as
// runtimes do after a failure, it returns what there is; what a container of
// that ID that is gone has left is removed first.
func (m *Manager) AddContainer(ctx context.Context, s spec.Sandbox) (View, error) {
	if err := m.begin(ctx); err != nil {
		return View{}, err
	}
	name, err := m.byID(s.ID)
	if err != nil {
		return View{}, err
	}
	if name != "" {
		md, _, err := m.load(name)
		if err == nil && m.alive(md) && md.Spec.Adopt == s.Adopt && md.Spec.PID == s.PID {
			return m.view(md), nil
		}
		if err := m.discard(ctx, name, s.ID); err != nil {
			return View{}, err
		}
	}
	return m.create(ctx, s)
}

// ShowFiles shows a container that is being made the hosts and resolv.conf of
// its sandbox. root is the container's root directory.
func (m *Manager) ShowFiles(v View, pid int, root string) error {
	return m.host.ShowFiles(pid, root, m.paths.etc(v.Name))
}

// RemoveContainer takes the network of the container with that ID away; with
// nothing to take away it succeeds.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	name, err := m.byID(id)
	if err != nil || name == "" {
		return err
	}
	return m.discard(ctx, name, id)
}

// GetContainer returns the sandbox of a container; *NotFoundError if it has none.
func (m *Manager) GetContainer(ctx context.Context, id string) (View, error) {
	if err := m.begin(ctx); err != nil {
		return View{}, err
	}
	name, err := m.byID(id)
	if err != nil {
		return View{}, err
	}
	md, _, err := m.load(name)
	if name == "" || errors.Is(err, fs.ErrNotExist) {
		return View{}, &NotFoundError{"sandbox", id}
	}
	return m.view(md), err
}

// CheckContainer returns what is wrong with a container's network in the kernel.
func (m *Manager) CheckContainer(ctx context.Context, id string) error {
	name, err := m.byID(id)
	if err != nil {
		return err
	}
	md, _, err := m.load(name)
	if err != nil {
		return err
	}
	if !m.alive(md) {
		return fmt.Errorf("the container of sandbox %s is gone", name)
	}
	for _, ep := range md.Endpoints {
		if _, ours, err := m.host.HasLink(ep.HostInterface); err != nil || !ours {
			return errors.Join(err, fmt.Errorf("link %s is gone", ep.HostInterface))
		}
	}
	return nil
}

// byID is the name of the sandbox with exactly that ID; empty if there is none.
func (m *Manager) byID(id string) (string, error) {
	name, err := os.Readlink(filepath.Join(m.paths.ids(), id))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return name, err
}

// ContainerID is the sandbox's ID for a runtime's container: the runtime's own
// where it is one of 64 hex digits, as podman's are, else derived from what
// tells the container, or its attachment to a network, from others.
func ContainerID(source spec.Source, parts ...string) string {
	if source == spec.SourceOCI && len(parts) == 1 && isID(parts[0]) {
		return parts[0]
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %q", source, parts)
	return hex.EncodeToString(h.Sum(nil))
}

func isID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32
}

// alive reports whether a container's namespace still is the one that was networked.
func (m *Manager) alive(md meta) bool {
	switch md.Spec.Source {
	case spec.SourceOCI:
		return m.running(md)
	case spec.SourceCNI:
		exists, _ := m.host.IsNetns(md.Spec.Adopt)
		return exists
	}
	return true
}

// adopt checks the namespace that a runtime has made.
func (b *build) adopt() error {
	s := b.s
	if s.Source == "" || s.Source == spec.SourceRun {
		return nil
	}
	b.meta.PID, b.meta.Start = s.PID, 0
	if s.PID != 0 {
		if b.meta.Start = b.m.host.ProcessStart(s.PID); b.meta.Start == 0 {
			return &spec.InputError{What: "process ID", Value: fmt.Sprint(s.PID), Why: "there is no such process"}
		}
	}
	exists, own := b.m.host.IsNetns(s.Adopt)
	switch {
	case !exists:
		return &spec.InputError{What: "network namespace", Value: s.Adopt, Why: "there is none"}
	case own && s.Mode != spec.ModeHost:
		return &spec.InputError{What: "network namespace", Value: s.Adopt, Why: "it is the host's own",
			Hint: "give the container a network namespace of its own, or ask for network mode host"}
	case !own && s.Mode == spec.ModeHost:
		return &spec.InputError{What: "network mode", Value: string(s.Mode), Why: "the container has a network namespace of its own",
			Hint: "prepare the bundle with 'sandnet oci patch --net host'"}
	}
	return nil
}

// joins checks that the container really is in the namespace it is to share.
func (b *build) joins() error {
	if b.s.Adopt == "" || b.m.host.SameNetns(b.s.Adopt, b.facts.JoinPath) {
		return nil
	}
	return &spec.InputError{What: "network mode", Value: "container:" + b.s.Join, Why: "the container is in another network namespace",
		Hint: "prepare the bundle with 'sandnet oci patch --net container:" + b.s.Join + "'"}
}

// collectContainers removes the sandboxes of containers that are gone without
// having said so; it returns a line for each, also with dryRun, which removes nothing.
func (m *Manager) collectContainers(ctx context.Context, dryRun bool) (lines []string, err error) {
	all, err := m.all()
	if err != nil {
		return nil, err
	}
	for _, md := range all {
		if m.alive(md) {
			continue
		}
		lines = append(lines, ownerPrefix+md.Spec.Name+", whose container is gone")
		if dryRun {
			continue
		}
		if err := m.discard(ctx, md.Spec.Name, md.Spec.ID); err != nil {
			return lines, err
		}
	}
	return lines, nil
}

// NetnsOf is the path of the namespace that a container has to be given to
// share that of ref: a sandbox's name or ID, or a PID.
func (m *Manager) NetnsOf(ctx context.Context, ref string) (string, error) {
	if err := m.begin(ctx); err != nil {
		return "", err
	}
	b := &build{m: m, dry: true, s: spec.Sandbox{Name: "oci-patch", Mode: spec.ModeContainer, Join: ref}}
	err := b.join()
	return b.facts.JoinPath, err
}
