package storm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
)

// call is one command of the storm.
type call struct {
	args []string
	// makes is the name of the sandbox that it makes and keeps.
	makes string
	// removes names the sandboxes that are no longer sure to exist from its
	// start on.
	removes []string
	// changes names the sandbox whose addresses and ports are no longer sure
	// from its start on.
	changes string
	// refusals are the reasons for which it may fail while others work on the
	// same host: parts of what stderr says. Any other failure is one of sandnet.
	refusals []string
	// mortal: it may be killed with the sandbox that it is in.
	mortal bool
}

// touches are the sandboxes of which something is no longer sure.
func (c call) touches() []string {
	if c.changes == "" {
		return c.removes
	}
	return append([]string{c.changes}, c.removes...)
}

// op is a kind of command. A new one is one line.
type op struct {
	name   string
	weight int
	make   func(p *pick) call
}

// What everybody works on: few enough of each that they meet all the time.
const (
	sandboxes  = 60
	firstPort  = 20000
	ports      = 32
	fixedAddrs = 8
)

// Networks of the storm. The first two have subnets of their own, so that
// fixed addresses can be asked for.
var networks = []struct {
	name    string
	subnet  string
	options []string
}{
	{"n0", "10.61.0", nil},
	{"n1", "10.61.1", []string{"--no-icc", "--ipv6"}},
	{"n2", "", []string{"--internal"}},
	{"n3", "", []string{"--no-masquerade", "--label", "tier=data", "--ipv6"}},
}

func internal(network string) bool {
	for _, n := range networks {
		if n.name == network {
			return slices.Contains(n.options, "--internal")
		}
	}
	return false
}

var table = []op{
	{"create", 16, create},
	{"create on networks", 14, createOnNetworks},
	{"create with a fixed address", 8, createFixed},
	{"create joined", 5, createJoined},
	{"create none", 2, plain("create", "--net", "none")},
	{"create host", 2, plain("create", "--net", "host")},
	{"run", 8, run},
	{"run detached", 8, runDetached},
	{"exec", 6, execute},
	{"rm", 12, rm},
	{"rm -f", 6, rmForce},
	{"network create", 14, networkCreate},
	{"network rm", 2, networkRemove},
	{"network prune", 1, fixed("network", "prune")},
	{"network connect", 8, connect},
	{"network disconnect", 6, disconnect},
	{"port add", 8, portAdd},
	{"port rm", 5, portRemove},
	{"gc", 4, fixed("gc")},
	{"gc --repair", 2, fixed("gc", "--repair")},
	{"gc --dry-run", 1, fixed("gc", "--dry-run")},
	{"ps", 3, fixed("ps")},
	{"inspect", 3, inspect},
	{"network inspect", 2, networkInspect},
	{"port", 1, port},
}

// Why a command may fail in the storm.
var (
	noSandbox = []string{"no such sandbox"}
	noNetwork = []string{"no such network"}
	// taken: somebody else has the name, the port or the address.
	taken = []string{"there is a sandbox of that name", "the host port is in use", "has it"}
	// unsettled: the network or sandbox is going, or came back as another one.
	unsettled = []string{"there is no such network", "no such network", "was made anew meanwhile"}
	// unchangeable: it has no interfaces of its own.
	unchangeable = []string{"it has what the", "it has no network, for good"}
)

// pick is a worker's source of random choices. It depends on nothing but its
// seed: what a worker does is the same in each run, only when is not.
type pick struct{ *rand.Rand }

func (p *pick) op() op {
	sum := 0
	for _, o := range table {
		sum += o.weight
	}
	n := p.IntN(sum)
	for _, o := range table {
		if n -= o.weight; n < 0 {
			return o
		}
	}
	panic("unreachable")
}

func (p *pick) sandbox() string { return "s" + strconv.Itoa(p.IntN(sandboxes)) }

// busy is one of those that most is done to, so that more of it succeeds.
func (p *pick) busy() string { return "s" + strconv.Itoa(p.IntN(sandboxes/4)) }

func (p *pick) network() string { return networks[p.IntN(len(networks))].name }

func (p *pick) chance(percent int) bool { return p.IntN(100) < percent }

// publish is none to three published ports, one in six without a host port. All
// are different: what asks for one twice is refused for that.
func (p *pick) publish() []string {
	var out []string
	for _, n := range p.Perm(ports)[:p.IntN(4)] {
		spec := strconv.Itoa(firstPort+n) + ":80"
		switch p.IntN(6) {
		case 0:
			spec = "127.0.0.1:" + spec
		case 1:
			spec += "/udp"
		case 2:
			spec = "80"
		}
		out = append(out, "-p", spec)
	}
	return out
}

// limits are rates and a policy, for some.
func (p *pick) limits() (out []string) {
	if p.chance(15) {
		out = append(out, "--ingress-rate", "1gbit", "--egress-rate", "500mbit")
	}
	if p.chance(15) {
		out = append(out, "--egress", "deny 10.99.0.0/16", "--egress", "deny fd99::/64")
	}
	return out
}

func create(p *pick) call {
	name := p.sandbox()
	if p.chance(50) {
		name = p.busy()
	}
	args := slices.Concat([]string{"create", "--name", name}, p.publish(), p.limits())
	return call{args: args, makes: name, refusals: join(taken, unsettled)}
}

func createOnNetworks(p *pick) call {
	name := p.busy()
	args := slices.Concat([]string{"create", "--name", name}, p.publish(), p.limits())
	chosen := p.Perm(len(networks))[:1+p.IntN(2)]
	for _, n := range chosen {
		args = append(args, "--net", networks[n].name)
	}
	switch p.IntN(3) {
	case 0: // only user-defined networks have aliases
		args = append(args, "--network-alias", "db", "--add-host", "gw:10.1.2.3")
	case 1:
		args = append(args, "--net", "bridge")
	}
	return call{args: args, makes: name, refusals: join(taken, unsettled)}
}

func createFixed(p *pick) call {
	name := p.sandbox()
	n := networks[p.IntN(2)]
	args := []string{"create", "--name", name, "--net", n.name, "--ip", fmt.Sprintf("%s.%d", n.subnet, 200+p.IntN(fixedAddrs))}
	return call{args: append(args, p.publish()...), makes: name, refusals: join(taken, unsettled)}
}

func createJoined(p *pick) call {
	name, other := p.sandbox(), p.sandbox()
	return call{args: []string{"create", "--name", name, "--net", "container:" + other}, makes: name,
		refusals: join(taken, []string{"there is no such sandbox or process", "has no namespace of its own", "was made anew meanwhile"})}
}

func plain(args ...string) func(p *pick) call {
	return func(p *pick) call {
		name := p.sandbox()
		return call{args: append(append([]string{}, args...), "--name", name), makes: name, refusals: taken}
	}
}

func fixed(args ...string) func(p *pick) call {
	return func(*pick) call { return call{args: args} }
}

func run(p *pick) call {
	args := append([]string{"run"}, p.publish()...)
	if p.chance(50) {
		args = append(args, "--net", p.network())
	}
	command := []string{"--", "true"}
	if p.chance(30) {
		command = []string{"--", "sleep", "0.05"}
	}
	return call{args: append(args, command...), refusals: join(taken, unsettled)}
}

func runDetached(p *pick) call {
	name := p.busy()
	args := slices.Concat([]string{"run", "-d", "--name", name}, p.publish(), p.limits())
	return call{args: append(args, "--", "sleep", "1000"), makes: name, refusals: join(taken, unsettled, []string{"was removed before its command ran"})}
}

func execute(p *pick) call {
	return call{args: []string{"exec", p.sandbox(), "--", "true"}, refusals: noSandbox, mortal: true}
}

func rm(p *pick) call {
	name := p.sandbox()
	return call{args: []string{"rm", name}, removes: []string{name}, refusals: join(noSandbox, []string{"is running", "is joined by"})}
}

func rmForce(p *pick) call {
	names := []string{p.sandbox(), p.sandbox()}
	return call{args: append([]string{"rm", "-f"}, names...), removes: names}
}

func networkCreate(p *pick) call {
	n := networks[p.IntN(len(networks))]
	args := slices.Concat([]string{"network", "create"}, n.options)
	if n.subnet != "" {
		args = append(args, "--subnet", n.subnet+".0/24")
	}
	return call{args: append(args, n.name), refusals: []string{"there is a network of that name"}}
}

func connect(p *pick) call {
	name := p.busy()
	args := []string{"network", "connect"}
	if p.chance(50) { // the ports move
		args = append(args, "--gw-priority", strconv.Itoa(1+p.IntN(3)))
	}
	if p.chance(30) {
		args = append(args, "--alias", "db")
	}
	network := "bridge"
	if p.chance(80) {
		network = p.network()
	}
	return call{args: append(args, network, name), changes: name,
		refusals: join(noSandbox, taken, unsettled, unchangeable, []string{"is connected to network", "only user-defined networks"})}
}

func disconnect(p *pick) call {
	name := p.busy()
	network := "bridge"
	if p.chance(70) {
		network = p.network()
	}
	return call{args: []string{"network", "disconnect", network, name}, changes: name,
		refusals: join(noSandbox, unsettled, unchangeable, []string{"is not connected to network"})}
}

func (p *pick) port() string {
	port := strconv.Itoa(firstPort+p.IntN(ports)) + ":80"
	switch p.IntN(4) {
	case 0:
		return "127.0.0.1:" + port
	case 1:
		return port + "/udp"
	}
	return port
}

func portAdd(p *pick) call {
	name := p.busy()
	return call{args: []string{"port", "add", name, p.port()}, changes: name,
		refusals: join(noSandbox, taken, unchangeable, []string{"is on no network", "takes the same host port"})}
}

func portRemove(p *pick) call {
	name := p.busy()
	spec := []string{p.port(), "80", "80/udp"}[p.IntN(3)]
	return call{args: []string{"port", "rm", name, spec}, changes: name, refusals: join(noSandbox, unchangeable)}
}

func networkRemove(p *pick) call {
	name := p.network()
	if p.chance(20) {
		name = "bridge" // it comes back with its next use
	}
	return call{args: []string{"network", "rm", name}, refusals: join(noNetwork, []string{"is in use by"})}
}

func networkInspect(p *pick) call {
	return call{args: []string{"network", "inspect", p.network()}, refusals: noNetwork}
}

func inspect(p *pick) call {
	return call{args: []string{"inspect", p.sandbox()}, refusals: []string{"no such sandbox or network", "no such sandbox"}}
}

func port(p *pick) call { return call{args: []string{"port", p.sandbox()}, refusals: noSandbox} }

func join(lists ...[]string) []string {
	var out []string
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}
