package firewall

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestGolden(t *testing.T) {
	port := func(ip string, host, port uint16, proto spec.Proto) []plan.Object {
		return Publish(spec.Port{HostIP: netip.MustParseAddr(ip), HostPort: host, Port: port, Proto: proto}, netip.MustParseAddr("172.30.0.2"))
	}
	for _, c := range []struct {
		name string
		objs []plan.Object
	}{
		{"host", Host(83)},
		{"network", Network(spec.Network{Bridge: "sandnet0"})},
		{"network-no-icc", Network(spec.Network{Bridge: "sandnet0", NoICC: true})},
		{"network-internal", Network(spec.Network{Bridge: "sandnet0", Internal: true})},
		{"network-no-masquerade", Network(spec.Network{Bridge: "sandnet0", NoMasquerade: true})},
		{"publish", port("0.0.0.0", 8080, 80, spec.TCP)},
		{"publish-on-address", port("127.0.0.1", 5353, 53, spec.UDP)},
		{"accept-in", []plan.Object{AcceptIn("DOCKER-USER")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got strings.Builder
			if err := (plan.Plan{Owner: "test/" + c.name, Objects: c.objs}).WriteText(&got); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", c.name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("-want +got; if it is meant so, run with -update:\n%s", diff)
			}
		})
	}
}

// TestLoopback6 has [::1] answered where it belongs to what is published, and
// the kernel can translate it.
func TestLoopback6(t *testing.T) {
	to4, to6 := netip.MustParseAddr("172.30.0.2"), netip.MustParseAddr("fd00::2")
	for _, c := range []struct {
		hostIP string
		proto  spec.Proto
		to     netip.Addr
		want   string
	}{
		{"0.0.0.0", spec.TCP, to4, "172.30.0.2:80"},
		{"0.0.0.0", spec.UDP, to4, "172.30.0.2:80"},
		{"::", spec.TCP, to6, "[fd00::2]:80"},
		{"::1", spec.UDP, to6, "[fd00::2]:80"},
		{"0.0.0.0", spec.SCTP, to4, ""},
		{"127.0.0.1", spec.TCP, to4, ""},
		{"192.0.2.1", spec.TCP, to4, ""},
		{"2001:db8::1", spec.TCP, to6, ""},
	} {
		var got string
		for _, o := range Publish(spec.Port{HostIP: netip.MustParseAddr(c.hostIP), HostPort: 8080, Port: 80, Proto: c.proto}, c.to) {
			if p, ok := o.(plan.HostPort); ok && p.To.IsValid() {
				got = p.To.String()
			}
		}
		if got != c.want {
			t.Errorf("%s %s: [::1] goes to %q, want %q", c.hostIP, c.proto, got, c.want)
		}
	}
}

// TestKeys checks that nothing in one host's plans hides something else: equal
// keys must mean equal objects.
func TestKeys(t *testing.T) {
	objs := Host(83)
	for _, br := range []string{"sandnet0", "sn-0123456789ab"} {
		objs = append(objs, Network(spec.Network{Bridge: br})...)
	}
	for _, ip := range []string{"0.0.0.0", "127.0.0.1"} {
		for _, proto := range []spec.Proto{spec.TCP, spec.UDP, spec.SCTP} {
			p := spec.Port{HostIP: netip.MustParseAddr(ip), HostPort: 80, Port: 80, Proto: proto}
			objs = append(objs, Publish(p, netip.MustParseAddr("172.30.0.2"))...)
		}
	}
	seen := map[string]plan.Object{}
	for _, o := range objs {
		if other, ok := seen[o.Key()]; ok && !plan.Equal(o, other) {
			t.Errorf("two objects are %q", o.Key())
		}
		seen[o.Key()] = o
	}
}
