package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/sandnet/sandnet/internal/plan"
)

// Difference is one way in which the kernel differs from a record.
type Difference struct {
	Owner string    `json:"owner"`
	Kind  plan.Kind `json:"kind"`
	// Object names the object.
	Object string `json:"object"`
	// Missing objects have no properties that could differ.
	Missing  bool   `json:"missing"`
	Property string `json:"property,omitempty"`
	Want     string `json:"want,omitempty"`
	Have     string `json:"have,omitempty"`
	text     string
}

// Text says what is wrong in a few words.
func (d Difference) Text() string { return d.text }

func differences(owner string, drift []plan.Drift) []Difference {
	out := make([]Difference, len(drift))
	for i, d := range drift {
		out[i] = Difference{Owner: owner, Kind: d.Object.Kind(), Object: nameOf(d.Object), Missing: d.Missing(),
			Property: d.Property, Want: d.Want, Have: d.Have, text: d.String()}
	}
	return out
}

// nameOf is an object's key without the gaps of what is empty in it.
func nameOf(o plan.Object) string { return strings.Join(strings.Fields(o.Key()), " ") }

// Diff tells what differs between the records and the kernel. It changes
// nothing, beyond finishing what killed commands have left.
func (m *Manager) Diff(ctx context.Context) ([]Difference, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	return m.diff(ctx)
}

// diff with lookOnly leaves out what killed commands have left half-done.
func (m *Manager) diff(ctx context.Context) ([]Difference, error) {
	owners, err := m.suspects(ctx)
	if err != nil {
		return nil, err
	}
	var out []Difference
	for _, owner := range owners {
		// Another command may have been at work: looked at again, with its lock.
		err := m.withOwner(ctx, owner, func(p plan.Plan) error {
			drift, err := m.host.Check(ctx, p.Objects)
			out = append(out, differences(owner, drift)...)
			return err
		})
		if err != nil && !errors.Is(err, errInterrupted) {
			return out, err
		}
	}
	slices.SortStableFunc(out, func(a, b Difference) int { return cmp.Compare(a.Owner, b.Owner) })
	return out, nil
}

// suspects are the owners of which something seems to differ: the host, then
// networks, then sandboxes, those last that have joined another. It looks at
// everything at once, without any lock.
func (m *Manager) suspects(ctx context.Context) ([]string, error) {
	owners, err := m.store.Owners() // sorted
	if err != nil {
		return nil, err
	}
	var all []plan.Object
	var joined []string
	of := map[string][]string{}
	for _, owner := range owners {
		p, err := m.store.Load(owner)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, o := range p.Objects {
			of[o.Key()] = append(of[o.Key()], owner)
			if ns, ok := o.(plan.Netns); ok && ns.Join != "" {
				joined = append(joined, owner)
			}
		}
		all = append(all, p.Objects...)
	}
	drift, err := m.host.Check(ctx, all)
	if err != nil {
		return nil, err
	}
	wrong := map[string]bool{}
	for _, d := range drift {
		for _, owner := range of[d.Object.Key()] {
			wrong[owner] = true
		}
	}
	var out, last []string
	for _, owner := range owners {
		switch {
		case !wrong[owner]:
		case slices.Contains(joined, owner):
			last = append(last, owner)
		default:
			out = append(out, owner)
		}
	}
	return append(out, last...), nil
}

// withOwner calls f with an owner's record while nobody else changes that; not
// at all if the record is gone.
func (m *Manager) withOwner(ctx context.Context, owner string, f func(plan.Plan) error) error {
	locks := []string{owner}
	if strings.HasPrefix(owner, "network/") { // which the host's lock guards
		locks = []string{"host", owner}
	}
	for _, l := range locks {
		if m.held[l] {
			continue
		}
		unlock, err := m.lock(ctx, l)
		if err != nil {
			return err
		}
		defer unlock()
	}
	p, err := m.store.Load(owner)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f(p)
}

// Repair mends what differs between the records and the kernel, owner by owner,
// and returns a line for each thing; with dryRun it only does the latter. What
// it cannot mend is an error, and the rest goes on.
func (m *Manager) Repair(ctx context.Context, dryRun bool) (lines []string, err error) {
	if dryRun {
		if err := m.ready(); err != nil {
			return nil, err
		}
		m.lookOnly = true
		defer func() { m.lookOnly = false }()
		diff, err := m.diff(ctx)
		for _, d := range diff {
			lines = append(lines, repairLine(d.Owner, d.Object+": "+d.Text()))
		}
		if err != nil {
			return lines, err
		}
		more, err := m.repairShared(ctx, true)
		return append(lines, more...), err
	}
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	var errs []error
	defer func() {
		more, e := m.repairShared(ctx, false)
		lines, err = append(lines, more...), errors.Join(err, e)
	}()
	done := map[string]bool{}
	// What is mended may show more: a sandbox whose namespace was made anew is
	// no longer where those are that have joined it.
	for range 3 {
		owners, err := m.suspects(ctx)
		if err != nil {
			return lines, errors.Join(append(errs, err)...)
		}
		owners = slices.DeleteFunc(owners, func(o string) bool { return done[o] })
		if len(owners) == 0 {
			break
		}
		for _, owner := range owners {
			done[owner] = true
			more, err := m.repair(ctx, owner)
			lines, errs = append(lines, more...), append(errs, err)
		}
	}
	return lines, errors.Join(errs...)
}

// repairShared adapts what all networks share to the host as it is now: a
// firewall that came after sandnet may need a rule.
func (m *Manager) repairShared(ctx context.Context, dryRun bool) (lines []string, err error) {
	err = m.withOwner(ctx, "host", func(have plan.Plan) error {
		want, state, err := m.hostPlan()
		if errors.As(err, new(*otherFirewallError)) {
			return nil // the next command that makes something moves over
		}
		if err != nil || state != hostUnknown {
			return err
		}
		for _, o := range plan.Stale(want.Objects, have.Objects) {
			lines = append(lines, repairLine("host", nameOf(o)+": needed by now"))
		}
		for _, o := range plan.Stale(have.Objects, want.Objects) {
			lines = append(lines, repairLine("host", nameOf(o)+": needed no more"))
		}
		if dryRun {
			return nil
		}
		if err := m.store.Begin("host"); err != nil {
			return err
		}
		_, err = m.engine.Apply(ctx, want)
		return err
	})
	if errors.Is(err, errInterrupted) {
		err = nil
	}
	return lines, err
}

func repairLine(owner, what string) string { return "repair " + owner + ": " + what }

// repair mends one owner, under its lock.
func (m *Manager) repair(ctx context.Context, owner string) (lines []string, err error) {
	err = m.withOwner(ctx, owner, func(p plan.Plan) error {
		lines, err = m.mend(ctx, p)
		return err
	})
	return lines, err
}

// mend puts an owner's objects right. Nothing is recorded before, since the
// record names them all: killed here, the next repair goes on.
func (m *Manager) mend(ctx context.Context, p plan.Plan) (lines []string, err error) {
	for range 3 {
		drift, err := m.host.Check(ctx, p.Objects)
		if err != nil || len(drift) == 0 {
			return lines, err
		}
		// What is in a namespace cannot be seen before that is back.
		if lost := slices.DeleteFunc(slices.Clone(drift), func(d plan.Drift) bool { return d.Object.Kind() != plan.KindNetns }); len(lost) > 0 {
			drift = lost
		}
		for _, d := range drift {
			lines = append(lines, repairLine(p.Owner, nameOf(d.Object)+": "+d.String()))
		}
		notes, err := m.host.Mend(ctx, p.Objects, drift)
		for _, n := range notes {
			lines = append(lines, repairLine(p.Owner, n))
		}
		if err != nil {
			return lines, fmt.Errorf("%s: %w", p.Owner, err)
		}
	}
	drift, err := m.host.Check(ctx, p.Objects)
	if err == nil && len(drift) > 0 {
		err = fmt.Errorf("%s: %s: mended, and still %s", p.Owner, nameOf(drift[0].Object), drift[0])
	}
	return lines, err
}

// mendHost finishes what all networks share, and what was lost with it, after a
// killed command: that may have mended them, but most likely was making them.
// The caller has the host's lock and has begun.
func (m *Manager) mendHost(ctx context.Context) error {
	p, err := m.store.Load("host")
	if err != nil {
		return err
	}
	lines, err := m.mend(ctx, p)
	changes, e := m.mendRules(ctx)
	m.log.Info("finished the firewall and the settings of the host after a killed command", "changes", len(lines)+changes)
	return errors.Join(err, e)
}

// mendRules puts back everybody's rules and reserved ports, while nobody changes
// any. The caller has the host's lock.
func (m *Manager) mendRules(ctx context.Context) (changes int, err error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resume, err := m.store.Settle(waiting)
	if err != nil {
		m.log.Warn("cannot mend the rules of networks and sandboxes; 'sandnet gc --repair' does", "error", err)
		return 0, nil
	}
	defer resume()
	owners, err := m.store.Owners()
	if err != nil {
		return 0, err
	}
	rules := map[string][]plan.Object{}
	var all, ports []plan.Object
	for _, owner := range owners {
		p, err := m.store.Load(owner)
		if err != nil || owner == "host" {
			continue
		}
		rules[owner] = slices.DeleteFunc(p.Objects, func(o plan.Object) bool { return !isRule(o) || o.Kind() == plan.KindFlow })
		for _, o := range rules[owner] {
			if o.Kind() == plan.KindHostPort {
				ports = append(ports, o)
			} else {
				all = append(all, o)
			}
		}
	}
	// All at once; one by one only where one cannot be mended.
	if changes, err = m.host.Ensure(ctx, append(ports, all...)); err == nil {
		return changes, nil
	}
	for _, owner := range owners {
		n, err := m.host.Ensure(ctx, rules[owner])
		if err != nil {
			m.log.Warn("cannot mend", "owner", owner, "error", err)
		}
		changes += n
	}
	return changes, nil
}

// intact reports whether a network's links and addresses are what its plan
// says. It does not look at the firewall, which makeHost does for all.
func (m *Manager) intact(ctx context.Context, p plan.Plan) (bool, error) {
	var objs []plan.Object
	for _, o := range p.Objects {
		switch o.Kind() {
		case plan.KindLink, plan.KindAddr, plan.KindSysctl:
			objs = append(objs, o)
		}
	}
	drift, err := m.host.Check(ctx, objs)
	return len(drift) == 0, err
}

// patience is how long a repair waits for the sandboxes that other commands are
// working on. Their locks come before those that are held, so that waiting for
// them must end; a change of the firewall has all of them.
const patience = time.Second

// mendNetwork mends a network and every sandbox on it, and says so. The caller
// has the host's lock and the network's, and has begun: if this is killed, the
// next command goes on.
func (m *Manager) mendNetwork(ctx context.Context, name string) error {
	p, err := m.store.Load(networkOwner(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is made on its first use
	}
	if err != nil {
		return err
	}
	lines, err := m.mend(ctx, p)
	if err != nil {
		return err
	}
	all, err := m.all()
	if err != nil {
		return err
	}
	on := 0
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, md := range all {
		if !md.isOn(name) {
			continue
		}
		on++
		err := m.withOwner(waiting, ownerPrefix+md.Spec.Name, func(p plan.Plan) error {
			more, err := m.mend(ctx, p)
			lines = append(lines, more...)
			return err
		})
		if err != nil {
			m.log.Warn("cannot mend a sandbox", "name", md.Spec.Name, "network", name, "error", err)
		}
	}
	if len(lines) > 0 {
		m.log.Warn("mended network "+name+": somebody had changed it", "sandboxes", on, "changes", len(lines), "first", lines[0])
	}
	return nil
}

func (md meta) isOn(network string) bool {
	for _, ep := range md.Endpoints {
		if ep.Network == network {
			return true
		}
	}
	return false
}

// mendOne mends a sandbox that a command is about to use.
func (m *Manager) mendOne(ctx context.Context, name string) error {
	_, p, err := m.load(name)
	if err != nil {
		return err
	}
	links := slices.DeleteFunc(slices.Clone(p.Objects), func(o plan.Object) bool {
		return o.Kind() != plan.KindNetns && o.Kind() != plan.KindLink
	})
	if drift, err := m.host.Check(ctx, links); err != nil || len(drift) == 0 {
		return err
	}
	lines, err := m.repair(ctx, ownerPrefix+name)
	if err == nil && len(lines) > 0 {
		m.log.Warn("mended sandbox "+name+": somebody had changed it", "changes", len(lines), "first", lines[0])
	}
	return err
}
