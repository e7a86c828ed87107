package modes

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/internal/spec"
)

func FuzzResolvConf(f *testing.F) {
	for _, s := range []string{"nameserver 1.1.1.1\nsearch a b\noptions ndots:2\n", "nameserver 127.0.0.53\n", "nameserver ::1\ndomain x", "# c\n;\nnameserver\n", "nameserver\t9.9.9.9 trailing\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		out := resolvConf(spec.Sandbox{}, host)
		if again := resolvConf(spec.Sandbox{}, out); again != out {
			t.Errorf("%q becomes %q, and that %q", host, out, again)
		}
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			if len(f) < 2 || !strings.HasSuffix(line, "\n") {
				t.Fatalf("line %q", line)
			}
			if a, err := netip.ParseAddr(f[1]); f[0] == "nameserver" && err == nil && a.IsLoopback() && a.String() == f[1] {
				t.Errorf("name server %v", a)
			}
		}
		own := resolvConf(spec.Sandbox{DNS: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, DNSSearch: []string{"x"}}, host)
		if strings.Count("\n"+own, "\nnameserver ") != 1 || strings.Count("\n"+own, "\nsearch ") != 1 {
			t.Errorf("with the user's own: %q", own)
		}
	})
}
