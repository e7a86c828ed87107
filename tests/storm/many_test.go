package storm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

// each runs sandnet once for each of the names, workers at once, and returns
// what was printed, by name. None may fail.
func (s *storm) each(names []string, args func(name string) []string) map[string]string {
	s.t.Helper()
	var mu sync.Mutex
	out := map[string]string{}
	todo := make(chan string)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			s.h.Do(func() {
				for name := range todo {
					r := s.sandnet(0, args(name)...)
					if r.Code != 0 || r.Stderr != "" {
						s.t.Errorf("%s", r)
					}
					mu.Lock()
					out[name] = r.Out()
					mu.Unlock()
				}
			})
		})
	}
	for _, name := range names {
		todo <- name
	}
	close(todo)
	all.Wait()
	return out
}

// Fifty at once: none fails, each gets an address and a port of its own, and
// all of them work.
func TestFiftyAtOnce(t *testing.T) {
	h := lab.NewHost(t)
	h.OK("gc")
	before := h.Settled()
	s := &storm{t: t, h: h}
	var names []string
	for i := range 50 {
		names = append(names, fmt.Sprint("s", i))
	}
	ids := s.each(names, func(name string) []string { return []string{"create", "--name", name, "-p", "80", "-p", "80/udp"} })
	books := newLedger()
	for _, name := range names {
		if v, ok := s.inspect(ids[name]); ok {
			books.made(0, name, v.ID, v.claims())
		}
	}
	if books.checked != 3*len(names) || len(books.faults) > 0 {
		t.Errorf("%d claims; %s", books.checked, strings.Join(books.faults, "; "))
	}
	s.survivors(0, books)
	if s.survived != len(names) {
		t.Errorf("%d are there, of %d", s.survived, len(names))
	}
	h.Settled() // ends the servers
	s.each(names, func(name string) []string { return []string{"rm", name} })
	s.clear()
	h.Unchanged(before, "rm of everything")
}

// A bridge takes 1,023 ports. The next sandbox is refused for that reason and
// nothing of it is left; once there is room again, another one fits.
func TestFullBridge(t *testing.T) {
	const ports = 1023
	l := lab.New(t)
	h := l.Host("host")
	h.OK("network", "create", "n", "--subnet", "10.61.0.0/20", "--bridge", "br-n")
	h.OK("network", "create", "m")
	h.OK("create", "--name", "last", "--net", "n")
	// What else is on the bridge need not be sandboxes: for the kernel a port is
	// a port.
	plugs := l.Namespace("plugs")
	batch := filepath.Join(t.TempDir(), "batch")
	var lines strings.Builder
	for i := range ports - 1 {
		fmt.Fprintf(&lines, "link add p%d master br-n type veth peer name p%[1]d netns %s\n", i, filepath.Base(plugs.Path))
	}
	if err := os.WriteFile(batch, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	h.Must("ip", "-batch", batch)
	t.Logf("%d plugs in %s", ports-1, time.Since(start))
	before := h.Settled()
	for _, args := range [][]string{
		{"create", "--name", "x", "--net", "n", "-p", "8080:80"},
		{"create", "--name", "x", "--net", "m", "--net", "n"},
		{"run", "--name", "x", "--net", "n", "--", "true"},
	} {
		r := h.Sandnet(args...)
		if r.Code != 1 && r.Code != 125 || !strings.Contains(r.Stderr, "bridge br-n is full (1023 ports)") {
			t.Errorf("on a full bridge: %s", r)
		}
		h.Unchanged(before, strings.Join(args, " "))
	}
	h.OK("rm", "last")
	h.OK("create", "--name", "fits", "--net", "n")
	h.OK("rm", "fits")
	h.OK("network", "rm", "m")
}
