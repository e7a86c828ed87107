package crash

import "slices"

// place is a kind of host and network on which everything is killed.
type place struct {
	name     string
	firewall string
	// dual: the networks have IPv6 beside IPv4.
	dual bool
}

// places are all kinds: an operation differs with the firewall and with the
// families. In the first, every kill point is followed by two of the things
// that may come next, in the others by one; they take turns.
var places = []place{
	{"nftables, IPv4", "nftables", false},
	{"nftables, dual-stack", "nftables", true},
	{"iptables, IPv4", "iptables", false},
	{"iptables, dual-stack", "iptables", true},
}

// network is the command that makes a network. Its IPv6 subnet is sandnet's
// choice unless there is a second one.
func (p place) network(name string, subnets ...string) []string {
	args := []string{"network", "create", name, "--bridge", "br-" + name, "--subnet", subnets[0]}
	if !p.dual {
		return args
	}
	for _, s := range subnets[1:] {
		args = append(args, "--subnet", s)
	}
	return append(args, "--ipv6")
}

// operation is what gets killed. It makes or removes one thing, the target: the
// sandbox x, or the network n.
type operation struct {
	name   string
	target []string
	// stage is done once; the host keeps it.
	stage [][]string
	// setup is done before each try: for a removal, what it removes.
	setup []string
	run   []string
	// alike: neither firewall nor families play a part.
	alike bool
}

var (
	sandbox = []string{"inspect", "x"}
	network = []string{"network", "inspect", "n"}
)

// operations are those at a place.
func operations(p place) []operation {
	newNet := p.network("n", "10.61.0.0/24")
	otherNet := p.network("m", "10.62.0.0/24")
	onNet := [][]string{newNet}
	hasY := [][]string{{"create", "--name", "y"}}
	on := func(options ...string) []string {
		return append([]string{"create", "--name", "x", "--net", "n"}, options...)
	}
	published := on("--network-alias", "y", "--add-host", "z:10.1.2.3", "-p", "8080:80", "-p", "8080:80/udp", "-p", "127.0.0.1:8081:81/udp")
	limited := on("--ingress-rate", "10mbit", "--egress-rate", "1gbit", "--egress", "allow 10.1.2.0/24:53", "--egress", "deny 10.0.0.0/8")
	if p.dual {
		published = append(published, "-p", "[::1]:8082:82")
		limited = append(limited, "--egress", "deny fd00::/8")
	}
	joined := []string{"create", "--name", "x", "--net", "container:y"}
	detached := []string{"run", "-d", "--name", "x", "--net", "n", "-p", "8080:80", "--", "sleep", "1000"}
	rm := []string{"rm", "x"}
	guarded := slices.Concat(newNet, []string{"--internal", "--no-icc", "--label", "tier=data"})
	return []operation{
		{name: "create", target: sandbox, stage: onNet, run: on()},
		{name: "create published", target: sandbox, stage: onNet, run: published},
		{name: "create limited", target: sandbox, stage: onNet, run: limited},
		{name: "create on two", target: sandbox, stage: [][]string{newNet, otherNet}, run: on("--net", "m", "-p", "8080:80")},
		{name: "create joined", target: sandbox, stage: hasY, run: joined, alike: true},
		{name: "create none", target: sandbox, run: []string{"create", "--name", "x", "--net", "none"}, alike: true},
		// A command may leave a process behind: it belongs to the sandbox, and
		// ends with it.
		{name: "run", target: sandbox, stage: onNet,
			run: []string{"run", "--name", "x", "--net", "n", "-p", "8080:80", "--", "sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 &"}},
		{name: "run detached", target: sandbox, stage: onNet, run: detached},
		{name: "run detached on the host", target: sandbox, alike: true,
			run: []string{"run", "-d", "--net", "host", "--name", "x", "--", "sleep", "1000"}},
		{name: "run detached joined", target: sandbox, stage: hasY, alike: true,
			run: []string{"run", "-d", "--net", "container:y", "--name", "x", "--", "sleep", "1000"}},
		{name: "rm", target: sandbox, stage: onNet, setup: published, run: rm},
		{name: "rm limited", target: sandbox, stage: onNet, setup: limited, run: rm},
		{name: "rm running", target: sandbox, stage: onNet, setup: detached, run: []string{"rm", "-f", "x"}},
		{name: "rm joined", target: sandbox, stage: hasY, setup: joined, run: rm, alike: true},
		{name: "network create", target: network, run: newNet},
		{name: "network create guarded", target: network, run: guarded},
		{name: "network rm", target: network, setup: newNet, run: []string{"network", "rm", "n"}},
		{name: "network prune", target: network, setup: newNet, run: []string{"network", "prune"}},
	}
}
