package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/spec"
)

func ip(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func poolNetwork(t testing.TB, o spec.NetworkOptions) spec.Network {
	t.Helper()
	o.Name = "lan"
	n, err := o.Parse()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func testPool(t testing.TB, o spec.NetworkOptions) *Pool {
	return OpenPool(filepath.Join(t.TempDir(), "ipam", "lan"), poolNetwork(t, o))
}

// allocate returns one address of each family, with a space between them.
func allocate(t testing.TB, p *Pool, owner, want string) string {
	t.Helper()
	a, err := p.Allocate(t.Context(), owner, ip(want))
	if err != nil {
		t.Fatalf("allocate %q for %s: %v", want, owner, err)
	}
	return strings.Trim(fmt.Sprint(a), "[]")
}

func owners(t testing.TB, p *Pool) string {
	t.Helper()
	used, err := p.InUse()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, u := range used {
		out = append(out, u.Addr.String()+"="+u.Owner)
	}
	return strings.Join(out, " ")
}

func TestPoolOrder(t *testing.T) {
	p := testPool(t, spec.NetworkOptions{Subnets: []string{"10.61.0.0/29"}, Aux: []string{"printer=10.61.0.3"}})
	if used := owners(t, p); used != "" {
		t.Errorf("in use at first: %s", used)
	}
	for i, want := range []string{"10.61.0.2", "10.61.0.4", "10.61.0.5"} {
		owner := "s" + strconv.Itoa(i)
		if peek, err := p.Peek(t.Context(), owner, netip.Addr{}); err != nil || peek[0].String() != want {
			t.Errorf("peek: %v %v, want %s", peek, err, want)
		}
		if got := allocate(t, p, owner, ""); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	// What was released comes last.
	for _, a := range []string{"10.61.0.2", "10.61.0.5"} {
		if err := p.Release(map[string]string{"10.61.0.2": "s0", "10.61.0.5": "s2"}[a], ip(a)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"10.61.0.6", "10.61.0.2", "10.61.0.5"} {
		if got := allocate(t, p, "late", ""); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got, want := owners(t, p), "10.61.0.2=late 10.61.0.4=s1 10.61.0.5=late 10.61.0.6=late"; got != want {
		t.Errorf("in use: %s\nwant:   %s", got, want)
	}
	_, err := p.Allocate(t.Context(), "one-more", netip.Addr{})
	if want := `invalid network "lan": all 4 addresses of 10.61.0.0/29 are in use`; !errors.Is(err, ErrPoolFull) || err.Error() != want {
		t.Errorf("full pool: %v\nwant %s", err, want)
	}
	if _, err := p.Peek(t.Context(), "one-more", netip.Addr{}); !errors.Is(err, ErrPoolFull) {
		t.Errorf("peek into a full pool: %v", err)
	}
	for range 2 {
		if err := p.ReleaseOwner("late"); err != nil {
			t.Error(err)
		}
	}
	if got := owners(t, p); got != "10.61.0.4=s1" {
		t.Errorf("after release of an owner: %s", got)
	}
}

func TestPoolLostPointer(t *testing.T) {
	p := testPool(t, spec.NetworkOptions{Subnets: []string{"10.61.0.0/24"}})
	for _, last := range []string{"", "junk", "10.99.0.1", "10.60.255.255", "10.61.0.255", "::1", "10.61.0.254"} {
		allocate(t, p, "x", "")
		if err := os.WriteFile(filepath.Join(p.dir, lastFile), []byte(last), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := "10.61.0.2=x 10.61.0.3=x 10.61.0.4=x 10.61.0.5=x 10.61.0.6=x 10.61.0.7=x 10.61.0.8=x"
	if len(strings.Fields(owners(t, p))) != len(strings.Fields(want)) {
		t.Errorf("in use: %s", owners(t, p))
	}
}

func TestPoolFixed(t *testing.T) {
	p := testPool(t, spec.NetworkOptions{Subnets: []string{"10.61.0.0/24"}, IPRange: "10.61.0.128/30",
		Gateways: []string{"10.61.0.129"}, Aux: []string{"printer=10.61.0.9"}})
	if got := allocate(t, p, "a", "10.61.0.77"); got != "10.61.0.77" {
		t.Errorf("got %s", got)
	}
	if got := allocate(t, p, "a", "10.61.0.77"); got != "10.61.0.77" {
		t.Errorf("again: got %s", got)
	}
	for want, why := range map[string]string{
		"10.61.0.77":  "sandbox a has it",
		"10.61.0.0":   "it is the network address of 10.61.0.0/24",
		"10.61.0.255": "it is the broadcast address of 10.61.0.0/24",
		"10.61.0.129": "it is the gateway of network lan",
		"10.61.0.9":   `it is reserved in network lan as "printer"`,
		"10.62.0.7":   "it is not in 10.61.0.0/24",
		"fd00::1":     "network lan has no IPv6 addresses",
	} {
		_, err := p.Allocate(t.Context(), "b", ip(want))
		var input *spec.InputError
		if !errors.As(err, &input) || strings.Replace(err.Error(), "IPv6 address", "IP address", 1) != fmt.Sprintf("invalid IP address %q: %s", want, why) {
			t.Errorf("%s: %v", want, err)
		}
		if errors.Is(err, ErrAddressInUse) != (want == "10.61.0.77") {
			t.Errorf("%s: ErrAddressInUse is wrong in %v", want, err)
		}
		if _, peek := p.Peek(t.Context(), "b", ip(want)); peek == nil || peek.Error() != err.Error() {
			t.Errorf("%s: peek: %v", want, peek)
		}
	}
	// The range has the subnet's ends only if they are the subnet's.
	for _, want := range []string{"10.61.0.128", "10.61.0.130", "10.61.0.131"} {
		if got := allocate(t, p, "c", ""); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if _, err := p.Allocate(t.Context(), "c", netip.Addr{}); err == nil || !strings.Contains(err.Error(), "all 3 addresses of 10.61.0.128/30") {
		t.Errorf("full range: %v", err)
	}
	if err := p.Release("b", ip("10.61.0.77")); err != nil || !strings.Contains(owners(t, p), "10.61.0.77=a") {
		t.Errorf("released what is another's: %v, %s", err, owners(t, p))
	}
	for range 2 {
		if err := p.Release("a", ip("10.61.0.77")); err != nil || strings.Contains(owners(t, p), "10.61.0.77") {
			t.Errorf("release: %v, %s", err, owners(t, p))
		}
	}
}

func TestPoolWithoutDirectory(t *testing.T) {
	p := testPool(t, spec.NetworkOptions{Subnets: []string{"10.61.0.0/24"}})
	if err := errors.Join(p.Release("a", ip("10.61.0.2")), p.ReleaseOwner("a")); err != nil {
		t.Error(err)
	}
	if _, err := p.Peek(t.Context(), "a", netip.Addr{}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p.dir); !os.IsNotExist(err) {
		t.Errorf("the directory was made: %v", err)
	}
	allocate(t, p, "a", "")
	if fi, err := os.Stat(p.dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", fi, err)
	}
	if _, err := p.Allocate(t.Context(), "", netip.Addr{}); err == nil {
		t.Error("an allocation without an owner")
	}
	if _, err := OpenPool(p.dir, spec.Network{Name: "x"}).Allocate(t.Context(), "a"); err == nil {
		t.Error("an allocation without a subnet")
	}
}

func TestPoolLockHonoursContext(t *testing.T) {
	p := testPool(t, spec.NetworkOptions{Subnets: []string{"10.61.0.0/24"}})
	allocate(t, p, "a", "")
	unlock, err := p.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := p.Allocate(ctx, "b", netip.Addr{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while locked: %v", err)
	}
	unlock()
	allocate(t, p, "b", "")
}

// Whoever is first must not pay less than whoever is last.
func TestPoolStaysFast(t *testing.T) {
	if testing.Short() {
		t.Skip("65,000 allocations")
	}
	t.Run("IPv4", func(t *testing.T) { p := staysFast(t, "10.60.0.0/16"); fillsUp(t, p) })
	t.Run("IPv6", func(t *testing.T) { staysFast(t, "fd00:60::/64") })
}

const total = 65000

func staysFast(t *testing.T, subnet string) *Pool {
	p := testPool(t, spec.NetworkOptions{Subnets: []string{subnet}})
	const part = 1000
	var parts []time.Duration
	for range total / part {
		start := time.Now()
		for range part {
			allocate(t, p, "x", "")
		}
		parts = append(parts, time.Since(start))
	}
	// The best of ten each: what else the machine does is not the pool's fault.
	first, last := slices.Min(parts[:10]), slices.Min(parts[len(parts)-10:])
	t.Logf("%d allocations took %v at first, %v at last", part, first, last)
	if last > 3*first {
		t.Errorf("%d allocations took %v at first, %v at last", part, first, last)
	}
	return p
}

// fillsUp finds a free address behind 65,000 taken ones by one look at them all.
func fillsUp(t *testing.T, p *Pool) {
	if err := p.Release("x", ip("10.60.200.200")); err != nil {
		t.Fatal(err)
	}
	for i := total; i < 1<<16-3; i++ {
		allocate(t, p, "x", "")
	}
	start := time.Now()
	if got := allocate(t, p, "x", ""); got != "10.60.200.200" {
		t.Errorf("got %s", got)
	}
	t.Logf("the last free address took %v", time.Since(start))
	if d := time.Since(start); d > time.Second {
		t.Errorf("the last free address took %v", d)
	}
	if _, err := p.Allocate(t.Context(), "x", netip.Addr{}); err == nil || !strings.Contains(err.Error(), "all 65533 addresses of 10.60.0.0/16") {
		t.Errorf("full: %v", err)
	}
}

func TestPoolGoroutines(t *testing.T) {
	p := testPool(t, spec.NetworkOptions{Subnets: []string{"10.61.0.0/23"}})
	var wg sync.WaitGroup
	for g := range 10 {
		wg.Go(func() {
			own := OpenPool(p.dir, p.net)
			for i := range 50 {
				if _, err := own.Allocate(t.Context(), fmt.Sprintf("g%d-%d", g, i), netip.Addr{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if used, err := p.InUse(); err != nil || len(used) != 500 {
		t.Errorf("%d in use, %v", len(used), err)
	}
}

// TestPoolChild is not a test: it is what the tests with processes start.
func TestPoolChild(t *testing.T) {
	dir, work := os.Getenv("POOL_DIR"), os.Getenv("POOL_WORK")
	if work == "" {
		t.Skip("only as a child")
	}
	p := OpenPool(dir, poolNetwork(t, spec.NetworkOptions{Subnets: []string{"10.61.0.0/22"}}))
	owner := "child-" + strconv.Itoa(os.Getpid())
	switch work {
	case "allocate":
		for range 100 {
			fmt.Println("got", allocate(t, p, owner, ""))
		}
	case "churn": // until killed
		fmt.Println("started")
		for i := 0; ; i++ {
			mine := owner + "-" + strconv.Itoa(i)
			a := ip(allocate(t, p, mine, ""))
			allocate(t, p, mine, "")
			if err := errors.Join(p.Release(mine, a), p.ReleaseOwner(mine)); err != nil {
				t.Fatal(err)
			}
		}
	case "once":
		a := ip(allocate(t, p, "once", ""))
		allocate(t, p, "once", "10.61.1.1")
		if err := errors.Join(p.Release("once", a), p.ReleaseOwner("once")); err != nil {
			t.Fatal(err)
		}
	}
}

func poolChild(dir, work string, env ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], "-test.run=^TestPoolChild$")
	c.Env = append(append(os.Environ(), "POOL_DIR="+dir, "POOL_WORK="+work), env...)
	return c
}

func TestPoolProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lan")
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{} // guarded by mu
	for range 5 {
		wg.Go(func() {
			out, err := poolChild(dir, "allocate").CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
			mu.Lock()
			defer mu.Unlock()
			for line := range strings.Lines(string(out)) {
				if a, ok := strings.CutPrefix(line, "got "); ok {
					if seen[a] {
						t.Errorf("%s was handed out twice", a)
					}
					seen[a] = true
				}
			}
		})
	}
	wg.Wait()
	if len(seen) != 500 {
		t.Errorf("%d addresses", len(seen))
	}
}

// consistent checks what a killed process may leave: nothing without an owner,
// nothing locked, and everything can be taken back.
func consistent(t *testing.T, dir string) {
	t.Helper()
	p := OpenPool(dir, poolNetwork(t, spec.NetworkOptions{Subnets: []string{"10.61.0.0/22"}}))
	used, err := p.InUse()
	if err != nil {
		t.Fatal(err)
	}
	if len(used) > 2 {
		t.Errorf("%d addresses left of one process", len(used))
	}
	for _, u := range used {
		if err := p.ReleaseOwner(u.Owner); err != nil || u.Owner == "" {
			t.Errorf("%+v: %v", u, err)
		}
	}
	allocate(t, p, "after", "")
	if err := p.ReleaseOwner("after"); err != nil || owners(t, p) != "" {
		t.Errorf("in use: %s, %v", owners(t, p), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != lastFile {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestPoolKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lan")
	for range 10 {
		c := poolChild(dir, "churn")
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond)
		if killErr := c.Process.Kill(); err != nil || killErr != nil {
			t.Fatalf("child said %q: %v, %v", line, err, killErr)
		}
		_ = c.Wait()
		consistent(t, dir)
	}
}

// With the tag crashpoints, the process dies before each change in turn.
func TestPoolKillPoints(t *testing.T) {
	if !crash.Enabled {
		t.Skip("needs -tags crashpoints")
	}
	root := t.TempDir()
	log := filepath.Join(root, "log")
	var names []string
	for at := 1; ; at++ {
		dir := filepath.Join(root, strconv.Itoa(at))
		err := poolChild(dir, "once", "SANDNET_CRASH_AT="+strconv.Itoa(at), "SANDNET_CRASH_LOG="+log).Run()
		if err == nil {
			break
		}
		consistent(t, dir)
		if at > 20 {
			t.Fatal("no end of kill points")
		}
	}
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	names = strings.Split(strings.TrimSpace(string(b)), "\n")
	want := []string{"ipam directory", "ipam allocate", "ipam last", "ipam allocate", "ipam release", "ipam release"}
	if !slices.Equal(names, want) {
		t.Errorf("kill points: %q\nwant: %q", names, want)
	}
}
