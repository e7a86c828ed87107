// Package lab makes hosts out of network namespaces, for tests: each host has
// its own addresses, rules and sandnet root directory, and all are joined by
// one LAN. Tests run sandnet on a host, talk to what it made from anywhere, and
// compare complete dumps of the host before and after.
//
// It knows sandnet only as a program: it imports none of its packages.
package lab

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Binaries under test, built once per test process by Main.
const (
	// Plain is the binary that users get; Crashing has the kill points.
	Plain    = ""
	Crashing = "crashpoints"
)

const (
	stageVar = "SANDNET_LAB_STAGE"
	binVar   = "SANDNET_LAB_BIN"
)

// private directories are empty inside the world, so that a test may use the
// default root and names in /run/netns without meeting the machine's.
var private = []string{"/run/netns", "/etc/netns", "/run/sandnet", "/var/lib/sandnet"}

// Main runs the tests of a package in a world of their own: new PID, mount and
// network namespaces. When it ends, in whatever way, the kernel ends every
// process and drops every mount, link and namespace the tests have made; the
// machine's own network is never touched.
//
//	func TestMain(m *testing.M) { lab.Main(m, lab.Plain) }
func Main(m *testing.M, builds ...string) {
	if flag.Parse(); fuzzing() {
		os.Exit(m.Run())
	}
	switch os.Getenv(stageVar) {
	case "":
		os.Exit(outside(builds))
	case "init":
		os.Exit(initProcess())
	}
	if err := inside(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
	waitTogether()
	os.Exit(m.Run())
}

// waitTogether has more tests at once than there are processors, unless the
// command line says otherwise: half of their time they wait for the kernel.
func waitTogether() {
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		_ = flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0)))
	}
}

// fuzzing says that a fuzz target is run, and nothing else: those are pure, and
// their workers, started by the testing package, find no world.
func fuzzing() bool {
	return flag.Lookup("test.fuzz").Value.String() != "" && flag.Lookup("test.run").Value.String() == "^$"
}

// outside builds the binaries, while there is a network to fetch modules
// from, and starts the world.
func outside(builds []string) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "FAIL: these tests make network namespaces: run them as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "sandnet-lab-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	for _, tag := range builds {
		if err := build(dir, tag); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			return 1
		}
	}
	for _, d := range private {
		if os.MkdirAll(filepath.Dir(d), 0o755) == nil && os.Mkdir(d, 0o755) == nil {
			defer os.Remove(d) // only ever a mount point
		}
	}
	// The world ends with the thread that started it: this one must not go first.
	runtime.LockOSThread()
	cmd := self("init", append(os.Environ(), binVar+"="+dir))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	return code(cmd.Run())
}

// initProcess is PID 1: it waits for the tests, and for the orphans that
// killed commands leave to it.
func initProcess() int {
	cmd := self("tests", os.Environ())
	if err := cmd.Start(); err != nil {
		return code(err)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "lab: wait:", err)
			return 1
		}
		if pid == cmd.Process.Pid {
			if status.Signaled() {
				fmt.Fprintln(os.Stderr, "lab: tests ended by", status.Signal())
				return 1
			}
			return status.ExitStatus()
		}
	}
}

func inside() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, d := range private {
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount %s: %w", d, err)
		}
	}
	return nil
}

func self(stage string, env []string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(env, stageVar+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

func code(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "lab:", err)
	return 1
}

// Bin is the path of a binary that Main has built.
func Bin(tag string) string { return binPath(os.Getenv(binVar), tag) }

func binPath(dir, tag string) string {
	// Each in its own directory: a program's messages start with its name.
	return filepath.Join(dir, "bin-"+tag, "sandnet")
}

func build(dir, tag string) error {
	root, err := ModuleRoot()
	if err != nil {
		return err
	}
	tags := strings.TrimSuffix("urfave_cli_no_docs,"+tag, ",")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", tags,
		"-ldflags", "-s -w -X main.version=v0.0.0-test", "-o", binPath(dir, tag), "./cmd/sandnet")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

// ModuleRoot is the directory of go.mod, above the working directory.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no go.mod above %s", dir)
		}
	}
}
