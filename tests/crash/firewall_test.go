package crash

import "testing"

// TestFirewallChange kills a change of the firewall at every point. The next
// command that makes something ends it, one way or the other, and a change
// back leaves what was there before.
func TestFirewallChange(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{{"nftables", "iptables"}, {"iptables", "nftables"}} {
		t.Run("to "+c[1], func(t *testing.T) {
			t.Parallel()
			firewallChange(t, c[0], c[1])
		})
	}
}

func firewallChange(t *testing.T, from, to string) {
	h := newHost(t, place{}) // the choice is the host's record's
	p := place{dual: true}
	touch := func(kind string) {
		h.OK("--firewall", kind, "create", "--name", "touch")
		h.OK("rm", "touch")
	}
	touch(from)
	h.OK(p.network("n", "10.61.0.0/24")...)
	h.OK("create", "--name", "web", "--net", "n", "-p", "8080:80", "-p", "8080:80/udp", "--egress", "deny 10.0.0.0/8")
	touch(to)
	touch(from)
	empty := h.Settled()
	n := 1
	for ; n < limit; n++ {
		point := crashAt(t, h, n, "--firewall", to, "create", "--name", "x")
		if point == "" {
			break
		}
		h.OK("create", "--name", "other")
		h.OK("rm", "-f", "other", "x")
		touch(from)
		if i, d := h.Becomes(empty); i < 0 {
			t.Fatalf("the change killed at %d (before %s), then back: the host differs:\n%s", n, point, d)
		}
	}
	if n < 20 || n == limit {
		t.Fatalf("%d kill points", n-1)
	}
	t.Logf("killed at each of %d points", n-1)
}
