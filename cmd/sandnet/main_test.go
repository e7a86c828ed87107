package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sandnet/sandnet/tests/lab"
)

var update = flag.Bool("update", false, "rewrite what the scripts compare with")

func TestMain(m *testing.M) { lab.Main(m, lab.Plain) }

// TestScripts runs testdata/script, each script on a host of its own. Beside
// testscript's own there are these commands:
//
//	[!] sandnet ARG…     sandnet on the host
//	[!] host COMMAND…    any command in the host's network namespace
//	exits N COMMAND…     a command as above, with its exit code
//	refused COMMAND…     exit code 2, one line on stderr, and nothing changed
//	capture VAR          the last output becomes a variable
//	mask FILE            the last output without what is new each time
//	listen ADDRESS       a server on the host
//
// "nobody" before COMMAND runs it as an ordinary user. In the background a
// command runs on the host with `exec nsenter --net=$NETNS COMMAND… &`.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup:         setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"sandnet": func(ts *testscript.TestScript, neg bool, args []string) {
				succeed(ts, neg, append([]string{programName}, args...))
			},
			"host":    succeed,
			"exits":   exits,
			"refused": refused,
			"capture": capture,
			"mask":    mask,
			"listen": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Value("host").(*lab.Host).ServeTCP(args[0])
			},
		},
	})
}

// setup makes the host, and has what the script leaves on it checked: after
// everything is removed that sandnet lists, nothing may be there.
func setup(env *testscript.Env) error {
	t, ok := env.T().(testing.TB)
	if !ok {
		return errors.New("testscript no longer hands over a testing.TB")
	}
	h := lab.NewHost(t)
	env.Values["host"] = h
	bin := filepath.Dir(h.Program)
	// "nobody" has to reach the program.
	if err := os.Chmod(filepath.Dir(bin), 0o755); err != nil {
		return err
	}
	env.Setenv("PATH", bin+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	env.Setenv("SANDNET_ROOT", h.Root)
	env.Setenv("NETNS", h.Path)
	env.Setenv("NEWLINE", "a\nb")
	env.Setenv("LONG", strings.Repeat("a", 200))
	h.OK("network", "create", "first") // from now on there is a state directory
	tidy(h)
	before := facts(h)
	env.Defer(func() {
		if t.Failed() {
			return
		}
		tidy(h)
		lab.Eventually(t, "host as before the script", func() error {
			if d := lab.Diff(before, facts(h)); d != "" {
				return errors.New(d)
			}
			return nil
		})
	})
	return nil
}

// facts is the host's dump without sandnet's own directories, which stay or go
// as it likes.
func facts(h *lab.Host) lab.Dump {
	own := regexp.MustCompile(`^file: ` + regexp.QuoteMeta(h.Root) + `(/run/records|/run|/lib)?(/[a-z]+)? d`)
	return slices.DeleteFunc(h.Dump(), own.MatchString)
}

func tidy(h *lab.Host) {
	if ids := strings.Fields(h.OK("ps", "-q")); len(ids) > 0 {
		h.OK(append([]string{"rm", "-f"}, ids...)...)
	}
	if nets := strings.Fields(h.OK("network", "ls", "-q")); len(nets) > 0 {
		h.OK(append([]string{"network", "rm"}, nets...)...)
	}
}

// run runs a command in the host's network namespace and returns its exit
// code; a command that cannot be run ends the script.
func run(ts *testscript.TestScript, args []string) int {
	if len(args) == 0 {
		ts.Fatalf("no command")
	}
	switch args[0] {
	case "nobody":
		args = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"}, args[1:]...)
	case "host":
		args = args[1:]
	}
	var err error
	ts.Value("host").(*lab.Host).Do(func() { err = ts.Exec(args[0], args[1:]...) })
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		ts.Fatalf("%s: %v", args[0], err)
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return exit.ExitCode()
}

func succeed(ts *testscript.TestScript, neg bool, args []string) {
	if code := run(ts, args); neg == (code == 0) {
		ts.Fatalf("%s: exit code %d", strings.Join(args, " "), code)
	}
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if neg {
		ts.Fatalf("exits takes no !")
	}
	if code := run(ts, args[1:]); code != want {
		ts.Fatalf("%s: exit code %d, want %d", strings.Join(args[1:], " "), code, want)
	}
}

func refused(ts *testscript.TestScript, neg bool, args []string) {
	h := ts.Value("host").(*lab.Host)
	before := facts(h)
	exits(ts, neg, append([]string{"2"}, args...))
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("stdout: %s", out)
	}
	ts.Check(oneMessage(ts.ReadFile("stderr")))
	after := facts(h)
	// The kernel may still be at what an earlier command has removed.
	dying := regexp.MustCompile(`[ /]sv[0-9a-f]{12}`)
	before = slices.DeleteFunc(before, func(l string) bool { return dying.MatchString(l) && !slices.Contains(after, l) })
	if d := lab.Diff(before, after); d != "" {
		ts.Fatalf("it changed the host:\n%s", d)
	}
}

// oneMessage checks that an error is `sandnet: WHAT: WHY` and perhaps a hint.
func oneMessage(stderr string) error {
	line, rest, _ := strings.Cut(strings.TrimSuffix(stderr, "\n"), "\n")
	if parts := strings.SplitN(line, ": ", 3); len(parts) < 3 || parts[0] != programName {
		return fmt.Errorf("not `sandnet: WHAT: WHY`: %q", line)
	}
	if rest != "" && (!strings.HasPrefix(rest, "hint: ") || strings.Contains(rest, "\n")) {
		return fmt.Errorf("not one hint: %q", rest)
	}
	return nil
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: capture VAR")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

func mask(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: mask FILE")
	}
	text := strings.ReplaceAll(ts.ReadFile("stdout"), ts.Value("host").(*lab.Host).Root, "ROOT")
	for _, m := range []struct{ pattern, with string }{
		{`[0-9a-f]{64}`, "ID"}, {`sv[0-9a-f]{11}`, "svID"}, {`\d{4}-\d\d-\d\dT[0-9:.]+Z`, "TIME"},
	} {
		text = regexp.MustCompile(m.pattern).ReplaceAllString(text, m.with)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}
