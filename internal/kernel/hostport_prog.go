package kernel

import (
	"encoding/binary"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The programs' argument, struct bpf_sock_addr, and the socket in it, struct
// bpf_sock.
const (
	ctxIP4    = 4
	ctxIP6    = 8
	ctxPort   = 24 // network order in the first two bytes
	ctxProto  = 36
	ctxSource = 44 // msg_src_ip6
	ctxSocket = 64

	sockBoundIf = 0
	sockSource  = 28 // src_ip6
)

// The entry of a port, see portValue.
const (
	valueN         = int16(unsafe.Offsetof(portValue{}.N))
	valueLoFlags   = int16(unsafe.Offsetof(portValue{}.LoFlags))
	valueLoPort    = int16(unsafe.Offsetof(portValue{}.LoPort))
	valueLoAddr    = int16(unsafe.Offsetof(portValue{}.LoAddr))
	valueAddrs     = int16(unsafe.Offsetof(portValue{}.Slots))
	valueSlotBytes = int16(unsafe.Sizeof(portSlot{}))
)

// What is kept with a socket, struct socketPeers in C: u32 next, u32 unused,
// then the places of the last destinations that were translated: struct
// { u8 addr[16]; u32 port, hostport; }, ports as in struct bpf_sock_addr.
const (
	maxPeers      = 4 // a power of two
	peersNext     = 0
	peersFirst    = 8
	peerBytes     = 24
	peerPort      = 16
	peerHostPort  = 20
	peersBytes    = peersFirst + maxPeers*peerBytes
	storageCreate = 1 // BPF_SK_STORAGE_GET_F_CREATE
)

// Stack of the programs: the map's key, and below it the address being bound,
// or struct bpf_sock_tuple.
const (
	stackKey   = -16
	stackAddr  = -32
	stackTuple = -64
	tupleBytes = 36 // its member ipv6
)

// Registers of the bind programs, beside the temporary r1 to r3: the halves of
// the address being bound, and what tells an IPv4 address in the lower one.
const (
	regValue  = r0 // *portValue
	regPrefix = r4 // mask of the part that says ::ffff:
	regIPv4   = r5 // ::ffff:0.0.0.0
	regHigh   = r7
	regLow    = r8
	regN      = r9
)

// wire32 is the number whose bytes in memory are these.
func wire32(b ...byte) int32  { return int32(binary.NativeEndian.Uint32(b)) }
func wire64(b ...byte) uint64 { return binary.NativeEndian.Uint64(b) }

// programMaps are the maps that a program refers to.
type programMaps struct{ ports, peers int }

// bind4Program refuses a bind(2) to an IPv4 address that conflicts with a
// reservation by the rules for sockets without SO_REUSEADDR. On kernels before
// 5.18 it cannot choose the error: without retval it is EPERM, not EADDRINUSE.
func bind4Program(m programMaps, retval bool) []bpfInsn {
	a := newAsm()
	lookUpPort(a, m)
	a.storeImm(word, r10, stackAddr, 0)
	a.storeImm(word, r10, stackAddr+4, 0)
	a.storeImm(word, r10, stackAddr+8, wire32(0, 0, 0xff, 0xff))
	a.load(word, r1, r6, ctxIP4)
	a.store(word, r10, stackAddr+12, r1)
	loadAddr(a)
	compare4(a)
	verdict(a, retval)
	return a.assemble()
}

// bind6Program does so for IPv6: an IPv4 address in IPv6's clothes is one of
// IPv4, and :: is taken for every address of both, as it is without
// IPV6_V6ONLY. A port that is answered on ::1 is taken there, too.
func bind6Program(m programMaps, retval bool) []bpfInsn {
	a := newAsm()
	lookUpPort(a, m)
	for i := int16(0); i < 16; i += 4 {
		a.load(word, r1, r6, ctxIP6+i)
		a.store(word, r10, stackAddr+i, r1)
	}
	loadAddr(a)
	a.jumpImm(unix.BPF_JNE, regHigh, 0, "v6")
	a.mov(r3, regLow)
	a.op(unix.BPF_AND, r3, regPrefix)
	a.jump(unix.BPF_JEQ, r3, regIPv4, "v4")
	a.jumpImm(unix.BPF_JEQ, regLow, 0, "deny")
	a.imm64(r1, wire64(0, 0, 0, 0, 0, 0, 0, 1))
	a.jump(unix.BPF_JNE, regLow, r1, "v6")
	a.load(word, r1, regValue, valueLoPort)
	a.jumpImm(unix.BPF_JNE, r1, 0, "deny")
	a.label("v6")
	compare6(a)
	a.label("v4")
	compare4(a)
	verdict(a, retval)
	return a.assemble()
}

// lookUpPort leaves the port's entry in regValue and its number of addresses
// in regN, or allows the call. The argument goes to r6.
func lookUpPort(a *bpfAsm, m programMaps) {
	a.mov(r6, r1)
	a.call(fnGetNetnsCookie)
	a.store(dword, r10, stackKey, r0)
	a.load(word, r1, r6, ctxPort)
	a.store(word, r10, stackKey+8, r1)
	a.load(word, r1, r6, ctxProto)
	a.store(word, r10, stackKey+12, r1)
	a.mapFD(r1, m.ports)
	a.mov(r2, r10)
	a.addImm(r2, stackKey)
	a.call(fnMapLookupElem)
	a.jumpImm(unix.BPF_JEQ, r0, 0, "allow")
	a.load(word, regN, regValue, valueN)
}

// loadAddr loads the address being bound from the stack.
func loadAddr(a *bpfAsm) {
	a.load(dword, regHigh, r10, stackAddr)
	a.load(dword, regLow, r10, stackAddr+8)
	a.imm64(regPrefix, wire64(0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0))
	a.imm64(regIPv4, wire64(0, 0, 0xff, 0xff, 0, 0, 0, 0))
}

// compare4 denies an IPv4 address that equals a reserved one, and any if
// either is 0.0.0.0.
func compare4(a *bpfAsm) {
	eachReserved(a, "v4", func(next string) {
		a.jumpImm(unix.BPF_JNE, r1, 0, next)
		a.mov(r3, r2)
		a.op(unix.BPF_AND, r3, regPrefix)
		a.jump(unix.BPF_JNE, r3, regIPv4, next)
		a.jump(unix.BPF_JEQ, r2, regIPv4, "deny")
		a.jump(unix.BPF_JEQ, regLow, regIPv4, "deny")
		a.jump(unix.BPF_JEQ, r2, regLow, "deny")
	})
}

// compare6 denies an IPv6 address that equals a reserved one, and any if :: is
// reserved.
func compare6(a *bpfAsm) {
	eachReserved(a, "v6", func(next string) {
		a.mov(r3, r1)
		a.op(unix.BPF_OR, r3, r2)
		a.jumpImm(unix.BPF_JEQ, r3, 0, "deny")
		a.jump(unix.BPF_JNE, r1, regHigh, next)
		a.jump(unix.BPF_JEQ, r2, regLow, "deny")
	})
}

// eachReserved has the code for each of the entry's addresses, one after the
// other, with its halves in r1 and r2; after the last one the bind is allowed.
func eachReserved(a *bpfAsm, prefix string, compare func(next string)) {
	for i := range maxPortAddrs {
		at := valueAddrs + valueSlotBytes*int16(i)
		a.label(prefix + "-" + strconv.Itoa(i))
		a.jumpImm(unix.BPF_JLE, regN, int32(i), "allow")
		a.load(dword, r1, regValue, at)
		a.load(dword, r2, regValue, at+8)
		compare(prefix + "-" + strconv.Itoa(i+1))
	}
	a.label(prefix + "-" + strconv.Itoa(maxPortAddrs))
	a.goTo("allow")
}

func verdict(a *bpfAsm, retval bool) {
	a.label("deny")
	if retval {
		a.movImm(r1, -int32(unix.EADDRINUSE))
		a.call(fnSetRetval)
	}
	a.exit(0)
	a.label("allow")
	a.exit(1)
}

// connect6Program sends a connect(2) to [::1]:HOSTPORT on to the sandbox: TCP,
// and UDP sockets with a fixed peer. The kernel then chooses the source by the
// route, as for any connection to the sandbox.
func connect6Program(m programMaps) []bpfInsn {
	a := newAsm()
	translate(a, m, func() {
		for i := range int16(4) {
			a.load(word, r2+bpfReg(i), r8, sockSource+4*i)
		}
	})
	return a.assemble()
}

// sendmsg6Program does so for each datagram of a UDP socket without a fixed
// peer. To IPv4 the kernel does not let it: ENOTSUPP.
func sendmsg6Program(m programMaps) []bpfInsn {
	a := newAsm()
	translate(a, m, func() {
		a.load(word, r1, r7, valueLoFlags)
		a.opImm(unix.BPF_AND, r1, loIPv4)
		a.jumpImm(unix.BPF_JNE, r1, 0, "allow")
		for i := range int16(4) {
			a.load(word, r2+bpfReg(i), r6, ctxSource+4*i)
		}
	})
	return a.assemble()
}

// translate rewrites a destination [::1]:HOSTPORT that has a target, and keeps
// with the socket what it has rewritten. source loads the socket's own address into r2 to r5.
// It keeps the argument in r6, the entry in r7 and the socket in r8.
func translate(a *bpfAsm, m programMaps, source func()) {
	a.load(word, r2, r1, ctxIP6)
	a.load(word, r3, r1, ctxIP6+4)
	a.op(unix.BPF_OR, r2, r3)
	a.load(word, r3, r1, ctxIP6+8)
	a.op(unix.BPF_OR, r2, r3)
	a.jumpImm(unix.BPF_JNE, r2, 0, "allow")
	a.load(word, r2, r1, ctxIP6+12)
	a.jumpImm(unix.BPF_JNE, r2, wire32(0, 0, 0, 1), "allow")

	lookUpPort(a, m)
	a.mov(r7, r0)
	a.load(word, r1, r7, valueLoPort)
	a.jumpImm(unix.BPF_JEQ, r1, 0, "allow")
	a.load(dword, r8, r6, ctxSocket)

	// A socket that is tied to the loopback, by its own address or by
	// SO_BINDTODEVICE, cannot reach a sandbox, one with an IPv6 address of its
	// own cannot reach IPv4.
	a.load(word, r1, r8, sockBoundIf)
	a.jumpImm(unix.BPF_JNE, r1, 0, "allow")
	source()
	a.op(unix.BPF_OR, r2, r3)
	a.jumpImm(unix.BPF_JNE, r2, 0, "no loopback")
	a.jumpImm(unix.BPF_JNE, r4, 0, "free")
	a.jumpImm(unix.BPF_JEQ, r5, wire32(0, 0, 0, 1), "allow")
	a.goTo("free")
	a.label("no loopback")
	a.load(word, r1, r7, valueLoFlags)
	a.opImm(unix.BPF_AND, r1, loIPv4)
	a.jumpImm(unix.BPF_JNE, r1, 0, "allow")
	a.label("free")

	yieldToServer(a)
	remember(a, m)
	for i := range int16(4) {
		a.load(word, r1, r7, valueLoAddr+4*i)
		a.store(word, r6, ctxIP6+4*i, r1)
	}
	a.load(word, r1, r7, valueLoPort)
	a.store(word, r6, ctxPort, r1)
	a.label("allow")
	a.exit(1)
}

// yieldToServer allows the call as it is if ::1 is not the sandbox's own
// (loShared) and a socket of the host has the port there.
func yieldToServer(a *bpfAsm) {
	a.load(word, r1, r7, valueLoFlags)
	a.opImm(unix.BPF_AND, r1, loShared)
	a.jumpImm(unix.BPF_JEQ, r1, 0, "ours")
	for off := int16(stackTuple); off < stackTuple+tupleBytes; off += 4 {
		a.storeImm(word, r10, off, 0)
	}
	a.storeImm(word, r10, stackTuple+28, wire32(0, 0, 0, 1)) // daddr[3]
	a.load(word, r1, r6, ctxPort)
	a.store(half, r10, stackTuple+34, r1) // dport
	a.load(word, r9, r6, ctxProto)
	a.mov(r1, r6)
	a.mov(r2, r10)
	a.addImm(r2, stackTuple)
	a.movImm(r3, tupleBytes)
	a.movImm(r4, -1) // BPF_F_CURRENT_NETNS
	a.movImm(r5, 0)
	a.jumpImm(unix.BPF_JNE, r9, unix.IPPROTO_TCP, "udp")
	a.call(fnSKLookupTCP)
	a.goTo("looked up")
	a.label("udp")
	a.call(fnSKLookupUDP)
	a.label("looked up")
	a.jumpImm(unix.BPF_JEQ, r0, 0, "ours")
	a.mov(r1, r0)
	a.call(fnSKRelease)
	a.goTo("allow")
	a.label("ours")
}

// remember puts the target and the host port among the socket's last peers.
// Without memory for that the peer will show its real address.
func remember(a *bpfAsm, m programMaps) {
	a.mapFD(r1, m.peers)
	a.mov(r2, r8)
	a.movImm(r3, 0)
	a.movImm(r4, storageCreate)
	a.call(fnSKStorageGet)
	a.jumpImm(unix.BPF_JEQ, r0, 0, "remembered")
	a.load(dword, r1, r7, valueLoAddr)
	a.load(dword, r2, r7, valueLoAddr+8)
	a.load(word, r3, r7, valueLoPort)
	eachPeer(a, func(at int16) { a.addImm(r0, int32(at)) }, "place")
	a.load(word, r4, r0, peersNext)
	a.mov(r5, r4)
	a.addImm(r5, 1)
	a.store(word, r0, peersNext, r5)
	a.opImm(unix.BPF_AND, r4, maxPeers-1)
	a.opImm(unix.BPF_MUL, r4, peerBytes)
	a.op(unix.BPF_ADD, r0, r4)
	a.addImm(r0, peersFirst)
	a.label("place")
	a.store(dword, r0, 0, r1)
	a.store(dword, r0, 8, r2)
	a.store(word, r0, peerPort, r3)
	a.load(word, r4, r6, ctxPort)
	a.store(word, r0, peerHostPort, r4)
	a.label("remembered")
}

// eachPeer goes to label found with the first of the peers at r0 that equals
// the address in r1 and r2 and the port in r3, after match has been given its place.
func eachPeer(a *bpfAsm, match func(at int16), found string) {
	for i := range int16(maxPeers) {
		at, next := peersFirst+i*peerBytes, "peer-"+strconv.Itoa(int(i+1))
		a.load(dword, r4, r0, at)
		a.jump(unix.BPF_JNE, r4, r1, next)
		a.load(dword, r4, r0, at+8)
		a.jump(unix.BPF_JNE, r4, r2, next)
		a.load(word, r4, r0, at+peerPort)
		a.jump(unix.BPF_JNE, r4, r3, next)
		match(at)
		a.goTo(found)
		a.label(next)
	}
}

// peerProgram lets the peer of a socket whose destination was rewritten look
// like [::1]:HOSTPORT, to getpeername(2) and to recvfrom(2).
func peerProgram(m programMaps) []bpfInsn {
	a := newAsm()
	a.mov(r6, r1)
	a.mapFD(r1, m.peers)
	a.load(dword, r2, r6, ctxSocket)
	a.movImm(r3, 0)
	a.movImm(r4, 0)
	a.call(fnSKStorageGet)
	a.jumpImm(unix.BPF_JEQ, r0, 0, "allow")
	for i := range int16(4) {
		a.load(word, r1, r6, ctxIP6+4*i)
		a.store(word, r10, stackAddr+4*i, r1)
	}
	a.load(dword, r1, r10, stackAddr)
	a.load(dword, r2, r10, stackAddr+8)
	a.load(word, r3, r6, ctxPort)
	eachPeer(a, func(at int16) { a.load(word, r4, r0, at+peerHostPort) }, "found")
	a.goTo("allow")
	a.label("found")
	a.movImm(r1, 0)
	for i := range int16(3) {
		a.store(word, r6, ctxIP6+4*i, r1)
	}
	a.movImm(r1, wire32(0, 0, 0, 1))
	a.store(word, r6, ctxIP6+12, r1)
	a.store(word, r6, ctxPort, r4)
	a.label("allow")
	a.exit(1)
	return a.assemble()
}

// peersBTF describes the map of sockets to the kernel, which wants to know
// what is in it: type 1 is u32, its key, and type 2 an array of these. The
// layout is that of Documentation/bpf/btf.rst.
func peersBTF() []byte {
	const kindInt, kindArray = 1 << 24, 3 << 24
	strings := "\x00u32\x00"
	var types []byte
	for _, v := range []uint32{
		1, kindInt, 4, 32, // name_off, info, size; bits
		0, kindArray, 0, 1, 1, peersBytes / 4, // name_off, info, size; type, index_type, nelems
	} {
		types = binary.NativeEndian.AppendUint32(types, v)
	}
	btf := binary.NativeEndian.AppendUint16(nil, 0xeB9F)
	btf = append(btf, 1, 0) // version, flags
	for _, v := range []int{24, 0, len(types), len(types), len(strings)} {
		btf = binary.NativeEndian.AppendUint32(btf, uint32(v)) // hdr_len; type_off, type_len; str_off, str_len
	}
	return append(append(btf, types...), strings...)
}
