package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

// maxPortAddrs is how many addresses can be reserved on one port.
const maxPortAddrs = 8

// portKey and portValue are the map's entries, as the programs read them.
// Ports are as in struct bpf_sock_addr: in network order in the first two bytes.
type portKey struct {
	Cookie uint64
	Port   uint32
	Proto  uint32
}

type portValue struct {
	N uint32
	// Netns is the inode number of the namespace: with the cookie, it makes the
	// file handle by which sweep asks whether there still is such a namespace.
	Netns uint32
	// LoFlags, LoPort and LoAddr are what ::1 translates to, worked out from the
	// slots; LoPort is 0 if nothing does.
	LoFlags uint32
	LoPort  uint32
	LoAddr  [16]byte
	Slots   [maxPortAddrs]portSlot
}

// portSlot is one reserved address, its target, and whose it is, which the
// programs do not look at. IPv4 is ::ffff:a.b.c.d.
type portSlot struct {
	Addr   [16]byte
	To     [16]byte
	ToPort uint32
	Owner  uint32
}

// Bits of LoFlags.
const (
	loIPv4   = 1 << iota // LoAddr is an IPv4 address
	loShared             // ::1 itself is not reserved: a server that was there before goes on
)

func (v *portValue) index(addr [16]byte) int {
	return slices.IndexFunc(v.Slots[:v.N], func(s portSlot) bool { return s.Addr == addr })
}

// put reports whether it had to change something. What another owner has
// cannot be had.
func (v *portValue) put(s portSlot) (bool, error) {
	i := v.index(s.Addr)
	switch {
	case i >= 0 && v.Slots[i] == s:
		return false, nil
	case i >= 0 && v.Slots[i].Owner != s.Owner:
		return false, fmt.Errorf("it is reserved for another sandbox: %w", unix.EADDRINUSE)
	case i < 0 && v.N == maxPortAddrs:
		return false, fmt.Errorf("%d addresses are reserved on this port already", maxPortAddrs)
	case i < 0:
		i = int(v.N)
		v.N++
	}
	v.Slots[i] = s
	v.aim()
	return true, nil
}

// remove reports whether addr was owner's.
func (v *portValue) remove(addr [16]byte, owner uint32) bool {
	i := v.index(addr)
	if i < 0 || v.Slots[i].Owner != owner {
		return false
	}
	v.N--
	v.Slots[i], v.Slots[v.N] = v.Slots[v.N], portSlot{}
	v.aim()
	return true
}

// aim works out where ::1 goes: the reservation that says most about it decides.
func (v *portValue) aim() {
	v.LoFlags, v.LoPort, v.LoAddr = 0, 0, [16]byte{}
	for _, addr := range []netip.Addr{netip.IPv6Loopback(), netip.IPv6Unspecified(), netip.IPv4Unspecified()} {
		i := v.index(addr.As16())
		if i < 0 {
			continue
		}
		s := v.Slots[i]
		v.LoPort, v.LoAddr = s.ToPort, s.To
		if netip.AddrFrom16(s.To).Is4In6() {
			v.LoFlags |= loIPv4
		}
		if addr.Is4() {
			v.LoFlags |= loShared
		}
		return
	}
}

// wirePort is a port as struct bpf_sock_addr has it.
func wirePort(port uint16) uint32 {
	return uint32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port)))
}

func hostOrder(wire uint32) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, uint16(wire)))
}

func keyOf(cookie uint64, p plan.HostPort) (portKey, error) {
	proto, err := protoNumber(p.Proto)
	if err != nil {
		return portKey{}, fmt.Errorf("%s: %w", p.Key(), err)
	}
	return portKey{cookie, wirePort(p.Port), proto}, nil
}

func slotOf(p plan.HostPort) portSlot {
	s := portSlot{Addr: p.IP.As16(), Owner: p.Owner}
	if p.To.IsValid() {
		s.To, s.ToPort = p.To.Addr().As16(), wirePort(p.To.Port())
	}
	return s
}

func (k portKey) hostPort(s portSlot) plan.HostPort {
	p := plan.HostPort{
		Proto: formatProto([]byte{byte(k.Proto)}), IP: netip.AddrFrom16(s.Addr).Unmap(), Port: hostOrder(k.Port), Owner: s.Owner,
	}
	if s.ToPort != 0 {
		p.To = netip.AddrPortFrom(netip.AddrFrom16(s.To).Unmap(), hostOrder(s.ToPort))
	}
	return p
}

func (k portKey) String() string {
	return fmt.Sprintf("%s port %d", formatProto([]byte{byte(k.Proto)}), hostOrder(k.Port))
}

func protoNumber(name string) (uint32, error) {
	b, err := parseProto(name)
	if err != nil {
		return 0, err
	}
	return uint32(b[0]), nil
}

// portMap is the map of reservations.
type portMap struct {
	call bpfCall
	fd   int
}

// lookup gives ENOENT for a key that is not there.
func (m portMap) lookup(k portKey) (v portValue, err error) {
	err = m.call.elem(unix.BPF_MAP_LOOKUP_ELEM, m.fd, unsafe.Pointer(&k), unsafe.Pointer(&v), 0)
	return v, err
}

// update writes an entry if flags allow it: BPF_ANY, BPF_NOEXIST or BPF_EXIST.
func (m portMap) update(k portKey, v portValue, flags uint64) error {
	return m.call.elem(unix.BPF_MAP_UPDATE_ELEM, m.fd, unsafe.Pointer(&k), unsafe.Pointer(&v), flags)
}

func (m portMap) delete(k portKey) error {
	return m.call.elem(unix.BPF_MAP_DELETE_ELEM, m.fd, unsafe.Pointer(&k), nil, 0)
}

// keys lists the map. What is added or removed meanwhile may be missed, or
// seen twice.
func (m portMap) keys() (keys []portKey, err error) {
	var last *portKey
	for {
		var next portKey
		err := m.call.elem(unix.BPF_MAP_GET_NEXT_KEY, m.fd, unsafe.Pointer(last), unsafe.Pointer(&next), 0)
		switch {
		case errors.Is(err, unix.ENOENT):
			return keys, nil
		case err != nil:
			return keys, fmt.Errorf("read BPF map %s: %w", portMapName, err)
		case len(keys) > 2*maxHostPorts:
			return keys, nil // others delete what the kernel goes on from, and it starts again
		}
		keys, last = append(keys, next), &next
	}
}
