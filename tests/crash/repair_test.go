package crash

import (
	"strings"
	"testing"
)

// TestKilledRepair damages a host and kills what mends it, gc or a create that
// comes across the damage, at each of its points. Whoever comes next goes on:
// in the end the host is as it was before the damage.
func TestKilledRepair(t *testing.T) {
	t.Parallel()
	for i, p := range []place{places[0], places[3]} {
		flush := "nft flush ruleset; sysctl -qw net.ipv4.ip_forward=0"
		if p.dual {
			flush += " net.ipv6.conf.all.forwarding=0"
		}
		bridge, namespace := "ip link del br-n", "umount $ROOT/run/netns/web"
		veth := "ip link del $(ip -o link show master br-n | head -1 | cut -d: -f2 | cut -d@ -f1)"
		damages := map[string][]string{
			"gc":     {strings.Join([]string{flush, bridge, namespace}, "; "), veth},
			"create": {flush + "; " + bridge}, // which does not look at its neighbours
		}
		if i == 0 { // each alone
			damages = map[string][]string{"gc": {flush, bridge, namespace, veth}, "create": {flush, bridge}}
		}
		for by, all := range damages {
			for _, damage := range all {
				t.Run(p.name+"/"+by+" after "+strings.ReplaceAll(damage, "/", "_"), func(t *testing.T) {
					t.Parallel()
					killedRepair(t, p, damage, by)
				})
			}
		}
	}
}

func killedRepair(t *testing.T, p place, damage, by string) {
	h := newHost(t, p)
	next(h, 0)
	h.OK(p.network("n", "10.61.0.0/24")...)
	h.OK("create", "--name", "web", "--net", "n", "-p", "8080:80")
	h.OK("create", "--name", "db", "--net", "n", "--egress", "deny 10.0.0.0/8", "--ingress-rate", "1gbit")
	intact := h.Settled()
	for n := 1; n < limit; n++ {
		h.Must("env", "ROOT="+h.Root, "sh", "-ec", damage)
		var point string
		if by == "gc" {
			point = crashAt(t, h, n, "gc", "--repair")
			h.OK("gc", "--repair")
		} else {
			point = crashAt(t, h, n, "create", "--name", "x", "--net", "n")
			if point == "" {
				h.OK("rm", "x")
			}
			h.OK("create", "--name", "y", "--net", "n")
			h.OK("rm", "y")
			if exists(h, operation{target: sandbox}) {
				h.OK("rm", "x")
			}
		}
		if r := h.Sandnet("diff"); r.Code != 0 {
			t.Errorf("killed at %d (before %s): %s", n, point, r)
			h.OK("gc", "--repair")
		}
		if i, d := h.Becomes(intact); i < 0 {
			t.Fatalf("killed at %d (before %s): the host differs:\n%s", n, point, d)
		}
		if point == "" {
			if n < 3 {
				t.Errorf("%d kill points", n-1)
			}
			t.Logf("%s: killed at each of %d points", by, n-1)
			return
		}
	}
	t.Errorf("more than %d kill points", limit)
}
