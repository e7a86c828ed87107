package sandbox

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/spec"
)

// The reasons for an error that callers may look for.
var (
	ErrAddressInUse = errors.New("address in use")
	ErrPoolFull     = errors.New("no free address")
	// ErrNoSubnet says that all pools of subnets are used up.
	ErrNoSubnet = errors.New("no free subnet")
)

// Pool hands out the IPv4 addresses of one network. Each address in use is a
// symbolic link in the pool's directory, named by the address, with its owner
// as the target: symlink(2) makes both at once, or fails if the address is
// taken. Any number of processes may use the directory at once.
//
// Addresses are handed out next-fit: one that was released comes up again only
// after all others, since its last holder may still be in some cache, or dying.
type Pool struct {
	dir string
	net spec.Network
}

// Allocation is an address in use.
type Allocation struct {
	Addr  netip.Addr
	Owner string
}

const (
	// lastFile has the address handed out last. Lost or stale it costs only
	// the order.
	lastFile = "last"
	// maxProbes is how many addresses in a row are tried one by one before the
	// directory is read.
	maxProbes = 64
	// lockPoll is how often a taken lock is tried again; it is held for some
	// 50 µs.
	lockPoll = 200 * time.Microsecond
)

// OpenPool returns the pool of n's first subnet in dir. It touches nothing
// yet; the directory is made (0700) with the first allocation.
func OpenPool(dir string, n spec.Network) *Pool { return &Pool{dir, n} }

// Allocate takes an address for owner: want, or if that is the zero Addr the
// next free one. Only the latter keeps to the network's range. An address that
// is owner's already counts as taken by it.
//
// Errors are *spec.InputError for an address that the network cannot give, and
// wrap ErrAddressInUse or ErrPoolFull where that is the reason.
func (p *Pool) Allocate(ctx context.Context, owner string, want netip.Addr) (netip.Addr, error) {
	for {
		unlock, err := p.lock(ctx)
		if errors.Is(err, fs.ErrNotExist) {
			crash.Point("ipam directory")
			if err := os.MkdirAll(p.dir, 0o700); err != nil {
				return netip.Addr{}, err
			}
			continue
		}
		if err != nil {
			return netip.Addr{}, err
		}
		a, err := p.choose(want, owner, p.take)
		if err == nil && !want.IsValid() {
			p.setLast(a)
		}
		unlock()
		// The directory went with its network, and that has come back.
		if errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
			continue
		}
		return a, err
	}
}

// Peek is the address that Allocate would take. It changes nothing.
func (p *Pool) Peek(_ context.Context, owner string, want netip.Addr) (netip.Addr, error) {
	return p.choose(want, owner, func(a netip.Addr, owner string) error {
		_, err := os.Lstat(p.path(a))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) { // `sandnet plan` needs no root
			return nil
		}
		return cmp.Or(err, fs.ErrExist)
	})
}

func (p *Pool) path(a netip.Addr) string { return filepath.Join(p.dir, a.String()) }

// take makes the address owner's; fs.ErrExist if it is in use.
func (p *Pool) take(a netip.Addr, owner string) error {
	crash.Point("ipam allocate")
	return os.Symlink(owner, p.path(a))
}

// setLast overwrites the file in place, always with the same length: making it
// anew costs several times as much as the allocation on ext4.
func (p *Pool) setLast(a netip.Addr) {
	crash.Point("ipam last")
	f, err := os.OpenFile(filepath.Join(p.dir, lastFile), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	fmt.Fprintf(f, "%-15s\n", a)
	f.Close()
}

// choose finds an address that take accepts.
func (p *Pool) choose(want netip.Addr, owner string, take func(netip.Addr, string) error) (netip.Addr, error) {
	if owner == "" || len(p.net.Subnets) == 0 || !p.net.Subnets[0].Addr().Is4() {
		return netip.Addr{}, fmt.Errorf("network %s: no owner or no IPv4 subnet to allocate from", p.net.Name)
	}
	if !want.IsValid() {
		return p.next(owner, take)
	}
	if err := p.net.CheckAddress(want); err != nil {
		return netip.Addr{}, err
	}
	for {
		err := take(want, owner)
		if !errors.Is(err, fs.ErrExist) {
			return want, err
		}
		holder, err := os.Readlink(p.path(want))
		if errors.Is(err, fs.ErrNotExist) {
			continue // released just now
		}
		if err != nil || holder == owner {
			return want, err
		}
		return netip.Addr{}, &spec.InputError{What: "IP address", Value: want.String(), Why: "sandbox " + holder + " has it", Err: ErrAddressInUse}
	}
}

// next tries every address of the range once, from the one after the last that
// was handed out.
func (p *Pool) next(owner string, take func(netip.Addr, string) error) (netip.Addr, error) {
	first, count := p.bounds()
	start := uint64(0)
	if b, err := os.ReadFile(filepath.Join(p.dir, lastFile)); err == nil {
		if a, err := netip.ParseAddr(strings.TrimSpace(string(b))); err == nil && a.Is4() && number(a) >= first {
			start = number(a) - first + 1
		}
	}
	var used map[netip.Addr]bool
	size := 0
	for i := range count {
		a := address(first + (start+i)%count)
		if p.net.Reserved(a) {
			continue
		}
		if size++; size == maxProbes {
			var err error
			if used, err = p.used(); err != nil {
				return netip.Addr{}, err
			}
		}
		if used[a] {
			continue
		}
		if err := take(a, owner); !errors.Is(err, fs.ErrExist) {
			return a, err
		}
	}
	why := fmt.Sprintf("all %d addresses of %s are in use", size, p.scope())
	return netip.Addr{}, &spec.InputError{What: "network", Value: p.net.Name, Why: why, Err: ErrPoolFull,
		Hint: "remove a sandbox, or make a larger network with 'sandnet network create --subnet'"}
}

// scope is what addresses are chosen from.
func (p *Pool) scope() netip.Prefix {
	if p.net.Range.IsValid() {
		return p.net.Range
	}
	return p.net.Subnets[0]
}

// bounds are the first and the number of addresses to choose from, without the
// subnet's own and its broadcast address.
func (p *Pool) bounds() (first, count uint64) {
	subnet, scope := p.net.Subnets[0], p.scope()
	first = max(number(scope.Addr()), number(subnet.Addr())+1)
	last := min(number(spec.LastAddr(scope)), number(spec.LastAddr(subnet))-1)
	return first, max(last+1, first) - first
}

// Release gives an address back if it is owner's; else there is nothing to do.
func (p *Pool) Release(owner string, a netip.Addr) error {
	return p.release(owner, func() ([]string, error) { return []string{a.String()}, nil })
}

// ReleaseOwner gives back everything that is owner's. It reads the whole
// directory, for the case that nobody knows what there is.
func (p *Pool) ReleaseOwner(owner string) error { return p.release(owner, p.names) }

// release unlinks those of the names that are owner's. Under the lock nobody
// can be given an address between the look and the unlinking.
func (p *Pool) release(owner string, list func() ([]string, error)) error {
	unlock, err := p.lock(context.Background())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	names, err := list()
	errs := []error{err}
	for _, name := range names {
		path := filepath.Join(p.dir, name)
		holder, err := os.Readlink(path)
		if err == nil && holder == owner {
			crash.Point("ipam release")
			err = os.Remove(path)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// InUse lists the addresses in use, in order.
func (p *Pool) InUse() ([]Allocation, error) {
	names, err := p.names()
	if err != nil {
		return nil, err
	}
	out := make([]Allocation, 0, len(names))
	for _, name := range names {
		owner, err := os.Readlink(filepath.Join(p.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		a, err := netip.ParseAddr(name)
		if err != nil {
			return nil, err
		}
		out = append(out, Allocation{a, owner})
	}
	slices.SortFunc(out, func(a, b Allocation) int { return a.Addr.Compare(b.Addr) })
	return out, nil
}

// used is the set of addresses in use.
func (p *Pool) used() (map[netip.Addr]bool, error) {
	names, err := p.names()
	used := make(map[netip.Addr]bool, len(names))
	for _, name := range names {
		if a, err := netip.ParseAddr(name); err == nil {
			used[a] = true
		}
	}
	return used, err
}

// names are the names of the links in the directory, in no order.
func (p *Pool) names() ([]string, error) {
	d, err := os.Open(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	return slices.DeleteFunc(names, func(name string) bool { return name == lastFile }), err
}

// lock takes the directory's lock, waiting for its holder until ctx ends.
func (p *Pool) lock(ctx context.Context) (unlock func(), err error) {
	d, err := os.Open(p.dir)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { d.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			d.Close()
			return nil, fmt.Errorf("lock %s: %w", p.dir, err)
		}
		select {
		case <-ctx.Done():
			d.Close()
			return nil, fmt.Errorf("addresses of network %s: another sandnet is working on them: %w", p.net.Name, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// number and address turn an IPv4 address into a number and back.
func number(a netip.Addr) uint64 {
	b := a.As4()
	return uint64(binary.BigEndian.Uint32(b[:]))
}

func address(n uint64) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b)
}

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
		if t.IsValid() && t.Addr().Is4() && t.Bits() > 1 {
			spans = append(spans, span{number(t.Masked().Addr()), number(spec.LastAddr(t))})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
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
