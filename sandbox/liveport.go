package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/spec"
)

// publication is one port of a host address that leads into a sandbox: as it
// was asked for and as it is. A port that was asked for without a host address
// has one in each family of the gateway's network.
type publication struct {
	asked, have spec.Port
	// parked says that the network does not have the family of its address, or
	// that there is no network: nobody keeps the port free.
	parked bool
}

// takePorts takes what is published out of b.meta.
func (b *build) takePorts() []publication {
	parked := len(b.meta.Parked)
	ports := slices.Clone(b.meta.Parked)
	for i := range b.meta.Endpoints {
		ports = append(ports, b.meta.Endpoints[i].Ports...)
		b.meta.Endpoints[i].Ports = []spec.Port{}
	}
	out := make([]publication, len(ports))
	for i, p := range ports { // the request has them in this order
		out[i] = publication{b.meta.Spec.Ports[i], p, i < parked}
	}
	b.meta.Parked, b.meta.Spec.Ports = nil, nil
	return out
}

// putPorts is the reverse: with the gateway is what is not parked.
func (b *build) putPorts(all []publication) {
	slices.SortStableFunc(all, func(x, y publication) int {
		switch {
		case x.parked == y.parked:
			return 0
		case x.parked:
			return -1
		}
		return 1
	})
	live := []spec.Port{}
	for _, p := range all {
		b.meta.Spec.Ports = append(b.meta.Spec.Ports, p.asked)
		if p.parked {
			b.meta.Parked = append(b.meta.Parked, p.have)
		} else {
			live = append(live, p.have)
		}
	}
	if len(b.meta.Endpoints) > 0 {
		b.meta.Endpoints[b.gateway()].Ports = live
	}
}

// movePorts is putPorts after a change of the networks. What was asked for
// without a host address is published in the families that the gateway's
// network has now; what cannot be published there waits for one where it can.
func (b *build) movePorts(all []publication) error {
	var out []publication
	for i := 0; i < len(all); {
		n := 1 // of one request, and so with one number
		for i+n < len(all) && all[i].together(all[i+n]) {
			n++
		}
		moved, err := b.movePort(all[i:i+n], all)
		if err != nil {
			return err
		}
		out, i = append(out, moved...), i+n
	}
	b.putPorts(out)
	return nil
}

// together reports whether p and q are one request in two families.
func (p publication) together(q publication) bool {
	return !p.asked.HostIP.IsValid() && p.asked == q.asked && p.have.HostPort == q.have.HostPort && p.have.HostIP != q.have.HostIP
}

func (b *build) movePort(group, all []publication) ([]publication, error) {
	p := group[0]
	var hosts []netip.Addr
	if len(b.meta.Endpoints) > 0 {
		hosts, _ = hostAddresses(p.asked, b.facts.Networks[b.gateway()])
	}
	if len(hosts) == 0 {
		if len(b.meta.Endpoints) > 0 && !p.parked {
			b.m.log.Warn("a published port waits for a network that can have it", "sandbox", b.s.Name, "port", p.have.String())
		}
		for i := range group {
			group[i].parked = true
		}
		return group, nil
	}
	var out []publication
	for _, p.have.HostIP = range hosts {
		same := func(q publication) bool {
			return !q.parked && q.have.HostPort == p.have.HostPort && q.have.Proto == p.have.Proto
		}
		kept := slices.ContainsFunc(group, func(q publication) bool { return same(q) && q.have.HostIP == p.have.HostIP })
		if !kept {
			beside := slices.ContainsFunc(all, func(q publication) bool { return same(q) && q.have.HostIP.Is6() != p.have.HostIP.Is6() })
			if err := b.take(p, beside); err != nil {
				return nil, err
			}
		}
		p.parked = false
		out = append(out, p)
	}
	return out, nil
}

// take holds the port of p, or says that somebody has it. beside says that the
// sandbox has it in the other family, which keeps it from being bound.
func (b *build) take(p publication, beside bool) (err error) {
	taken := false
	if beside {
		taken, err = b.m.host.Listens(string(p.have.Proto), p.have.HostIP.Is6(), p.have.HostPort)
		taken = taken || b.m.publisher(p.have) != ""
	} else {
		err = b.hold(p.have, []netip.Addr{p.have.HostIP}, p.have.HostPort)
		taken = errors.Is(err, unix.EADDRINUSE)
	}
	if !taken {
		return err
	}
	return &spec.InputError{What: "published port", Value: p.have.String(), Why: "the host port is in use" + b.m.publisher(p.have),
		Hint: "take it back with 'sandnet port rm " + b.s.Name + " " + p.asked.String() + "', or free it"}
}

// AddPorts publishes ports of a sandbox, all or none, and returns them as they
// are then published. Those that it publishes already stay as they are.
func (m *Manager) AddPorts(ctx context.Context, ref string, want []spec.Port) (published []spec.Port, err error) {
	err = m.change(ctx, ref, func(b *build) error {
		if len(b.meta.Endpoints) == 0 {
			return &HintError{fmt.Errorf("sandbox %s is on no network", b.s.Name), "connect it with 'sandnet network connect NETWORK " + b.s.Name + "'"}
		}
		all := b.takePorts()
		var fresh []spec.Port
		for i, p := range want {
			if slices.Contains(want[:i], p) {
				continue
			}
			there := false
			for _, q := range all {
				if !q.is(p) {
					continue
				}
				if q.parked { // say why
					_, err := hostAddresses(p, b.facts.Networks[b.gateway()])
					return err
				}
				published, there = append(published, q.have), true
			}
			if !there {
				fresh = append(fresh, p)
			}
		}
		request := b.s
		request.Ports = slices.Concat(requested(all), fresh)
		if err := request.Validate(); err != nil {
			return err
		}
		got, asked, err := b.ports(fresh)
		if err != nil {
			return err
		}
		for i := range got {
			all = append(all, publication{asked: asked[i], have: got[i]})
		}
		published = append(published, got...)
		b.putPorts(all)
		return nil
	})
	return published, err
}

// requested are the requests that all came from.
func requested(all []publication) []spec.Port {
	var out []spec.Port
	for i, p := range all {
		if i == 0 || !all[i-1].together(p) {
			out = append(out, p.asked)
		}
	}
	return out
}

// is reports whether a request names the publication, by what it was asked for
// as or by what it is.
func (p publication) is(r spec.Port) bool {
	asked := p.asked
	if p.have.HostIP.IsUnspecified() {
		if !asked.HostIP.IsValid() {
			asked.HostIP = p.have.HostIP
		}
		if !r.HostIP.IsValid() {
			r.HostIP = p.have.HostIP
		}
	}
	return r == asked || r == p.have
}

// RemovePorts takes ports back, named as they were asked for or, without the
// host's side, by the sandbox's port alone. What is not published is no error.
func (m *Manager) RemovePorts(ctx context.Context, ref string, gone []spec.Port) error {
	return m.change(ctx, ref, func(b *build) error {
		var left, taken []publication
		for _, p := range b.takePorts() {
			meant := func(g spec.Port) bool {
				any := g.HostPort == 0 && (g.HostIP == p.have.HostIP || !g.HostIP.IsValid() || g.HostIP.IsUnspecified())
				return p.is(g) || any && g.Port == p.have.Port && g.Proto == p.have.Proto
			}
			if slices.ContainsFunc(gone, meant) {
				taken = append(taken, p)
			} else {
				left = append(left, p)
			}
		}
		for i, p := range left {
			if slices.ContainsFunc(taken, p.together) { // from now on it is of one family
				left[i].asked.HostIP = p.have.HostIP
			}
		}
		b.putPorts(left)
		return nil
	})
}
