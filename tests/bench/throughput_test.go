package bench

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

// path is a way for packets, from a client to an iperf3 server.
type path struct {
	name   string
	client *lab.NS
	addr   string
	gbits  []float64
}

// throughput compares sandnet's paths with the same wired by hand on a host
// beside it.
func throughput(b *testing.B, l *lab.Lab, h *lab.Host) []row {
	b.Helper()
	lan := l.Host("client")
	hand := l.Host("byhand")
	one, two := byHand(l, hand)
	h.OK("create", "--name", "a")
	h.OK("create", "--name", "b", "-p", "5201:5201")
	serve(b, h.Sandbox("b"))
	serve(b, two)
	paths := []*path{
		{name: "sandbox to sandbox", client: h.Sandbox("a"), addr: sandboxIP(b, h, "b")},
		{name: "sandbox to sandbox, by hand", client: one, addr: "10.253.0.3"},
		{name: "LAN to published port", client: lan.NS, addr: h.IP.String()},
		{name: "LAN to published port, by hand", client: lan.NS, addr: hand.IP.String()},
	}
	for range 9 {
		for _, p := range paths {
			p.gbits = append(p.gbits, iperf(b, p))
		}
	}
	h.OK("rm", "-f", "a", "b")
	var rows []row
	for i := 0; i < len(paths); i += 2 {
		// Throughput drifts with the machine; two runs next to each other do less.
		var ratios []float64
		for j, g := range paths[i].gbits {
			ratios = append(ratios, g/paths[i+1].gbits[j])
		}
		rows = append(rows, row{"throughput, " + paths[i].name, fmt.Sprintf("%.1f Gbit/s", median(paths[i].gbits)),
			fmt.Sprintf("%.2f × by hand (%.1f Gbit/s)", median(ratios), median(paths[i+1].gbits)), "≥ 0.95 × by hand", verdict(median(ratios) >= 0.95)})
	}
	return rows
}

func median(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

// byHand wires two namespaces to a bridge and publishes one, as somebody would
// who has only iproute2 and nft.
func byHand(l *lab.Lab, h *lab.Host) (one, two *lab.NS) {
	h.Must("ip", "link", "add", "br0", "type", "bridge")
	h.Must("ip", "addr", "add", "10.253.0.1/24", "dev", "br0")
	h.Must("ip", "link", "set", "br0", "up")
	wire := func(name, ip string) *lab.NS {
		n := l.Namespace(name)
		h.Must("ip", "link", "add", "v-"+name, "master", "br0", "type", "veth", "peer", "name", "eth0", "netns", filepath.Base(n.Path))
		h.Must("ip", "link", "set", "v-"+name, "up")
		n.Must("ip", "addr", "add", ip+"/24", "dev", "eth0")
		n.Must("ip", "link", "set", "eth0", "up")
		n.Must("ip", "route", "add", "default", "via", "10.253.0.1")
		return n
	}
	one, two = wire("one", "10.253.0.2"), wire("two", "10.253.0.3")
	h.Must("sysctl", "-qw", "net.ipv4.ip_forward=1")
	h.Must("nft", `table ip byhand {
	chain pre { type nat hook prerouting priority -100; ip daddr `+h.IP.String()+` tcp dport 5201 dnat to 10.253.0.3; }
	chain post { type nat hook postrouting priority 100; ip saddr 10.253.0.0/24 oifname != "br0" masquerade; }
}`)
	return one, two
}

func serve(b *testing.B, n *lab.NS) {
	b.Helper()
	p := n.Start(nil, "iperf3", "-s", "--forceflush")
	p.Await("Server listening")
}

// iperf measures for two seconds, the client on one processor and the server on
// another: left to the scheduler, that choice decides the result.
func iperf(b *testing.B, p *path) float64 {
	b.Helper()
	var out struct {
		End struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	args := []string{"-c", p.addr, "-t", "2", "-J"}
	if runtime.NumCPU() > 1 {
		args = append(args, "-A", "0,1")
	}
	text := p.client.Must("iperf3", args...)
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		b.Fatalf("%s: %v", p.name, err)
	}
	return out.End.Received.BitsPerSecond / 1e9
}

func sandboxIP(b *testing.B, h *lab.Host, name string) string {
	b.Helper()
	for line := range strings.Lines(h.OK("exec", name, "--", "ip", "-4", "-o", "addr", "show", "eth0")) {
		if _, rest, ok := strings.Cut(line, "inet "); ok {
			ip, _, _ := strings.Cut(rest, "/")
			return ip
		}
	}
	b.Fatalf("%s has no address", name)
	return ""
}
