package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
)

// The programs are found by name among those of the root cgroup; another
// layout of the map needs other names.
const (
	portMapName   = "sandnet_ports"
	bind4ProgName = "sandnet_bind4"
	bind6ProgName = "sandnet_bind6"
	maxHostPorts  = 1 << 16
)

// hooks is the root cgroup, locked against other sandnets.
type hooks struct{ cgroup *os.File }

func openHooks() (hooks, error) {
	f, err := openCgroup()
	if err != nil {
		return hooks{}, fmt.Errorf("root cgroup: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return hooks{}, fmt.Errorf("lock the root cgroup: %w", err)
	}
	return hooks{f}, nil
}

func (h hooks) close() { h.cgroup.Close() } // unlocks it, too

// openCgroup opens the root of the cgroup2 hierarchy, which exists whether it
// is mounted or not.
func openCgroup() (*os.File, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return os.Open(dir)
		}
	}
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

// find returns the map, or nil if the programs are not attached. That of bind4
// stands for both: it comes last and goes first.
func (h hooks) find() (*ebpf.Map, error) {
	progs, err := h.programs(ebpf.AttachCGroupInet4Bind, bind4ProgName)
	if err != nil || len(progs) == 0 {
		return nil, err
	}
	defer closeAll(progs)
	info, err := progs[0].Info()
	if err != nil {
		return nil, fmt.Errorf("BPF program %s: %w", bind4ProgName, explainBPF(err))
	}
	ids, _ := info.MapIDs()
	if len(ids) != 1 {
		return nil, fmt.Errorf("BPF program %s has %d maps, not 1: was it made by another version of sandnet?", bind4ProgName, len(ids))
	}
	m, err := ebpf.NewMapFromID(ids[0])
	if err != nil {
		return nil, fmt.Errorf("BPF map %s: %w", portMapName, explainBPF(err))
	}
	if m.KeySize() != uint32(binary.Size(portKey{})) || m.ValueSize() != uint32(binary.Size(portValue{})) {
		m.Close()
		return nil, fmt.Errorf("BPF map %s has another layout: was it made by another version of sandnet?", portMapName)
	}
	return m, nil
}

// programs returns those of this name that are attached.
func (h hooks) programs(at ebpf.AttachType, name string) (found []*ebpf.Program, err error) {
	attached, err := link.QueryPrograms(link.QueryOptions{Target: int(h.cgroup.Fd()), Attach: at})
	if err != nil {
		return nil, fmt.Errorf("BPF programs of the root cgroup: %w", explainBPF(err))
	}
	for _, a := range attached.Programs {
		p, err := ebpf.NewProgramFromID(a.ID)
		if err != nil {
			continue // detached since, or of a kind the library does not know
		}
		if info, err := p.Info(); err == nil && info.Name == name {
			found = append(found, p)
			continue
		}
		p.Close()
	}
	return found, nil
}

func closeAll(progs []*ebpf.Program) {
	for _, p := range progs {
		p.Close()
	}
}

// attached is the map, with both programs attached.
func (h hooks) attached() (*ebpf.Map, error) {
	m, err := h.find()
	if m != nil || err != nil {
		return m, err
	}
	if err := h.detach(); err != nil { // what a crash may have left
		return nil, err
	}
	m, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: portMapName, Type: ebpf.Hash, Flags: unix.BPF_F_NO_PREALLOC, MaxEntries: maxHostPorts,
		KeySize: uint32(binary.Size(portKey{})), ValueSize: uint32(binary.Size(portValue{})),
	})
	if err != nil {
		return nil, fmt.Errorf("BPF map %s: %w", portMapName, explainBPF(err))
	}
	for _, p := range []struct {
		name string
		at   ebpf.AttachType
		code func(*ebpf.Map, bool) asm.Instructions
	}{
		{bind6ProgName, ebpf.AttachCGroupInet6Bind, bind6Program},
		{bind4ProgName, ebpf.AttachCGroupInet4Bind, bind4Program},
	} {
		if err := h.attach(p.name, p.at, m, p.code); err != nil {
			m.Close()
			return nil, errors.Join(fmt.Errorf("BPF program %s: %w", p.name, explainBPF(err)), h.detach())
		}
	}
	return m, nil
}

func (h hooks) attach(name string, at ebpf.AttachType, m *ebpf.Map, code func(*ebpf.Map, bool) asm.Instructions) error {
	load := func(retval bool) (*ebpf.Program, error) {
		return ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: name, Type: ebpf.CGroupSockAddr, AttachType: at, License: "Apache-2.0", Instructions: code(m, retval),
		})
	}
	p, err := load(true)
	if err != nil {
		// Before Linux 5.18 a program cannot choose the error: bind(2) then
		// fails with EPERM instead of EADDRINUSE.
		var plainErr error
		if p, plainErr = load(false); plainErr != nil {
			return err
		}
	}
	defer p.Close()
	crash.Point("host port attach")
	return link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: int(h.cgroup.Fd()), Program: p, Attach: at, Flags: unix.BPF_F_ALLOW_MULTI,
	})
}

// detach takes away every program of ours, and the map with them.
func (h hooks) detach() error {
	var errs []error
	for _, p := range []struct {
		name string
		at   ebpf.AttachType
	}{{bind4ProgName, ebpf.AttachCGroupInet4Bind}, {bind6ProgName, ebpf.AttachCGroupInet6Bind}} {
		progs, err := h.programs(p.at, p.name)
		if err != nil {
			return err
		}
		for _, prog := range progs {
			crash.Point("host port detach")
			err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(h.cgroup.Fd()), Program: prog, Attach: p.at})
			if err != nil {
				errs = append(errs, fmt.Errorf("detach BPF program %s: %w", p.name, err))
			}
		}
		closeAll(progs)
	}
	return errors.Join(errs...)
}

// explainBPF says what the kernel lacks or forbids.
func explainBPF(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("the kernel forbids BPF here (CAP_BPF and CAP_NET_ADMIN are needed): %w", err)
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("kernel lacks BPF for control groups (CONFIG_CGROUP_BPF, Linux 5.14): %w", err)
	}
	return err
}

// Offsets in struct bpf_sock_addr, the programs' argument.
const (
	ctxIP4   = 4
	ctxIP6   = 8
	ctxPort  = 24
	ctxProto = 36
)

// Stack of the programs: the map's key, and below it the address being bound.
const (
	stackKey  = -16
	stackAddr = -32
)

// Registers of the programs, beside the temporary R1 to R3: the halves of the
// address being bound, and what tells an IPv4 address in the lower one.
const (
	regValue  = asm.R0 // *portValue
	regPrefix = asm.R4 // mask of the part that says ::ffff:
	regIPv4   = asm.R5 // ::ffff:0.0.0.0
	regHigh   = asm.R7
	regLow    = asm.R8
	regN      = asm.R9
)

// bind4Program refuses a bind(2) to an IPv4 address that conflicts with a
// reservation by the rules for sockets without SO_REUSEADDR.
func bind4Program(m *ebpf.Map, retval bool) asm.Instructions {
	code := append(lookUpPort(m),
		asm.StoreImm(asm.RFP, stackAddr, 0, asm.Word),
		asm.StoreImm(asm.RFP, stackAddr+4, 0, asm.Word),
		asm.StoreImm(asm.RFP, stackAddr+8, int64(int32(binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff}))), asm.Word),
		asm.LoadMem(asm.R1, asm.R6, ctxIP4, asm.Word),
		asm.StoreMem(asm.RFP, stackAddr+12, asm.R1, asm.Word),
	)
	code = append(code, loadAddr()...)
	code = append(code, compare4()...)
	return append(code, verdict(retval)...)
}

// bind6Program does so for IPv6: an IPv4 address in IPv6's clothes is one of
// IPv4, and :: is taken for every address of both, as it is without
// IPV6_V6ONLY.
func bind6Program(m *ebpf.Map, retval bool) asm.Instructions {
	code := lookUpPort(m)
	for i := int16(0); i < 16; i += 4 {
		code = append(code,
			asm.LoadMem(asm.R1, asm.R6, ctxIP6+i, asm.Word),
			asm.StoreMem(asm.RFP, stackAddr+i, asm.R1, asm.Word),
		)
	}
	code = append(code, loadAddr()...)
	code = append(code,
		asm.JNE.Imm(regHigh, 0, "v6"),
		asm.Mov.Reg(asm.R3, regLow),
		asm.And.Reg(asm.R3, regPrefix),
		asm.JEq.Reg(asm.R3, regIPv4, "v4"),
		asm.JEq.Imm(regLow, 0, "deny"),
	)
	code = append(code, labelled("v6", compare6())...)
	code = append(code, labelled("v4", compare4())...)
	return append(code, verdict(retval)...)
}

// lookUpPort leaves the port's value in regValue, or allows the bind.
func lookUpPort(m *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetNetnsCookie.Call(),
		asm.StoreMem(asm.RFP, stackKey, asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R6, ctxPort, asm.Word),
		asm.StoreMem(asm.RFP, stackKey+8, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R6, ctxProto, asm.Word),
		asm.StoreMem(asm.RFP, stackKey+12, asm.R1, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "allow"),
		asm.LoadMem(regN, regValue, 0, asm.Word),
	}
}

// loadAddr loads the address being bound from the stack.
func loadAddr() asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(regHigh, asm.RFP, stackAddr, asm.DWord),
		asm.LoadMem(regLow, asm.RFP, stackAddr+8, asm.DWord),
		asm.LoadImm(regPrefix, int64(binary.NativeEndian.Uint64([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})), asm.DWord),
		asm.LoadImm(regIPv4, int64(binary.NativeEndian.Uint64([]byte{0, 0, 0xff, 0xff, 0, 0, 0, 0})), asm.DWord),
	}
}

// compare4 denies an IPv4 address that equals a reserved one, and any if
// either is 0.0.0.0.
func compare4() asm.Instructions {
	return eachReserved("v4", func(next string) asm.Instructions {
		return asm.Instructions{
			asm.JNE.Imm(asm.R1, 0, next),
			asm.Mov.Reg(asm.R3, asm.R2),
			asm.And.Reg(asm.R3, regPrefix),
			asm.JNE.Reg(asm.R3, regIPv4, next),
			asm.JEq.Reg(asm.R2, regIPv4, "deny"),
			asm.JEq.Reg(regLow, regIPv4, "deny"),
			asm.JEq.Reg(asm.R2, regLow, "deny"),
		}
	})
}

// compare6 denies an IPv6 address that equals a reserved one, and any if :: is
// reserved.
func compare6() asm.Instructions {
	return eachReserved("v6", func(next string) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R3, asm.R1),
			asm.Or.Reg(asm.R3, asm.R2),
			asm.JEq.Imm(asm.R3, 0, "deny"),
			asm.JNE.Reg(asm.R1, regHigh, next),
			asm.JEq.Reg(asm.R2, regLow, "deny"),
		}
	})
}

// eachReserved has the code for each of the value's addresses, one after the
// other, with its halves in R1 and R2; after the last one the bind is allowed.
func eachReserved(prefix string, compare func(next string) asm.Instructions) asm.Instructions {
	var code asm.Instructions
	label := func(i int) string { return prefix + "-" + strconv.Itoa(i) }
	for i := range maxPortAddrs {
		at := int16(8 + 16*i)
		one := asm.Instructions{
			asm.JLE.Imm(regN, int32(i), "allow"),
			asm.LoadMem(asm.R1, regValue, at, asm.DWord),
			asm.LoadMem(asm.R2, regValue, at+8, asm.DWord),
		}
		code = append(code, labelled(label(i), append(one, compare(label(i+1))...))...)
	}
	return append(code, labelled(label(maxPortAddrs), asm.Instructions{asm.Ja.Label("allow")})...)
}

// labelled gives code a label to jump to, on an instruction of its own since
// one can have only one.
func labelled(name string, code asm.Instructions) asm.Instructions {
	return append(asm.Instructions{asm.Mov.Imm(asm.R3, 0).WithSymbol(name)}, code...)
}

func verdict(retval bool) asm.Instructions {
	code := asm.Instructions{}
	if retval {
		code = append(code, asm.Mov.Imm(asm.R1, -int32(unix.EADDRINUSE)), asm.FnSetRetval.Call())
	}
	code = labelled("deny", append(code, asm.Mov.Imm(asm.R0, 0), asm.Return()))
	return append(code, asm.Mov.Imm(asm.R0, 1).WithSymbol("allow"), asm.Return())
}
