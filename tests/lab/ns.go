package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Patience bounds every command: what takes longer hangs.
const Patience = 30 * time.Second

// NS is a network namespace, and what a test does in it.
type NS struct {
	t testing.TB
	// Name is for messages; Path is where the namespace is pinned.
	Name, Path string
	// servers, if not nil, collects what ends the servers inside.
	servers *[]func()
}

// onEnd has stop called once, when the test ends or the host is compared.
func (n *NS) onEnd(stop func()) {
	stop = sync.OnceFunc(stop)
	n.t.Cleanup(stop)
	if n.servers != nil {
		*n.servers = append(*n.servers, stop)
	}
}

// Do runs f on a thread inside the namespace: sockets that f opens and
// processes that it starts belong there. The thread is thrown away. f must not
// end the test.
func (n *NS) Do(f func()) {
	n.t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = enter(n.Path); err == nil {
			f()
		}
	}()
	<-done
	if err != nil {
		n.t.Fatalf("enter %s: %v", n.Name, err)
	}
}

func enter(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// Result is how a command ended.
type Result struct {
	Args           []string
	Stdout, Stderr string
	// Code is the exit code, or 128+N after signal N.
	Code int
	// Signal is the signal that ended the command, or 0.
	Signal syscall.Signal
	Took   time.Duration
}

func (r Result) String() string {
	return fmt.Sprintf("%s: exit %d\nstdout: %s\nstderr: %s", strings.Join(r.Args, " "), r.Code, r.Stdout, r.Stderr)
}

// Out is stdout without the newline at its end.
func (r Result) Out() string { return strings.TrimSuffix(r.Stdout, "\n") }

// Run runs a command in the namespace to its end, whatever that is.
func (n *NS) Run(name string, args ...string) Result {
	n.t.Helper()
	return n.RunEnv(nil, name, args...)
}

// RunEnv is Run with variables added to the environment.
func (n *NS) RunEnv(env []string, name string, args ...string) Result {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A child that outlives the command keeps the pipes open; it is not waited for.
	cmd.WaitDelay = time.Second
	cmd.Env = append(cleanEnv(), env...)
	start := time.Now()
	var err error
	n.Do(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	r := Result{Args: append([]string{name}, args...), Stdout: stdout.String(), Stderr: stderr.String(), Took: time.Since(start)}
	if ctx.Err() != nil {
		n.t.Fatalf("%s hangs: %s", n.Name, r)
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			r.Signal, r.Code = ws.Signal(), 128+int(ws.Signal())
		}
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		n.t.Fatalf("%s: %s: %v", n.Name, name, err)
	}
	return r
}

// Must is Run for a command that succeeds; it returns its output.
func (n *NS) Must(name string, args ...string) string {
	n.t.Helper()
	r := n.Run(name, args...)
	if r.Code != 0 {
		n.t.Fatalf("%s: %s", n.Name, r)
	}
	return r.Out()
}

// Process is a command that a test leaves running.
type Process struct {
	*exec.Cmd
	t        testing.TB
	out, err output
}

// Start starts a command in the namespace; it is killed when the test ends.
func (n *NS) Start(env []string, name string, args ...string) *Process {
	n.t.Helper()
	return n.StartTo(nil, env, name, args...)
}

// StartTo is Start with another standard output, unless that is nil.
func (n *NS) StartTo(stdout *os.File, env []string, name string, args ...string) *Process {
	n.t.Helper()
	p := &Process{Cmd: exec.Command(name, args...), t: n.t}
	p.Env = append(cleanEnv(), env...)
	p.Stdout, p.Stderr = &p.out, &p.err
	if stdout != nil {
		p.Stdout = stdout
	}
	p.WaitDelay = time.Second
	var err error
	n.Do(func() { err = p.Cmd.Start() })
	if err != nil {
		n.t.Fatalf("%s: start %s: %v", n.Name, name, err)
	}
	n.t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Cmd.Wait()
	})
	return p
}

// Await waits until the process has printed text.
func (p *Process) Await(text string) {
	p.t.Helper()
	Eventually(p.t, fmt.Sprintf("%q from %s", text, strings.Join(p.Args, " ")), func() error {
		if out := p.out.String(); !strings.Contains(out, text) {
			return fmt.Errorf("stdout %q, stderr %q", out, p.err.String())
		}
		return nil
	})
}

// Result waits for the end.
func (p *Process) Result() Result {
	p.t.Helper()
	done := make(chan error, 1)
	go func() { done <- p.Cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(Patience):
		p.t.Fatalf("%s does not end", strings.Join(p.Args, " "))
	}
	r := Result{Args: p.Args, Stdout: p.out.String(), Stderr: p.err.String(), Code: p.ProcessState.ExitCode()}
	if ws, ok := p.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		r.Signal, r.Code = ws.Signal(), 128+int(ws.Signal())
	}
	return r
}

// output is a buffer that is read while a process writes to it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Eventually repeats f until it succeeds, for a few seconds.
func Eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// cleanEnv is the environment without what would steer sandnet or Go's tests.
func cleanEnv() []string {
	var out []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SANDNET_") && !strings.HasPrefix(v, "CNI_") {
			out = append(out, v)
		}
	}
	return out
}
