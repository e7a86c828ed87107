package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// makeHost makes what all networks share. If the rules were lost (an admin's
// `nft flush ruleset`), everybody's are put back. The caller has the host's
// lock.
func (m *Manager) makeHost(ctx context.Context) error {
	want, state, err := m.hostPlan()
	if err != nil {
		return err
	}
	if state == hostUnknown {
		if err := m.store.Begin(want.Owner); err != nil {
			return err
		}
		_, err = m.engine.Apply(ctx, want)
		return err
	}
	objs := want.Objects
	if state == hostVerified {
		objs = slices.DeleteFunc(slices.Clone(objs), isRule)
	}
	// Before, since what is lost with the rules is found by their absence.
	if err := m.store.Begin(want.Owner); err != nil {
		return err
	}
	changed, err := m.host.Ensure(ctx, objs)
	switch {
	case err != nil:
		return err
	case changed > 0:
		more, err := m.mendRules(ctx)
		m.log.Warn("mended the firewall and the settings of the host: somebody had changed them", "changes", changed+more)
		return err
	case state != hostVerified:
		m.host.SetVerified(noteOf(want))
	}
	return nil
}

// isRule reports whether an object is the firewall's.
func isRule(o plan.Object) bool {
	switch o.Kind() {
	case plan.KindTable, plan.KindElement, plan.KindTableChain, plan.KindChains, plan.KindRule, plan.KindHostPort, plan.KindFlow:
		return true
	}
	return false
}

// hostState is what is known of the objects of the host's plan.
type hostState int

const (
	hostUnknown  hostState = iota
	hostRecorded           // they are in the record
	hostVerified           // and in the kernel, too
)

// otherFirewallError says that the host's rules are another firewall's.
type otherFirewallError struct{ have, want json.RawMessage }

func (e *otherFirewallError) Error() string {
	return fmt.Sprintf("the host's rules are of %s and not of %s", e.have, e.want)
}

// hostPlan is the plan of what all networks share.
func (m *Manager) hostPlan() (p plan.Plan, state hostState, err error) {
	if note, ok := m.host.Verified(); ok {
		restore, foreign, _ := strings.Cut(note, " ")
		if p := m.nets.Shared(m.paths.Mark, restore, foreign); m.store.Same(p) {
			return p, hostVerified, nil
		}
	}
	foreign, err := m.host.ForeignForward()
	if err != nil {
		m.log.Warn("cannot tell whether another firewall drops forwarded packets", "error", err)
		if old, err := m.store.Load("host"); err == nil {
			return old, hostRecorded, nil
		}
	}
	for _, restore := range []string{"0", ""} {
		if p := m.nets.Shared(m.paths.Mark, restore, foreign); m.store.Same(p) {
			return p, hostRecorded, nil
		}
	}
	old, err := m.store.Load("host")
	switch {
	case err == nil:
		p = m.nets.Shared(m.paths.Mark, restoreOf(old), foreign)
		if !bytes.Equal(old.Meta, p.Meta) {
			return p, hostUnknown, &otherFirewallError{old.Meta, p.Meta}
		}
		return p, hostUnknown, nil
	case !errors.Is(err, fs.ErrNotExist) && !m.unprivileged(err):
		return p, hostUnknown, err
	}
	b, err := os.ReadFile("/proc/sys/" + plan.IPForward)
	if err != nil {
		return p, hostUnknown, err
	}
	restore := ""
	if strings.TrimSpace(string(b)) == "0" {
		restore = "0"
	}
	return m.nets.Shared(m.paths.Mark, restore, foreign), hostUnknown, nil
}

// restoreOf is what ip_forward was before sandnet: the first record says so.
func restoreOf(host plan.Plan) string {
	for _, o := range host.Objects {
		if s, ok := o.(plan.Sysctl); ok && s.Name == plan.IPForward {
			return s.Restore
		}
	}
	return ""
}

// noteOf is what hostPlan has to know to make the same plan again.
func noteOf(host plan.Plan) string {
	foreign := ""
	for _, o := range host.Objects {
		if r, ok := o.(plan.Rule); ok {
			foreign = r.Chain
		}
	}
	return restoreOf(host) + " " + foreign
}

// otherFirewall is an *otherFirewallError if the host's rules are another
// firewall's than this command makes.
func (m *Manager) otherFirewall() error {
	if _, _, err := m.hostPlan(); errors.As(err, new(*otherFirewallError)) {
		return err
	}
	return nil
}

// withFirewall does what makes rules. If those of the host are another
// firewall's, all are moved over first. The caller holds no lock.
func (m *Manager) withFirewall(ctx context.Context, do func() error) error {
	err := do()
	if !errors.As(err, new(*otherFirewallError)) {
		return err
	}
	if err := m.moveFirewall(ctx); err != nil {
		return fmt.Errorf("change of the firewall: %w", err)
	}
	return do()
}

// busyTime is how long a change of the firewall waits for others.
const busyTime = 20 * time.Second

// moveFirewall gives the host, all networks and all sandboxes the rules of the
// firewall in use now. The host's record says so last: after whoever is killed
// here, the next one starts anew. Nobody but this holds several sandboxes'
// locks; it takes them in their order, and before the host's.
func (m *Manager) moveFirewall(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, busyTime)
	defer cancel()
	h := &holder{m: m}
	defer h.release()
	if err := h.hold(ctx, ownerPrefix); err != nil {
		return err
	}
	unlock, err := m.lock(ctx, "host")
	if err != nil {
		return err
	}
	defer unlock()
	want, _, err := m.hostPlan()
	if !errors.As(err, new(*otherFirewallError)) {
		return err // somebody else has moved everything meanwhile
	}
	if err := m.store.Begin(want.Owner); err != nil {
		return err
	}
	old, err := m.store.Load(want.Owner)
	if err != nil {
		return err
	}
	both := plan.Plan{Owner: old.Owner, Meta: changing(old.Meta), Objects: plan.Union(old.Objects, want.Objects)}
	if err := m.store.Save(both); err != nil {
		return err
	}
	if _, err := m.host.Ensure(ctx, want.Objects); err != nil {
		return err
	}
	if err := h.hold(ctx, "network/"); err != nil {
		return err
	}
	for _, owner := range h.owners {
		if err := m.moveRules(ctx, owner); err != nil {
			return err
		}
	}
	if _, err := m.engine.Apply(ctx, want); err != nil {
		return err
	}
	// Who was making a sandbox with the old rules is past the host's lock.
	moved := len(h.owners)
	if err := h.hold(ctx, ownerPrefix); err != nil {
		return err
	}
	for _, owner := range h.owners[moved:] {
		if err := m.moveRules(ctx, owner); err != nil {
			return err
		}
	}
	return nil
}

// changing is what the host's record says of itself while everything moves: no
// firewall's plan says that, so that the next command moves everything, too.
func changing(meta json.RawMessage) json.RawMessage {
	var in struct {
		Firewall string `json:"firewall"`
		Changing bool   `json:"changing"`
	}
	_ = json.Unmarshal(meta, &in) // without one, it is of none
	in.Changing = true
	out, err := json.Marshal(in)
	if err != nil {
		return nil
	}
	return out
}

// holder has the locks of several owners.
type holder struct {
	m      *Manager
	owners []string
	unlock []func()
}

// hold takes the locks of all owners of a kind that it does not have yet.
func (h *holder) hold(ctx context.Context, prefix string) error {
	owners, err := h.m.store.Owners()
	if err != nil {
		return err
	}
	for _, owner := range owners {
		if !strings.HasPrefix(owner, prefix) || slices.Contains(h.owners, owner) {
			continue
		}
		unlock, err := h.m.lock(ctx, owner)
		if err != nil {
			return fmt.Errorf("%s: %w", owner, err)
		}
		h.owners, h.unlock = append(h.owners, owner), append(h.unlock, unlock)
	}
	return nil
}

func (h *holder) release() {
	for _, unlock := range slices.Backward(h.unlock) {
		unlock()
	}
}

// moveRules replaces the rules of a network or sandbox, and nothing else of it.
// The caller has its lock.
func (m *Manager) moveRules(ctx context.Context, owner string) error {
	old, err := m.store.Load(owner)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	rules, err := m.rulesOf(owner, old)
	var missing *NotFoundError
	if errors.As(err, &missing) {
		return nil // about to be removed
	}
	if err != nil {
		return err
	}
	rest := slices.DeleteFunc(slices.Clone(old.Objects), isRule)
	want := plan.Plan{Owner: owner, Meta: old.Meta, Objects: slices.Concat(rest, rules)}
	both := want
	both.Objects = plan.Union(old.Objects, want.Objects)
	if err := m.store.Save(both); err != nil {
		return err
	}
	if err := m.host.Delete(ctx, plan.Stale(old.Objects, want.Objects)); err != nil {
		return err
	}
	if _, err := m.host.Ensure(ctx, rules); err != nil {
		return err
	}
	return m.store.Save(want)
}

// rulesOf are the rules that the firewall in use has for an owner.
func (m *Manager) rulesOf(owner string, p plan.Plan) ([]plan.Object, error) {
	if name, ok := strings.CutPrefix(owner, "network/"); ok {
		n, err := m.loadNetwork(name)
		if err != nil {
			return nil, err
		}
		return slices.DeleteFunc(m.nets.Network(n, m.paths.Mark).Objects, func(o plan.Object) bool { return !isRule(o) }), nil
	}
	var md meta
	if err := json.Unmarshal(p.Meta, &md); err != nil {
		return nil, fmt.Errorf("record of %s: %w", owner, err)
	}
	nets := make([]spec.Network, len(md.Endpoints))
	for i, ep := range md.Endpoints {
		var err error
		if nets[i], err = m.loadNetwork(ep.Network); err != nil {
			return nil, err
		}
	}
	return m.nets.Rules(md.Spec, md.Endpoints, nets, m.paths.Mark), nil
}
