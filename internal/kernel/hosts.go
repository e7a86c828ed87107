package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// ensureHostsFile makes a sandbox's own hosts file with what its networks'
// shared files hold; by the symlinks in these, HostsLines reach it too. A file
// that is there keeps its inode. One in the place of a symlink has a new one,
// which processes that have the symlink's target mounted get instead.
func (k *Kernel) ensureHostsFile(h plan.HostsFile) (changed int, err error) {
	// All in one order: nobody waits for one who waits for them.
	text := h.Header
	for _, d := range slices.Sorted(slices.Values(h.Dirs)) {
		lock, err := lockDir(d, true)
		if err != nil {
			return 0, err
		}
		defer lock.Close()
	}
	for _, d := range h.Dirs {
		b, err := os.ReadFile(filepath.Join(d, plan.SharedHosts))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		text += strings.TrimPrefix(string(b), plan.LocalHosts)
	}
	have, err := os.Lstat(h.Path)
	switch {
	case err == nil && have.Mode().IsRegular():
		err := editHosts(h.Path, func(old string) string {
			if sameLines(old, text) { // in whatever order neighbours came
				return old
			}
			changed = 1
			return text
		})
		return changed, err
	case err == nil:
		return 1, k.replaceHosts(h, text)
	case !errors.Is(err, fs.ErrNotExist):
		return 0, err
	}
	return 1, writeHosts(h.Path, text)
}

func sameLines(a, b string) bool {
	return slices.Equal(slices.Sorted(strings.Lines(a)), slices.Sorted(strings.Lines(b)))
}

func writeHosts(path, text string) error {
	return inDir(path, func() error {
		crash.Point("hosts " + path)
		return os.WriteFile(path, []byte(text), 0o644)
	})
}

// replaceHosts puts a file in the place of a symlink. The file has its inode,
// under another name, before the symlink goes: whoever repeats this after a
// kill finds those processes that have it already.
func (k *Kernel) replaceHosts(h plan.HostsFile, text string) error {
	var shared unix.Stat_t
	if err := unix.Stat(h.Path, &shared); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s: %w", h.Path, err)
	}
	fresh := freshHosts(h)
	if err := writeHosts(fresh, text); err != nil {
		return err
	}
	// Once more after the renaming, for those that were started in between.
	errs := []error{k.mountHosts(h.Netns, fresh, shared)}
	crash.Point("hosts rename " + h.Path)
	if err := os.Rename(fresh, h.Path); err != nil {
		return err
	}
	return errors.Join(append(errs, k.mountHosts(h.Netns, h.Path, shared))...)
}

// freshHosts is where a file waits to take its place.
func freshHosts(h plan.HostsFile) string {
	return filepath.Join(filepath.Dir(h.Path), ".new-"+filepath.Base(h.Path))
}

// mountHosts gives processes in the namespace that have the file old as their
// /etc/hosts, because `run`, `exec` or `ip netns exec` mounted it there, the
// file at path instead.
func (k *Kernel) mountHosts(netns, path string, old unix.Stat_t) error {
	if netns == "" || old.Ino == 0 {
		return nil
	}
	var errs []error
	for _, pid := range k.Holders(netns) {
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/root/etc/hosts", pid), &st) != nil || st.Ino != old.Ino || st.Dev != old.Dev {
			continue
		}
		crash.Point("hosts mount")
		var err error
		onOwnThread(func() { err = mountIn(pid, path, "/etc/hosts") })
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // it has ended
			errs = append(errs, fmt.Errorf("hosts file of process %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// mountIn binds the file at path, as this process sees it, to target as the
// process pid sees it. It leaves the calling thread in that one's mount
// namespace.
func mountIn(pid int, path, target string) error {
	file, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", path, err)
	}
	defer unix.Close(file)
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	// A thread that shares its root directory with others cannot change it.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	if err := unix.MoveMount(file, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount %s: %w", target, err)
	}
	return nil
}

func deleteHostsFile(h plan.HostsFile) error {
	return errors.Join(remove(freshHosts(h)), deleteFile(h.Path))
}
