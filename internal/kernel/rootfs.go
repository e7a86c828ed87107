package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
)

// ShowFiles mounts the files of dir on those of the same names in /etc of a
// container that is being made: in the mount namespace of its process, below
// its root directory, which the process has not entered yet. Whatever links
// the image has there are followed as the container would follow them. An image
// that has no such file, on a root that cannot be written to, goes without.
func (k *Kernel) ShowFiles(pid int, root, dir string) (err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	files := map[string]int{}
	defer func() {
		for _, fd := range files {
			unix.Close(fd)
		}
	}()
	for _, e := range entries {
		if e.Name() == "hostname" {
			continue // is the runtime's
		}
		path := filepath.Join(dir, e.Name())
		// Through a link: /etc/hosts may be one that sandboxes share.
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		files[e.Name()] = fd
	}
	onOwnThread(func() { err = mountBelow(pid, root, files) })
	return err
}

// mountBelow moves the calling thread into the process's mount namespace and
// puts the files there.
func mountBelow(pid int, root string, files map[string]int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace of process %d: %w", pid, err)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("root directory %s: %w", root, err)
	}
	defer unix.Close(dir)
	for name, file := range files {
		crash.Point("mount " + name)
		err := mountOn(dir, "etc/"+name, file)
		if err != nil && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("/etc/%s of the container: %w", name, err)
		}
	}
	return nil
}

func mountOn(root int, path string, file int) error {
	target, err := openInRoot(root, path)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	// What an earlier, killed call has put there shows a file that is gone by
	// now, and nothing can be mounted on that.
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err == nil && st.Nlink == 0 {
		if err := unix.Unmount(fmt.Sprintf("/proc/thread-self/fd/%d", target), unix.MNT_DETACH); err != nil {
			return err
		}
		return mountOn(root, path, file)
	}
	return unix.MoveMount(file, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// openInRoot opens a file below root, which no link leads out of, and makes an
// empty one if there is none.
func openInRoot(root int, path string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(root, path, &how)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	made := how
	made.Flags, made.Mode = unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644
	if fd, err = unix.Openat2(root, path, &made); err != nil {
		return fd, err
	}
	unix.Close(fd)
	return unix.Openat2(root, path, &how)
}
