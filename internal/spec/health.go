package spec

import "net/netip"

// Health is what doctor looks at of a host: facts, without a judgement.
type Health struct {
	// Forward4 and Forward6 are the settings that make the host a router.
	Forward4, Forward6 bool
	// Policies are the base chains that see forwarded packets.
	Policies []ForwardPolicy
	// Firewalls are programs whose rules stand beside sandnet's.
	Firewalls []string
	// BridgeNetfilter is bridge-nf-call-iptables; BridgeNetfilterKnown that the
	// kernel has it.
	BridgeNetfilter, BridgeNetfilterKnown bool
	// Uplinks have a default route.
	Uplinks []Uplink
	// LocalnetLinks have route_localnet on.
	LocalnetLinks []string
	// Conntrack is how many connections are tracked, ConntrackMax how many can be.
	Conntrack, ConntrackMax int
	// Lacks is what was tried in vain of what sandnet uses.
	Lacks []Lack
	// Routes are the host's prefixes and the links they are on.
	Routes []Route
	// PrivateMounts: this process has a mount namespace of its own.
	PrivateMounts bool
	// Dirs are sandnet's own directories that others than root may enter.
	OpenDirs []string
}

// ForwardPolicy is a base chain at the forward hook.
type ForwardPolicy struct {
	// Family is ip, ip6 or inet; Where names the chain as its program does.
	Family, Where string
	Drops         bool
	// Iptables says that it is the FORWARD chain of an iptables, in which
	// sandnet can have a rule; Accepts that it has.
	Iptables, Accepts bool
	// NoProgram: the iptables that could change it is not installed.
	NoProgram bool
}

// Uplink is a link with a default route.
type Uplink struct {
	Name string
	MTU  int
	// RPFilter is what is in force: 0 off, 1 strict, 2 loose.
	RPFilter int
}

// Route is a prefix in use by the host.
type Route struct {
	Prefix netip.Prefix
	Link   string
}

// Lack is something that sandnet uses and the host does not have.
type Lack struct {
	// What it is, and For what it is needed; Cure is how to get it.
	What, For, Cure string
	// Optional: traffic flows without it.
	Optional bool
}
