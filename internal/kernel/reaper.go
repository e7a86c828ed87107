package kernel

import (
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
)

// A link that is deleted is gone within a millisecond or two; then the thread
// that deleted it waits for RCU grace periods, 15 to 25 ms, in which nothing
// happens that anybody could see (unregister_netdevice_many and netdev_run_todo
// in net/core/dev.c). A process cannot end before its threads. Therefore
// another process does it, the reaper: a fork that sends one datagram and ends.
//
// rtnetlink has one lock for the whole machine, and a deletion holds it while it
// waits. Reapers therefore doom their link, and then delete all that are doomed:
// those that had to wait for one another are done by the first, all in one go.

const (
	// reaperPatience is how long a reaper may take until we do its work.
	reaperPatience = 500 * time.Millisecond
	reaperPoll     = 100 * time.Microsecond
)

// doomed is the group of links with this mark that are about to be deleted.
func doomed(mark uint32) uint32 { return mark + 1<<24 }

// reap deletes a link and returns when it is gone.
func reap(host *rtnl, name string, mark uint32) error {
	if sendDelete(name, doomed(mark)) == nil && awaitGone(name) == nil {
		return nil
	}
	return deleteLink(host, name)
}

// sendDelete has a reaper delete a link, and all others in the group.
func sendDelete(name string, group uint32) error {
	join := setLink(name, 0)
	join.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	del := nl.NewNetlinkRequest(unix.RTM_DELLINK, 0)
	del.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	del.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	defer unix.Close(fd)
	crash.Point("link delete " + name)
	pid, err := forkAndSend(fd, append(pad4(join.Serialize()), del.Serialize()...))
	if err != nil {
		return fmt.Errorf("reaper: %w", err)
	}
	// In case that we live longer.
	go func() { _, _ = unix.Wait4(pid, nil, unix.WALL, nil) }()
	return nil
}

// awaitGone waits until a link is gone. rtnetlink would have us wait for the
// reaper, who has its lock; this asks without any.
func awaitGone(name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	link, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(reaperPatience); time.Now().Before(deadline); time.Sleep(reaperPoll) {
		if errors.Is(unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, link), unix.ENODEV) {
			return nil
		}
	}
	return errors.New("the reaper does not answer")
}

// forkAndSend sends msg on the socket fd from a process of its own. That has
// nothing else open: no lock, and no pipe at which somebody waits for our end.
//
// Go can fork without an exec as long as the child makes raw system calls only,
// on memory that is there already, and no signal wakes the runtime in it: the
// way package syscall itself starts programs.
func forkAndSend(fd int, msg []byte) (pid int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	every, before := ^uint64(0), uint64(0)
	child, errno := forkSending(uintptr(fd), unsafe.Pointer(&msg[0]), uintptr(len(msg)), &every, &before)
	if errno != 0 {
		return 0, errno
	}
	return int(child), nil
}

//go:nosplit
//go:norace
func forkSending(fd uintptr, msg unsafe.Pointer, size uintptr, every, before *uint64) (child uintptr, errno unix.Errno) {
	const setSize = 8 // of a kernel's sigset_t
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(every)), uintptr(unsafe.Pointer(before)), setSize, 0, 0)
	child, _, errno = unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if child == 0 && errno == 0 {
		unix.RawSyscall(unix.SYS_DUP3, fd, 0, 0)
		unix.RawSyscall(unix.SYS_CLOSE_RANGE, 1, ^uintptr(0)>>32, 0)
		unix.RawSyscall6(unix.SYS_SENDTO, 0, uintptr(msg), size, 0, 0, 0)
		for {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(before)), 0, setSize, 0, 0)
	return child, errno
}
