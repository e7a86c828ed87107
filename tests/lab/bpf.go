package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// bpf is what sandnet's programs on the root cgroup hold of this host. The
// programs are the whole machine's, so that other hosts' entries, and whether
// the programs are there at all, say nothing; two of one name do.
func (h *Host) bpf() []string {
	h.t.Helper()
	var cookie uint64
	h.Do(func() {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		cookie, _ = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	})
	cgroup := rootCgroup()
	if cgroup == nil || cookie == 0 {
		h.t.Fatalf("no root cgroup or no namespace cookies: host ports cannot be looked at")
	}
	defer cgroup.Close()
	names := map[string]int{}
	entries := map[string]bool{}
	for _, at := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind, ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress,
		ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind, ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect,
		ebpf.AttachCGroupUDP6Sendmsg, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCgroupInet6GetPeername,
	} {
		attached, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: at})
		if err != nil {
			continue
		}
		for _, a := range attached.Programs {
			if name := ourProgram(a.ID, cookie, entries); name != "" {
				names[name]++
			}
		}
	}
	var out []string
	for name, n := range names {
		if n > 1 {
			out = append(out, fmt.Sprintf("program %s is attached %d times", name, n))
		}
	}
	for e := range entries {
		out = append(out, e)
	}
	sort.Strings(out)
	return out
}

// ourProgram collects the map entries that begin with the cookie, if the
// program is one of sandnet's.
func ourProgram(id ebpf.ProgramID, cookie uint64, entries map[string]bool) (name string) {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil || !strings.HasPrefix(info.Name, "sandnet") {
		return ""
	}
	mine := binary.NativeEndian.AppendUint64(nil, cookie)
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue
		}
		if m.Type() != ebpf.Hash { // the other is kept with sockets, and goes with them
			m.Close()
			continue
		}
		var key, value []byte
		for all := m.Iterate(); all.Next(&key, &value); {
			if bytes.HasPrefix(key, mine) {
				entries[fmt.Sprintf("map entry %x: %x", key[len(mine):], bytes.TrimRight(value, "\x00"))] = true
			}
		}
		m.Close()
	}
	return info.Name
}

// rootCgroup opens the root of the cgroup2 hierarchy, mounted here or not.
func rootCgroup() *os.File {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			if f, err := os.Open(dir); err == nil {
				return f
			}
		}
	}
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil
	}
	defer unix.Close(fs)
	if unix.FsconfigCreate(fs) != nil {
		return nil
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(mount)
	dir, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(dir), "cgroup2")
}
