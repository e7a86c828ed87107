package kernel

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/internal/firewall/iptables"
	"github.com/sandnet/sandnet/internal/plan"
)

// TestVerified: what was verified stays so through our own transactions, and
// through nobody else's.
func TestVerified(t *testing.T) {
	ownNetns(t)
	ctx, file := context.Background(), filepath.Join(t.TempDir(), "verified")
	command := func(do func(k *Kernel)) {
		k := New(testMark, "")
		defer k.Close()
		k.RememberIn(file)
		do(k)
	}
	verified := func(want bool) {
		t.Helper()
		command(func(k *Kernel) {
			note, ok := k.Verified()
			if ok != want || ok && note != "0 FORWARD" {
				t.Errorf("verified %t with note %q, want %t", ok, note, want)
			}
			k.SetVerified("0 FORWARD")
		})
	}
	members := only[plan.Element](membersOf("inet"))
	ensure := func(objs ...plan.Object) {
		t.Helper()
		command(func(k *Kernel) {
			if _, err := k.Ensure(ctx, objs); err != nil {
				t.Fatal(err)
			}
		})
	}
	ensure(hostTable()...)
	verified(false)
	verified(true)
	for _, m := range members {
		if m.Set.Data == "verdict" {
			continue // its chain is another matter
		}
		ensure(m)
		verified(true)
		ensure(m) // changes nothing, and so not the generation
		verified(true)
		command(func(k *Kernel) {
			if err := k.Delete(ctx, []plan.Object{m}); err != nil {
				t.Fatal(err)
			}
		})
		verified(true)
	}
	for _, damage := range []string{"flush chain inet sandnet forward", "add table ip theirs", "flush ruleset"} {
		output(t, "nft", damage)
		verified(false)
		verified(true)
	}
	ensure(hostTable()...)
	// Somebody else's change between ours and the look at it.
	command(func(k *Kernel) {
		if _, ok := k.Verified(); ok {
			t.Error("verified after the table was made anew")
		}
		output(t, "nft", "add table ip others")
		k.SetVerified("0 FORWARD")
	})
	verified(false)
	command(func(k *Kernel) {
		output(t, "nft", "add table ip more")
		if _, err := k.Ensure(ctx, []plan.Object{members[0]}); err != nil {
			t.Fatal(err)
		}
	})
	verified(false)
	verified(true)
	// What iptables keeps elsewhere has no generation.
	output(t, "iptables-legacy", "-P", "FORWARD", "DROP")
	verified(false)
	verified(false)
}

// TestVerifiedElsewhere: another network namespace is another rule set.
func TestVerifiedElsewhere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "verified")
	look := func() (ok bool) {
		k := New(testMark, "")
		defer k.Close()
		k.RememberIn(file)
		_, ok = k.Verified()
		k.SetVerified("x")
		return ok
	}
	for range 2 {
		ownNetns(t)
		if look() || !look() {
			t.Error("verified in another namespace, or not in this one")
		}
	}
}

// TestExecs: with iptables, making and deleting a sandbox on a network of two
// families takes two programs each.
func TestExecs(t *testing.T) {
	homes(t, func(t *testing.T, f iptables.Firewall) {
		k := New(testMark, "")
		defer k.Close()
		ctx := context.Background()
		host, sandbox := chainObjects(hostChains(f)), chainObjects(memberChains(f)[5:11])
		for _, o := range sandbox {
			if !strings.HasSuffix(o.Key(), "-sv3f2a91c0d1e0") {
				t.Fatalf("not one sandbox: %s, %s", sandbox[0].Key(), o.Key())
			}
		}
		if _, err := k.Ensure(ctx, host); err != nil {
			t.Fatal(err)
		}
		execs := countExecs(t)
		if n, err := k.Ensure(ctx, sandbox); n != len(sandbox) || err != nil {
			t.Fatal(n, err)
		}
		if n := execs(); n != 2 {
			t.Errorf("create ran %d programs", n)
		}
		if err := k.Delete(ctx, sandbox); err != nil {
			t.Fatal(err)
		}
		if n := execs(); n != 2 {
			t.Errorf("rm ran %d programs", n)
		}
	})
}

func chainObjects(in []plan.Chains) []plan.Object {
	out, _ := objects(in, nil)
	return out
}
