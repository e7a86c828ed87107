package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// netnsIdentity is what tells the calling thread's network namespace from
// others: a number that is never used again, and its inode, which is.
func netnsIdentity() (cookie uint64, inode uint32, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if cookie, err = netnsCookie(fd); err != nil {
		return 0, 0, err
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: "/proc/thread-self/ns/net", Err: err}
	}
	return cookie, uint32(st.Ino), nil
}

// netnsCookie is the number, never used again, of a socket's network namespace.
func netnsCookie(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		err = fmt.Errorf("kernel lacks network namespace cookies (Linux 5.14): %w", err)
	}
	return cookie, err
}

// Inode numbers of the first namespaces, include/linux/proc_ns.h.
const (
	initUserNS = 0xEFFFFFFD
	initPIDNS  = 0xEFFFFFFC
)

// seesAllNamespaces says that netnsGone can be believed. To others than root
// in the first user and PID namespace, namespaces of others look gone, too.
func seesAllNamespaces() bool {
	cookie, inode, err := netnsIdentity()
	if err != nil || netnsGone(cookie, inode) {
		return false
	}
	var user, pid unix.Stat_t
	return unix.Stat("/proc/thread-self/ns/user", &user) == nil && user.Ino == initUserNS &&
		unix.Stat("/proc/thread-self/ns/pid", &pid) == nil && pid.Ino == initPIDNS
}

// netnsGone asks for a namespace by its file handle, struct nsfs_file_handle
// in include/uapi/linux/nsfs.h: {ns_id, ns_type, ns_inum}. A kernel that does
// not know them says EBADF, or EINVAL.
func netnsGone(cookie uint64, inode uint32) bool {
	const fdNSFSRoot, fileIDNSFS = -10003, 0xf1
	handle := binary.NativeEndian.AppendUint64(nil, cookie)
	handle = binary.NativeEndian.AppendUint32(handle, unix.CLONE_NEWNET)
	handle = binary.NativeEndian.AppendUint32(handle, inode)
	fd, err := unix.OpenByHandleAt(fdNSFSRoot, unix.NewFileHandle(fileIDNSFS, handle), unix.O_RDONLY|unix.O_CLOEXEC)
	if err == nil {
		unix.Close(fd)
	}
	return errors.Is(err, unix.ESTALE)
}
