package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// The programs and maps are found by name among those of the cgroup. The 2 is
// the layout of the maps: another one needs other names.
const (
	portMapName  = "sandnet2_ports"
	peerMapName  = "sandnet2_peers"
	maxHostPorts = 1 << 16
)

// scope is how much of the programs a reservation needs; each includes those
// before it.
type scope int

const (
	scopeNone     scope = iota - 1
	scopeBind           // bind(2) refused
	scopeConnect        // connections to [::1] translated
	scopeDatagram       // datagrams as well
)

// scopeOf says what p needs. SCTP is not translated.
func scopeOf(p plan.HostPort) scope {
	switch {
	case p.To.IsValid() && p.Proto == "udp":
		return scopeDatagram
	case p.To.IsValid() && p.Proto == "tcp":
		return scopeConnect
	}
	return scopeBind
}

// hook is a program and where it belongs.
type hook struct {
	name  string
	at    uint32 // enum bpf_attach_type
	scope scope
	code  func(m programMaps, retval bool) []bpfInsn
}

// portHooks are all, in the order of their scopes.
func portHooks() []hook {
	plain := func(code func(programMaps) []bpfInsn) func(programMaps, bool) []bpfInsn {
		return func(m programMaps, _ bool) []bpfInsn { return code(m) }
	}
	return []hook{
		{"sandnet2_bind6", unix.BPF_CGROUP_INET6_BIND, scopeBind, bind6Program},
		{"sandnet2_bind4", unix.BPF_CGROUP_INET4_BIND, scopeBind, bind4Program},
		{"sandnet2_peer6", unix.BPF_CGROUP_INET6_GETPEERNAME, scopeConnect, plain(peerProgram)},
		{"sandnet2_conn6", unix.BPF_CGROUP_INET6_CONNECT, scopeConnect, plain(connect6Program)},
		{"sandnet2_recv6", unix.BPF_CGROUP_UDP6_RECVMSG, scopeDatagram, plain(peerProgram)},
		{"sandnet2_send6", unix.BPF_CGROUP_UDP6_SENDMSG, scopeDatagram, plain(sendmsg6Program)},
	}
}

// hooks is the cgroup, with the maps as far as they have been looked for.
type hooks struct {
	call   bpfCall
	cgroup *os.File
	seen   []uint32 // IDs of the maps of our programs that were looked at
	ports  portMap
	peers  int
}

func (g portGuard) open() (*hooks, error) {
	f, err := openCgroup(g.cgroup)
	if err != nil {
		return nil, err
	}
	return &hooks{call: g.bpf, cgroup: f, ports: portMap{g.bpf, -1}, peers: -1}, nil
}

// existing opens the cgroup and the map; nil if nothing is reserved, also because the
// kernel lacks what it takes.
func (g portGuard) existing() (*hooks, error) {
	h, err := g.open()
	if err == nil {
		var found bool
		if found, err = h.find(); found {
			return h, nil
		}
		h.close()
	}
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return nil, err
}

func (h *hooks) close() {
	h.closeMaps()
	h.cgroup.Close()
}

func (h *hooks) closeMaps() {
	for _, fd := range []*int{&h.ports.fd, &h.peers} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

func (h *hooks) fd() int { return int(h.cgroup.Fd()) }

// openCgroup opens dir, or the root of the cgroup2 hierarchy as this process
// sees it, mounted or not: in a cgroup namespace that is the namespace's root.
func openCgroup(dir string) (*os.File, error) {
	if dir != "" {
		return os.Open(dir)
	}
	for _, usual := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if isCgroup2(usual) {
			return os.Open(usual)
		}
	}
	if mounted := cgroup2Mount("/proc/self/mountinfo"); mounted != "" {
		return os.Open(mounted)
	}
	f, err := detachedCgroup2()
	if err != nil {
		err = fmt.Errorf("no cgroup2 hierarchy, which holds the programs that reserve ports: it is not mounted, and %w", err)
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOSYS) {
			err = unsupported{err}
		}
		return nil, err
	}
	return f, nil
}

func isCgroup2(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// cgroup2Mount finds where the root of the hierarchy is mounted, if it is.
func cgroup2Mount(mountinfo string) string {
	f, err := os.Open(mountinfo)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// 36 35 98:0 /ROOT /MOUNTPOINT OPTIONS [OPTIONAL…] - TYPE SOURCE OPTIONS
		mount, fs, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(mount)
		if strings.HasPrefix(fs, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" && isCgroup2(fields[4]) {
			return fields[4]
		}
	}
	return ""
}

// detachedCgroup2 opens the hierarchy without mounting it anywhere.
func detachedCgroup2() (*os.File, error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen cgroup2", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig cgroup2", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount cgroup2", err)
	}
	defer unix.Close(mount)
	dir, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open cgroup2", err)
	}
	return os.NewFile(uintptr(dir), "cgroup2"), nil
}

// attachedProgram is one of ours.
type attachedProgram struct {
	fd   int
	maps []uint32
}

// programs returns those of a hook that are attached, open.
func (h *hooks) programs(k hook) (found []attachedProgram, err error) {
	ids, err := h.call.attached(h.fd(), k.at)
	if err != nil {
		return nil, fmt.Errorf("look for BPF program %s: %w", k.name, explainBPF(err, "the kernel lacks BPF programs on control groups (CONFIG_CGROUP_BPF)"))
	}
	want := objName(k.name)
	for _, id := range ids {
		fd, err := h.call.programByID(id)
		if errors.Is(err, unix.ENOENT) {
			continue // detached since
		}
		if err != nil {
			return found, fmt.Errorf("open BPF program %d: %w", id, explainBPF(err, ""))
		}
		name, maps, err := h.call.programInfo(fd)
		if err != nil || name != want {
			unix.Close(fd)
			continue
		}
		found = append(found, attachedProgram{fd, maps})
	}
	return found, nil
}

func closePrograms(progs []attachedProgram) {
	for _, p := range progs {
		unix.Close(p.fd)
	}
}

// attachedAt reports whether a hook's program is there.
func (h *hooks) attachedAt(k hook) (bool, error) {
	progs, err := h.programs(k)
	defer closePrograms(progs)
	if err != nil || len(progs) == 0 {
		return false, err
	}
	for _, id := range progs[0].maps {
		if !slices.Contains(h.seen, id) {
			h.seen = append(h.seen, id)
		}
	}
	return true, nil
}

// openMap opens one of the maps that were seen, -1 if it is not among them.
func (h *hooks) openMap(name string) (int, error) {
	for _, id := range h.seen {
		fd, err := h.call.mapByID(id)
		if err != nil {
			return -1, fmt.Errorf("open BPF map %d: %w", id, explainBPF(err, ""))
		}
		info, err := h.call.mapInfo(fd)
		if err == nil && info.name == objName(name) {
			if name == portMapName && (info.keySize != uint32(unsafe.Sizeof(portKey{})) || info.valueSize != uint32(unsafe.Sizeof(portValue{}))) {
				unix.Close(fd)
				return -1, fmt.Errorf("BPF map %s has another layout: it was made by another version of sandnet", name)
			}
			return fd, nil
		}
		unix.Close(fd)
		if err != nil {
			return -1, fmt.Errorf("look at BPF map %d: %w", id, err)
		}
	}
	return -1, nil
}

// find opens the map of the reservations, if any program that has it is
// attached.
func (h *hooks) find() (found bool, err error) {
	for _, k := range portHooks() {
		attached, err := h.attachedAt(k)
		if err != nil {
			return false, err
		}
		if !attached {
			continue
		}
		if h.ports.fd, err = h.openMap(portMapName); err != nil || h.ports.fd >= 0 {
			return err == nil, err
		}
	}
	return false, nil
}

// look does so, and says what works: scopeNone if a bind program is missing.
func (h *hooks) look() (works scope, err error) {
	works = scopeDatagram
	for _, k := range portHooks() {
		attached, err := h.attachedAt(k)
		if err != nil {
			return scopeNone, err
		}
		if !attached {
			works = min(works, k.scope-1)
		}
	}
	h.ports.fd, err = h.openMap(portMapName)
	return works, err
}

// attach makes what need asks for of the programs, and opens the map.
func (h *hooks) attach(need scope) error {
	var missing, beyond []hook
	for _, k := range portHooks() {
		if k.scope > need {
			beyond = append(beyond, k)
			continue
		}
		attached, err := h.attachedAt(k)
		if err != nil {
			return err
		}
		if !attached {
			missing = append(missing, k)
		}
	}
	if len(missing) == 0 {
		var err error
		if h.ports.fd, err = h.openMap(portMapName); err == nil && h.ports.fd < 0 {
			err = fmt.Errorf("the attached BPF programs have no map %s: they are another version's", portMapName)
		}
		return err
	}
	// Nothing may be there yet, or a crash or an administrator has left some.
	for _, k := range beyond {
		if _, err := h.attachedAt(k); err != nil {
			return err
		}
	}
	fresh := len(h.seen) == 0
	err := h.openMaps(need)
	for i := 0; err == nil && i < len(missing); i++ {
		err = h.attachOne(missing[i])
	}
	if err != nil && fresh {
		h.closeMaps()
		return errors.Join(err, h.detach())
	}
	return err
}

// openMaps opens the maps that need asks for, or makes them.
func (h *hooks) openMaps(need scope) (err error) {
	if h.ports.fd, err = h.openMap(portMapName); err != nil {
		return err
	}
	if need >= scopeConnect {
		if h.peers, err = h.openMap(peerMapName); err != nil {
			return err
		}
	}
	return h.makeMaps(need)
}

func (h *hooks) makeMaps(need scope) (err error) {
	if h.ports.fd < 0 {
		h.ports.fd, err = h.call.createMap(bpfMapSpec{
			name: portMapName, kind: unix.BPF_MAP_TYPE_HASH, flags: unix.BPF_F_NO_PREALLOC, maxEntries: maxHostPorts,
			keySize: uint32(unsafe.Sizeof(portKey{})), valueSize: uint32(unsafe.Sizeof(portValue{})),
		})
		if err != nil {
			return fmt.Errorf("make BPF map %s: %w", portMapName, explainBPF(err, "the kernel refuses a hash map"))
		}
	}
	if h.peers >= 0 || need < scopeConnect {
		return nil
	}
	btf, err := h.call.loadBTF(peersBTF())
	if err != nil {
		return fmt.Errorf("describe BPF map %s: %w", peerMapName, explainBPF(err, "the kernel does not understand the type information"))
	}
	defer unix.Close(btf)
	h.peers, err = h.call.createMap(bpfMapSpec{
		name: peerMapName, kind: unix.BPF_MAP_TYPE_SK_STORAGE, flags: unix.BPF_F_NO_PREALLOC,
		keySize: 4, valueSize: peersBytes, btfFD: uint32(btf), btfKeyTypeID: 1, btfValueTypeID: 2,
	})
	if err != nil {
		return fmt.Errorf("make BPF map %s: %w", peerMapName, explainBPF(err, "the kernel lacks storage with sockets (Linux 5.8)"))
	}
	return nil
}

// load has the kernel's verifier read a program.
func (h *hooks) load(k hook) (fd int, err error) {
	maps := programMaps{h.ports.fd, h.peers}
	fd, err = h.call.loadProgram(k.name, k.at, k.code(maps, true), nil)
	if errors.Is(err, unix.EINVAL) && k.scope == scopeBind {
		fd, err = h.call.loadProgram(k.name, k.at, k.code(maps, false), nil) // before Linux 5.18
	}
	if err != nil {
		return -1, fmt.Errorf("load BPF program %s: %w", k.name, explainBPF(err, "the kernel does not know what it uses (Linux 5.14)"))
	}
	return fd, nil
}

func (h *hooks) attachOne(k hook) error {
	fd, err := h.load(k)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	crash.Point("host port attach")
	if err := h.call.attach(h.fd(), fd, k.at); err != nil {
		if errors.Is(err, unix.EPERM) { // loading was allowed
			err = fmt.Errorf("another program is on the root cgroup alone, without BPF_F_ALLOW_MULTI: %w", err)
		}
		return fmt.Errorf("attach BPF program %s: %w", k.name, err)
	}
	return nil
}

// detach takes away every program of ours, the most dependent first, and with
// the last one the maps.
func (h *hooks) detach() error {
	var errs []error
	for _, k := range slices.Backward(portHooks()) {
		progs, err := h.programs(k)
		for _, p := range progs {
			crash.Point("host port detach")
			if err := h.call.detach(h.fd(), p.fd, k.at); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("detach BPF program %s: %w", k.name, err))
			}
		}
		closePrograms(progs)
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// explainBPF says what the kernel lacks or forbids; lacks is what EINVAL means.
func explainBPF(err error, lacks string) error {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return unsupported{fmt.Errorf("the kernel lacks bpf(2) (CONFIG_BPF_SYSCALL): %w", err)}
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("bpf(2) is forbidden here (it takes CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN outside of any user namespace): %w", err)
	case errors.Is(err, unix.EINVAL) && lacks != "":
		return unsupported{fmt.Errorf("%s: %w", lacks, err)}
	}
	return err
}

// unsupported is an errors.ErrUnsupported that says why.
type unsupported struct{ error }

func (e unsupported) Unwrap() error        { return e.error }
func (e unsupported) Is(target error) bool { return target == errors.ErrUnsupported }
