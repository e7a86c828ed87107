package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Health gathers what doctor judges. dirs are sandnet's own directories. It
// changes nothing that outlives it.
func (k *Kernel) Health(dirs []string) (spec.Health, error) {
	h := spec.Health{
		Forward4:      sysctlNumber(plan.IPForward) == 1,
		Forward6:      sysctlNumber("net/ipv6/conf/all/forwarding") == 1,
		PrivateMounts: mountNS("1") != "" && mountNS("self") != mountNS("1"),
		Conntrack:     max(0, sysctlNumber("net/netfilter/nf_conntrack_count")),
		ConntrackMax:  max(0, sysctlNumber("net/netfilter/nf_conntrack_max")),
	}
	n := sysctlNumber("net/bridge/bridge-nf-call-iptables")
	h.BridgeNetfilter, h.BridgeNetfilterKnown = n == 1, n >= 0
	for _, dir := range dirs {
		if st, err := os.Stat(dir); err == nil && st.Mode().Perm()&0o077 != 0 {
			h.OpenDirs = append(h.OpenDirs, dir)
		}
	}
	var err error
	if h.Policies, h.Firewalls, err = forwardPolicies(); err != nil {
		return h, err
	}
	if err := gatherRoutes(&h); err != nil {
		return h, err
	}
	h.Lacks = lacks()
	return h, nil
}

// sysctlNumber is the value of a setting, -1 if there is none.
func sysctlNumber(name string) int {
	b, err := os.ReadFile(procSys + name)
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return n
}

// gatherRoutes fills in what is known of links and routes.
func gatherRoutes(h *spec.Health) error {
	routes, err := retryDump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	links, err := retryDump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
		if name := l.Attrs().Name; name != "lo" && sysctlNumber("net/ipv4/conf/"+name+"/route_localnet") == 1 {
			h.LocalnetLinks = append(h.LocalnetLinks, name)
		}
	}
	if sysctlNumber("net/ipv4/conf/all/route_localnet") == 1 {
		h.LocalnetLinks = append(h.LocalnetLinks, "all")
	}
	for _, r := range routes {
		l := byIndex[r.LinkIndex]
		if l == nil {
			continue
		}
		name := l.Attrs().Name
		bits := 0
		if r.Dst != nil {
			bits, _ = r.Dst.Mask.Size()
		}
		if bits > 1 {
			if ip, ok := netip.AddrFromSlice(r.Dst.IP); ok {
				h.Routes = append(h.Routes, spec.Route{Prefix: netip.PrefixFrom(ip.Unmap(), bits).Masked(), Link: name})
			}
			continue
		}
		if !slices.ContainsFunc(h.Uplinks, func(u spec.Uplink) bool { return u.Name == name }) {
			h.Uplinks = append(h.Uplinks, spec.Uplink{Name: name, MTU: l.Attrs().MTU,
				RPFilter: max(sysctlNumber("net/ipv4/conf/all/rp_filter"), sysctlNumber("net/ipv4/conf/"+name+"/rp_filter"))})
		}
	}
	return nil
}

// forwardPolicies lists the base chains at the forward hook, those of iptables
// with whether our rule is in them, and the programs whose chains there are.
func forwardPolicies() (policies []spec.ForwardPolicy, firewalls []string, err error) {
	chains, err := nftChains()
	if err != nil {
		return nil, nil, err
	}
	seen := map[string]bool{}
	for _, c := range chains {
		if name := firewallOf(c.table, c.name); name != "" {
			seen[name] = true
		}
		if c.hook != unix.NF_INET_FORWARD || c.table == "sandnet" {
			continue
		}
		p := spec.ForwardPolicy{Family: c.family, Drops: c.drops, Where: fmt.Sprintf("nftables chain %s %s %s", c.family, c.table, c.name)}
		if c.table == "filter" && c.name == chainForward && c.family != "inet" {
			v := variant{programs: []string{"iptables-nft", "iptables"}}
			p.Iptables, p.Where = true, programFor(c.family)+" (nf_tables) chain FORWARD"
			if err := v.inspect(&p); err != nil {
				return nil, nil, err
			}
		}
		policies = append(policies, p)
	}
	for _, family := range []string{"ip", "ip6"} {
		// Asking the program would load the legacy tables where there are none.
		names, _ := os.ReadFile("/proc/thread-self/net/" + family + "_tables_names")
		if !slices.Contains(strings.Fields(string(names)), "filter") {
			continue
		}
		v := variant{programs: []string{"iptables-legacy", "iptables"}}
		p := spec.ForwardPolicy{Family: family, Iptables: true, Where: programFor(family) + " (legacy) chain FORWARD"}
		if err := v.inspect(&p); err != nil {
			return nil, nil, err
		}
		policies = append(policies, p)
	}
	for name := range seen {
		firewalls = append(firewalls, name)
	}
	slices.Sort(firewalls)
	return policies, firewalls, nil
}

func programFor(family string) string {
	if family == "ip6" {
		return "ip6tables"
	}
	return "iptables"
}

// firewallOf names the program that a chain belongs to, by its name alone.
func firewallOf(table, chain string) string {
	switch {
	case strings.HasPrefix(chain, "DOCKER"), table == "docker-bridges":
		return "Docker"
	case strings.HasPrefix(chain, "ufw-"), strings.HasPrefix(chain, "ufw6-"):
		return "ufw"
	case table == "firewalld":
		return "firewalld"
	}
	return ""
}

// inspect asks iptables for the policy and our rule.
func (v variant) inspect(p *spec.ForwardPolicy) error {
	ipt, err := v.open(p.Family)
	if errors.Is(err, exec.ErrNotFound) {
		p.NoProgram = true
		return nil
	}
	if err != nil {
		return err
	}
	chains := []string{chainForward}
	if there, err := ipt.ChainExists("filter", chainDocker); err != nil {
		return fmt.Errorf("%s: %w", p.Where, err)
	} else if there {
		chains = append(chains, chainDocker)
	}
	for _, chain := range chains {
		lines, err := ipt.List("filter", chain)
		if err != nil {
			return fmt.Errorf("%s: %w", p.Where, err)
		}
		p.Drops = p.Drops || slices.Contains(lines, "-P "+chainForward+" DROP")
		for _, line := range lines {
			if words := strings.Fields(line); hasComment(words) && words[len(words)-1] == "ACCEPT" {
				p.Accepts = true
			}
		}
	}
	return nil
}

// nftChainInfo is what is looked at of any chain.
type nftChainInfo struct {
	family, table, name string
	hook                int // -1 for a regular chain
	drops               bool
}

// nftChains lists every chain of the IP families.
func nftChains() (chains []nftChainInfo, err error) {
	c, err := dialNfnl()
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer c.close()
	err = retryInterrupted(func() error {
		chains = nil
		return c.get(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC, nil, func(m nfMsg) error {
			switch m.family {
			case unix.NFPROTO_INET, unix.NFPROTO_IPV4, unix.NFPROTO_IPV6:
			default:
				return nil
			}
			info := nftChainInfo{family: familyName(m.family), hook: -1}
			for typ, b := range attrs(m.attrs) {
				switch typ {
				case unix.NFTA_CHAIN_TABLE:
					info.table = cString(b)
				case unix.NFTA_CHAIN_NAME:
					info.name = cString(b)
				case unix.NFTA_CHAIN_POLICY:
					info.drops = len(b) == 4 && [4]byte(b) == [4]byte{}
				case unix.NFTA_CHAIN_HOOK:
					for typ, v := range attrs(b) {
						if typ == unix.NFTA_HOOK_HOOKNUM && len(v) == 4 {
							info.hook = int(v[3])
						}
					}
				}
			}
			chains = append(chains, info)
			return nil
		})
	})
	return chains, err
}

// lacks tries everything that sandnet uses, in a namespace that ends with the
// trial. What a configuration says would be a guess.
func lacks() (out []spec.Lack) {
	lack := func(what, config, purpose string, optional bool, err error) {
		if err != nil {
			out = append(out, spec.Lack{What: what, For: purpose, Optional: optional,
				Cure: fmt.Sprintf("use a kernel with %s (%v)", config, err)})
		}
	}
	onOwnThread(func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			lack("network namespaces", "CONFIG_NET_NS", "every sandbox", false, err)
			return
		}
		lack("bridges", "CONFIG_BRIDGE", "bridge networks", false, tryLink(&netlink.Bridge{LinkAttrs: named("b0")}))
		lack("veth pairs", "CONFIG_VETH", "bridge networks", false, tryLink(&netlink.Veth{LinkAttrs: named("v0"), PeerName: "v1"}))
		lack("ifb links", "CONFIG_IFB", "limits of what a sandbox sends", true, tryLink(&netlink.Ifb{LinkAttrs: named("i0")}))
		lack("the token bucket filter", "CONFIG_NET_SCH_TBF", "bandwidth limits", true, tryQdisc("v0", func(a netlink.QdiscAttrs) netlink.Qdisc {
			a.Handle, a.Parent = netlink.MakeHandle(1, 0), netlink.HANDLE_ROOT
			return &netlink.Tbf{QdiscAttrs: a, Rate: 125000, Limit: 10000, Buffer: 10000}
		}))
		lack("the ingress queue", "CONFIG_NET_SCH_INGRESS", "bandwidth limits", true, tryQdisc("v0", func(a netlink.QdiscAttrs) netlink.Qdisc {
			a.Handle, a.Parent = netlink.MakeHandle(0xffff, 0), netlink.HANDLE_INGRESS
			return &netlink.Ingress{QdiscAttrs: a}
		}))
		for _, p := range nftParts() {
			lack(p.what, "CONFIG_"+p.config, "the firewall", false, tryNft("inet", p.chain, p.rule))
		}
	})
	_, _, err := netnsIdentity()
	lack("network namespace cookies", "Linux 5.14", "published ports", false, err)
	lack("BPF for control groups", "CONFIG_CGROUP_BPF, Linux 5.14", "published ports", false, tryBindGuard())
	return out
}

func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func tryLink(l netlink.Link) error { return netlink.LinkAdd(l) }

func tryQdisc(link string, make func(netlink.QdiscAttrs) netlink.Qdisc) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return nil // that it has no links was told already
	}
	return netlink.QdiscAdd(make(netlink.QdiscAttrs{LinkIndex: l.Attrs().Index}))
}

// tryBindGuard loads the programs and attaches none.
func tryBindGuard() error {
	h, err := machinePorts().open()
	if err != nil {
		return err
	}
	defer h.close()
	if err := h.makeMaps(scopeDatagram); err != nil {
		return err
	}
	for _, k := range portHooks() {
		fd, err := h.load(k)
		if err != nil {
			return err
		}
		unix.Close(fd)
	}
	return nil
}
