package sandbox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/sandnet/sandnet/internal/plan"
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
	m := &Manager{paths: paths}
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
