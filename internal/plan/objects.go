package plan

import (
	"fmt"
	"net/netip"
	"path"
	"strings"
)

// The kinds of objects.
const (
	KindNetns      Kind = "netns"
	KindLink       Kind = "link"
	KindAddr       Kind = "addr"
	KindRoute      Kind = "route"
	KindSysctl     Kind = "sysctl"
	KindTable      Kind = "table"
	KindElement    Kind = "element"
	KindTableChain Kind = "tablechain"
	KindChains     Kind = "chains"
	KindFlow       Kind = "flow"
	KindRule       Kind = "rule"
	KindHostPort   Kind = "hostport"
	KindBindGuard  Kind = "bindguard"
	KindFile       Kind = "file"
	KindSymlink    Kind = "symlink"
	KindHostsLine  Kind = "hostsline"
	KindHostsFile  Kind = "hostsfile"
	KindQdisc      Kind = "qdisc"
	KindRedirect   Kind = "redirect"
)

// Netns is a network namespace pinned by a bind mount at Path. Deleting it
// unpins it; the kernel frees the namespace and the links in it once no
// process is left inside.
type Netns struct {
	Path string `json:"path"`
	// Join is the path of an existing namespace to pin again (/proc/PID/ns/net
	// or another pin); empty for a new namespace.
	Join string `json:"join,omitempty"`
	// Mark is set as the loopback's link group, so that gc recognises a
	// namespace of ours; 0 for joined namespaces.
	Mark uint32 `json:"mark,omitempty"`
}

func (Netns) Kind() Kind    { return KindNetns }
func (n Netns) Key() string { return "netns " + n.Path }
func (n Netns) Commands() []string {
	name := path.Base(n.Path)
	switch {
	case n.Join == "":
		return []string{"ip netns add " + name, fmt.Sprintf("ip -n %s link set lo group %d up", name, n.Mark)}
	case strings.HasPrefix(n.Join, "/proc/"):
		pid, _, _ := strings.Cut(strings.TrimPrefix(n.Join, "/proc/"), "/")
		return []string{"ip netns attach " + name + " " + pid}
	default:
		return []string{fmt.Sprintf("touch %[2]s && mount --bind %[1]s %[2]s", n.Join, n.Path)}
	}
}

// LinkType is a link's kind in iproute2's words.
type LinkType string

// The link types sandnet makes.
const (
	Bridge LinkType = "bridge"
	Veth   LinkType = "veth"
	IFB    LinkType = "ifb"
)

// Link is a network device of the host. A veth's other end is made in the
// namespace PeerNetns, under the name Peer; both ends are up. The kernel gives
// them no IPv6 addresses of its own making: those that are to be are Addrs.
type Link struct {
	Name string   `json:"name"`
	Type LinkType `json:"type"`
	// MTU in bytes.
	MTU int `json:"mtu"`
	// MAC of the link itself; empty lets the kernel choose.
	MAC string `json:"mac,omitempty"`
	// Master is the bridge the link is a port of.
	Master string `json:"master,omitempty"`
	// Mark is the link group (rtnetlink IFLA_GROUP): it says the link is ours.
	Mark      uint32 `json:"mark"`
	Peer      string `json:"peer,omitempty"`
	PeerNetns string `json:"peerNetns,omitempty"`
	PeerMAC   string `json:"peerMAC,omitempty"`
	// Isolated keeps a bridge port from sending to other isolated ports.
	Isolated bool `json:"isolated,omitempty"`
	// Hairpin lets a bridge port have frames back that came from it.
	Hairpin bool `json:"hairpin,omitempty"`
}

func (Link) Kind() Kind    { return KindLink }
func (l Link) Key() string { return "link " + l.Name }
func (l Link) Commands() []string {
	var b strings.Builder
	fmt.Fprintf(&b, "ip link add %s", l.Name)
	if l.MAC != "" {
		fmt.Fprintf(&b, " address %s", l.MAC)
	}
	fmt.Fprintf(&b, " mtu %d group %d", l.MTU, l.Mark)
	if l.Master != "" {
		fmt.Fprintf(&b, " master %s", l.Master)
	}
	fmt.Fprintf(&b, " type %s", l.Type)
	if l.Type != Veth {
		return append([]string{b.String()}, raise("", l.Name))
	}
	ns := path.Base(l.PeerNetns)
	fmt.Fprintf(&b, " peer name %s mtu %d", l.Peer, l.MTU)
	if l.PeerMAC != "" {
		fmt.Fprintf(&b, " address %s", l.PeerMAC)
	}
	fmt.Fprintf(&b, " netns %s", ns)
	cmds := []string{b.String(), raise("", l.Name)}
	if l.Isolated || l.Hairpin {
		cmds = append(cmds, "bridge link set dev "+l.Name+onIf(" isolated", l.Isolated)+onIf(" hairpin", l.Hairpin))
	}
	return append(cmds, raise("-n "+ns+" ", l.Peer))
}

func onIf(flag string, set bool) string {
	if !set {
		return ""
	}
	return flag + " on"
}

func raise(ns, name string) string {
	return fmt.Sprintf("ip %slink set %s addrgenmode none up", ns, name)
}

// Addr is an address on a link, usable at once: an IPv6 address goes without
// duplicate address detection. Netns is the path of the namespace's pin, or
// empty for the host.
type Addr struct {
	Netns string       `json:"netns,omitempty"`
	Link  string       `json:"link"`
	Addr  netip.Prefix `json:"addr"`
}

func (Addr) Kind() Kind    { return KindAddr }
func (a Addr) Key() string { return fmt.Sprintf("addr %s %s %s", a.Netns, a.Link, a.Addr) }
func (a Addr) Commands() []string {
	flags := ""
	switch {
	case a.Addr.Addr().Is6():
		flags = " nodad"
	case a.Addr.Bits() < 31:
		flags = " brd +"
	}
	return []string{fmt.Sprintf("ip %saddr add %s%s dev %s", inFamily(a.Netns, a.Addr.Addr()), a.Addr, flags, a.Link)}
}

// Route is a unicast route in the main table.
type Route struct {
	Netns string       `json:"netns,omitempty"`
	Dst   netip.Prefix `json:"dst"`
	Via   netip.Addr   `json:"via,omitzero"`
	Link  string       `json:"link"`
}

func (Route) Kind() Kind    { return KindRoute }
func (r Route) Key() string { return fmt.Sprintf("route %s %s", r.Netns, r.Dst) }
func (r Route) Commands() []string {
	dst := r.Dst.String()
	if r.Dst.Bits() == 0 {
		dst = "default"
	}
	via := ""
	if r.Via.IsValid() {
		via = " via " + r.Via.String()
	}
	return []string{fmt.Sprintf("ip %sroute add %s%s dev %s", inFamily(r.Netns, r.Dst.Addr()), dst, via, r.Link)}
}

// inFamily are the options of ip(8) for a namespace and an address's family.
func inFamily(netns string, a netip.Addr) string {
	out := ""
	if netns != "" {
		out = "-n " + path.Base(netns) + " "
	}
	if a.Is6() {
		out += "-6 "
	}
	return out
}

// Sysctl is a value below /proc/sys. Name has slashes, since interface names
// may hold dots: "net/ipv4/conf/sandnet0/route_localnet".
type Sysctl struct {
	Netns string `json:"netns,omitempty"`
	Name  string `json:"name"`
	Value string `json:"value"`
	// Restore is written back on deletion, unless somebody has changed the
	// value since; empty leaves the value alone.
	Restore string `json:"restore,omitempty"`
	// Optional says that there may be no such setting: then nothing is set.
	Optional bool `json:"optional,omitempty"`
}

// IPForward and IPv6Forward are the Sysctls that make a host a router.
const (
	IPForward   = "net/ipv4/ip_forward"
	IPv6Forward = "net/ipv6/conf/all/forwarding"
)

func (Sysctl) Kind() Kind    { return KindSysctl }
func (s Sysctl) Key() string { return fmt.Sprintf("sysctl %s %s", s.Netns, s.Name) }
func (s Sysctl) Commands() []string {
	cmd := "sysctl -w "
	if s.Optional {
		cmd = "sysctl -e -w "
	}
	cmd += s.Name + "=" + quote(s.Value)
	if s.Netns != "" {
		cmd = "ip netns exec " + path.Base(s.Netns) + " " + cmd
	}
	return []string{cmd}
}

// HostPort reserves a port of the host against bind(2): a later bind by any
// process in the same network namespace fails with EADDRINUSE. IP is the
// address it is reserved on, unspecified for all. No process holds it.
type HostPort struct {
	Proto string     `json:"proto"`
	IP    netip.Addr `json:"ip"`
	Port  uint16     `json:"port"`
	// To is where connections from the host to [::1]:Port go, which a firewall
	// cannot translate: TCP and UDP, for IP ::1, :: or 0.0.0.0. Of several
	// HostPorts the first in this order decides; for 0.0.0.0 alone, a server
	// that the host already has on ::1 keeps its port.
	To netip.AddrPort `json:"to,omitzero"`
	// Owner tells the reservation from one of the same port for somebody else,
	// who may have got it once a killed command had let go of it.
	Owner uint32 `json:"owner,omitempty"`
}

func (HostPort) Kind() Kind { return KindHostPort }
func (h HostPort) Key() string {
	return fmt.Sprintf("hostport %s %s", h.Proto, netip.AddrPortFrom(h.IP, h.Port))
}
func (h HostPort) Commands() []string {
	to := ""
	if h.To.IsValid() {
		to = fmt.Sprintf(", another sends [::1]:%d to %s", h.Port, h.To)
	}
	return []string{fmt.Sprintf("# reserve %s %s: a BPF program on the root cgroup refuses bind(2)%s",
		h.Proto, netip.AddrPortFrom(h.IP, h.Port), to)}
}

// BindGuard is what keeps HostPorts: BPF programs that answer bind(2), attached
// to the root cgroup with the first HostPort on the machine. They stay until
// the last host that made some drops its guard: attaching costs 1 ms.
type BindGuard struct{}

func (BindGuard) Kind() Kind  { return KindBindGuard }
func (BindGuard) Key() string { return "bindguard" }
func (BindGuard) Commands() []string {
	return []string{"# BPF programs on the root cgroup refuse bind(2) of published ports, from the first of them on"}
}

// File is a regular file with this content; its directory is made if needed,
// and removed with the last file in it.
type File struct {
	Path    string `json:"path"`
	Content string `json:"content"`
}

func (File) Kind() Kind    { return KindFile }
func (f File) Key() string { return "file " + f.Path }
func (f File) Commands() []string {
	return []string{fmt.Sprintf("mkdir -p %s && printf %%s %s > %s", path.Dir(f.Path), quote(f.Content), f.Path)}
}

// Symlink is a symbolic link; its directory is made if needed, and stays.
type Symlink struct {
	Path   string `json:"path"`
	Target string `json:"target"`
}

func (Symlink) Kind() Kind    { return KindSymlink }
func (s Symlink) Key() string { return "file " + s.Path }
func (s Symlink) Commands() []string {
	return []string{fmt.Sprintf("mkdir -p %s && ln -s %s %s", path.Dir(s.Path), s.Target, s.Path)}
}

// HostsLine is one line in every hosts(5) file of a network. The files are
// those of the directory Dir; each keeps its inode, so that a bind mount of it
// shows every change. SharedHosts is made with the first line, and goes with
// the last.
type HostsLine struct {
	Dir   string     `json:"dir"`
	Addr  netip.Addr `json:"addr"`
	Names []string   `json:"names"`
}

// SharedHosts is the file, in a network's hosts directory, of all sandboxes
// that need no lines of their own.
const SharedHosts = "shared"

func (HostsLine) Kind() Kind    { return KindHostsLine }
func (h HostsLine) Key() string { return fmt.Sprintf("hosts %s %s", h.Dir, h.Addr) }

// Line is the line as it stands in the file, with the newline.
func (h HostsLine) Line() string { return h.Addr.String() + "\t" + strings.Join(h.Names, " ") + "\n" }
func (h HostsLine) Commands() []string {
	return []string{fmt.Sprintf("printf %%s %s | tee -a %s/*", quote(h.Line()), h.Dir)}
}

// HostsFile is the hosts file of one sandbox with lines of its own: Header,
// then the lines of the networks whose directories are Dirs. Symlinks to it in
// these let it have every HostsLine from then on. A Symlink in its place, to a
// network's shared file, is replaced.
type HostsFile struct {
	Path   string   `json:"path"`
	Header string   `json:"header"`
	Dirs   []string `json:"dirs"`
	// Netns is the namespace whose processes have the file as /etc/hosts: those
	// that were started with the shared one get it instead.
	Netns string `json:"netns,omitempty"`
}

func (HostsFile) Kind() Kind    { return KindHostsFile }
func (h HostsFile) Key() string { return "file " + h.Path }
func (h HostsFile) Commands() []string {
	out := []string{fmt.Sprintf("printf %%s %s > %s", quote(h.Header), h.Path)}
	for _, d := range h.Dirs {
		out = append(out, fmt.Sprintf("tail -n +3 %s/%s >> %s", d, SharedHosts, h.Path))
	}
	return out
}

// LocalHosts are the lines that every hosts file starts with.
const LocalHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

// quote makes s one word of a POSIX shell.
func quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-+=.,:/@%^", r))
	}) {
		return s
	}
	if strings.ContainsAny(s, "\n\t") {
		r := strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\t", `\t`)
		return "$'" + r.Replace(s) + "'"
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
