// Package modes has one file per way to network a sandbox: bridge, host,
// container and none. A mode turns what the user asked for and what the host
// had to offer into a plan; it is a pure function, so that the plan can be
// printed, compared and tested without touching anything.
package modes

import (
	"fmt"
	"strings"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// index lets the sandbox be found by its ID.
func index(s spec.Sandbox, f spec.Facts) plan.Object {
	return plan.Symlink{Path: f.IndexPath, Target: s.Name}
}

// etcFiles are resolv.conf and hostname, for `ip netns exec` and `sandnet exec`.
func etcFiles(s spec.Sandbox, f spec.Facts) []plan.Object {
	return append(etcLink(f),
		plan.File{Path: f.EtcDir + "/hostname", Content: s.HostnameOrID() + "\n"},
		plan.File{Path: f.EtcDir + "/resolv.conf", Content: resolvConf(s, f.HostResolv)},
	)
}

// etcLink shows the files to `ip netns exec`.
func etcLink(f spec.Facts) []plan.Object {
	if f.EtcLink == "" {
		return nil
	}
	return []plan.Object{plan.Symlink{Path: f.EtcLink, Target: f.EtcDir}}
}

// hostLines are the sandbox's own lines of /etc/hosts, with a space: a
// plan.HostsLine, which comes and goes, has a tab.
func hostLines(s spec.Sandbox) string {
	var b strings.Builder
	for _, h := range s.Hosts {
		fmt.Fprintf(&b, "%s %s\n", h.Addr, h.Name)
	}
	return b.String()
}

// resolvConf is the host's resolv.conf(5) with the user's changes. Name
// servers on a loopback address do not exist inside and are left out.
func resolvConf(s spec.Sandbox, host string) string {
	var b strings.Builder
	for _, a := range s.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	if len(s.DNSSearch) > 0 && s.DNSSearch[0] != "." {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s.DNSSearch, " "))
	}
	for line := range strings.Lines(host) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if len(s.DNS) == 0 && !strings.HasPrefix(f[1], "127.") && f[1] != "::1" {
				fmt.Fprintf(&b, "nameserver %s\n", f[1])
			}
		case "search", "domain":
			if len(s.DNSSearch) == 0 {
				b.WriteString(strings.Join(f, " ") + "\n")
			}
		case "options":
			b.WriteString(strings.Join(f, " ") + "\n")
		}
	}
	return b.String()
}
