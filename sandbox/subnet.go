package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sandnet/sandnet/internal/spec"
)

// SubnetPool is a range to take subnets from, each /Bits.
type SubnetPool struct {
	Base netip.Prefix
	Bits int
}

// ErrNoSubnet says that all pools are used up.
var ErrNoSubnet = errors.New("no free subnet")

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
		if t.IsValid() && t.Addr().Is4() && t.Bits() > 1 {
			spans = append(spans, span{number(t.Masked().Addr()), number(spec.LastAddr(t))})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return int(int64(a.first) - int64(b.first)) })
	for _, p := range pools {
		size := uint64(1) << (32 - p.Bits)
		// at only grows, so that one pass over the spans does.
		at, end := number(p.Base.Masked().Addr()), number(spec.LastAddr(p.Base))
		for _, s := range spans {
			if s.first <= at+size-1 && s.last >= at {
				at = (s.last/size + 1) * size
			}
		}
		if at+size-1 <= end {
			return netip.PrefixFrom(address(at), p.Bits), nil
		}
	}
	return netip.Prefix{}, &HintError{fmt.Errorf("%w: all %d pools overlap other networks or routes of the host", ErrNoSubnet, len(pools)),
		"choose a subnet yourself with --subnet"}
}
