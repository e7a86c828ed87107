package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/tests/lab"
)

func TestCells(t *testing.T) {
	for text, want := range map[string]int{"": 0, "web": 3, "a…": 2, "漢字": 4, "ｗｅｂ": 6, "e\u0301": 1, "한국어": 6, "🐧": 2, "→": 1} {
		if got := cells(text); got != want {
			t.Errorf("%q takes %d columns, want %d", text, got, want)
		}
	}
	for _, c := range []struct {
		text  string
		limit int
		want  string
	}{{"web", 3, "web"}, {"webs", 3, "we…"}, {"漢字表", 5, "漢字…"}, {"漢字表", 4, "漢…"}, {"ab", 1, "…"}} {
		if got := cut(c.text, c.limit); got != c.want {
			t.Errorf("%q in %d columns: %q, want %q", c.text, c.limit, got, c.want)
		}
	}
}

func TestTableIsAligned(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	p := &program{stdout: f}
	rows := [][]string{{"NAME", "TEXT", "LAST"}, {"漢字漢字漢字", "x", "1"}, {"web", strings.Repeat("long ", 20), "2"}}
	for width, want := range map[int]string{
		0: "NAME           TEXT" + strings.Repeat(" ", 99) + "LAST\n" +
			"漢字漢字漢字   x" + strings.Repeat(" ", 102) + "1\n" +
			"web            " + strings.Repeat("long ", 20) + "   2\n",
		40: "NAME           TEXT                 LAST\n" +
			"漢字漢字漢字   x                    1\n" +
			"web            long long long lo…   2\n",
	} {
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		if err := p.printTableTo(width, rows); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(f.Name()); string(got) != want {
			t.Errorf("%d columns:\n%s\nwant\n%s", width, got, want)
		}
	}
}

// What a terminal shows differs from what a file gets only in colour and in
// what is cut; and JSON in nothing.
func TestOnATerminal(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	h.OK("create", "--name", "web", "-p", "8080-8090:80-90", "-p", "127.0.0.1:5353:53/udp")
	h.OK("run", "-d", "--name", "busy", "--net", "none", "sleep", "60")
	env := []string{"SANDNET_ROOT=" + h.Root}
	show := func(extra []string, columns int, args ...string) string {
		return h.OnTerminal(columns, append(env, extra...), h.Program, args...).Screen().Stdout
	}

	table := show(nil, 120, "ps")
	if !strings.Contains(table, "\x1b[32mrunning\x1b[0m") || !strings.Contains(table, "0.0.0.0:8080->80/tcp") || !strings.Contains(table, "…") {
		t.Errorf("ps:\n%q", table)
	}
	for line := range strings.Lines(strings.NewReplacer("\x1b[32m", "", "\x1b[0m", "").Replace(table)) {
		if n := cells(strings.TrimSuffix(line, "\n")); n > 120 || strings.Contains(line, "\x1b") {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	for what, plain := range map[string]string{
		"NO_COLOR": show([]string{"NO_COLOR=1"}, 90, "ps"),
		"dumb":     show([]string{"TERM=dumb"}, 90, "ps"),
		"pipe":     h.OK("ps"),
		"no-trunc": show([]string{"NO_COLOR=1"}, 90, "ps", "--no-trunc"),
	} {
		if strings.Contains(plain, "\x1b") || (what == "pipe" || what == "no-trunc") == strings.Contains(plain, "…") {
			t.Errorf("%s: %q", what, plain)
		}
	}
	for _, args := range [][]string{{"ps", "--format", "json"}, {"inspect", "web"}, {"network", "ls", "--format", "json"}, {"version", "--format", "json"}} {
		if got, want := show(nil, 40, args...), h.OK(args...)+"\n"; got != want {
			t.Errorf("%v on a terminal:\n%s\notherwise:\n%s", args, got, want)
		}
	}
	for _, args := range [][]string{{"create", "--help"}, {"--help"}} {
		_, options, ok := strings.Cut(show(nil, 80, args...), "ptions:\n")
		if !ok || strings.Count(options, "\n") < 5 {
			t.Errorf("%v: no options:\n%s", args, options)
		}
		for line := range strings.Lines(options) {
			if cells(strings.TrimSuffix(line, "\n")) > 80 {
				t.Errorf("%v: too wide: %s", args, line)
			}
		}
	}
	if got, want := show(nil, 80, "rm", "nosuch"), "\x1b[1;31msandnet:\x1b[0m rm: no such sandbox: nosuch\n"; got != want {
		t.Errorf("error: %q, want %q", got, want)
	}
	if got, want := show([]string{"NO_COLOR=1"}, 80, "rm", "nosuch"), h.Sandnet("rm", "nosuch").Stderr; got != want {
		t.Errorf("error: %q, want %q", got, want)
	}
}

// A command that waits shows that it does, and takes the line away again.
func TestProgress(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	h.OK("create", "--name", "web", "--net", "none")
	lock, err := os.Create(filepath.Join(h.Root, "run/locks/sandbox:web"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	term := h.OnTerminal(80, []string{"SANDNET_ROOT=" + h.Root}, h.Program, "rm", "-f", "web")
	piped := h.StartSandnet("rm", "-f", "web")
	term.Await(" sandnet rm: 0 of 1, 1 s")
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	r := term.Screen()
	if r.Code != 0 || !strings.Contains(r.Stdout, "1 s\r\x1b[K") || strings.LastIndex(r.Stdout, " s") > strings.LastIndex(r.Stdout, "\x1b[K") {
		t.Errorf("on the terminal: %q", r)
	}
	if r := piped.Result(); r.Code != 0 || r.Stderr != "" {
		t.Errorf("without one: %s", r)
	}
}

// Who reads the output may stop when he has seen enough.
func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	h.OK("create", "--name", "web", "--net", "none")
	for name, command := range map[string][]string{
		"by signal":      {h.Program},
		"signal ignored": {"sh", "-c", `trap "" PIPE; exec "$0" "$@"`, h.Program},
	} {
		for _, args := range [][]string{{"ps"}, {"ps", "-q"}, {"inspect", "web"}, {"--help"}, {"plan"}, {"completion", "bash"}} {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			all := append(append([]string{}, command...), args...)
			p := h.StartTo(w, []string{"SANDNET_ROOT=" + h.Root}, all[0], all[1:]...)
			w.Close()
			if res := p.Result(); res.Stderr != "" || res.Code != exitHungUp || name == "by signal" && res.Signal != syscall.SIGPIPE {
				t.Errorf("%s: %s, signal %v", name, res, res.Signal)
			}
		}
	}
}
