package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/spec"
)

const defaultMTU = 1500

func networkOwner(name string) string { return "network/" + name }

// loadNetwork reads a network's definition; *NotFoundError if there is none.
func (m *Manager) loadNetwork(name string) (spec.Network, error) {
	var n spec.Network
	data, err := os.ReadFile(m.paths.network(name))
	if errors.Is(err, fs.ErrNotExist) || m.unprivileged(err) {
		return n, &NotFoundError{"network", name}
	}
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(data, &n); err != nil || n.Name != name || len(n.Subnets) == 0 || len(n.Gateways) != len(n.Subnets) {
		if err == nil {
			err = errors.New("it is incomplete")
		}
		if !m.paths.isRoot() {
			return n, fmt.Errorf("definition of network %s: %w", name, err)
		}
		if err := m.store.SetAside(m.paths.network(name), data, err); err != nil {
			return n, err
		}
		return spec.Network{}, &NotFoundError{"network", name}
	}
	return n, nil
}

// findNetwork is loadNetwork that knows the default network before its first
// use; fresh says that the definition is not saved yet.
func (m *Manager) findNetwork(name string) (n spec.Network, fresh bool, err error) {
	n, err = m.loadNetwork(name)
	var missing *NotFoundError
	if !errors.As(err, &missing) || name != spec.DefaultNetwork {
		return n, false, err
	}
	n, err = m.complete(spec.Network{Name: spec.DefaultNetwork, Bridge: spec.DefaultBridge})
	return n, true, err
}

// complete fills in what the user left open of a new network and refuses what
// the host has in use already.
func (m *Manager) complete(n spec.Network) (spec.Network, error) {
	others, err := m.definitions()
	if err != nil {
		return n, err
	}
	bridges := map[string]bool{n.Bridge: true}
	var taken []netip.Prefix
	for _, o := range others {
		if o.Name == n.Name {
			continue // another process is making the default network just now
		}
		bridges[o.Bridge] = true
		taken = append(taken, o.Subnets...)
		for _, mine := range n.Subnets {
			for _, theirs := range o.Subnets {
				if mine.Overlaps(theirs) {
					return n, &spec.InputError{What: "subnet", Value: mine.String(), Why: fmt.Sprintf("it overlaps network %s (%s)", o.Name, theirs)}
				}
			}
		}
		if o.Bridge == n.Bridge {
			return n, &spec.InputError{What: "bridge", Value: n.Bridge, Why: "network " + o.Name + " has it"}
		}
	}
	routes, err := m.host.Taken(func(link string) bool { return bridges[link] })
	if err != nil {
		return n, err
	}
	for _, mine := range n.Subnets {
		for _, r := range routes {
			if mine.Overlaps(r) {
				return n, &spec.InputError{What: "subnet", Value: mine.String(), Why: fmt.Sprintf("it overlaps %s, which the host has an address in or a route to", r)}
			}
		}
	}
	if n.Bridge == "" {
		n.Bridge = spec.BridgeName(n.Name)
	}
	if n.MTU == 0 {
		n.MTU = defaultMTU
	}
	n.Created = time.Now().UTC().Truncate(time.Second)
	if exists, ours, err := m.host.HasLink(n.Bridge); err != nil {
		return n, err
	} else if exists && m.paths.isRoot() && !(ours && m.store.Has(networkOwner(n.Name))) {
		return n, &spec.InputError{What: "bridge", Value: n.Bridge, Why: "the host has a link of that name"}
	}
	return m.chooseSubnets(n, append(taken, routes...))
}

// unprivileged: `sandnet plan` works without root, on what it may see.
func (m *Manager) unprivileged(err error) bool {
	return errors.Is(err, fs.ErrPermission) && !m.paths.isRoot()
}

// definitions are all saved networks, sorted by name.
func (m *Manager) definitions() ([]spec.Network, error) {
	entries, err := os.ReadDir(m.paths.networks())
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !m.unprivileged(err) {
		return nil, err
	}
	var out []spec.Network
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		n, err := m.loadNetwork(name)
		var missing *NotFoundError
		if errors.As(err, &missing) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

// CreateNetwork makes a network and returns it with everything filled in.
func (m *Manager) CreateNetwork(ctx context.Context, n spec.Network) (spec.Network, error) {
	if err := m.begin(ctx); err != nil {
		return n, err
	}
	made := n
	err := m.withFirewall(ctx, func() (err error) {
		made, err = m.createNetwork(ctx, n)
		return err
	})
	return made, err
}

func (m *Manager) createNetwork(ctx context.Context, n spec.Network) (spec.Network, error) {
	// Two networks made at once must not be given the same subnet.
	unlock, err := m.lock(ctx, "host")
	if err != nil {
		return n, err
	}
	defer unlock()
	if _, err := m.loadNetwork(n.Name); err == nil {
		return n, &spec.InputError{What: "network name", Value: n.Name, Why: "there is a network of that name"}
	}
	if n, err = m.complete(n); err != nil {
		return n, err
	}
	return n, m.makeNetwork(ctx, n, true)
}

// makeNetwork makes the host's and the network's kernel objects and then, for
// a fresh network, saves the definition. The caller has the host's lock.
func (m *Manager) makeNetwork(ctx context.Context, n spec.Network, fresh bool) error {
	err := m.makeHost(ctx)
	if err == nil && n.HasIPv6() {
		err = m.makeForward6(ctx)
	}
	if err != nil {
		return errors.Join(err, m.dropHostIfUnused(context.WithoutCancel(ctx)))
	}
	want := m.nets.Network(n, m.paths.Mark)
	if m.store.Same(want) {
		if ok, err := m.intact(ctx, want); err != nil || ok {
			return err
		}
	}
	recorded := m.store.Has(want.Owner)
	unlock, err := m.lock(ctx, want.Owner)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.store.Begin(want.Owner); err != nil {
		return err
	}
	if recorded {
		// First what is on record, to be told what was wrong with it.
		if err := m.mendNetwork(ctx, n.Name); err != nil {
			return err
		}
	}
	if _, err = m.engine.Apply(ctx, want); err == nil && fresh {
		err = m.saveNetwork(n)
	}
	if err != nil && fresh {
		return errors.Join(err, m.dropNetwork(context.WithoutCancel(ctx), n.Name))
	}
	return err
}

func (m *Manager) saveNetwork(n spec.Network) error {
	data, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.paths.networks(), 0o700); err != nil {
		return err
	}
	return m.store.WriteDurable(m.paths.network(n.Name), append(data, '\n'))
}

// realize makes sure that a network is there: made on its first use and after
// a reboot, mended where its rules were flushed. n is as the caller found it;
// what it is now, with the host's lock held, decides.
func (m *Manager) realize(ctx context.Context, n spec.Network) error {
	unlock, err := m.lock(ctx, "host")
	if err != nil {
		return err
	}
	defer unlock()
	now, fresh, err := m.findNetwork(n.Name)
	if err != nil {
		return err
	}
	if !slices.Equal(now.Subnets, n.Subnets) || now.Bridge != n.Bridge {
		return fmt.Errorf("network %s was made anew meanwhile; try again", n.Name)
	}
	return m.makeNetwork(ctx, now, fresh)
}

// PruneNetworks removes the user-defined networks without sandboxes.
func (m *Manager) PruneNetworks(ctx context.Context) ([]string, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	all, err := m.definitions()
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, n := range all {
		if n.Name == spec.DefaultNetwork {
			continue
		}
		err := m.removeNetwork(ctx, n.Name)
		if errors.As(err, new(*InUseError)) || errors.As(err, new(*NotFoundError)) {
			continue // in use, or removed meanwhile
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, n.Name)
	}
	return removed, nil
}

// InUseError says that a network cannot go while sandboxes are on it.
type InUseError struct {
	Network string
	By      []string
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("network %s is in use by %s", e.Network, strings.Join(e.By, ", "))
}

// RemoveNetwork removes a network without sandboxes. The default network, too,
// can be removed; it comes back with its next use.
func (m *Manager) RemoveNetwork(ctx context.Context, name string) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	if err := spec.CheckName("network name", name); err != nil {
		return err
	}
	return m.removeNetwork(ctx, name)
}

func (m *Manager) removeNetwork(ctx context.Context, name string) error {
	unlock, err := m.lock(ctx, "host")
	if err != nil {
		return err
	}
	defer unlock()
	unlockNet, err := m.lock(ctx, networkOwner(name))
	if err != nil {
		return err
	}
	defer unlockNet()
	n, err := m.loadNetwork(name)
	if err != nil {
		return err
	}
	if err := m.unused(n); err != nil {
		return err
	}
	// A sandbox that is just being made has its address, and so was seen; or it
	// waits for the host's lock, and will see that the network is gone.
	for _, owner := range []string{"host", networkOwner(name)} {
		if err := m.store.Begin(owner); err != nil {
			return err
		}
	}
	crash.Point("network definition remove")
	if err := m.store.RemoveDurable(m.paths.network(name)); err != nil {
		return err
	}
	return m.dropNetwork(ctx, name)
}

func (m *Manager) unused(n spec.Network) error {
	used, err := OpenPool(m.paths.ipam(n.Name), n).InUse()
	if err != nil || len(used) == 0 {
		return err
	}
	by := map[string]bool{}
	for _, a := range used {
		by[a.Owner] = true
	}
	names := make([]string, 0, len(by))
	for name := range by {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) > 5 {
		names = append(names[:5], fmt.Sprintf("and %d more", len(names)-5))
	}
	return &InUseError{n.Name, names}
}

// dropNetwork removes a network's kernel objects and, with the last network (of
// IPv6), the host's. The caller has both locks.
func (m *Manager) dropNetwork(ctx context.Context, name string) error {
	if err := m.engine.Remove(ctx, networkOwner(name)); err != nil {
		return err
	}
	m.dropPool(name)
	return m.dropHostIfUnused(ctx)
}

func (m *Manager) dropHostIfUnused(ctx context.Context) error {
	owners, err := m.store.Owners()
	if err != nil {
		return err
	}
	last, last6 := true, true
	for _, o := range owners {
		name, ok := strings.CutPrefix(o, networkOwner(""))
		if !ok {
			continue
		}
		last = false
		n, err := m.loadNetwork(name)
		var missing *NotFoundError
		if err != nil && !errors.As(err, &missing) {
			return err
		}
		last6 = last6 && !n.HasIPv6()
	}
	if last6 {
		if err := m.engine.Remove(ctx, forward6); err != nil {
			return err
		}
	}
	if !last {
		return nil
	}
	return m.engine.Remove(ctx, "host")
}

// pools are the networks that have addresses handed out.
func (m *Manager) pools() []string {
	entries, _ := os.ReadDir(filepath.Dir(m.paths.ipam("x")))
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// pool is a network's pool, to give addresses back to.
func (m *Manager) pool(network string) *Pool {
	return OpenPool(m.paths.ipam(network), spec.Network{Name: network})
}

// dropPool removes a network's pool, unless a sandbox that is just being made,
// and will find that its network is gone, has an address of it.
func (m *Manager) dropPool(network string) {
	dir := m.paths.ipam(network)
	crash.Point("network pool remove")
	_ = os.Remove(filepath.Join(dir, lastFile))
	_ = os.Remove(dir)
}

// Networks returns all networks, sorted by name; the default one is among them
// from its first use.
func (m *Manager) Networks(ctx context.Context) ([]spec.Network, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	return m.definitions()
}

// GetNetwork returns a network and the sandboxes on it.
func (m *Manager) GetNetwork(ctx context.Context, name string) (spec.Network, []View, error) {
	if err := m.begin(ctx); err != nil {
		return spec.Network{}, nil, err
	}
	if err := spec.CheckName("network name", name); err != nil {
		return spec.Network{}, nil, err
	}
	n, err := m.loadNetwork(name)
	if err != nil {
		return n, nil, err
	}
	all, err := m.all()
	if err != nil {
		return n, nil, err
	}
	var on []View
	for _, md := range all {
		if slices.ContainsFunc(md.Endpoints, func(e spec.Endpoint) bool { return e.Network == name }) {
			on = append(on, m.view(md))
		}
	}
	return n, on, nil
}
