package sandbox

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Create makes a sandbox. Whatever fails, nothing of it is left.
func (m *Manager) Create(ctx context.Context, s spec.Sandbox) (View, error) {
	m.prepare(s)
	if err := m.begin(ctx); err != nil {
		return View{}, err
	}
	return m.create(ctx, s)
}

// prepare starts what takes longest and depends on nothing.
func (m *Manager) prepare(s spec.Sandbox) {
	if m.paths.isRoot() && s.Adopt == "" && (s.Mode == spec.ModeBridge || s.Mode == spec.ModeNone) {
		m.host.PrepareNetns()
	}
}

func (m *Manager) create(ctx context.Context, s spec.Sandbox) (v View, err error) {
	if err := identify(&s); err != nil {
		return View{}, err
	}
	err = m.withFirewall(ctx, func() (err error) {
		v, err = m.createOnce(ctx, s)
		return err
	})
	return v, err
}

func (m *Manager) createOnce(ctx context.Context, s spec.Sandbox) (View, error) {
	unlock, host, err := m.lockNew(ctx, s)
	if err != nil {
		return View{}, err
	}
	defer unlock()
	if m.store.Has(ownerPrefix + s.Name) {
		return View{}, duplicate(s.Name)
	}
	if _, err := os.Lstat(m.paths.netns(s.Name)); err == nil && s.Mode != spec.ModeHost && s.Source != spec.SourceCNI {
		return View{}, &spec.InputError{What: "name", Value: s.Name, Why: m.paths.netns(s.Name) + " exists and is not sandnet's",
			Hint: "if it was, and its record is lost, 'sandnet gc' removes it"}
	}
	if link := m.paths.etcLink(s.Name); link != "" {
		// What an earlier boot left of ours points to where its files were.
		if to, err := os.Readlink(link); !errors.Is(err, fs.ErrNotExist) && to != m.paths.etc(s.Name) {
			return View{}, &spec.InputError{What: "name", Value: s.Name, Why: link + " exists and is not sandnet's"}
		}
	}
	if err := m.store.Begin(ownerPrefix + s.Name); err != nil {
		return View{}, err
	}
	b := &build{m: m, s: s, joined: host}
	defer b.release()
	if err := b.gather(ctx); err != nil {
		return View{}, errors.Join(err, m.dropSandbox(context.WithoutCancel(ctx), s.Name))
	}
	p, err := b.plan()
	if err == nil {
		_, err = m.engine.Apply(ctx, p)
	}
	if err != nil {
		return View{}, errors.Join(err, m.dropSandbox(context.WithoutCancel(ctx), s.Name))
	}
	return m.view(b.meta), nil
}

func duplicate(name string) error {
	return &spec.InputError{What: "name", Value: name, Why: "there is a sandbox of that name",
		Hint: "remove it with 'sandnet rm " + name + "', or choose another name"}
}

// identify gives the sandbox its ID, and a name if the user chose none.
func identify(s *spec.Sandbox) error {
	if s.ID == "" {
		var b [32]byte
		// crypto/rand is the same behind 50 µs of preparation.
		if n, err := unix.Getrandom(b[:], 0); n != len(b) {
			return fmt.Errorf("random ID: %w", err)
		}
		s.ID = hex.EncodeToString(b[:])
	}
	if s.Name == "" {
		s.Name = s.ID[:12]
	}
	return nil
}

// build collects what one new sandbox gets.
type build struct {
	m     *Manager
	s     spec.Sandbox
	meta  meta
	facts spec.Facts
	held  []func()
	// joined is the sandbox that is locked for being joined.
	joined string
	// dry allocates nothing: addresses and ports are what would be next.
	dry bool
}

// release lets go of the sockets that kept the published ports free for us.
func (b *build) release() {
	for _, f := range b.held {
		f()
	}
}

// gather checks the request against the host and then allocates: whatever is
// wrong with the request is found before anything is changed.
func (b *build) gather(ctx context.Context) error {
	m, s := b.m, b.s
	b.facts = m.facts(s)
	b.facts.HostResolv = hostResolv()
	b.meta = meta{Spec: s, Netns: b.facts.Netns, Created: time.Now().UTC().Truncate(time.Millisecond)}
	if err := b.adopt(); err != nil {
		return err
	}
	switch s.Mode {
	case spec.ModeHost:
		b.meta.Netns = ""
		return nil
	case spec.ModeContainer:
		if err := b.join(); err != nil {
			return err
		}
		return b.joins()
	case spec.ModeNone:
		return nil
	}
	b.facts.Networks = make([]spec.Network, len(s.Attach))
	for i, a := range s.Attach {
		n, _, err := m.findNetwork(a.Network)
		var missing *NotFoundError
		if errors.As(err, &missing) {
			return &spec.InputError{What: "network", Value: a.Network, Why: "there is no such network",
				Hint: "make it with 'sandnet network create " + a.Network + "', or see 'sandnet network ls'"}
		}
		if err != nil {
			return err
		}
		b.facts.Networks[i] = n
	}
	ports, asked, err := b.ports(s.Ports)
	if err != nil {
		return err
	}
	b.meta.Spec.Ports = asked
	for i, a := range s.Attach {
		ep, err := b.endpoint(ctx, i, a)
		if err != nil {
			return err
		}
		b.facts.Endpoints = append(b.facts.Endpoints, ep)
	}
	b.facts.Endpoints[b.gateway()].Ports = ports
	b.meta.Endpoints = b.facts.Endpoints
	if b.dry {
		return nil
	}
	for _, n := range b.facts.Networks {
		if err := m.realize(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// facts are those that follow from the request alone.
func (m *Manager) facts(s spec.Sandbox) spec.Facts {
	f := spec.Facts{
		Netns: m.paths.netns(s.Name), EtcDir: m.paths.etc(s.Name), EtcLink: m.paths.etcLink(s.Name), HostsDir: m.paths.hosts(),
		IndexPath: filepath.Join(m.paths.ids(), s.ID), Mark: m.paths.Mark,
	}
	if s.Mode == spec.ModeBridge || s.Mode == spec.ModeNone {
		f.JoinPath = s.Adopt
	}
	if s.Source == spec.SourceCNI { // the runtime has it pinned
		f.Netns, f.EtcLink = s.Adopt, ""
	}
	return f
}

// gateway is the endpoint that has the published ports: the one with the
// default gateway, where answers leave; without any, the first that the host
// itself is on.
func (b *build) gateway() int {
	for _, ipv6 := range []bool{false, true} {
		if i := spec.Gateway(b.s.Attach, b.facts.Networks, ipv6); i >= 0 {
			return i
		}
	}
	return max(0, slices.IndexFunc(b.facts.Networks, func(n spec.Network) bool { return n.GatewayMode != spec.GatewayIsolated }))
}

// endpoint allocates the sandbox's place on its i-th network.
func (b *build) endpoint(ctx context.Context, i int, a spec.Attachment) (spec.Endpoint, error) {
	n := b.facts.Networks[i]
	pool := OpenPool(b.m.paths.ipam(n.Name), n)
	allocate := pool.Allocate
	if b.dry {
		allocate = pool.Peek
	}
	ep := spec.Endpoint{
		Network: n.Name, Interface: cmp.Or(a.Interface, "eth"+strconv.Itoa(i)), HostInterface: hostInterface(b.s.ID, i),
		MAC: a.MAC, MTU: b.s.MTU, Aliases: a.Aliases, Ports: []spec.Port{}, Gateways: n.Gateways,
	}
	if ep.MTU == 0 {
		ep.MTU = n.MTU
	} else if err := spec.CheckMTU(ep.MTU, n.HasIPv6()); err != nil {
		return ep, err
	}
	ips, err := allocate(ctx, b.s.Name, a.IP, a.IP6)
	if err != nil {
		return ep, err
	}
	for k, ip := range ips {
		ep.Addresses = append(ep.Addresses, netip.PrefixFrom(ip, n.Subnets[k].Bits()))
	}
	if ep.MAC == "" {
		ep.MAC = spec.MAC(ips[0])
	}
	if ep.Aliases == nil {
		ep.Aliases = []string{}
	}
	return ep, nil
}

// hostInterface is "sv", 11 digits of the ID and the endpoint's number:
// within the 15 characters of an interface name.
func hostInterface(id string, i int) string {
	return spec.VethPrefix + id[:11] + strconv.FormatInt(int64(i), 36)
}

// ports finds the host ports and keeps each bound until the kernel has its
// reservation, so that nobody slips in between. A port without a host address
// is published, under one number, in each family that the gateway network has.
// asked says for each of them what it was asked for as.
func (b *build) ports(want []spec.Port) (out, asked []spec.Port, err error) {
	out = make([]spec.Port, 0, len(want))
	local := map[netip.Addr]bool{netip.IPv4Unspecified(): true, netip.IPv6Unspecified(): true}
	for _, p := range want {
		hosts, err := hostAddresses(p, b.facts.Networks[b.gateway()])
		if err != nil {
			return nil, nil, err
		}
		if !local[hosts[0]] {
			ok, err := b.m.host.HasAddr(p.HostIP)
			if err != nil {
				return nil, nil, err
			}
			if !ok {
				return nil, nil, &spec.InputError{What: "published port", Value: p.String(), Why: p.HostIP.String() + " is not an address of this host"}
			}
			local[p.HostIP] = true
		}
		port, err := b.port(p, hosts)
		if err != nil {
			return nil, nil, err
		}
		got := p
		got.HostPort, got.HostPortEnd = port, 0
		for _, got.HostIP = range hosts {
			out, asked = append(out, got), append(asked, p)
		}
	}
	return out, asked, nil
}

// port finds a host port for p that is free on all the addresses: the one it
// names, one of its range, or an ephemeral one.
func (b *build) port(p spec.Port, hosts []netip.Addr) (uint16, error) {
	first, last := p.HostPort, max(p.HostPort, p.HostPortEnd)
	start := 0
	if p.HostPort == 0 {
		first, last = ephemeralRange()
		start = int(time.Now().UnixNano() / 1000) // not always the lowest
	}
	n := int(last-first) + 1
	for i := range n {
		port := first + uint16((start+i)%n)
		err := b.hold(p, hosts, port)
		if err == nil {
			return port, nil
		}
		if b.m.unprivileged(err) {
			return port, nil // below 1024; only root can tell
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return 0, fmt.Errorf("published port %s: %w", p, err)
		}
	}
	why := fmt.Sprintf("all host ports from %d to %d are in use", first, last)
	if n == 1 {
		why = "the host port is in use" + b.m.publisher(p)
	}
	return 0, &spec.InputError{What: "published port", Value: p.String(), Why: why}
}

// publisher names the sandbox that has a host port, if it is one of ours.
func (m *Manager) publisher(p spec.Port) string {
	all, err := m.all()
	if err != nil {
		return ""
	}
	for _, md := range all {
		for _, ep := range md.Endpoints {
			for _, q := range ep.Ports {
				if q.Overlaps(p) {
					return " by sandbox " + md.Spec.Name
				}
			}
		}
	}
	return ""
}

// ephemeralRange lies above the ports that the host itself hands out to
// clients: those are chosen without bind(2), which a reservation would see.
func ephemeralRange() (first, last uint16) {
	b, _ := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	return portsAbove(string(b))
}

// portsAbove lies above the range in a text like "32768 60999".
func portsAbove(text string) (first, last uint16) {
	first, last = 49153, 65535
	f := strings.Fields(text)
	if len(f) == 2 {
		if high, err := strconv.ParseUint(f[1], 10, 16); err == nil && high >= 49152 && high < 65000 {
			first = uint16(high) + 1
		}
	}
	return first, last
}

// hostResolv is the host's resolv.conf; where that only names systemd's stub,
// which is on a loopback address, the file behind it.
func hostResolv() string {
	b, _ := os.ReadFile("/etc/resolv.conf")
	if strings.Contains(string(b), "nameserver 127.0.0.53") {
		if real, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
			return string(real)
		}
	}
	return string(b)
}

func (b *build) plan() (plan.Plan, error) {
	mode, ok := b.m.modes[string(b.s.Mode)]
	if !ok {
		return plan.Plan{}, fmt.Errorf("no mode %q", b.s.Mode)
	}
	p, err := mode.Plan(b.s, b.facts)
	if err != nil {
		return p, err
	}
	p.Owner = ownerPrefix + b.s.Name
	p.Meta, err = plan.AppendJSON(nil, b.meta)
	return p, err
}

// Plan is what Create would do, as plans of the host, the networks and the
// sandbox, without what exists already. It needs no rights and changes nothing.
func (m *Manager) Plan(ctx context.Context, s spec.Sandbox) ([]plan.Plan, error) {
	if err := identify(&s); err != nil {
		return nil, err
	}
	if m.store.Has(ownerPrefix + s.Name) {
		return nil, duplicate(s.Name)
	}
	b := &build{m: m, s: s, dry: true}
	defer b.release()
	if err := b.gather(ctx); err != nil {
		return nil, err
	}
	p, err := b.plan()
	if err != nil {
		return nil, err
	}
	var plans []plan.Plan
	if len(b.facts.Networks) > 0 && !m.store.Has("host") {
		host, _, err := m.hostPlan()
		if err != nil {
			return nil, err
		}
		plans = append(plans, host)
	}
	if slices.ContainsFunc(b.facts.Networks, spec.Network.HasIPv6) && !m.store.Has(forward6) {
		shared, err := m.forward6Plan()
		if err != nil {
			return nil, err
		}
		plans = append(plans, shared)
	}
	for _, n := range b.facts.Networks {
		if !m.store.Has(networkOwner(n.Name)) {
			plans = append(plans, m.nets.Network(n, m.paths.Mark))
		}
	}
	return append(plans, p), nil
}

// Remove removes a sandbox. One whose command runs, or that others have
// joined, is removed only by force; its processes are killed then.
func (m *Manager) Remove(ctx context.Context, ref string, force bool) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	name, err := m.resolve(ref)
	if err != nil {
		return err
	}
	return m.remove(ctx, name, force)
}

func (m *Manager) remove(ctx context.Context, name string, force bool) error {
	unlock, err := m.lock(ctx, ownerPrefix+name)
	if err != nil {
		return err
	}
	defer unlock()
	md, _, err := m.load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return &NotFoundError{"sandbox", name}
	}
	if err != nil {
		return err
	}
	joined, err := os.ReadDir(m.paths.joined(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case force:
	case m.running(md):
		return &HintError{fmt.Errorf("sandbox %s is running", name), "stop its command first, or use 'sandnet rm -f " + name + "'"}
	case len(joined) > 0:
		return &HintError{fmt.Errorf("sandbox %s is joined by %s", name, joined[0].Name()), "remove that first, or use 'sandnet rm -f " + name + "'"}
	}
	if err := m.store.Begin(ownerPrefix + name); err != nil {
		return err
	}
	if force {
		if err := m.killAll(md); err != nil {
			return err
		}
	}
	return m.dropSandbox(ctx, name)
}
