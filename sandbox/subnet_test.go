package sandbox

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandnet/sandnet/internal/spec"
)

func TestPickSubnet(t *testing.T) {
	ula := []SubnetPool{pool("fd12:3456:789a::/48", 64)}
	small := []SubnetPool{pool("172.29.0.0/16", 24), pool("10.160.0.0/30", 30)}
	for _, c := range []struct {
		name  string
		pools []SubnetPool
		taken string
		want  string
	}{
		{"default", DefaultPools(), "", "172.30.0.0/16"},
		{"default, a route in it", DefaultPools(), "172.30.5.0/24", "172.31.0.0/16"},
		{"default, around it", DefaultPools(), "172.16.0.0/12", "10.44.0.0/16"},
		{"default, part of ten", DefaultPools(), "172.16.0.0/12 10.44.0.0/16 10.46.9.9/32", "10.45.0.0/16"},
		{"first", small, "", "172.29.0.0/24"},
		{"default routes take nothing", small, "0.0.0.0/0 0.0.0.0/1 128.0.0.0/1 fd00::/8 ::/0", "172.29.0.0/24"},
		{"next", small, "172.29.0.0/24", "172.29.1.0/24"},
		{"gap", small, "172.29.2.0/23 172.29.0.0/24", "172.29.1.0/24"},
		{"unordered and nested", small, "172.29.1.7/32 172.29.0.0/22 172.29.0.0/30 172.29.4.0/25", "172.29.5.0/24"},
		{"not masked", small, "172.29.0.9/24", "172.29.1.0/24"},
		{"next pool", small, "172.29.0.0/16", "10.160.0.0/30"},
		{"end of a pool", small, "172.29.0.0/17 172.29.128.0/18 172.29.192.0/19 172.29.224.0/20 172.29.240.0/21 172.29.248.0/22 172.29.252.0/23 172.29.254.0/24", "172.29.255.0/24"},
		{"none", small, "172.29.0.0/16 10.0.0.0/8", "invalid Prefix"},
		{"IPv6", ula, "10.0.0.0/8 ::/0 2000::/3", "fd12:3456:789a::/64"},
		{"IPv6, next", ula, "fd12:3456:789a::/64 fd12:3456:789a:1::7/128 fd12:3456:789a:2::/63", "fd12:3456:789a:4::/64"},
		{"IPv6, none", ula, "fd00::/8", "invalid Prefix"},
	} {
		var taken []netip.Prefix
		for _, s := range strings.Fields(c.taken) {
			taken = append(taken, netip.MustParsePrefix(s))
		}
		got, err := PickSubnet(c.pools, taken)
		if got.String() != c.want || (err != nil) != (c.want == "invalid Prefix") || err != nil && !errors.Is(err, ErrNoSubnet) {
			t.Errorf("%s: %v, %v; want %s", c.name, got, err, c.want)
		}
	}
}

func TestPoolsOfSubnets(t *testing.T) {
	kept := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")}
	for _, p := range append(DefaultPools(), UserPools()...) {
		for _, k := range kept {
			if p.Base.Overlaps(k) {
				t.Errorf("pool %v overlaps %v", p.Base, k)
			}
		}
		if p.Base != p.Base.Masked() || p.Bits < p.Base.Bits() {
			t.Errorf("pool %+v", p)
		}
		if p.Bits == 24 && p.Base.Overlaps(DefaultPools()[0].Base) {
			t.Errorf("pool %v overlaps the default network", p.Base)
		}
	}
	var taken []netip.Prefix
	for {
		p, err := PickSubnet(UserPools(), taken)
		if err != nil {
			break
		}
		if len(taken) == 2000 {
			start := time.Now()
			for range 10 {
				_, _ = PickSubnet(UserPools(), taken)
			}
			d := time.Since(start) / 10
			t.Logf("with 2,000 taken: %v", d)
			if d > 5*time.Millisecond {
				t.Errorf("with 2,000 taken: %v", d)
			}
			taken = append(taken, netip.MustParsePrefix("10.160.0.0/11"))
		}
		if _, err := spec.ParseSubnet(p.String()); err != nil {
			t.Fatal(err)
		}
		taken = append(taken, p)
	}
	// Those before the large pool was taken away, that pool, and the last pool.
	if want := 2001 + 1 + 256; len(taken) != want {
		t.Errorf("%d subnets, want %d", len(taken), want)
	}
}

// The prefix is drawn once; a file that a killed command left empty is none.
func TestLocalPrefix(t *testing.T) {
	m := &Manager{paths: Paths{Lib: filepath.Join(t.TempDir(), "lib")}}
	draw := func() netip.Prefix {
		t.Helper()
		p, err := m.localPrefix()
		if err != nil || p.Bits() != 48 || p != p.Masked() || p.Addr().As16()[0] != 0xfd {
			t.Fatalf("%v, %v", p, err)
		}
		return p
	}
	first := draw()
	if again := draw(); again != first {
		t.Errorf("drawn twice: %s, %s", first, again)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(m.paths.localPrefix(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	if second := draw(); second == first || draw() != second {
		t.Errorf("after the file was lost: %s, before %s", second, first)
	}
	for _, bad := range []string{"x", "fd00::/64\n", "2001:db8::/48\n", "fd00::1/48\n"} {
		write(bad)
		var hint *HintError
		if p, err := m.localPrefix(); !errors.As(err, &hint) || !strings.Contains(err.Error(), "ula-prefix") {
			t.Errorf("%q: %v, %v", bad, p, err)
		}
	}
}
