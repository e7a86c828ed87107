package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ProbePort binds a host port as a server would, and keeps it until release is
// called: an error of EADDRINUSE says that it is taken, by a process or by a
// reservation; EADDRNOTAVAIL that the host does not have the address. Held
// until the reservation stands, it leaves no gap for others.
func ProbePort(proto string, ip netip.Addr, port uint16) (release func(), err error) {
	number, err := protoNumber(proto)
	if err != nil {
		return nil, err
	}
	what := netip.AddrPortFrom(ip, port).String() + "/" + proto
	family, sockType := unix.AF_INET, unix.SOCK_STREAM
	var addr unix.Sockaddr
	if ip = ip.Unmap(); ip.Is4() {
		addr = &unix.SockaddrInet4{Port: int(port), Addr: ip.As4()}
	} else {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port), Addr: ip.As16()}
	}
	if number == unix.IPPROTO_UDP {
		sockType = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, sockType|unix.SOCK_CLOEXEC, int(number))
	if number == unix.IPPROTO_SCTP && (errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT)) {
		return func() {}, nil // without SCTP on the host nobody can hold the port
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, os.NewSyscallError("socket", err))
	}
	if family == unix.AF_INET6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	err = unix.Bind(fd, addr)
	if errors.Is(err, unix.EADDRINUSE) && number == unix.IPPROTO_TCP {
		// Connections in TIME_WAIT hold nobody up but a bind without this option;
		// a listener holds it up with it, too.
		if e := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); e == nil {
			err = unix.Bind(fd, addr)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", what, os.NewSyscallError("bind", err))
	}
	return func() { unix.Close(fd) }, nil
}

// Listens reports whether a process of the host serves a TCP or UDP port on any
// address of one family. ProbePort cannot tell where the port is reserved for
// the prober itself in the other family: an IPv4 port has [::1], too.
func (k *Kernel) Listens(proto string, ipv6 bool, port uint16) (bool, error) {
	name, state := "/proc/net/"+proto, "0A" // TCP_LISTEN
	if proto == "udp" {
		state = "07" // TCP_CLOSE, which is not connected
	}
	if ipv6 {
		name += "6"
	}
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) { // of SCTP nothing is known, see ProbePort
		return false, nil
	}
	suffix := fmt.Sprintf(":%04X", port)
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], suffix) && f[3] == state {
			return true, err
		}
	}
	return false, err
}
