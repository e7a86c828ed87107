package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// ensureNetns makes and pins a namespace, or pins an existing one again.
func (k *Kernel) ensureNetns(n plan.Netns) (int, error) {
	if pinned(n.Path) {
		if n.Join == "" && !k.ours(n) {
			return 0, fmt.Errorf("namespace %s exists and is not sandnet's: %w", n.Path, unix.EEXIST)
		}
		return 0, nil
	}
	if err := os.MkdirAll(filepath.Dir(n.Path), 0o755); err != nil {
		return 0, err
	}
	if n.Join != "" {
		return 1, pin(n.Join, n.Path)
	}
	k.PrepareNetns()
	fresh := <-k.fresh
	k.fresh = nil
	if fresh.err != nil {
		return 0, fresh.err
	}
	defer fresh.file.Close()
	k.conns[n.Path] = fresh.conn
	return 1, pin(fmt.Sprintf("/proc/self/fd/%d", fresh.file.Fd()), n.Path)
}

// freshNetns is a namespace that nothing but an open file holds, with a socket
// inside.
type freshNetns struct {
	file *os.File
	conn *rtnl
	err  error
}

// PrepareNetns starts making the namespace that the next new Netns will pin:
// half a millisecond in which the caller can go on deciding what to put into
// it. Until it is pinned it ends with the process.
func (k *Kernel) PrepareNetns() {
	if k.fresh != nil {
		return
	}
	k.fresh = make(chan freshNetns, 1)
	ready := k.fresh
	start := func() { onOwnThread(func() { ready <- newNetns(k.mark) }) }
	if crash.Enabled {
		start() // the order of kill points must not vary
	} else {
		go start()
	}
}

// newNetns puts the calling thread into a new namespace and marks it: what will
// be pinned is recognisably ours.
func newNetns(mark uint32) (f freshNetns) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return freshNetns{err: fmt.Errorf("new network namespace: %w", err)}
	}
	if f.file, f.err = os.Open("/proc/thread-self/ns/net"); f.err != nil {
		return f
	}
	if f.conn, f.err = dialRtnl(); f.err != nil {
		return f
	}
	lo := setLink("lo", unix.IFF_UP)
	lo.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(mark)))
	f.conn.add("link lo up", lo, nil)
	f.err = f.conn.flush()
	return f
}

// ours reports whether the namespace pinned at n.Path is one sandnet made.
func (k *Kernel) ours(n plan.Netns) bool {
	c, err := k.inside(n.Path)
	if err != nil {
		return false
	}
	lo, err := c.link("lo")
	return err == nil && lo.group == n.Mark
}

// IsNetns reports whether there is a network namespace at path, and whether it
// is the calling thread's own.
func (k *Kernel) IsNetns(path string) (exists, own bool) {
	if !pinned(path) { // whatever else it is, opening it could do something
		return false, false
	}
	f, err := os.Open(path)
	if err != nil {
		return false, false
	}
	defer f.Close()
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return false, false
	}
	return true, k.SameNetns(path, "/proc/thread-self/ns/net")
}

// SameNetns reports whether two paths are of one namespace.
func (k *Kernel) SameNetns(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Ino == y.Ino && x.Dev == y.Dev
}

// pin bind-mounts the namespace file ns on path.
func pin(ns, path string) error {
	crash.Point("netns file")
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	f.Close()
	crash.Point("netns mount")
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return fmt.Errorf("pin namespace %s at %s: %w", ns, path, err)
	}
	return nil
}

func pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// unpin lets go of a namespace. Unlinking the file also detaches the copies of
// the mount in other mount namespaces (since Linux 3.18).
func unpin(path string) error {
	crash.Point("netns umount")
	for pinned(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unpin namespace %s: %w", path, err)
		}
	}
	crash.Point("netns unlink")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin namespace: %w", err)
	}
	return nil
}

// deleteNetns unpins a namespace and leaves its links to the kernel, which
// frees them in the background, in batches; deleting a veth takes 21 ms. Only
// where something still holds the namespace are links, its veths' host ends,
// deleted here.
func (k *Kernel) deleteNetns(ctx context.Context, n plan.Netns, links []plan.Link) error {
	held := true // by whom it was held, when it was unpinned by a removal that was killed
	if pinned(n.Path) {
		if n.Join == "" {
			if ours, err := k.endConnections(n); !ours || err != nil {
				return err
			}
		}
		held = len(links) > 0 && len(k.Holders(n.Path)) > 0
	}
	k.forget(n.Path)
	if err := unpin(n.Path); err != nil {
		return err
	}
	if !held {
		return nil
	}
	var errs []error
	for _, l := range links {
		errs = append(errs, k.deleteOne(ctx, l))
	}
	return errors.Join(errs...)
}

// Holders are the processes, other than this one, in the namespace pinned at
// path.
func (k *Kernel) Holders(path string) []int {
	var want, st unix.Stat_t
	if unix.Stat(path, &want) != nil {
		return nil
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	self := os.Getpid()
	var out []int
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' {
			continue
		}
		if unix.Stat("/proc/"+name+"/ns/net", &st) != nil || st.Ino != want.Ino || st.Dev != want.Dev {
			continue
		}
		if pid, err := strconv.Atoi(name); err == nil && pid != self {
			out = append(out, pid)
		}
	}
	return out
}

// ownedNetns lists the pinned namespaces whose loopback carries the mark.
func (k *Kernel) ownedNetns(context.Context) ([]plan.Object, error) {
	entries, err := os.ReadDir(k.netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []plan.Object
	for _, e := range entries {
		path := filepath.Join(k.netnsDir, e.Name())
		if !pinned(path) {
			continue
		}
		_, open := k.conns[path]
		if ns := (plan.Netns{Path: path, Mark: k.mark}); k.ours(ns) {
			out = append(out, ns)
		}
		if !open { // there may be more namespaces than files that may be open
			k.forget(path)
		}
	}
	return out, nil
}
