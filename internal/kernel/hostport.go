package kernel

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// Host ports are reserved by two BPF programs on the root cgroup that refuse
// bind(2) for what is in one machine-wide map; four more translate [::1]:PORT,
// which nftables cannot (hostport_prog.go has the programs, hostport_hooks.go
// attaches them). No process holds anything and nothing is pinned: the cgroup
// holds the programs, they hold the map, and all go with the last reservation.
//
// A network namespace is known by its cookie, which is never used twice. When
// one disappears with reservations, these can hit nobody any more; sweep
// removes them.
//
// SCTP has a bind(2) and a connect(2) of its own that the kernel does not offer
// to BPF on cgroups: its reservations are recorded, but not enforced.

// portGuard keeps host ports. All who share a map must share the lock.
type portGuard struct {
	cgroup string // the directory of the cgroup; empty for the root of its hierarchy
	lock   string // a file of root's that exists while somebody holds the lock
	bpf    bpfCall
}

// machinePorts is the guard of all hosts on the machine, whatever their root.
func machinePorts() portGuard { return portGuard{lock: "/run/sandnet-ports.lock", bpf: sysBPF} }

// checkHostPorts returns those of ports that are not reserved in the calling
// thread's namespace as they should be: all, if the programs are not attached.
func checkHostPorts(ports []plan.HostPort) (missing []plan.HostPort, err error) {
	return machinePorts().check(ports)
}

// checkBindGuard tells which of the programs that the reservations on this
// machine need are attached and which are missing. Without any, it is the
// reservations that are missing.
func checkBindGuard() (attached, missing []string, err error) { return machinePorts().programs() }

// mendBindGuard attaches the missing ones to the map that the others have.
func mendBindGuard(ctx context.Context) error { return machinePorts().mend(ctx) }

// ForgetDeadPorts gives up the ports of network namespaces that are gone: their
// cookies never come back, but their entries would stay until a reboot.
func (k *Kernel) ForgetDeadPorts(ctx context.Context) (int, error) {
	return machinePorts().forgetDead(ctx)
}

// ensure reserves ports in the calling thread's namespace. It attaches what is
// missing of the programs, so that a map which somebody has dropped with them
// fills again as each owner of ports is ensured.
func (g portGuard) ensure(ctx context.Context, ports []plan.HostPort) (changed int, err error) {
	if len(ports) == 0 {
		return 0, nil
	}
	cookie, inode, err := netnsIdentity()
	if err != nil {
		return 0, err
	}
	var keys []portKey
	var values []portValue
	at := map[portKey]int{}
	need := scopeBind
	for _, p := range ports {
		key, err := keyOf(cookie, p)
		if err != nil {
			return 0, err
		}
		i, ok := at[key]
		if !ok {
			i = len(keys)
			at[key] = i
			keys, values = append(keys, key), append(values, portValue{Netns: inode})
		}
		if _, err := values[i].put(slotOf(p)); err != nil {
			return 0, fmt.Errorf("%s: %w", p.Key(), err)
		}
		need = max(need, scopeOf(p))
	}
	unlock, err := g.hold(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	h, err := g.open()
	if err != nil {
		return 0, err
	}
	defer h.close()
	if err := h.attach(need); err != nil {
		return 0, err
	}
	for i, key := range keys {
		n, err := h.reserve(key, values[i])
		changed += n
		if err != nil {
			return changed, fmt.Errorf("reserve %s: %w", key, err)
		}
	}
	return changed, nil
}

// reserve adds an entry whose key is usually new.
func (h *hooks) reserve(key portKey, v portValue) (changed int, err error) {
	crash.Point("host port add")
	err = h.ports.update(key, v, unix.BPF_NOEXIST)
	if errors.Is(err, unix.E2BIG) { // full
		n, sweepErr := h.sweep()
		switch {
		case sweepErr != nil:
			return 0, sweepErr
		case n == 0:
			return 0, fmt.Errorf("%d ports are reserved on this machine: %w", maxHostPorts, err)
		}
		err = h.ports.update(key, v, unix.BPF_NOEXIST)
	}
	if errors.Is(err, unix.EEXIST) {
		return h.merge(key, v)
	}
	return int(v.N), err
}

// merge adds to an existing entry what it lacks of v.
func (h *hooks) merge(key portKey, v portValue) (changed int, err error) {
	have, err := h.ports.lookup(key)
	if err != nil {
		return 0, err
	}
	for _, s := range v.Slots[:v.N] {
		isNew, err := have.put(s)
		if err != nil {
			return 0, err
		}
		if isNew {
			changed++
		}
	}
	if changed == 0 {
		return 0, nil
	}
	crash.Point("host port update")
	return changed, h.ports.update(key, have, unix.BPF_ANY)
}

// delete gives ports up; those not reserved, or by now reserved for another
// owner, are given up already.
func (g portGuard) delete(ctx context.Context, ports []plan.HostPort) error {
	if len(ports) == 0 {
		return nil
	}
	cookie, _, err := netnsIdentity()
	if err != nil {
		return err
	}
	unlock, err := g.hold(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	h, err := g.existing()
	if h == nil {
		return err
	}
	defer h.close()
	var errs []error
	for _, p := range ports {
		if err := h.release(cookie, p); err != nil {
			errs = append(errs, fmt.Errorf("release %s: %w", p.Key(), err))
		}
	}
	return errors.Join(errs...)
}

func (h *hooks) release(cookie uint64, p plan.HostPort) error {
	key, err := keyOf(cookie, p)
	if err != nil {
		return err
	}
	v, err := h.ports.lookup(key)
	if errors.Is(err, unix.ENOENT) || err == nil && !v.remove(p.IP.As16(), p.Owner) {
		return nil
	}
	if err != nil {
		return err
	}
	crash.Point("host port delete")
	if v.N > 0 {
		return h.ports.update(key, v, unix.BPF_EXIST)
	}
	return h.ports.delete(key)
}

// check is checkHostPorts. It changes nothing and takes no lock.
func (g portGuard) check(ports []plan.HostPort) (missing []plan.HostPort, err error) {
	if len(ports) == 0 {
		return nil, nil
	}
	cookie, _, err := netnsIdentity()
	if err != nil {
		return nil, err
	}
	h, err := g.open()
	if err != nil {
		return nil, err
	}
	defer h.close()
	works, err := h.look()
	if err != nil {
		return nil, err
	}
	for _, p := range ports {
		key, err := keyOf(cookie, p)
		if err != nil {
			return nil, err
		}
		if works >= scopeOf(p) {
			v, err := h.ports.lookup(key)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return nil, fmt.Errorf("look for %s: %w", p.Key(), err)
			}
			if i := v.index(p.IP.As16()); i >= 0 && v.Slots[i] == slotOf(p) {
				continue
			}
		}
		missing = append(missing, p)
	}
	return missing, nil
}

// owned lists the reservations in the calling thread's namespace.
func (g portGuard) owned() ([]plan.HostPort, error) {
	cookie, _, err := netnsIdentity()
	if err != nil {
		return nil, err
	}
	h, err := g.existing()
	if h == nil {
		return nil, err
	}
	defer h.close()
	keys, err := h.ports.keys()
	var ports []plan.HostPort
	for _, key := range keys {
		if key.Cookie != cookie {
			continue
		}
		v, err := h.ports.lookup(key)
		if err != nil {
			continue // given up since
		}
		for _, s := range v.Slots[:v.N] {
			ports = append(ports, key.hostPort(s))
		}
	}
	return ports, err
}

// drop takes the programs away unless another host on the machine, in another
// network namespace, has ports reserved.
func (g portGuard) drop(ctx context.Context) error {
	unlock, err := g.hold(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	h, err := g.open()
	if errors.Is(err, errors.ErrUnsupported) {
		return nil // then nothing is reserved
	}
	if err != nil {
		return err
	}
	defer h.close()
	found, err := h.find()
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	if found {
		if _, err := h.sweep(); err != nil {
			return err
		}
		if keys, err := h.ports.keys(); err != nil || len(keys) > 0 {
			return err
		}
	}
	return h.detach() // also of what a crash left half attached
}

// programs is checkBindGuard. It changes nothing and takes no lock.
func (g portGuard) programs() (attached, missing []string, err error) {
	h, err := g.existing()
	if h == nil {
		return nil, nil, err
	}
	defer h.close()
	need, err := h.needed()
	if err != nil {
		return nil, nil, err
	}
	for _, k := range portHooks() {
		there, err := h.attachedAt(k)
		switch {
		case err != nil:
			return nil, nil, err
		case there:
			attached = append(attached, k.name)
		case k.scope <= need:
			missing = append(missing, k.name)
		}
	}
	return attached, missing, nil
}

// mend is mendBindGuard.
func (g portGuard) mend(ctx context.Context) error {
	unlock, err := g.hold(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	h, err := g.existing()
	if h == nil {
		return err
	}
	defer h.close()
	need, err := h.needed()
	if err != nil {
		return err
	}
	h.closeMaps()
	return h.attach(need)
}

// needed is the scope of everything that is reserved.
func (h *hooks) needed() (need scope, err error) {
	keys, err := h.ports.keys()
	for _, key := range keys {
		v, err := h.ports.lookup(key)
		if err != nil {
			continue // given up since
		}
		for _, s := range v.Slots[:v.N] {
			need = max(need, scopeOf(key.hostPort(s)))
		}
	}
	return need, err
}

// forgetDead removes the reservations of namespaces that are gone.
func (g portGuard) forgetDead(ctx context.Context) (removed int, err error) {
	unlock, err := g.hold(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	h, err := g.existing()
	if h == nil {
		return 0, err
	}
	defer h.close()
	return h.sweep()
}

// sweep removes the entries of namespaces that are gone, where the kernel can
// tell: since Linux 6.18, and to root of the machine, not of a container.
func (h *hooks) sweep() (removed int, err error) {
	keys, err := h.ports.keys()
	if err != nil || len(keys) == 0 || !seesAllNamespaces() {
		return 0, err
	}
	dead := map[uint64]bool{}
	for _, key := range keys {
		gone, known := dead[key.Cookie]
		if !known {
			v, err := h.ports.lookup(key)
			if err != nil {
				continue // given up since
			}
			gone = netnsGone(key.Cookie, v.Netns)
			dead[key.Cookie] = gone
		}
		if !gone {
			continue
		}
		crash.Point("host port sweep")
		if err := h.ports.delete(key); err != nil && !errors.Is(err, unix.ENOENT) {
			return removed, fmt.Errorf("release %s of a namespace that is gone: %w", key, err)
		}
		removed++
	}
	return removed, nil
}
