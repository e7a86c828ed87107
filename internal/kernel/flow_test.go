package kernel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// flowHost is a namespace with the addresses of a host and of a sandbox.
func flowHost(t *testing.T) {
	t.Helper()
	ownNetns(t)
	output(t, "ip", "link", "set", "lo", "up")
	output(t, "ip", "link", "add", "sandnet0", "type", "bridge")
	output(t, "ip", "link", "set", "sandnet0", "up")
	for _, a := range []string{"172.30.0.1/24", "172.30.0.2/24", "fd00:30::1/64", "fd00:30::2/64", "192.0.2.1/24", "2001:db8::1/64"} {
		extra := []string{"addr", "add", a, "dev", "sandnet0"}
		if strings.Contains(a, ":") {
			extra = append(extra, "nodad")
		}
		output(t, "ip", extra...)
	}
}

// flowsTo counts conntrack entries to a port.
func flowsTo(t *testing.T, port int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), fmt.Sprintf(" dport=%d ", port))
}

// TestFlows: publishing and unpublishing a UDP port forgets the flows of just
// that port, in both families.
func TestFlows(t *testing.T) {
	flowHost(t)
	k := New(testMark, "")
	defer k.Close()
	ctx := context.Background()
	ensure := func(objs []plan.Object) {
		t.Helper()
		if _, err := k.Ensure(ctx, objs); err != nil {
			t.Fatal(err)
		}
	}
	ensure(hostTable())
	ensure(fw.Network(testMark, spec.Network{Bridge: "sandnet0"}))
	send := func(to string) {
		t.Helper()
		network := "udp4"
		if strings.HasPrefix(to, "[") {
			network = "udp6"
		}
		c, err := net.Dial(network, to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "?")
	}
	flows := func(port int) int { t.Helper(); return flowsTo(t, port) }
	for _, c := range []struct{ host, to string }{{"192.0.2.1", "172.30.0.2"}, {"2001:db8::1", "fd00:30::2"}} {
		all := netip.IPv4Unspecified()
		if strings.Contains(c.host, ":") {
			all = netip.IPv6Unspecified()
		}
		ep := spec.Endpoint{HostInterface: "sv3f2a91c0d1e0", MAC: "02:42:ac:1e:00:02", Addresses: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(c.to), 24)},
			Ports: []spec.Port{{HostIP: all, HostPort: 5353, Port: 53, Proto: spec.UDP}}}
		port := only[plan.Element](fw.Endpoint(testMark, spec.Sandbox{}, ep, spec.Network{}))
		var objs []plan.Object
		for _, e := range port {
			if e.Family == "inet" {
				objs = append(objs, e)
			}
		}
		for _, f := range only[plan.Flow](fw.Endpoint(testMark, spec.Sandbox{}, ep, spec.Network{})) {
			objs = append(objs, f)
		}
		at, elsewhere := net.JoinHostPort(c.host, "5353"), net.JoinHostPort(c.host, "5354")
		send(at)
		send(elsewhere)
		if flows(5353) == 0 || flows(5354) == 0 {
			t.Fatal("no flows to forget")
		}
		ensure(objs)
		if a, b := flows(5353), flows(5354); a != 0 || b == 0 {
			t.Errorf("%s: published: %d stale flows, %d others", c.host, a, b)
		}
		send(at)
		if flows(5353) == 0 {
			t.Fatal("the new flow is not there")
		}
		ensure(objs)
		if flows(5353) == 0 {
			t.Errorf("%s: a flow to the sandbox is forgotten while the port stays", c.host)
		}
		if err := k.Delete(ctx, objs); err != nil {
			t.Fatal(err)
		}
		if a, b := flows(5353), flows(5354); a != 0 || b == 0 {
			t.Errorf("%s: unpublished: %d stale flows, %d others", c.host, a, b)
		}
		output(t, "conntrack", "-F")
	}
}
