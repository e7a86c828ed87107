// Package storm has many sandnet processes work on one host at once, some of
// them killed at random, while an observer looks on: nothing is ever held
// twice, whoever was told that it has a sandbox has one that works, nobody
// fails for a reason that is not said to the user, and at the end the host is
// what it was. It contains nothing but tests.
//
// What each worker does follows from the seed, which is printed; when it does
// it does not. -seed, -rounds and -operations change the
// weather.
package storm

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

var (
	seed       = flag.Uint64("seed", 0, "what the workers do; 0 for another one each time")
	rounds     = flag.Int("rounds", 20, "how often the storm blows")
	operations = flag.Int("operations", 200, "commands in a round, shared by the workers")
)

const (
	workers = 8
	// killed is how many of a hundred commands are killed, within lifetime of
	// their start.
	killed   = 20
	lifetime = 40 * time.Millisecond
)

func TestMain(m *testing.M) { lab.Main(m, lab.Plain) }

// storms share the rounds. Each has a host of its own.
var storms = []struct {
	name string
	// firewall is what all commands ask for; mixed has it changed under what is
	// there, in the middle of each round.
	firewall string
	mixed    bool
	// share is the part of the rounds, in percent.
	share int
}{
	{"nftables", "nftables", false, 40},
	{"iptables", "iptables", false, 30},
	{"mixed", "", true, 30},
}

func TestStorm(t *testing.T) {
	t.Parallel()
	if *seed == 0 {
		*seed = rand.Uint64N(1e9)
	}
	t.Logf("seed %d: repeat with -seed %[1]d", *seed)
	for i, c := range storms {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := lab.NewHost(t)
			h.Firewall = c.firewall
			s := &storm{t: t, h: h, mixed: c.mixed, seed: *seed + uint64(i)<<32}
			s.blow(max(1, *rounds*c.share/100))
		})
	}
}

// blow is some rounds, after each of which the host is as it was before.
func (s *storm) blow(rounds int) {
	s.t.Helper()
	chain := "SANDNET-FORWARD"
	if s.h.Firewall != "nftables" {
		chain += "S"
		tables(s.h)
	}
	strangers(s.h, chain)
	s.h.OK("gc") // the state directory exists from here on
	before := s.h.Settled()
	for n := range rounds {
		s.round(n)
		s.clear()
		if i, d := s.h.Becomes(before); i < 0 {
			s.t.Fatalf("round %d: the host differs from what it was before:\n%s", n, d)
		}
	}
	s.t.Logf("%d rounds: %d commands, %d of them killed, %d refused; %d sandboxes made, %d times one was changed, %d alive at the end of a round; %d claims and %d looks found nothing held twice",
		rounds, s.started.Load(), s.killed.Load(), s.refused.Load(), s.made.Load(), s.changed.Load(), s.survived, s.checked, s.looks)
	if s.made.Load() == 0 || s.changed.Load() == 0 || s.checked == 0 || s.looks == 0 || s.survived == 0 || s.killed.Load() == 0 {
		s.t.Error("that was no storm")
	}
}

type storm struct {
	t     *testing.T
	h     *lab.Host
	mixed bool
	seed  uint64

	started, killed, refused, made, changed atomic.Int64
	survived, checked, looks                int
}

// round lets the workers loose and then looks at what they leave.
func (s *storm) round(n int) {
	s.t.Helper()
	books := newLedger()
	watcher := &observer{h: s.h, faults: map[string]bool{}}
	stop := make(chan struct{})
	var all, watching sync.WaitGroup
	watching.Go(func() { watcher.watch(stop) })
	parts := 1
	if s.mixed {
		parts = 2
	}
	for part := range parts {
		if part > 0 {
			s.changeFirewall(n)
		}
		for w := range workers {
			p := &pick{rand.New(rand.NewPCG(s.seed, uint64((n*parts+part)*workers+w)))}
			all.Go(func() {
				s.h.Do(func() {
					for range *operations/workers*(part+1)/parts - *operations/workers*part/parts {
						s.step(p, books)
					}
				})
			})
		}
		all.Wait()
	}
	close(stop)
	watching.Wait()
	for fault := range watcher.faults {
		s.t.Errorf("round %d: %s", n, fault)
	}
	for _, fault := range books.faults {
		s.t.Errorf("round %d: %s", n, fault)
	}
	s.looks += watcher.looks
	s.checked += books.checked
	s.survivors(n, books)
}

// changeFirewall has the host change to the other firewall, which it had in the
// round before, while nobody else is at work. Some are killed on the way.
func (s *storm) changeFirewall(n int) {
	s.t.Helper()
	dice := rand.New(rand.NewPCG(s.seed, uint64(n)<<32))
	change := []string{"--firewall", []string{"nftables", "iptables"}[n%2], "create", "--name", "mover"}
	for range 3 {
		s.sandnet(1+time.Duration(dice.Int64N(int64(5*lifetime))), change...)
		s.h.OK("ps")
		s.h.OK("rm", "-f", "mover")
	}
	s.h.OK(change...)
	s.h.OK("rm", "mover")
}

// step is one command of a worker.
func (s *storm) step(p *pick, books *ledger) {
	c := p.op().make(p)
	var fuse time.Duration
	if p.chance(killed) {
		fuse = time.Duration(p.Int64N(int64(lifetime)))
	}
	books.begin(c)
	r := s.sandnet(fuse, c.args...)
	books.end(c)
	s.started.Add(1)
	switch {
	case r.Signal == syscall.SIGKILL && fuse > 0:
		s.killed.Add(1)
	case r.Code == 128+int(syscall.SIGKILL) && c.mortal:
	case r.Code != 0:
		s.refused.Add(1)
		if !said(r.Stderr, c.refusals) {
			s.t.Errorf("%s", r)
		}
	case r.Stderr != "":
		s.t.Errorf("%s", r)
	case c.changes != "":
		s.changed.Add(1)
		stamp := books.stamp(c.changes)
		if v, ok := s.inspect(c.changes); ok {
			books.changed(stamp, v.Name, v.ID, v.claims())
		}
	case c.makes != "":
		s.made.Add(1)
		stamp := books.stamp(c.makes)
		if v, ok := s.inspect(r.Out()); ok {
			books.made(stamp, v.Name, v.ID, v.claims())
		}
	}
}

func said(stderr string, reasons []string) bool {
	return slices.ContainsFunc(reasons, func(reason string) bool { return strings.Contains(stderr, reason) })
}

// inspect asks for a sandbox by its ID; somebody may have removed it already.
func (s *storm) inspect(id string) (view, bool) {
	r := s.sandnet(0, "inspect", id)
	var v []view
	switch {
	case r.Code == 0 && json.Unmarshal([]byte(r.Stdout), &v) == nil && len(v) == 1:
		return v[0], true
	case !strings.Contains(r.Stderr, "no such sandbox"):
		s.t.Errorf("%s", r)
	}
	return view{}, false
}

// sandnet runs sandnet from the calling thread, and kills it after fuse unless
// that is 0.
func (s *storm) sandnet(fuse time.Duration, args ...string) lab.Result {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(s.h.Program, args...)
	cmd.Env = append(s.h.Env(), "PATH="+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	r := lab.Result{Args: append([]string{"sandnet"}, args...)}
	if err := cmd.Start(); err != nil {
		s.t.Errorf("%s: %v", strings.Join(r.Args, " "), err)
		return r
	}
	after, hangs := fuse, fuse == 0
	if hangs {
		after = lab.Patience
	}
	timer := time.AfterFunc(after, func() {
		if hangs { // it says where
			s.t.Errorf("%s hangs", strings.Join(r.Args, " "))
			_ = cmd.Process.Signal(syscall.SIGQUIT)
			time.Sleep(time.Second)
		}
		_ = cmd.Process.Kill()
	})
	err := cmd.Wait()
	timer.Stop()
	r.Stdout, r.Stderr = stdout.String(), stderr.String()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.Code = exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			r.Signal, r.Code = ws.Signal(), 128+int(ws.Signal())
		}
	}
	return r
}

// survivors cleans up after those that were killed, and looks whether those
// that were not have what they were told.
func (s *storm) survivors(n int, books *ledger) {
	s.t.Helper()
	s.h.OK("gc")
	r := s.h.Sandnet("diff")
	if r.Code != 0 && onlyJoined(r.Stdout) {
		s.h.OK("gc", "--repair")
		r = s.h.Sandnet("diff")
	}
	if r.Code != 0 {
		s.t.Errorf("round %d: %s", n, r)
	}
	var alive []view
	list := map[string]string{}
	for _, id := range strings.Fields(s.h.OK("ps", "-q")) {
		var v []view
		if err := json.Unmarshal([]byte(s.h.OK("inspect", id)), &v); err != nil {
			s.t.Fatal(err)
		}
		alive = append(alive, v...)
		list[v[0].Name] = v[0].ID
	}
	for name, id := range books.sure() {
		if list[name] != id {
			s.t.Errorf("round %d: sandbox %s (%.12s) was made and never removed, but is gone", n, name, id)
		}
	}
	for _, v := range alive {
		s.works(n, v)
	}
	s.survived += len(alive)
}

// onlyJoined reports whether all differences are those of sandboxes whose other
// one was removed by force, and made anew under its name: they are still in the
// namespace of the first.
func onlyJoined(diff string) bool {
	for line := range strings.Lines(diff) {
		if !strings.Contains(line, "namespace: want that of") {
			return false
		}
	}
	return true
}

// works checks that a sandbox has what its description says: its addresses,
// and the published ports that lead to it and nobody else can take.
func (s *storm) works(n int, v view) {
	s.t.Helper()
	if len(v.Endpoints) == 0 {
		return
	}
	ino, addrs, err := addresses(v.Netns)
	if err != nil || ino == 0 {
		s.t.Errorf("round %d: sandbox %s has no namespace at %s: %v", n, v.Name, v.Netns, err)
		return
	}
	inside := s.h.Sandbox(v.Name)
	inside.ServeTCP("0.0.0.0:80")
	inside.ServeUDP("0.0.0.0:80")
	inside.ServeTCP("[::]:80")
	inside.ServeUDP("[::]:80")
	for _, ep := range v.Endpoints {
		for _, a := range ep.Addresses {
			if !slices.Contains(addrs, a.Addr().String()) {
				s.t.Errorf("round %d: sandbox %s does not have %s, but %v", n, v.Name, a, addrs)
			}
		}
		for _, p := range ep.Ports {
			addr, family := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.HostPort).String(), "4"
			if p.HostIP.Is6() {
				addr, family = netip.AddrPortFrom(netip.IPv6Loopback(), p.HostPort).String(), "6"
				if !slices.ContainsFunc(ep.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
					continue // it waits for a network that has IPv6
				}
			}
			if !internal(ep.Network) { // who may reach one of those is another test's business
				s.h.Reaches(p.Protocol, addr, inside, "")
			}
			if err := s.h.Bind(p.Protocol+family, addr); !errors.Is(err, syscall.EADDRINUSE) {
				s.t.Errorf("round %d: %s/%s of sandbox %s can be taken by others (%v)", n, addr, p.Protocol, v.Name, err)
			}
		}
	}
}

// clear removes everything.
func (s *storm) clear() {
	s.t.Helper()
	s.h.Settled() // ends the servers, whose sockets would hold their namespaces
	if ids := strings.Fields(s.h.OK("ps", "-q")); len(ids) > 0 {
		s.h.OK(append([]string{"rm", "-f"}, ids...)...)
	}
	s.h.OK("network", "prune")
	if s.h.Sandnet("network", "inspect", "bridge").Code == 0 {
		s.h.OK("network", "rm", "bridge")
	}
	if left := s.h.OK("gc"); left != "" {
		s.t.Errorf("gc finds, where everything was removed: %s", left)
	}
}
