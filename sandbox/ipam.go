package sandbox

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/bits"
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

// Pool hands out the addresses of one network, of both families. Each address
// in use is a symbolic link in the pool's directory, named by the address, with
// its owner as the target: symlink(2) makes both at once, or fails if the
// address is taken. Any number of processes may use the directory at once.
//
// Addresses are handed out next-fit: one that was released comes up again only
// after all others, since its last holder may still be in some cache, or dying.
// Of an IPv6 subnet larger than a /64, the first /64 is handed out.
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
	// lastFile has the addresses handed out last: a line of lastIPv4 bytes, then
	// one of lastIPv6. Lost or stale they cost only the order.
	lastFile = "last"
	lastIPv4 = 16
	lastIPv6 = 40
	// maxProbes is how many addresses in a row are tried one by one before the
	// directory is read.
	maxProbes = 64
	// lockPoll is how often a taken lock is tried again; it is held for some
	// 50 µs.
	lockPoll = 200 * time.Microsecond
)

// OpenPool returns the pool of n's subnets in dir. It touches nothing yet; the
// directory is made (0700) with the first allocation.
func OpenPool(dir string, n spec.Network) *Pool { return &Pool{dir, n} }

// Allocate takes an address of each of the network's subnets for owner, in
// their order: the one of want that is of the family, or the next free one.
// Only the latter keeps to the network's range. An address that is owner's
// already counts as taken by it. Zero Addrs want nothing.
//
// Errors are *spec.InputError for an address that the network cannot give, and
// wrap ErrAddressInUse or ErrPoolFull where that is the reason. What was taken
// before an error stays owner's, to be given back with all else.
func (p *Pool) Allocate(ctx context.Context, owner string, want ...netip.Addr) ([]netip.Addr, error) {
	for {
		unlock, err := p.lock(ctx)
		if errors.Is(err, fs.ErrNotExist) {
			crash.Point("ipam directory")
			if err := os.MkdirAll(p.dir, 0o700); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		all, err := p.chooseAll(want, owner, p.take, p.setLast)
		unlock()
		// The directory went with its network, and that has come back.
		if errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
			continue
		}
		return all, err
	}
}

// Peek is what Allocate would take. It changes nothing.
func (p *Pool) Peek(_ context.Context, owner string, want ...netip.Addr) ([]netip.Addr, error) {
	free := func(a netip.Addr, owner string) error {
		_, err := os.Lstat(p.path(a))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) { // `sandnet plan` needs no root
			return nil
		}
		return cmp.Or(err, fs.ErrExist)
	}
	return p.chooseAll(want, owner, free, func(netip.Addr) {})
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
	at, size := int64(0), lastIPv4
	if a.Is6() {
		at, size = lastIPv4, lastIPv6
	}
	_, _ = f.WriteAt(fmt.Appendf(nil, "%-*s\n", size-1, a), at)
	f.Close()
}

// last is the address of the subnet's family that was handed out last.
func (p *Pool) last(subnet netip.Prefix) netip.Addr {
	b, _ := os.ReadFile(filepath.Join(p.dir, lastFile))
	if subnet.Addr().Is4() {
		b = b[:min(lastIPv4, len(b))]
	} else {
		b = b[min(lastIPv4, len(b)):]
	}
	a, _ := netip.ParseAddr(strings.TrimSpace(string(b)))
	return a
}

// chooseAll finds an address for each subnet; handed is told of those that
// nobody asked for.
func (p *Pool) chooseAll(want []netip.Addr, owner string, take func(netip.Addr, string) error, handed func(netip.Addr)) ([]netip.Addr, error) {
	if owner == "" || len(p.net.Subnets) == 0 {
		return nil, fmt.Errorf("network %s: no owner or no subnet to allocate from", p.net.Name)
	}
	for _, w := range want {
		if w.IsValid() {
			if err := p.net.CheckAddress(w); err != nil {
				return nil, err
			}
		}
	}
	out := make([]netip.Addr, len(p.net.Subnets))
	for i, subnet := range p.net.Subnets {
		var err error
		if w := slices.IndexFunc(want, subnet.Contains); w >= 0 {
			out[i], err = p.fixed(want[w], owner, take)
		} else if out[i], err = p.next(subnet, owner, take); err == nil {
			handed(out[i])
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// fixed takes the address that is wanted.
func (p *Pool) fixed(want netip.Addr, owner string, take func(netip.Addr, string) error) (netip.Addr, error) {
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

// next tries every address of the subnet's range once, from the one after the
// last that was handed out.
func (p *Pool) next(subnet netip.Prefix, owner string, take func(netip.Addr, string) error) (netip.Addr, error) {
	first, count := p.bounds(subnet)
	start := uint64(0)
	if n, ok := offset(p.last(subnet), first); ok && n < count {
		start = n + 1
	}
	var used map[netip.Addr]bool
	size := 0
	for i := range count {
		n := start + i
		if i >= count-start {
			n = i - (count - start) // start+i may be more than 64 bits
		}
		a := address(first, n)
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
	why := fmt.Sprintf("all %d addresses of %s are in use", size, p.scope(subnet))
	return netip.Addr{}, &spec.InputError{What: "network", Value: p.net.Name, Why: why, Err: ErrPoolFull,
		Hint: "remove a sandbox, or make a larger network with 'sandnet network create --subnet'"}
}

// scope is what addresses are chosen from.
func (p *Pool) scope(subnet netip.Prefix) netip.Prefix {
	if p.net.InRange(subnet) {
		return p.net.Range
	}
	return subnet
}

// bounds are the first and the number of addresses to choose from, without the
// subnet's own and its broadcast address.
func (p *Pool) bounds(subnet netip.Prefix) (first netip.Addr, count uint64) {
	scope := p.scope(subnet)
	first, last := scope.Addr(), spec.LastAddr(scope)
	if first == subnet.Addr() {
		first = first.Next()
	}
	if subnet.Addr().Is4() && last == spec.LastAddr(subnet) {
		last = last.Prev()
	}
	if last.Less(first) {
		return first, 0
	}
	n, ok := offset(last, first)
	if !ok || n == math.MaxUint64 {
		return first, math.MaxUint64
	}
	return first, n + 1
}

// Release gives those of the addresses back that are owner's.
func (p *Pool) Release(owner string, addrs ...netip.Addr) error {
	return p.release(owner, func() ([]string, error) {
		names := make([]string, len(addrs))
		for i, a := range addrs {
			names[i] = a.String()
		}
		return names, nil
	})
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

// offset is how far a is behind base, if that is less than 2^64.
func offset(a, base netip.Addr) (n uint64, ok bool) {
	x, y := a.As16(), base.As16()
	low, borrow := bits.Sub64(binary.BigEndian.Uint64(x[8:]), binary.BigEndian.Uint64(y[8:]), 0)
	high, borrow := bits.Sub64(binary.BigEndian.Uint64(x[:8]), binary.BigEndian.Uint64(y[:8]), borrow)
	return low, a.Is4() == base.Is4() && high == 0 && borrow == 0
}

// address is the one n behind base.
func address(base netip.Addr, n uint64) netip.Addr {
	b := base.As16()
	low, carry := bits.Add64(binary.BigEndian.Uint64(b[8:]), n, 0)
	binary.BigEndian.PutUint64(b[8:], low)
	binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+carry)
	if a := netip.AddrFrom16(b); base.Is6() {
		return a
	}
	return netip.AddrFrom16(b).Unmap()
}
