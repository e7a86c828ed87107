package sandbox

import (
	"context"
	"net/netip"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/reconcile"
	"github.com/sandnet/sandnet/internal/spec"
)

// Mode turns a request and the facts into a plan. It is pure.
type Mode interface {
	Name() string
	Plan(s spec.Sandbox, f spec.Facts) (plan.Plan, error)
}

// Facts is what the manager asks about the machine.
type Facts interface {
	// Taken lists the prefixes in use by addresses and routes of links that
	// skip does not name.
	Taken(skip func(link string) bool) ([]netip.Prefix, error)
	// HasAddr and HasLink look at the host's own addresses and links.
	HasAddr(ip netip.Addr) (bool, error)
	HasLink(name string) (exists, ours bool, err error)
	// RouterLinks are the links that heed router advertisements, and have had
	// some, only as long as the host is no router itself.
	RouterLinks() ([]string, error)
	// IsNetns reports whether there is a network namespace at path, and whether it
	// is the host's own; SameNetns whether two paths are of one.
	IsNetns(path string) (exists, own bool)
	SameNetns(a, b string) bool
	// ForeignForward is the iptables chain that would drop our packets, if any.
	ForeignForward() (chain string, err error)
	// Verified returns the note of the last SetVerified if the machine's rules
	// are still those that were verified then.
	Verified() (note string, ok bool)
	// SetVerified notes that the rules, as they were at the last Verified, are
	// what they should be.
	SetVerified(note string)
	// ProbePort binds a port until release; EADDRINUSE if somebody has it.
	ProbePort(proto string, ip netip.Addr, port uint16) (release func(), err error)
	// Listens reports whether somebody serves a port on an address of a family.
	Listens(proto string, ipv6 bool, port uint16) (bool, error)
}

// Preparer can start on a sandbox's namespace before its plan is made.
type Preparer interface{ PrepareNetns() }

// Processes is what the manager asks about processes.
type Processes interface {
	// Run runs a command in a sandbox.
	Run(p spec.Process) (code int, err error)
	// Holders are the processes in a pinned namespace; KillHolders ends them.
	Holders(path string) []int
	KillHolders(path string) error
	// ShowFiles mounts the files of dir in the /etc of a container that is being made.
	ShowFiles(pid int, root, dir string) error
	// ProcessStart tells a process from a later one with its PID; 0 if it is gone.
	ProcessStart(pid int) uint64
}

// Ports is what gc asks about host ports that belong to no host any more.
type Ports interface {
	// ForgetDeadPorts gives up the ports that were reserved in network
	// namespaces which are gone, and says how many.
	ForgetDeadPorts(ctx context.Context) (int, error)
}

// Examiner looks at what was made, and puts it right.
type Examiner interface {
	// Check tells in which ways the kernel differs from objs. An object that it
	// cannot look at is an error.
	Check(ctx context.Context, objs []plan.Object) ([]plan.Drift, error)
	// Mend puts right what Check has found, in the order of objs, which are
	// everything of one owner. It says what was more than putting back.
	Mend(ctx context.Context, objs []plan.Object, wrong []plan.Drift) (notes []string, err error)
	// Health gathers what doctor judges; dirs are sandnet's own directories.
	Health(dirs []string) (spec.Health, error)
}

// Host is the machine.
type Host interface {
	reconcile.Kernel
	Examiner
	Facts
	Preparer
	Processes
	Ports
}

// Networks plans what is not one sandbox's. It is pure.
type Networks interface {
	// Network plans one bridge network, its links with the mark.
	Network(n spec.Network, mark uint32) plan.Plan
	// Shared plans what all bridge networks share, with the mark. restore is what ip_forward
	// goes back to with the last network, empty to leave it; foreign is the chain
	// of another firewall that has to let our packets pass, or empty.
	Shared(mark uint32, restore, foreign string) plan.Plan
	// Forward6 plans what all networks with IPv6 share. restore is what IPv6
	// forwarding goes back to, empty to leave it; uplinks are the links that go
	// on heeding router advertisements.
	Forward6(restore string, uplinks []string) plan.Plan
	// Rules plans the firewall's part of a sandbox; what else it has does not
	// depend on the firewall.
	Rules(s spec.Sandbox, eps []spec.Endpoint, nets []spec.Network, mark uint32) []plan.Object
}

// Store keeps the records.
type Store interface {
	reconcile.Store
	Journal
	// Has and Same ask for a record without reading it as a plan.
	Has(owner string) bool
	Same(p plan.Plan) bool
	// WriteDurable replaces a file outside the records so that it survives a
	// loss of power.
	WriteDurable(path string, data []byte) error
	// SetAside moves a corrupt file out of the way, and says so.
	SetAside(path string, corrupt []byte, why error) error
	// RemoveDurable removes it; a missing one is no error.
	RemoveDurable(path string) error
}

// Journal tells what is under way, and what was when a process was killed.
type Journal interface {
	// Prepare makes the directories, and empties them after a reboot.
	Prepare() error
	// Locked reports whether an operation on owner is under way, or was killed.
	Locked(owner string) bool
	// Settle waits until all changes under way are done; none begins before resume.
	Settle(ctx context.Context) (resume func(), err error)
	// Begin says that the holder of owner's lock starts to change something.
	Begin(owner string) error
	// BeginChange is Begin for an owner that lives on; Changing tells the two
	// apart after a kill.
	BeginChange(owner string) error
	Changing(owner string) bool
	// Attach ties owner to this process until release.
	Attach(ctx context.Context, owner string) (release func(), err error)
	// Interrupted locks the owners whose operation was killed after it had
	// begun, Abandoned those that were attached to a process which is gone. An
	// owner that is released as not done comes again.
	Interrupted() (map[string]func(done bool), error)
	Abandoned() (map[string]func(done bool), error)
}
