package e2e

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

// TestPublishedLoopback6 reaches a published port at [::1] as at 127.0.0.1,
// from the host only, and at no other address than was asked for.
func TestPublishedLoopback6(t *testing.T) {
	t.Parallel()
	p := publish(t, "-p", "8080:80", "-p", "8080:80/udp", "-p", "127.0.0.1:8081:80")
	for _, network := range []string{"tcp", "udp"} {
		if got := ask6(p.h.NS, network, "[::1]:8080"); got != p.web.Name+" 172.30.0.1" {
			t.Errorf("%s [::1]:8080: %q", network, got)
		}
		if got := ask6(p.web, network, "[::1]:8080"); strings.HasPrefix(got, p.web.Name) {
			t.Errorf("%s [::1]:8080 in the sandbox: %q", network, got)
		}
	}
	if got := ask6(p.h.NS, "tcp", "[::1]:8081"); strings.HasPrefix(got, p.web.Name) {
		t.Errorf("published on 127.0.0.1, answered on [::1]: %q", got)
	}
	free(t, p.h.NS, "tcp", "[::1]:8081")
	p.h.OK("rm", "web")
	for _, network := range []string{"tcp", "udp"} {
		if got := ask6(p.h.NS, network, "[::1]:8080"); strings.HasPrefix(got, p.web.Name) {
			t.Errorf("%s [::1]:8080 after rm: %q", network, got)
		}
	}
	p.h.Unchanged(p.before, "rm")
	if _, err := os.Stat("/run/sandnet-ports.lock"); err == nil {
		// Others on this machine may hold it just now, but nobody for long.
		for end := time.Now().Add(5 * time.Second); err == nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
			_, err = os.Stat("/run/sandnet-ports.lock")
		}
		if err == nil {
			t.Error("the lock file stays")
		}
	}
}

// ask6 is the line that a server answers with, or the error. It asks as most
// programs do, without IPV6_V6ONLY.
func ask6(n *lab.NS, network, addr string) (got string) {
	n.Do(func() {
		c, err := net.DialTimeout(network, addr, 3*time.Second)
		if err != nil {
			got = err.Error()
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(3 * time.Second))
		if network == "udp" {
			io.WriteString(c, "?")
		}
		b := make([]byte, 100)
		k, err := c.Read(b)
		if got = strings.TrimSpace(string(b[:k])); err != nil {
			got = err.Error()
		}
	})
	return got
}
