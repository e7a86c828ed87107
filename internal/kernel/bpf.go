package kernel

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is the part of bpf(2) that host ports need: maps, programs on
// control groups, and finding both again by number. Why not a library:
// docs/decisions/008-raw-bpf.md. Field names are those of union bpf_attr in
// include/uapi/linux/bpf.h.

// bpfCall is bpf(2). Tests put kernels that lack something in its place.
type bpfCall func(cmd int, attr unsafe.Pointer, size uintptr) (int, error)

// sysBPF is this machine's.
func sysBPF(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		switch {
		case errno == 0:
			return int(r), nil
		case errno == unix.EINTR, errno == unix.EAGAIN && cmd == unix.BPF_PROG_LOAD:
			continue // the verifier gives way to signals, and Go's scheduler sends some
		}
		return -1, errno
	}
}

// The kernel's pointers have 64 bits on every architecture, the attributes
// below have the machine's: a 32-bit build fails here.
const _ = unsafe.Sizeof(uintptr(0)) - 8

// bpfObjName is the size of a name with its final zero, BPF_OBJ_NAME_LEN.
const bpfObjName = 16

func objName(name string) (b [bpfObjName]byte) {
	copy(b[:bpfObjName-1], name)
	return b
}

// bpfMapSpec describes a map to be made.
type bpfMapSpec struct {
	name                                string
	kind, flags                         uint32 // BPF_MAP_TYPE_*, BPF_F_*
	keySize, valueSize, maxEntries      uint32
	btfFD, btfKeyTypeID, btfValueTypeID uint32
}

func (call bpfCall) createMap(s bpfMapSpec) (fd int, err error) {
	attr := struct {
		mapType, keySize, valueSize, maxEntries, mapFlags uint32
		innerMapFD, numaNode                              uint32
		mapName                                           [bpfObjName]byte
		mapIfindex, btfFD, btfKeyTypeID, btfValueTypeID   uint32
	}{
		mapType: s.kind, keySize: s.keySize, valueSize: s.valueSize, maxEntries: s.maxEntries, mapFlags: s.flags,
		mapName: objName(s.name), btfFD: s.btfFD, btfKeyTypeID: s.btfKeyTypeID, btfValueTypeID: s.btfValueTypeID,
	}
	return call(unix.BPF_MAP_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// loadBTF gives the kernel type information, as some kinds of maps want it.
func (call bpfCall) loadBTF(btf []byte) (fd int, err error) {
	attr := struct {
		btf, logBuf       unsafe.Pointer
		size, logSize, ll uint32
		_                 uint32
	}{btf: unsafe.Pointer(unsafe.SliceData(btf)), size: uint32(len(btf))}
	return call(unix.BPF_BTF_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// loadProgram has the kernel verify a program for control groups. The
// verifier's log, of interest to tests only, goes to log if that is not empty.
func (call bpfCall) loadProgram(name string, attachType uint32, code []bpfInsn, log []byte) (fd int, err error) {
	license := append([]byte("Apache-2.0"), 0)
	attr := struct {
		progType, insnCnt               uint32
		insns, license                  unsafe.Pointer
		logLevel, logSize               uint32
		logBuf                          unsafe.Pointer
		kernVersion, progFlags          uint32
		progName                        [bpfObjName]byte
		progIfindex, expectedAttachType uint32
	}{
		progType: unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, insnCnt: uint32(len(code)),
		insns: unsafe.Pointer(unsafe.SliceData(code)), license: unsafe.Pointer(unsafe.SliceData(license)),
		progName: objName(name), expectedAttachType: attachType,
	}
	if len(log) > 0 {
		attr.logLevel, attr.logSize, attr.logBuf = 1, uint32(len(log)), unsafe.Pointer(unsafe.SliceData(log))
	}
	return call(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

type bpfAttach struct {
	targetFD, attachBPFFD, attachType, attachFlags, replaceBPFFD uint32
}

// attach adds a program to those of a control group.
func (call bpfCall) attach(cgroup, prog int, attachType uint32) error {
	attr := bpfAttach{targetFD: uint32(cgroup), attachBPFFD: uint32(prog), attachType: attachType, attachFlags: unix.BPF_F_ALLOW_MULTI}
	_, err := call(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func (call bpfCall) detach(cgroup, prog int, attachType uint32) error {
	attr := bpfAttach{targetFD: uint32(cgroup), attachBPFFD: uint32(prog), attachType: attachType}
	_, err := call(unix.BPF_PROG_DETACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// bpfMaxPrograms is how many programs of one type a control group can have.
const bpfMaxPrograms = 64

// attached lists a control group's own programs of one type by their IDs.
func (call bpfCall) attached(cgroup int, attachType uint32) ([]uint32, error) {
	ids := make([]uint32, bpfMaxPrograms)
	attr := struct {
		targetFD, attachType, queryFlags, attachFlags uint32
		progIDs                                       unsafe.Pointer
		progCnt, _                                    uint32
	}{targetFD: uint32(cgroup), attachType: attachType, progIDs: unsafe.Pointer(unsafe.SliceData(ids)), progCnt: bpfMaxPrograms}
	_, err := call(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return ids[:min(attr.progCnt, bpfMaxPrograms)], err
}

// programByID and mapByID open what somebody else has made.
func (call bpfCall) programByID(id uint32) (fd int, err error) {
	return call.byID(unix.BPF_PROG_GET_FD_BY_ID, id)
}

func (call bpfCall) mapByID(id uint32) (fd int, err error) {
	return call.byID(unix.BPF_MAP_GET_FD_BY_ID, id)
}

func (call bpfCall) byID(cmd int, id uint32) (fd int, err error) {
	attr := struct{ id, nextID, openFlags uint32 }{id: id}
	return call(cmd, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// bpfProgInfo is the beginning of struct bpf_prog_info.
type bpfProgInfo struct {
	progType, id                              uint32
	tag                                       [8]byte
	jitedProgLen, xlatedProgLen               uint32
	jitedProgInsns, xlatedProgInsns, loadTime uint64
	createdByUID, nrMapIDs                    uint32
	mapIDs                                    unsafe.Pointer
	name                                      [bpfObjName]byte
}

// bpfMapInfo is the beginning of struct bpf_map_info.
type bpfMapInfo struct {
	mapType, id, keySize, valueSize, maxEntries, mapFlags uint32
	name                                                  [bpfObjName]byte
}

// programInfo is a program's name and the IDs of its maps.
func (call bpfCall) programInfo(fd int) (name [bpfObjName]byte, maps []uint32, err error) {
	maps = make([]uint32, 4)
	info := bpfProgInfo{nrMapIDs: uint32(len(maps)), mapIDs: unsafe.Pointer(unsafe.SliceData(maps))}
	err = call.info(fd, unsafe.Pointer(&info), unsafe.Sizeof(info))
	return info.name, maps[:min(int(info.nrMapIDs), len(maps))], err
}

func (call bpfCall) mapInfo(fd int) (info bpfMapInfo, err error) {
	err = call.info(fd, unsafe.Pointer(&info), unsafe.Sizeof(info))
	return info, err
}

func (call bpfCall) info(fd int, info unsafe.Pointer, size uintptr) error {
	attr := struct {
		bpfFD, infoLen uint32
		info           unsafe.Pointer
	}{uint32(fd), uint32(size), info}
	_, err := call(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// elem is the attribute of everything that is done to one entry of a map.
func (call bpfCall) elem(cmd, fd int, key, value unsafe.Pointer, flags uint64) error {
	attr := struct {
		mapFD, _   uint32
		key, value unsafe.Pointer // value is next_key for BPF_MAP_GET_NEXT_KEY
		flags      uint64
	}{mapFD: uint32(fd), key: key, value: value, flags: flags}
	_, err := call(cmd, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}
