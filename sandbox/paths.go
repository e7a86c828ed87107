package sandbox

import (
	"hash/fnv"
	"os"
	"path/filepath"
)

// Paths is where one host keeps its state.
type Paths struct {
	// Run dies with the kernel state at a reboot: records, locks, addresses.
	Run string
	// Lib outlives it: the networks' definitions.
	Lib string
	// Netns has the pinned namespaces. EtcLinks, unless empty, has a link to the
	// files of each, where ip-netns(8) looks for them.
	Netns, EtcLinks string
	// Mark is the link group that says a link belongs to this root.
	Mark uint32
}

// PathsFor returns the paths below root, or for an empty root the system's own.
func PathsFor(root string) (Paths, error) {
	if root == "" {
		return Paths{Run: "/run/sandnet", Lib: "/var/lib/sandnet", Netns: "/run/netns", EtcLinks: "/etc/netns", Mark: mark("/")}, nil
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return Paths{}, err
	}
	if real, err := filepath.EvalSymlinks(root); err == nil {
		root = real
	}
	run := filepath.Join(root, "run")
	return Paths{Run: run, Lib: filepath.Join(root, "lib"), Netns: filepath.Join(run, "netns"),
		Mark: mark(root)}, nil
}

// mark is 'S' and 24 bits of the root's hash: two roots in one network
// namespace do not take each other's links for their own.
func mark(root string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(root))
	return 'S'<<24 | h.Sum32()>>8
}

func (p Paths) networks() string           { return filepath.Join(p.Lib, "networks") }
func (p Paths) network(name string) string { return filepath.Join(p.networks(), name+".json") }
func (p Paths) localPrefix() string        { return filepath.Join(p.Lib, "ula-prefix") }
func (p Paths) ids() string                { return filepath.Join(p.Run, "ids") }
func (p Paths) ipam(network string) string { return filepath.Join(p.Run, "ipam", network) }
func (p Paths) hosts() string              { return filepath.Join(p.Run, "hosts") }
func (p Paths) joined(name string) string  { return filepath.Join(p.Run, "joined", name) }
func (p Paths) netns(name string) string   { return filepath.Join(p.Netns, name) }
func (p Paths) etc(name string) string     { return filepath.Join(p.Run, "etc", name) }

// etcLink is where ip-netns(8) looks for the files; empty if it does not.
func (p Paths) etcLink(name string) string {
	if p.EtcLinks == "" {
		return ""
	}
	return filepath.Join(p.EtcLinks, name)
}
func (p Paths) isRoot() bool { return os.Geteuid() == 0 }
