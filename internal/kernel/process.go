package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/spec"
)

// lookPath finds the command as execvp(3) does; a *spec.CommandError if it
// cannot.
func lookPath(p spec.Process) (string, error) {
	file, err := exec.LookPath(p.Args[0])
	switch {
	case err == nil || errors.Is(err, exec.ErrDot):
		return file, nil
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EISDIR):
		return "", &spec.CommandError{Code: 126, Err: fmt.Errorf("%s: permission denied", p.Args[0])}
	default:
		return "", &spec.CommandError{Code: 127, Err: fmt.Errorf("%s: command not found", p.Args[0])}
	}
}

// Run starts the command and waits for its end; the result is its exit code,
// 128+N if signal N ended it, 0 if it was detached. Signals that ask this
// process to end are passed on. If this process is killed, so is the command.
func (k *Kernel) Run(p spec.Process) (code int, err error) {
	file, err := lookPath(p)
	if err != nil {
		return 0, err
	}
	cmd := &exec.Cmd{Path: file, Args: p.Args, Env: p.Env, Dir: p.Dir, SysProcAttr: &syscall.SysProcAttr{}}
	if p.Stdin != nil {
		cmd.Stdin = p.Stdin
	}
	if p.Stdout != nil {
		cmd.Stdout = p.Stdout
	}
	if p.Stderr != nil {
		cmd.Stderr = p.Stderr
	}
	// In the terminal's foreground the command stays in our process group, as a
	// part of the shell's job: Ctrl-C and Ctrl-Z reach it, and us, from there.
	// Elsewhere it has a group of its own, and gets every signal through us.
	job := p.Stdin != nil && isForeground(int(p.Stdin.Fd()))
	if p.Detach {
		cmd.SysProcAttr.Setsid = true
	} else {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		cmd.SysProcAttr.Setpgid = !job
	}
	// Namespaces and the parent-death signal belong to the thread, which
	// therefore lives as long as the command, and no longer. Started is called
	// here, on the host.
	pids, verdict, ended := make(chan int), make(chan error), make(chan error, 1)
	go onOwnThread(func() {
		ended <- supervise(p, cmd, job, func(pid int) error {
			pids <- pid
			return <-verdict
		})
	})
	for running := true; running; {
		select {
		case pid := <-pids:
			if p.Started != nil {
				verdict <- p.Started(pid)
			} else {
				verdict <- nil
			}
		case err = <-ended:
			running = false
		}
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if cmd.ProcessState == nil {
		return 0, nil
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

func isForeground(fd int) bool {
	pgrp, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}

func supervise(p spec.Process, cmd *exec.Cmd, job bool, started func(pid int) error) error {
	if err := enter(p); err != nil {
		return err
	}
	signals := make(chan os.Signal, 16)
	if !p.Detach {
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
			syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT)
		defer signal.Stop(signals)
	}
	var held *hold
	if p.Hold {
		var err error
		if held, err = holdBack(cmd); err != nil {
			return err
		}
	}
	err := cmd.Start()
	if held != nil {
		held.started(cmd)
	}
	if err != nil {
		if held != nil {
			held.close()
		}
		if errors.Is(err, syscall.ENOEXEC) || errors.Is(err, fs.ErrPermission) {
			return &spec.CommandError{Code: 126, Err: err}
		}
		if errors.Is(err, fs.ErrNotExist) { // a script whose interpreter is missing
			return &spec.CommandError{Code: 127, Err: err}
		}
		return err
	}
	err = started(cmd.Process.Pid)
	switch {
	case held == nil:
	case err == nil:
		err = held.release()
	default:
		held.close()
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	if p.Detach {
		return cmd.Process.Release()
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-signals:
				if !job || s != syscall.SIGINT && s != syscall.SIGQUIT && s != syscall.SIGWINCH {
					_ = cmd.Process.Signal(s)
				}
			case <-ended:
				return
			}
		}
	}()
	return cmd.Wait()
}

// enter moves the calling thread into the sandbox's network namespace and into
// mount and UTS namespaces of its own, with the sandbox's files over those in
// /etc and a /sys that shows the sandbox's links.
func enter(p spec.Process) error {
	if p.Netns == "" {
		if p.Hostname == "" {
			return nil
		}
		if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("new UTS namespace: %w", err)
		}
		return setHostname(p.Hostname)
	}
	if err := setnsPath(p.Netns); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("new mount and UTS namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mount propagation: %w", err)
	}
	if p.Hostname != "" {
		if err := setHostname(p.Hostname); err != nil {
			return err
		}
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	entries, err := os.ReadDir(p.EtcDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		err := unix.Mount(filepath.Join(p.EtcDir, e.Name()), filepath.Join("/etc", e.Name()), "", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, unix.ENOENT) { // a host without /etc/hostname keeps it so
			return fmt.Errorf("mount /etc/%s: %w", e.Name(), err)
		}
	}
	return nil
}

func setHostname(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("hostname %s: %w", name, err)
	}
	return nil
}

// killPatience is how long processes may take to end that were killed. On a
// busy machine the end of a mount namespace takes its time.
const killPatience = 10 * time.Second

// KillHolders kills every process in the namespace at path and waits until they
// are gone.
func (k *Kernel) KillHolders(path string) error {
	for end := time.Now().Add(killPatience); time.Now().Before(end); {
		pids := k.Holders(path)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(time.Millisecond)
		if k.onlyZombies(pids) {
			return nil
		}
		time.Sleep(9 * time.Millisecond)
	}
	return fmt.Errorf("processes in %s do not end", path)
}

// onlyZombies: a process that waits for its parent has left its namespaces.
func (k *Kernel) onlyZombies(pids []int) bool {
	for _, pid := range pids {
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil {
			return false
		}
	}
	return true
}

// ProcessStart is the start time of a process in clock ticks since boot
// (field 22 of proc_pid_stat(5)); it tells a PID from a reused one. 0 if there
// is no such process or it has ended and is only waited for.
func (k *Kernel) ProcessStart(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	return startIn(b)
}

// startIn finds the start time in a process's stat file.
func startIn(stat []byte) uint64 {
	// The command's name, in parentheses, may hold anything.
	i := bytes.LastIndexByte(stat, ')')
	var state byte
	var skip int64
	var start uint64
	rest := string(stat[min(i+2, len(stat)):])
	args := []any{&state}
	for range 18 {
		args = append(args, &skip)
	}
	if _, err := fmt.Sscanf(rest, "%c"+" %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d", append(args, &start)...); err != nil || state == 'Z' {
		return 0
	}
	return start
}
