// Package sandbox manages the sandboxes and networks of one host: it decides
// which address and port each gets, asks a mode for the plan and has the
// engine apply it, runs commands inside, and cleans up after commands that
// were killed.
//
// It changes nothing in the kernel itself (package reconcile does, through its
// Kernel), and knows nothing of how a mode networks a sandbox.
package sandbox

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/reconcile"
	"github.com/sandnet/sandnet/internal/spec"
)

// Manager is one host's sandboxes and networks. It is for one goroutine;
// any number of processes may work on the same host at once.
type Manager struct {
	paths  Paths
	host   Host
	store  Store
	nets   Networks
	engine *reconcile.Engine
	modes  map[string]Mode
	log    *slog.Logger
	held   map[string]bool // the owners whose locks this process has
}

// New returns the manager of the host at p; it neither reads nor changes
// anything yet.
func New(p Paths, h Host, store Store, log *slog.Logger, nets Networks, modes ...Mode) *Manager {
	m := &Manager{paths: p, host: h, store: store, nets: nets, log: log, modes: map[string]Mode{}, held: map[string]bool{},
		engine: &reconcile.Engine{Kernel: h, Store: store}}
	for _, mode := range modes {
		m.modes[mode.Name()] = mode
	}
	return m
}

// NotFoundError says that there is no such sandbox or network.
type NotFoundError struct{ What, Ref string }

func (e *NotFoundError) Error() string { return fmt.Sprintf("no such %s: %s", e.What, e.Ref) }

// HintError is an error with a known cure.
type HintError struct {
	Err error
	// Cure is one line for the user.
	Cure string
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// Hint is the cure.
func (e *HintError) Hint() string { return e.Cure }

// ErrNotRoot says that the command needs root's rights.
var ErrNotRoot = errors.New("permission denied: sandnet needs root")

// meta is what a sandbox's record says beside its plan.
type meta struct {
	Spec      spec.Sandbox    `json:"spec"`
	Netns     string          `json:"netns"`
	Created   time.Time       `json:"created"`
	Endpoints []spec.Endpoint `json:"endpoints"`
	// PID and Start (clock ticks since boot) are of the command of `run`.
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"`
	// Rewired says that the networks have changed since the sandbox was made.
	Rewired bool `json:"rewired,omitempty"`
	// Parked are the published ports while the sandbox is on no network.
	Parked []spec.Port `json:"parked,omitempty"`
}

// View is a sandbox as `inspect` shows it.
type View struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Mode      string            `json:"mode"`
	Netns     string            `json:"netns"`
	PID       int               `json:"pid"`
	Created   time.Time         `json:"created"`
	Status    string            `json:"status"`
	Labels    map[string]string `json:"labels"`
	Endpoints []spec.Endpoint   `json:"endpoints"`
	// Source is who asked for it: run, oci or cni; Container is the runtime's ID.
	Source    spec.Source `json:"source"`
	Container string      `json:"container"`
	// Config is the name of the CNI network configuration.
	Config string `json:"-"`
}

func (m *Manager) view(md meta) View {
	v := View{ID: md.Spec.ID, Name: md.Spec.Name, Mode: modeName(md.Spec), Netns: md.Netns, Created: md.Created,
		Status: "created", Labels: md.Spec.Labels, Endpoints: md.Endpoints,
		Source: cmp.Or(md.Spec.Source, spec.SourceRun), Container: md.Spec.Container, Config: md.Spec.Config}
	if md.PID != 0 {
		v.Status = "exited"
		if m.running(md) {
			v.Status, v.PID = "running", md.PID
		}
	}
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	if v.Endpoints == nil {
		v.Endpoints = []spec.Endpoint{}
	}
	return v
}

func (m *Manager) running(md meta) bool {
	return md.PID != 0 && md.Start != 0 && m.host.ProcessStart(md.PID) == md.Start
}

// modeName is the mode as the user writes it.
func modeName(s spec.Sandbox) string {
	switch s.Mode {
	case spec.ModeContainer:
		return "container:" + s.Join
	case spec.ModeBridge:
		if len(s.Attach) == 0 {
			return string(spec.ModeNone) // disconnected from all
		}
		names := make([]string, len(s.Attach))
		for i, a := range s.Attach {
			names[i] = a.Network
		}
		return strings.Join(names, ",")
	}
	return string(s.Mode)
}

const ownerPrefix = "sandbox/"

// begin prepares the state directory and cleans up after commands that were
// killed. Every method but Plan starts with it.
func (m *Manager) begin(ctx context.Context) error {
	if err := m.ready(); err != nil {
		return err
	}
	_, err := m.cleanUp(ctx, false)
	return err
}

// ready checks the rights and prepares the state directory.
func (m *Manager) ready() error {
	if !m.paths.isRoot() {
		return &HintError{ErrNotRoot, "run it as root, for example with sudo"}
	}
	if err := m.store.Prepare(); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

// lock takes an owner's lock, after cleaning up what a command killed since
// the start of this one may have left of it.
func (m *Manager) lock(ctx context.Context, owner string) (unlock func(), err error) {
	release, err := m.lockClean(ctx, owner)
	if err != nil {
		return nil, err
	}
	m.held[owner] = true
	return func() {
		delete(m.held, owner)
		release()
	}, nil
}

func (m *Manager) lockClean(ctx context.Context, owner string) (unlock func(), err error) {
	unlock, err = m.store.Lock(ctx, owner)
	if !errors.Is(err, fs.ErrExist) {
		return unlock, err
	}
	if _, err := m.cleanUp(ctx, false); err != nil {
		return nil, err
	}
	if unlock, err = m.store.Lock(ctx, owner); errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%s: what a killed command has left cannot be cleaned up; see --log-level warn", owner)
	}
	return unlock, err
}

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

// load reads a sandbox's record.
func (m *Manager) load(name string) (meta, plan.Plan, error) {
	var md meta
	p, err := m.store.Load(ownerPrefix + name)
	if err != nil {
		return md, p, err
	}
	if err := json.Unmarshal(p.Meta, &md); err != nil {
		return md, p, fmt.Errorf("record of sandbox %s: %w", name, err)
	}
	return md, p, nil
}

// resolve finds a sandbox by name, ID or unambiguous beginning of an ID.
func (m *Manager) resolve(ref string) (string, error) {
	if err := spec.CheckName("sandbox", ref); err != nil {
		return "", err
	}
	if m.store.Has(ownerPrefix + ref) {
		return ref, nil
	}
	entries, err := os.ReadDir(m.paths.ids())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	found := ""
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ref) {
			continue
		}
		name, err := os.Readlink(filepath.Join(m.paths.ids(), e.Name()))
		if err != nil || !m.store.Has(ownerPrefix+name) {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("ID %s is ambiguous: it begins the IDs of %s and %s", ref, found, name)
		}
		found = name
	}
	if found == "" {
		return "", &NotFoundError{"sandbox", ref}
	}
	return found, nil
}

// Get returns a sandbox by name, ID or unambiguous beginning of an ID.
func (m *Manager) Get(ctx context.Context, ref string) (View, error) {
	if err := m.begin(ctx); err != nil {
		return View{}, err
	}
	name, err := m.resolve(ref)
	if err != nil {
		return View{}, err
	}
	md, _, err := m.load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return View{}, &NotFoundError{"sandbox", ref}
	}
	return m.view(md), err
}

// List returns all sandboxes, sorted by name.
func (m *Manager) List(ctx context.Context) ([]View, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	all, err := m.all()
	views := make([]View, len(all))
	for i, md := range all {
		views[i] = m.view(md)
	}
	return views, err
}

func (m *Manager) all() ([]meta, error) {
	owners, err := m.store.Owners()
	if err != nil {
		return nil, err
	}
	var out []meta
	for _, owner := range owners {
		name, ok := strings.CutPrefix(owner, ownerPrefix)
		if !ok {
			continue
		}
		md, _, err := m.load(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			m.log.Warn("cannot read a record", "owner", owner, "error", err) // the rest goes on
			continue
		}
		out = append(out, md)
	}
	return out, nil
}
