package runtimes

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

// cniError is an error as plugins print it.
type cniError struct {
	Code int    `json:"code"`
	Msg  string `json:"msg"`
}

// cniResult is what tests look at of a result of version 1.0.0 or later.
type cniResult struct {
	CNIVersion string `json:"cniVersion"`
	Interfaces []struct {
		Name, Mac, Sandbox string
	} `json:"interfaces"`
	IPs []struct {
		Address, Gateway string
		Interface        int
	} `json:"ips"`
	Routes []struct{ Dst, GW string } `json:"routes"`
}

// cni is sandnet as a plugin on a host.
type cni struct {
	*lab.Host
	t *testing.T
}

// call runs one command; conf is what goes to its standard input.
func (c *cni) call(command, container, netns, ifname, conf string, env ...string) lab.Result {
	c.t.Helper()
	in := filepath.Join(c.t.TempDir(), "conf")
	if err := os.WriteFile(in, []byte(conf), 0o600); err != nil {
		c.t.Fatal(err)
	}
	env = append([]string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + container, "CNI_NETNS=" + netns, "CNI_IFNAME=" + ifname,
		"CNI_PATH=" + filepath.Dir(c.Program) + ":/usr/lib/cni", "SANDNET_ROOT=" + c.Root}, env...)
	return c.RunEnv(env, "sh", "-c", fmt.Sprintf("exec %s <%s", c.Program, in))
}

func (c *cni) ok(command, container, netns, conf string, env ...string) (r cniResult) {
	c.t.Helper()
	res := c.call(command, container, netns, "eth0", conf, env...)
	if res.Code != 0 {
		c.t.Fatalf("%s: %s", command, res)
	}
	if res.Stdout != "" {
		if err := json.Unmarshal([]byte(res.Stdout), &r); err != nil {
			c.t.Fatalf("%s: %v: %s", command, err, res)
		}
	}
	return r
}

func newCNI(t *testing.T) (*cni, *lab.Lab, lab.Dump) {
	l := lab.New(t)
	c := &cni{l.Host("host"), t}
	return c, l, used(t, c.Host)
}

func conf(version string, more string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"net","type":"sandnet"%s}`, version, more)
}

const mapping = `,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"TCP"},{"hostPort":0,"containerPort":81}],"mac":"02:42:00:00:00:09"}`

func TestCNIAttachesAndDetaches(t *testing.T) {
	c, l, before := newCNI(t)
	ns, other := l.Namespace("c1"), l.Host("other")
	r := c.ok("ADD", "container1", ns.Path, conf("1.1.0", mapping))
	if r.CNIVersion != "1.1.0" || len(r.Interfaces) != 3 || len(r.IPs) != 1 || len(r.Routes) != 1 {
		t.Fatalf("result: %+v", r)
	}
	inside := r.Interfaces[r.IPs[0].Interface]
	if inside.Name != "eth0" || inside.Sandbox != ns.Path || inside.Mac != "02:42:00:00:00:09" || r.Interfaces[0].Name != "sandnet0" {
		t.Errorf("interfaces: %+v", r.Interfaces)
	}
	if out := ns.Must("ip", "-o", "addr", "show", "eth0"); !strings.Contains(out, r.IPs[0].Address) {
		t.Errorf("%s is not in %s", r.IPs[0].Address, out)
	}
	ns.ServeTCP("0.0.0.0:80")
	other.Reaches("tcp", c.IP.String()+":8080", ns, other.IP.String())
	again := c.ok("ADD", "container1", ns.Path, conf("1.1.0", mapping))
	if again.IPs[0] != r.IPs[0] {
		t.Errorf("a second ADD gives %+v, the first gave %+v", again.IPs, r.IPs)
	}
	if out := c.OK("ps"); !strings.Contains(out, "cni-") {
		t.Errorf("ps says\n%s", out)
	}
	for range 2 {
		c.ok("DEL", "container1", ns.Path, conf("1.1.0", mapping))
		if out := ns.Must("ip", "-o", "link"); strings.Contains(out, "eth0") {
			t.Errorf("after DEL there is\n%s", out)
		}
	}
	c.ok("DEL", "container1", "", conf("1.1.0", ""))
	c.ok("DEL", "container1", "/run/netns/gone", conf("1.1.0", ""))
	if i, d := c.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}

// Rates as the bandwidth plugin means them: in bit/s, ingress is what the
// container receives. They go with the container.
func TestCNIBandwidth(t *testing.T) {
	c, l, before := newCNI(t)
	ns := l.Namespace("c1")
	limited := conf("1.0.0", `,"runtimeConfig":{"bandwidth":{"ingressRate":8000000,"ingressBurst":80000,"egressRate":16000000,"egressBurst":80000}}`)
	r := c.ok("ADD", "c1", ns.Path, limited)
	shown := c.Must("tc", "qdisc", "show")
	for _, want := range []string{"dev " + r.Interfaces[1].Name + " ", "rate 8Mbit", "rate 16Mbit"} {
		if !strings.Contains(shown, want) {
			t.Errorf("there is no %q in\n%s", want, shown)
		}
	}
	c.ok("DEL", "c1", ns.Path, limited)
	if i, d := c.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}

func TestCNIVersions(t *testing.T) {
	c, l, before := newCNI(t)
	ns := l.Namespace("c1")
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		var r struct {
			CNIVersion string            `json:"cniVersion"`
			IPs        []json.RawMessage `json:"ips"`
		}
		res := c.call("ADD", "c1", ns.Path, "eth0", conf(v, ""))
		if err := json.Unmarshal([]byte(res.Stdout), &r); err != nil || res.Code != 0 || r.CNIVersion != v || len(r.IPs) != 1 {
			t.Errorf("%s: %s", v, res)
		}
		if v != "0.3.1" {
			c.ok("CHECK", "c1", ns.Path, conf(v, `,"prevResult":`+res.Stdout))
		}
		c.ok("DEL", "c1", ns.Path, conf(v, ""))
	}
	res := c.call("VERSION", "", "", "", `{"cniVersion":"1.1.0"}`)
	if res.Code != 0 || !strings.Contains(res.Stdout, `["0.3.1","0.4.0","1.0.0","1.1.0"]`) {
		t.Error(res)
	}
	if i, d := c.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}

func TestCNICheckFindsDamage(t *testing.T) {
	c, l, _ := newCNI(t)
	ns := l.Namespace("c1")
	res := c.call("ADD", "c1", ns.Path, "eth0", conf("1.0.0", ""))
	if res.Code != 0 {
		t.Fatal(res)
	}
	prev := `,"prevResult":` + res.Stdout
	c.ok("CHECK", "c1", ns.Path, conf("1.0.0", prev))
	other := strings.Replace(prev, "172.30.0.", "172.30.7.", 2)
	if r := c.call("CHECK", "c1", ns.Path, "eth0", conf("1.0.0", other)); r.Code == 0 {
		t.Errorf("another address is fine: %s", r)
	}
	if r := c.call("CHECK", "c2", ns.Path, "eth0", conf("1.0.0", prev)); r.Code == 0 {
		t.Errorf("another container is fine: %s", r)
	}
	ns.Must("ip", "link", "del", "eth0")
	if r := c.call("CHECK", "c1", ns.Path, "eth0", conf("1.0.0", prev)); r.Code == 0 {
		t.Errorf("without a link it is fine: %s", r)
	}
	c.ok("DEL", "c1", ns.Path, conf("1.0.0", ""))
}

// TestCNIChain has sandnet first and last in a chain, with real plugins around it,
// and with another plugin's addresses.
func TestCNIChain(t *testing.T) {
	c, l, before := newCNI(t)
	tool := cnitool(t)
	dir := t.TempDir()
	write := func(name, plugins string) {
		text := fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[%s]}`, name, plugins)
		if err := os.WriteFile(filepath.Join(dir, name+".conflist"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("first", `{"type":"sandnet"},{"type":"tuning","sysctl":{"net.ipv4.conf.eth0.arp_filter":"1"}}`)
	write("last", `{"type":"loopback"},{"type":"sandnet"}`)
	write("given", fmt.Sprintf(`{"type":"sandnet","ipam":{"type":"host-local","subnet":"172.30.0.0/16","rangeStart":"172.30.9.1","dataDir":%q}}`, filepath.Join(dir, "ipam")))
	ns := l.Namespace("c1")
	env := []string{"CNI_PATH=" + filepath.Dir(c.Program) + ":/usr/lib/cni", "NETCONFPATH=" + dir, "SANDNET_ROOT=" + c.Root}
	for _, name := range []string{"first", "last", "given"} {
		for _, command := range []string{"add", "check", "del", "del"} {
			res := c.RunEnv(env, tool, command, name, ns.Path)
			if res.Code != 0 {
				t.Fatalf("%s %s: %s", command, name, res)
			}
			switch {
			case command != "add":
			case name == "first" && ns.Must("cat", "/proc/sys/net/ipv4/conf/eth0/arp_filter") != "1":
				t.Error("the plugin after sandnet did not find its interface")
			case name == "last" && (!strings.Contains(res.Stdout, "127.0.0.1/8") || !strings.Contains(res.Stdout, "172.30.")):
				t.Errorf("the result lacks the earlier plugin's part, or ours: %s", res.Stdout)
			case name == "given" && !strings.Contains(res.Stdout, "172.30.9.1/16"):
				t.Errorf("the address is not host-local's: %s", res.Stdout)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "ipam/given/172.*")); len(left) > 0 {
		t.Errorf("host-local still has %v", left)
	}
	if i, d := c.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}

// cnitool is the tool of the CNI project that plays the runtime.
func cnitool(t *testing.T) string {
	t.Helper()
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cnitool")
	build := exec.Command("go", "build", "-o", path, "github.com/containernetworking/cni/cnitool")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

func TestCNICollectsWhatTheRuntimeForgot(t *testing.T) {
	c, l, before := newCNI(t)
	a, b := l.Namespace("a"), l.Namespace("b")
	c.ok("ADD", "a", a.Path, conf("1.1.0", ""))
	c.ok("ADD", "b", b.Path, conf("1.1.0", ""))
	c.ok("GC", "", "", conf("1.1.0", `,"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]`))
	if out := b.Must("ip", "-o", "link"); strings.Contains(out, "eth0") {
		t.Errorf("b still has %s", out)
	}
	if out := a.Must("ip", "-o", "link"); !strings.Contains(out, "eth0") {
		t.Errorf("a has lost its link: %s", out)
	}
	c.ok("STATUS", "", "", conf("1.1.0", ""))
	if r := c.call("STATUS", "", "", "", conf("1.1.0", `,"network":"nosuch"`)); r.Code == 0 || !strings.Contains(r.Stdout, `"code": 50`) {
		t.Errorf("STATUS of a network that is not there: %s", r)
	}
	c.ok("DEL", "a", a.Path, conf("1.1.0", ""))
	if i, d := c.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}

func TestCNIManyAtOnce(t *testing.T) {
	c, l, before := newCNI(t)
	const n = 20
	spaces := make([]*lab.NS, n)
	for i := range spaces {
		spaces[i] = l.Namespace(fmt.Sprint("c", i))
	}
	for _, command := range []string{"ADD", "DEL"} {
		results := make([]lab.Result, n)
		var all sync.WaitGroup
		for i, ns := range spaces {
			all.Go(func() { results[i] = c.call(command, fmt.Sprint("c", i), ns.Path, "eth0", conf("1.0.0", "")) })
		}
		all.Wait()
		seen := map[string]bool{}
		for i, r := range results {
			if r.Code != 0 {
				t.Errorf("%s %d: %s", command, i, r)
			}
			var got cniResult
			if command == "ADD" && (json.Unmarshal([]byte(r.Stdout), &got) != nil || seen[got.IPs[0].Address]) {
				t.Errorf("ADD %d: %s", i, r)
			} else if command == "ADD" {
				seen[got.IPs[0].Address] = true
			}
		}
	}
	if i, d := c.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}

func TestCNIRefusesBadInput(t *testing.T) {
	c, l, _ := newCNI(t)
	ns := l.Namespace("c1")
	before := c.Dump()
	const (
		version, environment, decoding, config = 1, 4, 6, 7
	)
	good := conf("1.0.0", "")
	for _, x := range []struct {
		name                           string
		code                           int
		word                           string
		command, id, netns, ifname, in string
	}{
		{"nothing", decoding, "empty", "ADD", "c1", ns.Path, "eth0", ""},
		{"truncated", decoding, "too early", "ADD", "c1", ns.Path, "eth0", good[:20]},
		{"a key twice", decoding, "twice", "ADD", "c1", ns.Path, "eth0", `{"name":"a","name":"b"}`},
		{"huge", decoding, "longer", "ADD", "c1", ns.Path, "eth0", `{"name":"` + strings.Repeat("x", 1<<20) + `"}`},
		{"wrong type", decoding, "mtu", "ADD", "c1", ns.Path, "eth0", conf("1.0.0", `,"mtu":"big"`)},
		{"version", version, "9.9.9", "ADD", "c1", ns.Path, "eth0", conf("9.9.9", "")},
		{"command", environment, "FROB", "FROB", "c1", ns.Path, "eth0", good},
		{"no namespace", environment, "CNI_NETNS", "ADD", "c1", "", "eth0", good},
		{"not a namespace", environment, "/etc/passwd", "ADD", "c1", "/etc/passwd", "eth0", good},
		{"a namespace of another kind", environment, "/ns/mnt", "ADD", "c1", "/proc/1/ns/mnt", "eth0", good},
		{"the host's own namespace", environment, "own", "ADD", "c1", c.Path, "eth0", good},
		{"container ID", environment, "containerID", "ADD", "a/b", ns.Path, "eth0", good},
		{"interface", environment, "interface", "ADD", "c1", ns.Path, "e/0", good},
		{"long interface", environment, "interface", "ADD", "c1", ns.Path, "abcdefghijklmnopq", good},
		{"network", config, "nosuch", "ADD", "c1", ns.Path, "eth0", conf("1.0.0", `,"network":"nosuch"`)},
		{"masquerading", config, "ipMasq", "ADD", "c1", ns.Path, "eth0", conf("1.0.0", `,"ipMasq":false`)},
		{"host mode", config, "host", "ADD", "c1", ns.Path, "eth0", conf("1.0.0", `,"network":"host"`)},
		{"MTU", config, "7", "ADD", "c1", ns.Path, "eth0", conf("1.0.0", `,"mtu":7`)},
		{"port", config, "sctpx", "ADD", "c1", ns.Path, "eth0", conf("1.0.0", `,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"sctpx"}]}`)},
		{"MAC", config, "zz", "ADD", "c1", ns.Path, "eth0", conf("1.0.0", `,"runtimeConfig":{"mac":"zz"}`)},
		{"address", config, "10.9.9.9", "ADD", "c1", ns.Path, "eth0", conf("1.0.0", `,"runtimeConfig":{"ips":["10.9.9.9/24"]}`)},
		{"CHECK without result", config, "prevResult", "CHECK", "c1", ns.Path, "eth0", good},
	} {
		if x.name == "CHECK without result" {
			c.ok("ADD", "c1", ns.Path, good)
			before = c.Dump()
		}
		r := c.call(x.command, x.id, x.netns, x.ifname, x.in)
		var e cniError
		if err := json.Unmarshal([]byte(r.Stdout), &e); err != nil || r.Code == 0 || e.Code != x.code || !strings.Contains(r.Stdout, x.word) {
			t.Errorf("%s: want code %d and %q: %s", x.name, x.code, x.word, r)
		}
		if d := lab.Diff(before, c.Dump()); d != "" {
			t.Fatalf("%s changed the host:\n%s", x.name, d)
		}
	}
	c.ok("DEL", "c1", ns.Path, good)
}
