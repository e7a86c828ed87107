package kernel

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// This file is an assembler for BPF's instruction set, as far as the programs
// in hostport_prog.go need it (kernel: Documentation/bpf/standardization). Names are those
// of include/uapi/linux/bpf.h and of bpf_helpers.

// bpfInsn is struct bpf_insn.
type bpfInsn struct {
	code uint8
	regs uint8 // dst_reg and src_reg, four bits each
	off  int16
	imm  int32
}

// bpfReg is a register: r0 has results, r1 to r5 arguments that a call
// destroys, r6 to r9 survive calls, r10 is the end of the stack.
type bpfReg uint8

const (
	r0 bpfReg = iota
	r1
	r2
	r3
	r4
	r5
	r6
	r7
	r8
	r9
	r10
)

// bpfSize is the width of a memory access.
type bpfSize uint8

const (
	half  bpfSize = unix.BPF_H
	word  bpfSize = unix.BPF_W
	dword bpfSize = unix.BPF_DW
)

// Helper functions, enum bpf_func_id.
const (
	fnMapLookupElem  = 1
	fnSKLookupTCP    = 84
	fnSKLookupUDP    = 85
	fnSKRelease      = 86
	fnSKStorageGet   = 107
	fnGetNetnsCookie = 122
	fnSetRetval      = 187
)

// bpfAsm collects instructions. Jumps go forward to labels.
type bpfAsm struct {
	code   []bpfInsn
	labels map[string]int
	jumps  map[int]string // by instruction
}

func newAsm() *bpfAsm { return &bpfAsm{labels: map[string]int{}, jumps: map[int]string{}} }

func (a *bpfAsm) emit(code uint8, dst, src bpfReg, off int16, imm int32) {
	regs := uint8(dst) | uint8(src)<<4
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // bit fields begin at the other end
		regs = uint8(dst)<<4 | uint8(src)
	}
	a.code = append(a.code, bpfInsn{code, regs, off, imm})
}

// op is dst = dst OP src in 64 bits: BPF_MOV, BPF_AND, BPF_OR, BPF_ADD, BPF_MUL.
func (a *bpfAsm) op(op uint8, dst, src bpfReg) { a.emit(unix.BPF_ALU64|unix.BPF_X|op, dst, src, 0, 0) }

// opImm is dst = dst OP imm.
func (a *bpfAsm) opImm(op uint8, dst bpfReg, imm int32) {
	a.emit(unix.BPF_ALU64|unix.BPF_K|op, dst, 0, 0, imm)
}

func (a *bpfAsm) mov(dst, src bpfReg)          { a.op(unix.BPF_MOV, dst, src) }
func (a *bpfAsm) movImm(dst bpfReg, imm int32) { a.opImm(unix.BPF_MOV, dst, imm) }
func (a *bpfAsm) addImm(dst bpfReg, imm int32) { a.opImm(unix.BPF_ADD, dst, imm) }
func (a *bpfAsm) load(s bpfSize, dst, src bpfReg, off int16) {
	a.emit(unix.BPF_LDX|unix.BPF_MEM|uint8(s), dst, src, off, 0)
}
func (a *bpfAsm) store(s bpfSize, dst bpfReg, off int16, src bpfReg) {
	a.emit(unix.BPF_STX|unix.BPF_MEM|uint8(s), dst, src, off, 0)
}
func (a *bpfAsm) storeImm(s bpfSize, dst bpfReg, off int16, imm int32) {
	a.emit(unix.BPF_ST|unix.BPF_MEM|uint8(s), dst, 0, off, imm)
}

// imm64 loads a constant of 64 bits, which takes two instructions.
func (a *bpfAsm) imm64(dst bpfReg, v uint64) { a.wide(dst, 0, v) }

// mapFD loads the address of a map.
func (a *bpfAsm) mapFD(dst bpfReg, fd int) { a.wide(dst, pseudoMapFD, uint64(fd)) }

// pseudoMapFD is BPF_PSEUDO_MAP_FD.
const pseudoMapFD bpfReg = 1

func (a *bpfAsm) wide(dst, src bpfReg, v uint64) {
	a.emit(unix.BPF_LD|unix.BPF_DW|unix.BPF_IMM, dst, src, 0, int32(uint32(v)))
	a.emit(0, 0, 0, 0, int32(v>>32))
}

// jump goes to a label if dst OP src: BPF_JEQ, BPF_JNE, BPF_JLE.
func (a *bpfAsm) jump(op uint8, dst, src bpfReg, label string) {
	a.jumps[len(a.code)] = label
	a.emit(unix.BPF_JMP|unix.BPF_X|op, dst, src, 0, 0)
}

func (a *bpfAsm) jumpImm(op uint8, dst bpfReg, imm int32, label string) {
	a.jumps[len(a.code)] = label
	a.emit(unix.BPF_JMP|unix.BPF_K|op, dst, 0, 0, imm)
}

func (a *bpfAsm) goTo(label string) { a.jumpImm(unix.BPF_JA, 0, 0, label) }

// label names the next instruction.
func (a *bpfAsm) label(name string) { a.labels[name] = len(a.code) }

func (a *bpfAsm) call(helper int32) { a.emit(unix.BPF_JMP|unix.BPF_CALL, 0, 0, 0, helper) }

// exit returns a constant.
func (a *bpfAsm) exit(result int32) {
	a.movImm(r0, result)
	a.emit(unix.BPF_JMP|unix.BPF_EXIT, 0, 0, 0, 0)
}

// assemble fills the jumps in.
func (a *bpfAsm) assemble() []bpfInsn {
	for at, name := range a.jumps {
		target, ok := a.labels[name]
		if !ok {
			panic(fmt.Sprintf("BPF program jumps to %q, which it does not have", name))
		}
		a.code[at].off = int16(target - at - 1)
	}
	return a.code
}
