package kernel

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

func ensureFile(f plan.File) (int, error) {
	if old, err := os.ReadFile(f.Path); err == nil && string(old) == f.Content {
		return 0, nil
	}
	return 1, inDir(f.Path, func() error {
		crash.Point("file " + f.Path)
		return os.WriteFile(f.Path, []byte(f.Content), 0o644)
	})
}

func ensureSymlink(s plan.Symlink) (int, error) {
	if old, err := os.Readlink(s.Path); err == nil && old == s.Target {
		return 0, nil
	}
	return 1, inDir(s.Path, func() error {
		crash.Point("symlink " + s.Path)
		return os.Symlink(s.Target, s.Path)
	})
}

// inDir runs make, and again after making the directory it misses.
func inDir(path string, write func() error) error {
	err := write()
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		err = write()
	}
	return err
}

// deleteFile removes a file and, with its last file, its directory.
func deleteFile(path string) error {
	if err := remove(path); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(path)) // refused while others are in it
	return nil
}

// remove removes a file; a missing one is no error.
func remove(path string) error {
	crash.Point("file delete " + path)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

const procSys = "/proc/sys/"

// ensureSysctls enters a namespace once for all settings in a row that are for
// it: the visit is a thread of its own.
func ensureSysctls(all []plan.Sysctl) (changed int, err error) {
	for i := 0; i < len(all) && err == nil; {
		n := 1
		for i+n < len(all) && all[i+n].Netns == all[i].Netns {
			n++
		}
		set := func() error {
			for _, s := range all[i : i+n] {
				c, err := setSysctl(s)
				changed += c
				if err != nil {
					return err
				}
			}
			return nil
		}
		if all[i].Netns == "" {
			err = set()
		} else {
			err = inNetns(all[i].Netns, set)
		}
		i += n
	}
	return changed, err
}

func setSysctl(s plan.Sysctl) (int, error) {
	old, err := os.ReadFile(procSys + s.Name)
	if s.Optional && errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("sysctl %s: %w", s.Name, err)
	}
	if sameSetting(s.Value, string(old)) {
		return 0, nil
	}
	crash.Point("sysctl " + s.Name)
	if err := os.WriteFile(procSys+s.Name, []byte(s.Value), 0); err != nil {
		return 0, fmt.Errorf("sysctl %s=%s: %w", s.Name, s.Value, err)
	}
	return 1, nil
}

// sameSetting compares a value as it was asked for with what the kernel shows
// of it: tabs between numbers, and these in decimal (kernel/sysctl.c).
func sameSetting(want, have string) bool {
	return slices.EqualFunc(strings.Fields(want), strings.Fields(have), func(a, b string) bool {
		x, errX := strconv.ParseInt(a, 0, 64)
		y, errY := strconv.ParseInt(b, 0, 64)
		return a == b || errX == nil && errY == nil && x == y
	})
}

// deleteSysctl puts the old value back, unless somebody has changed it since.
func deleteSysctl(s plan.Sysctl) error {
	if s.Restore == "" || s.Netns != "" {
		return nil
	}
	now, err := os.ReadFile(procSys + s.Name)
	if err != nil || strings.TrimSpace(string(now)) != s.Value {
		return nil
	}
	crash.Point("sysctl restore " + s.Name)
	return os.WriteFile(procSys+s.Name, []byte(s.Restore), 0)
}

// ensureHostsLine writes the line into every file of the network.
func ensureHostsLine(h plan.HostsLine) (int, error) {
	changed := 0
	err := inHosts(h.Dir, true, func(file string) error {
		return editHosts(file, func(text string) string {
			if strings.Contains("\n"+text, "\n"+h.Line()) {
				return text
			}
			changed = 1
			return withoutAddr(text, h) + h.Line()
		})
	})
	return changed, err
}

func deleteHostsLine(h plan.HostsLine) error {
	err := inHosts(h.Dir, false, func(file string) error {
		empty := false
		err := editHosts(file, func(text string) string {
			text = withoutAddr(text, h)
			empty = text == plan.LocalHosts
			return text
		})
		if err == nil && empty && filepath.Base(file) == plan.SharedHosts {
			err = deleteFile(file)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_ = os.Remove(h.Dir) // refused while anything is in it; without a file after a kill
	return err
}

func withoutAddr(text string, h plan.HostsLine) string {
	addr := h.Addr.String() + "\t"
	if !strings.Contains("\n"+text, "\n"+addr) {
		return text
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, addr) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// inHosts calls f for each hosts file in dir while nobody else changes one.
func inHosts(dir string, create bool, f func(file string) error) error {
	lock := func(dir string) (*os.File, error) { return lockDir(dir, false) }
	if create {
		lock = lockHosts
	}
	d, err := lock(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	if len(names) == 0 { // somebody was killed before making the first
		return os.Remove(dir)
	}
	for _, n := range names {
		if err := f(filepath.Join(dir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// lockHosts locks a network's directory and makes sure of its shared file.
func lockHosts(dir string) (*os.File, error) {
	d, err := lockDir(dir, true)
	if err != nil {
		return nil, err
	}
	shared := filepath.Join(dir, plan.SharedHosts)
	if _, err := os.Stat(shared); errors.Is(err, fs.ErrNotExist) {
		crash.Point("hosts " + shared)
		if err := os.WriteFile(shared, []byte(plan.LocalHosts), 0o644); err != nil {
			d.Close()
			return nil, err
		}
	}
	return d, nil
}

// lockDir opens and locks a directory that goes with its last file.
func lockDir(dir string, create bool) (*os.File, error) {
	for {
		if create {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, err
			}
		}
		d, err := os.Open(dir)
		if create && errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
			d.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		have, err := d.Stat()
		if err == nil {
			if now, err := os.Stat(dir); err == nil && os.SameFile(have, now) {
				return d, nil
			}
		}
		d.Close()
	}
}

// editHosts changes a file in place: its inode may be mounted in sandboxes. Of
// a symlink it is the target, unless that is one, too: then the sandbox still
// has another network's shared file, and gets its own just now.
func editHosts(file string, edit func(string) string) error {
	if target, err := os.Readlink(file); err == nil {
		file = target
	}
	f, err := os.OpenFile(file, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	// A file linked into several networks is edited under several networks' locks.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", file, err)
	}
	old, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	text := strings.TrimRight(string(old), "\n") + "\n"
	if text == "\n" { // whoever made it was killed before writing
		text = plan.LocalHosts
	}
	if text = edit(text); text == string(old) {
		return nil
	}
	crash.Point("hosts " + file)
	same := 0 // a newcomer's line is at the end
	for same < min(len(text), len(old)) && text[same] == old[same] {
		same++
	}
	// A shorter text is filled up with empty lines, should we not get to cut them.
	if _, err := f.WriteAt([]byte(text[same:]+strings.Repeat("\n", max(0, len(old)-len(text)))), int64(same)); err != nil {
		return err
	}
	crash.Point("hosts truncate " + file)
	return f.Truncate(int64(len(text)))
}
