package sandbox

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/record"
)

// FuzzDefinition reads network definitions as an editor may leave them.
func FuzzDefinition(f *testing.F) {
	f.Add([]byte(`{"name":"lan","bridge":"sn-0123456789ab","subnets":["10.61.0.0/24"],"gateways":["10.61.0.1"],"created":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"name":"lan","subnets":["10.61.0.0/24"],"gateways":[]}`))
	f.Add([]byte(`{"aux":{"a":"x"},"range":"1"}`))
	f.Add([]byte(`[`))
	paths, err := PathsFor(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	m := &Manager{paths: paths, store: record.New(paths.Run, slog.New(slog.DiscardHandler))}
	if err := os.MkdirAll(filepath.Dir(paths.network("lan")), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(paths.network("lan"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := m.loadNetwork("lan")
		if err != nil {
			return
		}
		// What plans a network counts on these.
		if len(n.Subnets) == 0 || len(n.Gateways) != len(n.Subnets) {
			t.Fatalf("%q: subnets %v, gateways %v", data, n.Subnets, n.Gateways)
		}
		if n.Validate() != nil {
			return
		}
		for _, gw := range n.Gateways {
			if n.CheckAddress(gw) == nil {
				t.Errorf("%q: the gateway %v can be handed out", data, gw)
			}
		}
	})
}

// FuzzPortRange reads the kernel's range of clients' ports.
func FuzzPortRange(f *testing.F) {
	for _, s := range []string{"32768\t60999\n", "1024 65535", "49152 49152", "60999", "-1 70000", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if first, last := portsAbove(text); first < 49153 || last-first < 500 {
			t.Errorf("%q: %d to %d", text, first, last)
		}
	})
}

// FuzzLocalPrefix reads the file with the prefix of the host's IPv6 networks.
func FuzzLocalPrefix(f *testing.F) {
	for _, s := range []string{"fd3b:a84d:3cd7::/48\n", "fd3b:a84d:3cd7::/64", "2001:db8::/48", "10.0.0.0/8", "fd00::1/48", "x", ""} {
		f.Add([]byte(s))
	}
	paths, err := PathsFor(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	m := &Manager{paths: paths}
	if err := os.MkdirAll(paths.Lib, 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(paths.localPrefix(), data, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := m.localPrefix()
		if err != nil {
			return
		}
		if p.Bits() != 48 || p.Masked() != p || p.Addr().As16()[0] != 0xfd {
			t.Errorf("%q: %v", data, p)
		}
		if again, err := m.localPrefix(); err != nil || again != p {
			t.Errorf("%q: %v, then %v, %v", data, p, again, err)
		}
	})
}

// FuzzMeta reads what a sandbox's record says beside its plan.
func FuzzMeta(f *testing.F) {
	f.Add([]byte(`{"spec":{"id":"x","name":"web","mode":"bridge"},"netns":"/run/netns/web","created":"2026-01-02T03:04:05Z","endpoints":null,"pid":7,"start":9}`))
	f.Add([]byte(`{"endpoints":[{"network":"bridge","interface":"eth0","addresses":["172.30.0.2/16"],"ports":[{"hostPort":8080,"port":80,"protocol":"tcp"}]}]}`))
	f.Add([]byte(`{"spec":{"labels":{"a":"b"}},"pid":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var md meta
		if json.Unmarshal(data, &md) != nil {
			return
		}
		_ = md.Spec.Validate()
		out, err := plan.AppendJSON(nil, md)
		if err != nil {
			return // a year that RFC 3339 does not have
		}
		var again meta
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatalf("%q is written as %q: %v", data, out, err)
		}
		if twice, err := plan.AppendJSON(nil, again); err != nil || string(twice) != string(out) {
			t.Errorf("%q is written as %q, and that as %q, %v", data, out, twice, err)
		}
	})
}
