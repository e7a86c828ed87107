package bench

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

var (
	cniDir      = flag.String("cni", "/usr/lib/cni", "where the CNI plugins are")
	netavarkBin = flag.String("netavark", "/usr/lib/podman/netavark", "the netavark program")
	peerRounds  = flag.Int("peerrounds", 15, "how often each peer is measured")
)

// peer is a program that connects a namespace to a bridge. Others than sandnet
// find it made, outside of what is measured; sandnet makes its own.
type peer struct {
	figure string
	// least is how many times faster than it sandnet is to be; 0 for no aim.
	least    float64
	host     *lab.Host
	add, del func(ns string) error
	// port says that it publishes port 80 of the namespace as 8080.
	port bool
}

// peers compares sandnet with others, each on a host of its own and all in turn.
func peers(b *testing.B, l *lab.Lab) []row {
	b.Helper()
	ours := l.Host("ours")
	plain, chain, podman := newCNI(b, l, "cni", false), newCNI(b, l, "cni-chain", true), newNetavark(b, l)
	list := []peer{
		{"sandnet", 0, ours, func(string) error { return run(ours, "create", "--name", "x", "-p", "8080:80") },
			func(string) error { return run(ours, "rm", "x") }, true},
		{"CNI bridge + host-local, no port: ADD + DEL", 0, plain.host, plain.add, plain.del, false},
		{"CNI bridge + host-local + portmap + firewall: ADD + DEL", 15, chain.host, chain.add, chain.del, true},
		{"netavark with a port: setup + teardown", 8, podman.host, podman.setup, podman.teardown, true},
	}
	client := l.Host("visitor")
	s := series{}
	for n := range *peerRounds + 1 {
		for _, p := range list {
			ns := ours.Sandbox("x")
			if p.host != ours {
				ns = l.Namespace(fmt.Sprintf("%s%d", p.host.Name, n))
			}
			check := func() {}
			if n == 0 && p.port { // the first makes the bridge and the chains, and shows that it works
				check = func() {
					ns.ServeTCP("0.0.0.0:80")
					client.Reaches("tcp", p.host.IP.String()+":8080", ns, "")
				}
			}
			took, err := p.once(ns.Path, check)
			if err != nil {
				b.Fatalf("%s: %v", p.figure, err)
			}
			if n > 0 {
				s[p.figure+" add"] = append(s[p.figure+" add"], took[0])
				s[p.figure+" del"] = append(s[p.figure+" del"], took[1])
				s[p.figure] = append(s[p.figure], took[0]+took[1])
			}
		}
	}
	return peerRows(s, list)
}

// once measures an addition and a removal.
func (p peer) once(ns string, between func()) (took [2]time.Duration, err error) {
	p.host.Do(func() {
		// What is measured comes right after work of its kind, see round.
		if _, err = feed(nil, "", p.host.Program, "version"); err != nil {
			return
		}
		for i, step := range []func(string) error{p.add, p.del} {
			start := time.Now()
			if err = step(ns); err != nil {
				return
			}
			took[i] = time.Since(start)
			if i == 0 {
				between()
			}
		}
	})
	return took, err
}

func run(h *lab.Host, args ...string) error {
	_, err := timed(h, args...)
	return err
}

func peerRows(s series, list []peer) []row {
	cost := func(figure string) string {
		return fmt.Sprintf("%s + %s", ms(s.median(figure+" add")), ms(s.median(figure+" del")))
	}
	rows := []row{{"beside others: `sandnet create -p 8080:80` + `rm`", cost("sandnet"), "1", "", ""}}
	for _, p := range list[1:] {
		faster := s.ratio(p.figure, "sandnet")
		r := row{figure: p.figure, measured: cost(p.figure), ratio: fmt.Sprintf("sandnet is %.1f × faster", faster)}
		if p.least > 0 {
			r.reach, r.met = fmt.Sprintf("≥ %.0f ×", p.least), verdict(faster >= p.least)
		}
		rows = append(rows, r)
	}
	return rows
}

// fed is how long feed takes.
func fed(env []string, text string, program string, args ...string) (time.Duration, error) {
	start := time.Now()
	_, err := feed(env, text, program, args...)
	return time.Since(start), err
}

// feed runs a program from the calling thread, with text on its stdin.
func feed(env []string, text string, program string, args ...string) ([]byte, error) {
	cmd := exec.Command(program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), &stdout, &stderr
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}, env...)
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.Bytes(), nil
}

// cni drives CNI plugins as a runtime does: one process per plugin, the result
// of each handed to the next.
type cni struct {
	host    *lab.Host
	plugins []cniPlugin
	// program is what they all are; empty for Debian's.
	program string
	// result is what the last plugin of the last addition said.
	result []byte
}

// cniPlugin is a plugin's name and what is special in its configuration.
type cniPlugin struct{ name, config string }

// newCNI is the ordinary bridge; with the rest of the chain it masquerades,
// publishes a port and opens the firewall, as sandnet does.
func newCNI(b *testing.B, l *lab.Lab, name string, whole bool) *cni {
	b.Helper()
	bridge := fmt.Sprintf(`"bridge":"cni0","isGateway":true,"ipMasq":%t,"hairpinMode":%[1]t,"ipam":{"type":"host-local",
		"dataDir":%q,"ranges":[[{"subnet":"10.88.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}`, whole, b.TempDir())
	c := &cni{host: l.Host(name), plugins: []cniPlugin{{"bridge", bridge}}}
	if whole {
		c.plugins = append(c.plugins,
			cniPlugin{"portmap", `"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`},
			cniPlugin{"firewall", `"backend":"iptables"`})
	}
	return c
}

func (c *cni) call(command, ns string, p cniPlugin) ([]byte, error) {
	previous := ""
	if c.result != nil {
		previous = `,"prevResult":` + string(c.result)
	}
	config := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"bench","type":%q,%s%s}`, p.name, p.config, previous)
	env := []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + filepath.Base(ns), "CNI_NETNS=" + ns, "CNI_IFNAME=eth0", "CNI_PATH=" + *cniDir}
	program := c.program
	if program == "" {
		program = filepath.Join(*cniDir, p.name)
	}
	return feed(append(env, "SANDNET_ROOT="+c.host.Root), config, program)
}

// withPort is the same for one container, which publishes another port.
func (c *cni) withPort(port int) *cni {
	one := *c
	one.plugins = slices.Clone(c.plugins)
	for i := range one.plugins {
		one.plugins[i].config = strings.Replace(one.plugins[i].config, `"hostPort":8080`, fmt.Sprintf(`"hostPort":%d`, port), 1)
	}
	return &one
}

func (c *cni) add(ns string) error {
	c.result = nil
	for _, p := range c.plugins {
		out, err := c.call("ADD", ns, p)
		if err != nil {
			return err
		}
		c.result = out
	}
	return nil
}

func (c *cni) del(ns string) error {
	for i := len(c.plugins) - 1; i >= 0; i-- {
		if _, err := c.call("DEL", ns, c.plugins[i]); err != nil {
			return err
		}
	}
	return nil
}

// netavark is driven as podman does, which chooses the address itself.
type netavark struct {
	host    *lab.Host
	dir     string
	request string
}

func newNetavark(b *testing.B, l *lab.Lab) *netavark {
	b.Helper()
	id := strings.Repeat("5a", 32)
	request := fmt.Sprintf(`{"container_id":%q,"container_name":"x",
		"port_mappings":[{"container_port":80,"host_port":8080,"host_ip":"","protocol":"tcp","range":1}],
		"networks":{"bench":{"interface_name":"eth0","static_ips":["10.89.0.2"]}},
		"network_info":{"bench":{"name":"bench","id":%[1]q,"driver":"bridge","network_interface":"podman0","internal":false,
			"ipv6_enabled":false,"dns_enabled":false,"ipam_options":{"driver":"host-local"},
			"subnets":[{"subnet":"10.89.0.0/16","gateway":"10.89.0.1"}]}}}`, id)
	return &netavark{host: l.Host("netavark"), dir: b.TempDir(), request: request}
}

func (n *netavark) setup(ns string) error    { return n.call("setup", ns) }
func (n *netavark) teardown(ns string) error { return n.call("teardown", ns) }

func (n *netavark) call(command, ns string) error {
	_, err := feed(nil, n.request, *netavarkBin, "--config", n.dir, command, ns)
	return err
}
