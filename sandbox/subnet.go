package sandbox

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/spec"
)

// SubnetPool is a range to take subnets from, each /Bits.
type SubnetPool struct {
	Base netip.Prefix
	Bits int
}

// DefaultPools are the pools of the default network: one /16 that can be
// relied on, and others for hosts that use it already. The overlay (10.42.0.0/16)
// and its services (10.43.0.0/16) are left alone.
func DefaultPools() []SubnetPool {
	return []SubnetPool{pool("172.30.0.0/16", 16), pool("172.31.0.0/16", 16), pool("10.44.0.0/14", 16), pool("10.160.0.0/11", 16)}
}

// UserPools are the pools of user-defined networks: 8,960 subnets of 253
// sandboxes. 10.160.0.0/11 is clear of what clusters use by default (10.42,
// 10.43, 10.96, 10.128, 10.244); 192.168.0.0/16 comes last, since offices and
// homes have it beyond the routes that a host can see.
func UserPools() []SubnetPool {
	return []SubnetPool{pool("172.29.0.0/16", 24), pool("172.28.0.0/16", 24), pool("10.160.0.0/11", 24), pool("192.168.0.0/16", 24)}
}

func pool(base string, bits int) SubnetPool { return SubnetPool{netip.MustParsePrefix(base), bits} }

// PickSubnet returns the first subnet of the pools that overlaps none of the
// taken prefixes. A default route takes nothing, not even in the two halves
// that VPN clients make of it. Its error wraps ErrNoSubnet.
func PickSubnet(pools []SubnetPool, taken []netip.Prefix) (netip.Prefix, error) {
	type span struct{ first, last uint64 }
	var spans []span
	for _, t := range taken {
		if t.IsValid() && t.Addr().Is4() == pools[0].Base.Addr().Is4() && t.Bits() > 1 {
			spans = append(spans, span{number(t.Masked().Addr()), number(spec.LastAddr(t))})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	for _, p := range pools {
		size := uint64(1) << (min(p.Base.Addr().BitLen(), 64) - p.Bits)
		// at only grows, so that one pass over the spans does.
		at, end := number(p.Base.Masked().Addr()), number(spec.LastAddr(p.Base))
		for _, s := range spans {
			if s.first <= at+size-1 && s.last >= at {
				at = (s.last/size + 1) * size
			}
		}
		if at+size-1 <= end {
			return netip.PrefixFrom(numbered(at, p.Base.Addr().Is4()), p.Bits), nil
		}
	}
	return netip.Prefix{}, &HintError{fmt.Errorf("%w: all %d pools overlap other networks or routes of the host", ErrNoSubnet, len(pools)),
		"choose a subnet yourself with --subnet"}
}

// number is an address as PickSubnet counts: an IPv4 address, or the first
// half of an IPv6 address, since no subnet is chosen that is smaller than a /64.
func number(a netip.Addr) uint64 {
	b := a.AsSlice()
	if a.Is4() {
		return uint64(binary.BigEndian.Uint32(b))
	}
	return binary.BigEndian.Uint64(b)
}

func numbered(n uint64, is4 bool) netip.Addr {
	var b [16]byte
	if is4 {
		binary.BigEndian.PutUint32(b[:4], uint32(n))
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	binary.BigEndian.PutUint64(b[:8], n)
	return netip.AddrFrom16(b)
}

// chooseSubnets fills in the subnets that n is to have and has not, and the
// gateways.
func (m *Manager) chooseSubnets(n spec.Network, taken []netip.Prefix) (spec.Network, error) {
	if n.IPv6 || n.HasIPv6() {
		if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
			return n, &HintError{fmt.Errorf("network %s: the host's kernel has no IPv6: %w", n.Name, err), "boot without ipv6.disable=1, or make a network of IPv4 alone"}
		}
	}
	if !n.HasIPv4() && (n.IPv6 || len(n.Subnets) == 0) {
		pools := UserPools()
		if n.Name == spec.DefaultNetwork {
			pools = DefaultPools()
		}
		free, err := PickSubnet(pools, taken)
		if err != nil {
			return n, err
		}
		n.Subnets = append([]netip.Prefix{free}, n.Subnets...)
		n.Gateways = append([]netip.Addr{spec.FirstHost(free)}, n.Gateways...)
	}
	if !n.HasIPv6() && n.IPv6 {
		base, err := m.localPrefix()
		if err != nil {
			return n, err
		}
		free, err := PickSubnet([]SubnetPool{{base, 64}}, taken)
		if err != nil {
			return n, err
		}
		n.Subnets = append(n.Subnets, free)
		n.Gateways = append(n.Gateways, spec.FirstHost(free))
	}
	return n, nil
}

// localPrefix is the /48 of unique local addresses that this host's networks
// have their IPv6 subnets from (RFC 4193): fd and 40 random bits, drawn with
// the first such network and kept, so that a network that is made again is
// likely to get its old subnet.
func (m *Manager) localPrefix() (netip.Prefix, error) {
	path := m.paths.localPrefix()
	b, err := os.ReadFile(path)
	if err == nil && len(b) > 0 {
		p, err := netip.ParsePrefix(strings.TrimSpace(string(b)))
		if err != nil || p.Bits() != 48 || p.Masked() != p || !uniqueLocal().Contains(p.Addr()) {
			return p, &HintError{fmt.Errorf("%s: %q is no /48 in %s", path, b, uniqueLocal()), "remove the file; the next network draws another prefix"}
		}
		return p, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return netip.Prefix{}, err
	}
	id := [16]byte{0: 0xfd}
	if n, err := unix.Getrandom(id[1:6], 0); n != 5 {
		return netip.Prefix{}, fmt.Errorf("getrandom: %w", err)
	}
	p := netip.PrefixFrom(netip.AddrFrom16(id), 48)
	if err := os.MkdirAll(m.paths.Lib, 0o700); err != nil {
		return p, err
	}
	// In place, under the host's lock: what is killed leaves an empty file, not
	// one of another name.
	crash.Point("local prefix create")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return p, err
	}
	crash.Point("local prefix write")
	_, err = fmt.Fprintln(f, p)
	return p, errors.Join(err, f.Sync(), f.Close())
}

// uniqueLocal are the addresses whose prefix a host may draw itself.
func uniqueLocal() netip.Prefix { return netip.MustParsePrefix("fd00::/8") }
