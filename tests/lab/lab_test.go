package lab_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// The lab's own promises: hosts reach each other, dumps are stable and see
// what changes.
func TestLAN(t *testing.T) {
	l := lab.New(t)
	a, b := l.Host("a"), l.Host("b")
	a.ServeTCP("0.0.0.0:80")
	a.ServeUDP("0.0.0.0:53")
	a.ServeHTTP("0.0.0.0:8080")
	b.Reaches("tcp", a.IP.String()+":80", a.NS, b.IP.String())
	b.Reaches("udp", a.IP.String()+":53", a.NS, b.IP.String())
	b.Barred("tcp", a.IP.String()+":81")
	got, err := b.Get(a.IP.String()+":8080", time.Second)
	if err != nil || got.Server != "a" || got.Source != b.IP {
		t.Errorf("get: %v %v", got, err)
	}
}

func TestDump(t *testing.T) {
	h := lab.NewHost(t)
	before := h.Dump()
	h.Unchanged(before, "nothing")
	for _, step := range [][]string{
		{"ip", "link", "add", "x", "type", "bridge"},
		{"ip", "addr", "add", "10.0.0.1/24", "dev", "eth0"},
		{"ip", "route", "add", "10.9.0.0/24", "via", "192.168.205.1"},
		{"nft", "add", "table", "inet", "x"},
		{"iptables", "-P", "FORWARD", "DROP"},
		{"sysctl", "-qw", "net.ipv4.ip_forward=1"},
		{"mkdir", "-p", h.Root + "/run/netns/x"},
	} {
		was := h.Dump()
		h.Must(step[0], step[1:]...)
		if d := lab.Diff(was, h.Dump()); d == "" {
			t.Errorf("the dump does not show %s", strings.Join(step, " "))
		}
	}
}

func TestWorldIsPrivate(t *testing.T) {
	links, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(links), "eth0:") {
		t.Error("the machine's own interfaces are visible")
	}
	if os.Getppid() != 1 {
		t.Errorf("parent is process %d, not the world's first", os.Getppid())
	}
}
