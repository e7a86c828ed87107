package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

func TestExitCodes(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	create(t, h, "box")
	cases := []struct {
		code int
		args []string
	}{
		{0, []string{"true"}},
		{7, []string{"sh", "-c", "exit 7"}},
		{126, []string{"/etc/passwd"}},
		{126, []string{"/etc"}},
		{127, []string{"/no/such/program"}},
		{127, []string{"no-such-program"}},
		{143, []string{"sh", "-c", "kill -TERM $$"}},
		{137, []string{"sh", "-c", "kill -KILL $$"}},
	}
	for _, prefix := range [][]string{{"run"}, {"run", "--net", "none"}, {"run", "--net", "host"}, {"exec", "box"}} {
		for _, c := range cases {
			args := append(append(append([]string{}, prefix...), "--"), c.args...)
			if r := h.Sandnet(args...); r.Code != c.code {
				t.Errorf("%s: want exit %d", r, c.code)
			} else if c.code > 124 && c.code < 128 && !strings.HasPrefix(r.Stderr, "sandnet: ") {
				t.Errorf("%s: no message", r)
			}
		}
	}
	h.Refused(2, []string{"nosuch"}, "run", "--net", "nosuch", "--", "true")
	h.Refused(125, []string{"nosuch"}, "exec", "nosuch", "--", "true")
	h.OK("rm", "box")
	h.Unchanged(before, "runs")
}

func TestRun(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	r := h.Sandnet("run", "--name", "x", "--", "sh", "-c", "ip -4 -o addr show eth0; echo oops >&2")
	if r.Code != 0 || !strings.Contains(r.Stdout, "172.30.") || r.Stderr != "oops\n" {
		t.Error(r)
	}
	piped := h.Start([]string{"SANDNET_ROOT=" + h.Root}, "sh", "-c", "echo hello | "+h.Program+" run -- cat")
	if r := piped.Result(); r.Stdout != "hello\n" {
		t.Errorf("stdin does not arrive: %s", r)
	}
	// Without a separator, the command's own options stay its own.
	if got := h.OK("run", "sh", "-c", "echo $0", "--name"); got != "--name" {
		t.Errorf("got %q", got)
	}
	h.Unchanged(before, "run")
}

// While it runs it is there; a signal reaches the command; after it nothing is.
func TestSignals(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	script := `trap "echo got TERM; exit 7" TERM; trap "echo got INT; exit 8" INT; trap "echo got HUP" HUP
echo ready; while :; do sleep 0.02; done`
	for _, x := range []struct {
		sig  syscall.Signal
		code int
	}{{syscall.SIGTERM, 7}, {syscall.SIGINT, 8}} {
		p := h.StartSandnet("run", "--name", "x", "-p", "8080:80", "--", "sh", "-c", script)
		p.Await("ready")
		s := inspect(t, h, "x")
		if s.Status != "running" || s.PID == 0 {
			t.Errorf("inspect: %+v", s)
		}
		_ = p.Process.Signal(syscall.SIGHUP)
		p.Await("got HUP")
		_ = p.Process.Signal(x.sig)
		if r := p.Result(); r.Code != x.code {
			t.Errorf("after %s: %s, want %d", x.sig, r, x.code)
		}
		h.Unchanged(before, "run ended by "+x.sig.String())
	}
	// A command that does not care is ended, and its code says how.
	p := h.StartSandnet("run", "--name", "x", "--", "sh", "-c", "echo ready; exec sleep 1000")
	p.Await("ready")
	_ = p.Process.Signal(syscall.SIGTERM)
	if r := p.Result(); r.Code != 143 {
		t.Errorf("want exit 143: %s", r)
	}
	h.Unchanged(before, "run ended by its command's death")
}

// A killed run leaves nothing after the next command, its own command included.
func TestKilledRun(t *testing.T) {
	t.Parallel()
	for _, next := range [][]string{{"gc"}, {"ps"}, {"create", "--name", "y"}} {
		h := lab.NewHost(t)
		before := used(t, h)
		h.OK("network", "create", "n")
		h.OK("run", "--net", "n", "--", "true")
		with := h.Settled()
		p := h.StartSandnet("run", "--net", "n", "--name", "x", "-p", "8080:80", "--", "sh", "-c", "echo ready; sleep 1000")
		p.Await("ready")
		_ = p.Process.Kill()
		p.Result()
		if r := h.Sandnet(next...); r.Code != 0 || next[0] == "ps" && strings.Contains(r.Stdout, "x") {
			t.Errorf("after a killed run: %s", r)
		}
		if next[0] == "create" {
			h.OK("rm", "y")
		}
		h.Unchanged(with, "a killed run and "+next[0])
		free(t, h.NS, "tcp", ":8080")
		h.OK("network", "rm", "n")
		h.Unchanged(before, "network rm")
	}
}

func TestRemoveRunning(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	p := h.StartSandnet("run", "--name", "x", "--", "sh", "-c", "echo ready; sleep 1000")
	p.Await("ready")
	h.Refused(1, []string{"x"}, "rm", "x")
	h.OK("rm", "-f", "x")
	start := time.Now()
	if r := p.Result(); r.Code == 0 || time.Since(start) > 10*time.Second {
		t.Errorf("run after rm -f: %s", r)
	}
	h.Unchanged(before, "rm -f")
}

func TestDetached(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	id := h.OK("run", "-d", "--name", "x", "-p", "8080:80", "--", "sleep", "1000")
	if !fullID.MatchString(id) {
		t.Errorf("run -d printed %q", id)
	}
	lab.Eventually(t, "running sandbox", func() error {
		if s := inspect(t, h, "x"); s.Status != "running" || s.PID == 0 {
			return constError(s.Status)
		}
		return nil
	})
	h.OK("rm", "-f", "x")
	h.Unchanged(before, "rm -f")
}
