// Package overlay joins the sandboxes of many hosts in one network, as flannel
// does: each host leases a subnet of it in etcd, and a backend says how packets
// reach the others' subnets.
//
// Backends are pure: a lease, the peers' leases and facts about the host go in,
// a plan comes out. The Agent brings them together with the Registry, which has
// the leases, and the engine, which makes the kernel match the plans. The
// package does not carry packets; for the udp backend, package tunnel does.
//
// Keys, values and defaults in etcd are flannel's, byte for byte:
// https://github.com/flannel-io/flannel/blob/master/Documentation/configuration.md
package overlay

import (
	"context"
	"encoding/json"
	"iter"
	"net/netip"
	"time"

	"github.com/sandnet/sandnet/internal/plan"
)

// Lease is one host's part of the network.
type Lease struct {
	// Subnet is what the host's sandboxes have their addresses from
	// (10.42.1.0/24); it is the lease's key.
	Subnet netip.Prefix
	// Subnet6 is the zero Prefix in a network without IPv6.
	Subnet6 netip.Prefix
	// PublicIP is where the host takes packets for Subnet.
	PublicIP netip.Addr
	// PublicIP6 is the zero Addr where the host has none.
	PublicIP6 netip.Addr
	// Backend is the backend's name. Flannel writes none for udp.
	Backend string
	// Data and Data6 are the backend's own: see Backend.Data.
	Data, Data6 json.RawMessage
	// Expires is the zero Time for a reservation, which never does.
	Expires time.Time
}

// Node is what a backend has to know of the host that it plans for.
type Node struct {
	// Interface is the link that leads to the other hosts.
	Interface string
	// MTU of Interface in bytes.
	MTU int
	// Addresses of Interface: peers in one of these are on the same segment.
	Addresses []netip.Prefix
	// PublicIP is one of Addresses, unless a NAT is in between.
	PublicIP, PublicIP6 netip.Addr
	// VTEPMAC is the address that a VXLAN device of this host always has.
	VTEPMAC string
	// Mark says that a link is sandnet's.
	Mark uint32
}

// Backend is one way to carry packets between hosts. It is pure.
type Backend interface {
	// Name is what the network's configuration and the leases call it.
	Name() string
	// Data is what peers have to know of this host beside its public address;
	// nil if nothing.
	Data(n Node) (json.RawMessage, error)
	// MTU is that of the sandboxes' links, in bytes.
	MTU(n Node) int
	// Base plans what there is of the backend without any peer: its device.
	Base(n Node, self Lease) ([]plan.Object, error)
	// Peer plans what leads to a peer. An error means that the lease makes no
	// sense to this backend; it says what is wrong with it.
	Peer(n Node, self, peer Lease) ([]plan.Object, error)
}

// Registry has the configuration and the leases of the network.
type Registry interface {
	// Config returns the network's configuration and follows it, newest last.
	// It goes on through outages until ctx is done.
	Config(ctx context.Context) iter.Seq2[Config, error]
	// Acquire gives this host a subnet, the one it had before if that can be,
	// with everything else as in want. It keeps the lease alive until ctx is
	// done, and acquires again what is deleted under it: Leases says which.
	Acquire(ctx context.Context, c Config, want Lease) (Lease, error)
	// Renew replaces what peers are told of this host: PublicIP, Backend, Data.
	Renew(ctx context.Context, l Lease) error
	// Leases follows all leases, this host's among them: each value is the
	// whole of them, the first at once. An error is an outage, which it
	// survives; the next value is after it.
	Leases(ctx context.Context) iter.Seq2[[]Lease, error]
	// Leave gives the host's lease back.
	Leave(ctx context.Context, l Lease) error
}
