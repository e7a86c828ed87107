package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Dump is everything on a host that sandnet could have changed, one fact a
// line, without what changes on its own: indexes, counters, timers, carrier.
type Dump []string

// Dump takes the host's dump.
func (h *Host) Dump() Dump {
	h.t.Helper()
	var d Dump
	add := func(section string, lines []string) {
		for _, l := range lines {
			d = append(d, section+": "+l)
		}
	}
	links, addrs, routes, neighbours := h.ip()
	add("link", links)
	add("addr", addrs)
	add("route", routes)
	add("neigh", neighbours)
	add("rule", h.rules())
	rules := h.lines(counters, "nft", "list", "ruleset")
	add("nft", rules)
	for _, f := range []struct{ save, table string }{{"iptables-save", "table ip "}, {"ip6tables-save", "table ip6 "}} {
		// Where nft lists no table of a family, neither does iptables.
		if slices.ContainsFunc(rules, func(l string) bool { return strings.HasPrefix(l, f.table) }) || iptablesIsOld() {
			add(f.save, h.lines(counters, f.save))
		}
	}
	if h.hasIPSets() {
		add("ipset", h.lines(counters, "ipset", "save"))
	}
	add("sysctl", h.sysctls())
	for _, dir := range []string{h.Root, "/run/sandnet", "/var/lib/sandnet", "/etc/netns"} {
		add("file", tree(dir))
	}
	add("mount", mountsBelow(h.Root))
	add("bpf", h.bpf())
	add("process", h.processes())
	return d
}

// Diff is what differs, or "": lines only in a with "-", only in b with "+".
func Diff(a, b Dump) string {
	var out strings.Builder
	left := map[string]int{}
	for _, l := range b {
		left[l]++
	}
	for _, l := range a {
		if left[l]--; left[l] < 0 {
			fmt.Fprintln(&out, "  - "+l)
		}
	}
	for _, l := range b {
		if left[l] > 0 {
			left[l]--
			fmt.Fprintln(&out, "  + "+l)
		}
	}
	return out.String()
}

// Becomes waits until the host's dump is one of those wanted: the kernel takes
// a moment to free a namespace and the links in it. It returns which one, or
// -1 and the difference to the first.
func (h *Host) Becomes(want ...Dump) (int, string) {
	h.t.Helper()
	h.stopServers()
	deadline := time.Now().Add(15 * time.Second) // the machine frees namespaces one after another
	for {
		h.awaitLinks(want, deadline)
		got := h.Dump()
		for i, w := range want {
			if Diff(w, got) == "" {
				return i, ""
			}
		}
		if time.Now().After(deadline) {
			return -1, Diff(want[0], got)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// awaitLinks waits until the host has as many links as one of the dumps: on the
// way there a whole dump would tell nothing.
func (h *Host) awaitLinks(want []Dump, deadline time.Time) {
	h.t.Helper()
	for {
		n := -1
		h.Do(func() {
			if links, err := net.Interfaces(); err == nil {
				n = len(links)
			}
		})
		for _, w := range want {
			if n < 0 || n == w.links() {
				return
			}
		}
		if time.Now().After(deadline) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// links is how many links the dump has.
func (d Dump) links() (n int) {
	for _, line := range d {
		if strings.HasPrefix(line, "link: ") {
			n++
		}
	}
	return n
}

// Settled is the dump of a host on which nothing is on its way out any more.
// It ends the test's servers in sandboxes, which would hold these back.
func (h *Host) Settled() Dump {
	h.t.Helper()
	h.stopServers()
	deadline := time.Now().Add(4 * time.Second)
	for last := h.Dump(); ; {
		time.Sleep(100 * time.Millisecond)
		d := h.Dump()
		diff := Diff(last, d)
		dying := d.dying()
		if diff == "" && dying == "" {
			return d
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%s does not come to rest:\n%s%s", h.Name, diff, dying)
		}
		last = d
	}
}

// dying is a sandbox's link that no record names: on a busy machine the kernel
// takes its time to free those of a namespace that is gone.
func (d Dump) dying() string {
	for _, line := range d {
		rest, ok := strings.CutPrefix(line, "link: sv")
		ok = ok && !strings.Contains(line, " group default ") // somebody else's
		if !ok {
			continue
		}
		name, _, _ := strings.Cut("sv"+rest, " ")
		if !slices.ContainsFunc(d, func(l string) bool { return strings.HasPrefix(l, "file: ") && strings.Contains(l, name) }) {
			return line
		}
	}
	return ""
}

// Unchanged fails the test unless the host's dump becomes before.
func (h *Host) Unchanged(before Dump, after string) {
	h.t.Helper()
	if i, d := h.Becomes(before); i < 0 {
		h.t.Errorf("%s: after %s the host differs:\n%s", h.Name, after, d)
	}
}

var (
	stateDir   = regexp.MustCompile(`/run/(records|ipam)/[^/]+$`)
	times      = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	counters   = regexp.MustCompile(`(?m)^#.*$| packets \d+ bytes \d+|\[\d+:\d+\]| expires \S+`)
	routeNoise = regexp.MustCompile(`^.*(fe80:|ff00::|anycast).*$|"linkdown",?|,"expires":[^,}]*|,"pref":"medium"`)
)

// lines is the output of a command without what noise matches.
func (h *Host) lines(noise *regexp.Regexp, name string, args ...string) []string {
	h.t.Helper()
	r := h.Run(name, args...)
	if r.Code != 0 {
		h.t.Fatalf("dump: %s", r)
	}
	text := r.Stdout
	if noise != nil {
		text = noise.ReplaceAllString(text, "")
	}
	var out []string
	for l := range strings.Lines(text) {
		if l = strings.TrimRight(l, " \n"); l != "" {
			out = append(out, l)
		}
	}
	return out
}

// hasIPSets reports whether there is an ipset, or something that only ipset(8)
// can tell; most hosts have none, and a program takes its time to say so.
func (h *Host) hasIPSets() (has bool) {
	h.t.Helper()
	if _, err := exec.LookPath("ipset"); err != nil {
		return false
	}
	h.Do(func() {
		req := nl.NewNetlinkRequest(nl.IPSET_CMD_LIST|unix.NFNL_SUBSYS_IPSET<<8, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_NETLINK, Version: nl.NFNETLINK_V0})
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
		sets, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		has = err != nil || len(sets) > 0
	})
	return has
}

// ipLists is what ip(8) is asked in one go, of both families.
const ipLists = `link show
addr show
route show table all
neigh show nud permanent
`

// rules are the routing rules, which ip(8) tells of one family at a time.
func (h *Host) rules() (out []string) {
	h.t.Helper()
	var err error
	h.Do(func() {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			var rules []netlink.Rule
			if rules, err = netlink.RuleList(family); err != nil {
				return
			}
			for _, r := range rules {
				out = append(out, fmt.Sprintf("family %d %s table %d mark %d iif %q oif %q", family, r, r.Table, r.Mark, r.IifName, r.OifName))
			}
		}
	})
	if err != nil {
		h.t.Fatalf("dump: rules: %v", err)
	}
	return out
}

// iptablesIsOld reports whether iptables has rules that nft does not list.
var iptablesIsOld = sync.OnceValue(func() bool {
	out, err := exec.Command("iptables-save", "-V").Output()
	return err == nil && !strings.Contains(string(out), "nf_tables")
})

// ip asks ip(8) for all of ipLists. Routes and neighbours are left as it tells
// them.
func (h *Host) ip() (links, addrs, routes, neighbours []string) {
	h.t.Helper()
	var rawLinks []struct {
		Name   string   `json:"ifname"`
		Flags  []string `json:"flags"`
		MTU    int      `json:"mtu"`
		Master string   `json:"master"`
		Group  string   `json:"group"`
		Gen    string   `json:"inet6_addr_gen_mode"`
		Info   struct {
			Kind string `json:"info_kind"`
		} `json:"linkinfo"`
	}
	var rawAddrs []struct {
		Name  string `json:"ifname"`
		Addrs []struct {
			Local string `json:"local"`
			Bits  int    `json:"prefixlen"`
			Scope string `json:"scope"`
			Brd   string `json:"broadcast"`
		} `json:"addr_info"`
	}
	var rawRoutes, rawNeighbours []json.RawMessage
	decode(h.t, h.Must("ip", "-j", "-d", "-batch", h.ipLists), &rawLinks, &rawAddrs, &rawRoutes, &rawNeighbours)
	for _, l := range rawLinks {
		links = append(links, fmt.Sprintf("%s kind %q mtu %d master %q group %s up %v addrgen %s",
			l.Name, l.Info.Kind, l.MTU, l.Master, l.Group, slices.Contains(l.Flags, "UP"), l.Gen))
	}
	for _, l := range rawAddrs {
		for _, a := range l.Addrs {
			if !strings.HasPrefix(a.Local, "fe80:") { // it comes and goes with the carrier
				addrs = append(addrs, fmt.Sprintf("%s %s/%d brd %q scope %s", l.Name, a.Local, a.Bits, a.Brd, a.Scope))
			}
		}
	}
	sort.Strings(links)
	sort.Strings(addrs)
	for _, r := range rawRoutes {
		if line := routeNoise.ReplaceAllString(string(r), ""); line != "" {
			routes = append(routes, line)
		}
	}
	for _, n := range rawNeighbours {
		neighbours = append(neighbours, string(n))
	}
	return links, addrs, routes, neighbours
}

// decode reads one JSON value after another; what is not there is empty.
func decode(t testing.TB, text string, into ...any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	for _, v := range into {
		if err := d.Decode(v); err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("decode %q: %v", text, err)
		}
	}
}

// sysctls are those that sandbox networking could need to change, as files
// below /proc/sys/net; those in a directory that ends in a star are each link's.
var sysctls = []struct{ dir, names string }{
	{"ipv4", "ip_forward ip_local_reserved_ports ip_local_port_range ip_unprivileged_port_start ip_nonlocal_bind"},
	{"bridge", "bridge-nf-call-iptables bridge-nf-call-ip6tables bridge-nf-call-arptables bridge-nf-filter-vlan-tagged " +
		"bridge-nf-filter-pppoe-tagged bridge-nf-pass-vlan-input-dev"},
	{"netfilter", "nf_conntrack_tcp_be_liberal"},
	{"ipv4/conf/*", "route_localnet rp_filter forwarding accept_local proxy_arp arp_ignore send_redirects"},
	{"ipv6/conf/*", "forwarding accept_ra autoconf disable_ipv6"},
}

func (h *Host) sysctls() []string {
	h.t.Helper()
	var out []string
	read := func(dir, names string) {
		for _, name := range strings.Fields(names) {
			if value, err := os.ReadFile("/proc/sys/net/" + dir + name); err == nil {
				out = append(out, "net/"+dir+name+" = "+strings.TrimSpace(string(value)))
			}
		}
	}
	h.Do(func() {
		for _, s := range sysctls {
			dir, each := strings.CutSuffix(s.dir, "*")
			if !each {
				read(dir+"/", s.names)
				continue
			}
			links, _ := os.ReadDir("/proc/sys/net/" + dir)
			for _, l := range links {
				read(dir+l.Name()+"/", s.names)
			}
		}
	})
	return out
}

const nsfsMagic = 0x6e736673

// tree lists a directory with modes and contents.
func tree(dir string) []string {
	var out []string
	if dir == "" {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone while we looked, or never there
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		line := fmt.Sprintf("%s %s", path, info.Mode())
		switch {
		case info.IsDir() && (strings.Count(path[len(dir):], "/") <= 2 || stateDir.MatchString(path)):
			return nil // the state directories themselves: made at need, and kept
		case filepath.Base(path) == "last", path == filepath.Join(dir, "run/verified"), path == filepath.Join(dir, "verified"):
			return nil // where next-fit allocation goes on, and the rule set's generation: they have to move
		case filepath.Base(path) == "ula-prefix":
			return nil // drawn once at random, and kept
		case info.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(path)
			line += " → " + to
		case info.Mode().IsRegular():
			var st unix.Statfs_t
			if unix.Statfs(path, &st) == nil && st.Type == nsfsMagic {
				line += " namespace"
				break
			}
			data, _ := os.ReadFile(path)
			line += fmt.Sprintf(" %q", times.ReplaceAll(data, []byte("TIME")))
		}
		out = append(out, line)
		return nil
	})
	return out
}

// processes are those that a sandnet of this host has left: whatever it starts
// inherits its environment.
func (h *Host) processes() []string {
	var out []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		env, _ := os.ReadFile(p + "/environ")
		args, _ := os.ReadFile(p + "/cmdline")
		if strings.Contains(string(env), "SANDNET_ROOT="+h.Root+"\x00") || h.Root != "" && strings.Contains(string(args), h.Root) {
			out = append(out, strings.TrimSpace(strings.ReplaceAll(string(args), "\x00", " ")))
		}
	}
	sort.Strings(out)
	return out
}
