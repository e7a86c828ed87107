package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// Host ports are reserved by two BPF programs on the root cgroup (see
// hostport_bpf.go) that refuse bind(2) for what is in one machine-wide map.
// No process holds anything and nothing is pinned: the cgroup holds the
// programs, they hold the map, and all go when the last reservation does.
//
// A network namespace is known by its cookie, which is never used twice. When
// one disappears with reservations, these can hit nobody any more, but cannot
// be told from live ones either: they stay until reboot, 160 bytes each.
//
// SCTP has a bind(2) of its own that the kernel does not offer to BPF:
// its reservations are recorded, but not enforced.

// maxPortAddrs is how many addresses can be reserved on one port.
const maxPortAddrs = 8

// portKey and portValue are the map's entries, as the programs read them. Port
// is in network order in the first two bytes, as in struct bpf_sock_addr.
type portKey struct {
	Cookie uint64
	Port   uint32
	Proto  uint32
}

type portValue struct {
	N     uint32
	_     uint32
	Addrs [maxPortAddrs][16]byte // IPv4 as ::ffff:a.b.c.d
}

func (v *portValue) index(a [16]byte) int { return slices.Index(v.Addrs[:v.N], a) }

// add reports whether a is new.
func (v *portValue) add(a [16]byte) (bool, error) {
	if v.index(a) >= 0 {
		return false, nil
	}
	if v.N == maxPortAddrs {
		return false, fmt.Errorf("%d addresses are reserved on this port already", maxPortAddrs)
	}
	v.Addrs[v.N] = a
	v.N++
	return true, nil
}

func (v *portValue) remove(a [16]byte) bool {
	i := v.index(a)
	if i < 0 {
		return false
	}
	v.N--
	v.Addrs[i], v.Addrs[v.N] = v.Addrs[v.N], [16]byte{}
	return true
}

func keyOf(cookie uint64, p plan.HostPort) (portKey, error) {
	proto, err := protoNumber(p.Proto)
	wire := binary.BigEndian.AppendUint16(nil, p.Port)
	return portKey{cookie, uint32(binary.NativeEndian.Uint16(wire)), proto}, err
}

func protoNumber(name string) (uint32, error) {
	b, err := parseProto(name)
	if err != nil {
		return 0, err
	}
	return uint32(b[0]), nil
}

// ensureHostPorts reserves ports in the calling thread's namespace.
func ensureHostPorts(ports []plan.HostPort) (changed int, err error) {
	if len(ports) == 0 {
		return 0, nil
	}
	cookie, err := netnsCookie()
	if err != nil {
		return 0, err
	}
	var keys []portKey
	var values []portValue
	at := map[portKey]int{}
	for _, p := range ports {
		key, err := keyOf(cookie, p)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", p.Key(), err)
		}
		i, ok := at[key]
		if !ok {
			i = len(keys)
			at[key] = i
			keys, values = append(keys, key), append(values, portValue{})
		}
		if _, err := values[i].add(p.IP.As16()); err != nil {
			return 0, fmt.Errorf("%s: %w", p.Key(), err)
		}
	}
	h, err := openHooks()
	if err != nil {
		return 0, err
	}
	defer h.close()
	m, err := h.attached()
	if err != nil {
		return 0, err
	}
	defer m.Close()
	for i, key := range keys {
		n, err := reserve(m, key, values[i])
		changed += n
		if err != nil {
			return changed, fmt.Errorf("reserve %s: %w", portName(key), err)
		}
	}
	return changed, nil
}

// reserve adds a value under a key that is usually new.
func reserve(m *ebpf.Map, key portKey, v portValue) (added int, err error) {
	crash.Point("host port add")
	err = m.Update(key, v, ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return merge(m, key, v)
	}
	return int(v.N), err
}

// merge adds to an existing entry what it lacks of v.
func merge(m *ebpf.Map, key portKey, v portValue) (added int, err error) {
	var have portValue
	if err := m.Lookup(key, &have); err != nil {
		return 0, err
	}
	for _, a := range v.Addrs[:v.N] {
		isNew, err := have.add(a)
		if err != nil {
			return 0, err
		}
		if isNew {
			added++
		}
	}
	if added == 0 {
		return 0, nil
	}
	crash.Point("host port update")
	return added, m.Update(key, have, ebpf.UpdateAny)
}

// deleteHostPorts gives ports up; those not reserved are given up already.
func deleteHostPorts(ports []plan.HostPort) error {
	if len(ports) == 0 {
		return nil
	}
	cookie, err := netnsCookie()
	if err != nil {
		return err
	}
	h, err := openHooks()
	if err != nil {
		return err
	}
	defer h.close()
	m, err := h.find()
	if err != nil {
		return err
	}
	if m == nil {
		return nil
	}
	defer m.Close()
	var errs []error
	for _, p := range ports {
		if err := release(m, cookie, p); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.Key(), err))
		}
	}
	return errors.Join(errs...)
}

// dropBindGuard takes the programs away unless another host on the machine, in
// another network namespace, has ports reserved.
func dropBindGuard() error {
	h, err := openHooks()
	if err != nil {
		return err
	}
	defer h.close()
	m, err := h.find()
	if err != nil {
		return err
	}
	if m != nil {
		defer m.Close()
		var other portKey
		if err := m.NextKey(nil, &other); !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return h.detach() // also of what a crash left half attached
}

func release(m *ebpf.Map, cookie uint64, p plan.HostPort) error {
	key, err := keyOf(cookie, p)
	if err != nil {
		return err
	}
	var v portValue
	err = m.Lookup(key, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && !v.remove(p.IP.As16()) {
		return nil
	}
	if err != nil {
		return err
	}
	crash.Point("host port delete")
	if v.N > 0 {
		return m.Update(key, v, ebpf.UpdateExist)
	}
	return m.Delete(key)
}

// ownedHostPorts lists the reservations in the calling thread's namespace.
func ownedHostPorts() ([]plan.HostPort, error) {
	cookie, err := netnsCookie()
	if err != nil {
		return nil, err
	}
	h, err := openHooks()
	if err != nil {
		return nil, err
	}
	defer h.close()
	m, err := h.find()
	if m == nil {
		return nil, err
	}
	defer m.Close()
	var ports []plan.HostPort
	var key portKey
	var v portValue
	for all := m.Iterate(); ; {
		if !all.Next(&key, &v) {
			return ports, all.Err()
		}
		if key.Cookie != cookie {
			continue
		}
		for _, a := range v.Addrs[:v.N] {
			ports = append(ports, plan.HostPort{
				Proto: formatProto([]byte{byte(key.Proto)}), IP: netip.AddrFrom16(a).Unmap(), Port: key.port(),
			})
		}
	}
}

func (k portKey) port() uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, uint16(k.Port)))
}

func portName(k portKey) string {
	return fmt.Sprintf("%s port %d", formatProto([]byte{byte(k.Proto)}), k.port())
}

// netnsCookie identifies the calling thread's network namespace.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("kernel lacks network namespace cookies (Linux 5.14): %w", err)
	}
	return cookie, nil
}

// ProbePort binds a host port as a server would, and keeps it until release is
// called: an error of EADDRINUSE says that it is taken, by a process or by a
// reservation; EADDRNOTAVAIL that the host does not have the address. Held
// until the reservation stands, it leaves no gap for others.
func ProbePort(proto string, ip netip.Addr, port uint16) (release func(), err error) {
	number, err := protoNumber(proto)
	if err != nil {
		return nil, err
	}
	what := netip.AddrPortFrom(ip, port).String() + "/" + proto
	family, sockType := unix.AF_INET, unix.SOCK_STREAM
	var addr unix.Sockaddr
	if ip = ip.Unmap(); ip.Is4() {
		addr = &unix.SockaddrInet4{Port: int(port), Addr: ip.As4()}
	} else {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port), Addr: ip.As16()}
	}
	if number == unix.IPPROTO_UDP {
		sockType = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, sockType|unix.SOCK_CLOEXEC, int(number))
	if number == unix.IPPROTO_SCTP && (errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT)) {
		return func() {}, nil // without SCTP on the host nobody can hold the port
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, os.NewSyscallError("socket", err))
	}
	if family == unix.AF_INET6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	err = unix.Bind(fd, addr)
	if errors.Is(err, unix.EADDRINUSE) && number == unix.IPPROTO_TCP {
		// Connections in TIME_WAIT hold nobody up but a bind without this option;
		// a listener holds it up with it, too.
		if e := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); e == nil {
			err = unix.Bind(fd, addr)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", what, os.NewSyscallError("bind", err))
	}
	return func() { unix.Close(fd) }, nil
}
