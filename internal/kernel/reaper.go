package kernel

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
)

// A link that is deleted is gone within a millisecond or two; then the thread
// that deleted it waits for RCU grace periods, 15 to 25 ms, in which nothing
// happens that anybody could see (unregister_netdevice_many and netdev_run_todo
// in net/core/dev.c). Therefore another
// process does it, the reaper: it starts while we are still busy with other
// things, and may be waiting when we have ended.

const (
	reaperName = "sandnet-reaper"
	reaperFD   = 3
	// reaperPatience is how long a reaper may take until we do its work.
	reaperPatience = 500 * time.Millisecond
	reaperPoll     = 100 * time.Microsecond
)

// Reaper does the reaper's work, if that is what this process was started for:
// see UseReapers.
func Reaper() bool {
	if len(os.Args) != 1 || os.Args[0] != reaperName {
		return false
	}
	// The whole message or, from a process that was killed, nothing.
	if msg, err := io.ReadAll(os.Stdin); err == nil && len(msg) > 0 {
		_ = unix.Sendto(reaperFD, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	return true
}

// reaper is one that waits to be told what to delete.
type reaper struct {
	// work is a pipe to it; sock is its rtnetlink socket, in the host's namespace.
	work, sock *os.File
}

func startReaper() (*reaper, error) {
	c, err := dialRtnl()
	if err != nil {
		return nil, err
	}
	r := &reaper{sock: os.NewFile(uintptr(c.fd), "rtnetlink")}
	in, work, err := os.Pipe()
	if err != nil {
		r.sock.Close()
		return nil, err
	}
	defer in.Close()
	r.work = work
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		r.dismiss()
		return nil, err
	}
	defer null.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{reaperName},
		&os.ProcAttr{Dir: "/", Env: []string{}, Files: []*os.File{in, null, null, r.sock}})
	if err != nil {
		r.dismiss()
		return nil, err
	}
	return r, p.Release()
}

// UseReapers has links deleted by other processes of this program, whose main
// function therefore begins with Reaper.
func (k *Kernel) UseReapers() { k.useReapers = true }

// callReaper starts a reaper for a link that will be deleted soon. Without one,
// deleting only takes longer.
func (k *Kernel) callReaper() {
	if !k.useReapers {
		return
	}
	if r, err := startReaper(); err == nil {
		k.reapers = append(k.reapers, r)
	}
}

// reap deletes a link.
func (k *Kernel) reap(host *rtnl, name string) error {
	if len(k.reapers) == 0 {
		k.callReaper()
	}
	if n := len(k.reapers); n > 0 {
		r := k.reapers[n-1]
		k.reapers = k.reapers[:n-1]
		if r.deleteLink(name) == nil {
			return nil
		}
	}
	return deleteLink(host, name)
}

// dismiss ends a reaper without work.
func (r *reaper) dismiss() {
	r.work.Close()
	r.sock.Close()
}

// deleteLink has the reaper delete a link and waits until it is gone.
func (r *reaper) deleteLink(name string) error {
	defer r.dismiss()
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.Flags = unix.NLM_F_REQUEST
	crash.Point("link delete " + name)
	if _, err := r.work.Write(req.Serialize()); err != nil {
		return err
	}
	r.work.Close()
	// rtnetlink would have us wait for the reaper, who has its lock; this asks
	// without any.
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
