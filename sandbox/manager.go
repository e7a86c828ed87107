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
	"os"
	"path/filepath"
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
	// lookOnly says that not even what a killed command has left is finished:
	// its owner's lock is then errInterrupted.
	lookOnly bool
}

var errInterrupted = errors.New("a command that was at work on it was killed")

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
	if m.lookOnly {
		return nil, fmt.Errorf("%s: %w", owner, errInterrupted)
	}
	if _, err := m.cleanUp(ctx, false); err != nil {
		return nil, err
	}
	if unlock, err = m.store.Lock(ctx, owner); errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%s: what a killed command has left cannot be cleaned up; see --log-level warn", owner)
	}
	return unlock, err
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
