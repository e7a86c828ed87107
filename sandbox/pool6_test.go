package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/internal/spec"
)

func TestPoolOfBothFamilies(t *testing.T) {
	p := testPool(t, spec.NetworkOptions{Subnets: []string{"fd00:61::/64", "10.61.0.0/29"}, IPRange: "fd00:61::1:0/126", Aux: []string{"a=fd00:61::1:1"}})
	for _, want := range []string{"10.61.0.2 fd00:61::1:0", "10.61.0.3 fd00:61::1:2", "10.61.0.4 fd00:61::1:3"} {
		if peek, err := p.Peek(t.Context(), "x"); err != nil || fmt.Sprint(peek) != "["+want+"]" {
			t.Errorf("peek: %v %v, want %s", peek, err, want)
		}
		if got := allocate(t, p, "x", ""); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	// Each family has its own place to go on from, and its own fixed address.
	if err := p.Release("x", ip("10.61.0.2"), ip("fd00:61::1:0")); err != nil {
		t.Fatal(err)
	}
	if got, want := allocate(t, p, "y", "fd00:61::9"), "10.61.0.5 fd00:61::9"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := allocate(t, p, "y", "10.61.0.6"), "10.61.0.6 fd00:61::1:0"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if both, err := p.Allocate(t.Context(), "y", ip("10.61.0.6"), ip("fd00:61::9")); err != nil || fmt.Sprint(both) != "[10.61.0.6 fd00:61::9]" {
		t.Errorf("both fixed: %v, %v", both, err)
	}
	if _, err := p.Allocate(t.Context(), "z", ip("fd00:61::9")); !errors.Is(err, ErrAddressInUse) {
		t.Errorf("a fixed address that is taken: %v", err)
	}
	if err := errors.Join(p.ReleaseOwner("x"), p.ReleaseOwner("y"), p.ReleaseOwner("z")); err != nil || owners(t, p) != "" {
		t.Errorf("left: %s, %v", owners(t, p), err)
	}
}

func TestPoolIPv6(t *testing.T) {
	for _, c := range []struct {
		subnet, last string
		want         []string
	}{
		{"fd00:61::/64", "", []string{"fd00:61::2", "fd00:61::3"}},
		{"fd00:61::/64", "fd00:61::ffff:ffff:ffff:fffe", []string{"fd00:61::ffff:ffff:ffff:ffff", "fd00:61::2"}},
		{"fd00:61::/64", "fd00:61::ffff:ffff:ffff:ffff", []string{"fd00:61::2"}},
		{"fd00:61::/64", "fd00:62::7", []string{"fd00:61::2"}},
		{"fd00:61::/64", "10.61.0.7", []string{"fd00:61::2"}},
		{"fd00:61::/48", "fd00:61:0:0:ffff:ffff:ffff:fffe", []string{"fd00:61::ffff:ffff:ffff:ffff", "fd00:61::2"}},
		{"fd00:61::fffc/126", "", []string{"fd00:61::fffe", "fd00:61::ffff", "! all 2 addresses of fd00:61::fffc/126 are in use"}},
	} {
		p := testPool(t, spec.NetworkOptions{Subnets: []string{c.subnet}})
		if c.last != "" {
			if err := os.MkdirAll(p.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			p.setLast(ip(c.last))
		}
		for _, want := range c.want {
			got, err := p.Allocate(t.Context(), "x")
			if why, ok := strings.CutPrefix(want, "! "); ok {
				if !errors.Is(err, ErrPoolFull) || !strings.Contains(err.Error(), why) {
					t.Errorf("%s after %s: %v, want %s", c.subnet, c.last, err, why)
				}
			} else if err != nil || got[0].String() != want {
				t.Errorf("%s after %s: %v, %v, want %s", c.subnet, c.last, got, err, want)
			}
		}
	}
}
