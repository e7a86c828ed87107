package kernel

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LeaveTransientMounts takes a process that was started by `ip netns exec`
// back into the mount namespace it came from, by executing it again there; in
// all other cases it does nothing. The command gives each process a mount
// namespace that ends with it, and a namespace pinned in there would, too:
// with this, `ip netns exec HOST sandnet create` works as it does elsewhere.
func LeaveTransientMounts() error {
	own := mountNS("self")
	if own == "" || own == mountNS("1") || !underIPNetnsExec() {
		return nil
	}
	ancestor := os.Getppid()
	for ancestor > 0 && mountNS(strconv.Itoa(ancestor)) == own {
		ancestor = parent(ancestor)
	}
	if ancestor <= 0 {
		return nil
	}
	target, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", ancestor))
	if err != nil {
		return nil // its parent is another user's, or gone: stay
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // ends in exec or in exit
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace of process %d: %w", ancestor, err)
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	return fmt.Errorf("execute %s: %w", exe, unix.Exec(exe, os.Args, os.Environ()))
}

func mountNS(pid string) string {
	ns, _ := os.Readlink("/proc/" + pid + "/ns/mnt")
	return ns
}

// underIPNetnsExec looks for its trace: it mounts a sysfs on /sys with the
// namespace's name as the source (iproute2, lib/namespace.c).
func underIPNetnsExec() bool {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(netnsOnSys(info), func(name string) bool {
		return pinned("/run/netns/"+name) || pinned("/var/run/netns/"+name)
	})
}

// netnsOnSys are the sources of the sysfs mounts on /sys in a mountinfo file
// (proc_pid_mountinfo(5)) that may be a namespace's name.
func netnsOnSys(info []byte) (names []string) {
	for line := range bytes.Lines(info) {
		if !bytes.Contains(line, []byte(" /sys ")) {
			continue // most lines: every sandbox has one
		}
		mount, rest, ok := strings.Cut(string(line), " - ")
		f, r := strings.Fields(mount), strings.Fields(rest)
		if ok && len(f) >= 5 && len(r) >= 2 && f[4] == "/sys" && r[0] == "sysfs" && !strings.Contains(r[1], "/") {
			names = append(names, r[1])
		}
	}
	return names
}

func parent(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	return parentIn(b)
}

// parentIn finds the parent in a process's status file (proc_pid_status(5)).
func parentIn(status []byte) int {
	for line := range bytes.Lines(status) {
		if v, ok := bytes.CutPrefix(line, []byte("PPid:")); ok {
			n, _ := strconv.Atoi(string(bytes.TrimSpace(v)))
			return max(n, 0)
		}
	}
	return 0
}
