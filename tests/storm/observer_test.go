package storm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/tests/lab"
)

// view is a sandbox as `sandnet inspect` prints it, and as its record's
// description has it.
type view struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Mode      string     `json:"mode"`
	Netns     string     `json:"netns"`
	Endpoints []endpoint `json:"endpoints"`
}

type endpoint struct {
	Network   string         `json:"network"`
	Interface string         `json:"interface"`
	Addresses []netip.Prefix `json:"addresses"`
	Ports     []hostPort     `json:"ports"`
}

type hostPort struct {
	HostIP   netip.Addr `json:"hostIP"`
	HostPort uint16     `json:"hostPort"`
	Protocol string     `json:"protocol"`
}

// claims are what nobody else may hold at the same time. The storm publishes
// on all addresses, of both families, or on 127.0.0.1, and nobody may have the
// latter beside the former: a port counts once, whatever its addresses.
func (v view) claims() []string {
	var out []string
	for _, ep := range v.Endpoints {
		for _, a := range ep.Addresses {
			out = append(out, "address "+a.Addr().String())
		}
		for _, p := range ep.Ports {
			if claim := fmt.Sprintf("port %d/%s", p.HostPort, p.Protocol); !slices.Contains(out, claim) {
				out = append(out, claim)
			}
		}
	}
	return out
}

// observer looks at the records and at the kernel while the storm goes on,
// and knows of sandnet nothing but where both are.
type observer struct {
	h      *lab.Host
	mu     sync.Mutex
	faults map[string]bool // guarded by mu
	looks  int             // guarded by mu
}

// watch looks until stop is closed.
func (o *observer) watch(stop <-chan struct{}) {
	for {
		for _, look := range []func() (holders, error){o.records, o.namespaces, o.networks} {
			held, err := look()
			if err != nil {
				o.fault(err.Error())
			}
			for claim, by := range held {
				o.twice(claim, by)
			}
		}
		o.mu.Lock()
		o.looks++
		o.mu.Unlock()
		select {
		case <-stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (o *observer) fault(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.faults[what] = true
}

// holder is one who holds something; still tells whether he does by now. What
// two hold counts if the first still does once the second was seen to.
type holder struct {
	name  string
	still func() bool
}

// holders are by what they hold, in the order in which they were seen.
type holders map[string][]holder

func (o *observer) twice(claim string, by []holder) {
	for i, first := range by {
		for _, second := range by[i+1:] {
			if first.still() {
				o.fault(fmt.Sprintf("%s is held twice: by %s and by %s", claim, first.name, second.name))
			}
		}
	}
}

// record is what is read of a sandbox's record.
type record struct {
	Meta struct {
		Spec struct {
			ID string `json:"id"`
		} `json:"spec"`
		Endpoints []endpoint `json:"endpoints"`
	} `json:"meta"`
}

func readRecord(path string) (r record, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s is half a record: %w", path, err)
	}
	return r, nil
}

// records are the claims in the records, apart from those that are being made
// or removed: what a killed command had begun to publish another may have got.
func (o *observer) records() (holders, error) {
	paths, _ := filepath.Glob(filepath.Join(o.h.Root, "run/records/sandbox/*.json"))
	out := holders{}
	for _, path := range paths {
		r, err := readRecord(path)
		if strings.HasPrefix(filepath.Base(path), ".") || errors.Is(err, fs.ErrNotExist) {
			continue // being written, or gone
		}
		if err != nil {
			return out, err
		}
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		lock := filepath.Join(o.h.Root, "run/locks/sandbox:"+name)
		settled := func() bool {
			_, err := os.Stat(lock)
			now, missing := readRecord(path)
			return errors.Is(err, fs.ErrNotExist) && missing == nil && now.Meta.Spec.ID == r.Meta.Spec.ID
		}
		if !settled() {
			continue
		}
		by := holder{"sandbox " + name, settled}
		for _, claim := range (view{Endpoints: r.Meta.Endpoints}).claims() {
			out[claim] = append(out[claim], by)
		}
	}
	return out, nil
}

// namespaces are the addresses in the pinned namespaces.
func (o *observer) namespaces() (holders, error) {
	paths, _ := filepath.Glob(filepath.Join(o.h.Root, "run/netns/*"))
	out := holders{}
	seen := map[uint64]bool{}
	for _, path := range paths {
		ino, addrs, err := addresses(path)
		if err != nil {
			return out, err
		}
		if ino == 0 || seen[ino] { // gone, or joined
			continue
		}
		seen[ino] = true
		by := holder{"namespace " + path, func() bool {
			now, have, err := addresses(path)
			return err == nil && now == ino && strings.Join(have, " ") == strings.Join(addrs, " ")
		}}
		for _, a := range addrs {
			out["address "+a] = append(out["address "+a], by)
		}
	}
	return out, nil
}

// addresses are the addresses in the namespace pinned at path, and its
// inode; 0 if there is none.
func addresses(path string) (ino uint64, addrs []string, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, nil, nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstat(fd, &st) != nil || unix.Fstatfs(fd, &fs) != nil || fs.Type != unix.NSFS_MAGIC {
		return 0, nil, nil // the file before its mount, or after it
	}
	inside, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		return 0, nil, fmt.Errorf("namespace %s: %w", path, err)
	}
	defer inside.Close()
	list, err := inside.AddrList(nil, netlink.FAMILY_ALL)
	for errors.Is(err, netlink.ErrDumpInterrupted) {
		list, err = inside.AddrList(nil, netlink.FAMILY_ALL)
	}
	for _, a := range list {
		if !a.IP.IsLoopback() && !a.IP.IsLinkLocalUnicast() {
			addrs = append(addrs, a.IP.String())
		}
	}
	return st.Ino, addrs, err
}

// networks are the subnets of the networks' definitions.
func (o *observer) networks() (holders, error) {
	paths, _ := filepath.Glob(filepath.Join(o.h.Root, "lib/networks/*.json"))
	out := holders{}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if strings.HasPrefix(filepath.Base(path), ".") || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var n struct {
			Subnets []netip.Prefix `json:"subnets"`
		}
		if err == nil {
			err = json.Unmarshal(data, &n)
		}
		if err != nil {
			return out, fmt.Errorf("%s: %w", path, err)
		}
		by := holder{"network " + filepath.Base(path), func() bool {
			now, err := os.ReadFile(path)
			return err == nil && string(now) == string(data)
		}}
		for _, s := range n.Subnets {
			out["subnet "+s.String()] = append(out["subnet "+s.String()], by)
		}
	}
	return out, nil
}
