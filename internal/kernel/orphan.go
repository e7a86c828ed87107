package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

// Lengths of what sock_diag(7) sends, and the TCP states of
// include/net/tcp_states.h in which a socket may be closed and not yet done.
const (
	diagIDLen      = 48                         // struct inet_diag_sockid
	diagMessageLen = 72                         // struct inet_diag_msg
	closedStates   = 1<<4 | 1<<5 | 1<<9 | 1<<11 // FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING
)

// diagRequest is a struct inet_diag_req_v2 for TCP.
type diagRequest struct {
	family uint8
	states uint32
	id     [diagIDLen]byte
}

func (diagRequest) Len() int { return 8 + diagIDLen }

func (r diagRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], r.states)
	copy(b[8:], r.id[:])
	return b
}

// endConnections ends the TCP connections in a namespace of ours that no process
// has any more. One whose peer is gone, too, would send its last segment again
// for two minutes, and until then keep the namespace, with its links, alive.
// Kernels without CONFIG_INET_DIAG_DESTROY leave it at that.
func (k *Kernel) endConnections(n plan.Netns) (ours bool, err error) {
	err = inNetns(n.Path, func() error {
		c, err := dialRtnl()
		if err != nil {
			return err
		}
		defer c.close()
		if lo, err := c.link("lo"); err != nil || lo.group != n.Mark {
			return nil
		}
		ours = true
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			return err
		}
		diag := &rtnl{fd: fd}
		defer diag.close()
		return errors.Join(diag.dropOrphans(unix.AF_INET), diag.dropOrphans(unix.AF_INET6))
	})
	if !ours || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOENT) {
		return ours, nil
	}
	if err != nil {
		err = fmt.Errorf("close connections in %s: %w", n.Path, err)
	}
	return ours, err
}

func (c *rtnl) dropOrphans(family uint8) error {
	var orphans [][diagIDLen]byte
	reset := func() { orphans = nil }
	err := c.dump(nl.SOCK_DIAG_BY_FAMILY, diagRequest{family: family, states: closedStates}, reset, func(msg []byte) error {
		// A socket that a process has, too, has an inode.
		if len(msg) >= diagMessageLen && binary.NativeEndian.Uint32(msg[diagMessageLen-4:]) == 0 {
			orphans = append(orphans, [diagIDLen]byte(msg[4:]))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range orphans {
		req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, 0)
		req.AddData(diagRequest{family: family, id: id})
		c.add("close connection", req, func(err error) error {
			if errors.Is(err, unix.ENOENT) { // it has ended meanwhile
				return nil
			}
			return err
		})
	}
	return c.flush()
}
