package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/spec"
)

// A held command starts as this program, under the name heldName: it waits on a
// pipe for the word to go and then becomes the command, with the same PID. The
// pipe ends with the process that has started it, and then it does, too.
const (
	heldName = "sandnet-held"
	heldGo   = 3 // file descriptors of the pipes
	heldErr  = 4
)

// hold is the waiting side's end of the two pipes.
type hold struct{ word, failure *os.File }

// holdBack makes cmd a held command.
func holdBack(cmd *exec.Cmd) (*hold, error) {
	goRead, goWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	errRead, errWrite, err := os.Pipe()
	if err != nil {
		goRead.Close()
		goWrite.Close()
		return nil, err
	}
	cmd.Args = append([]string{heldName, cmd.Path}, cmd.Args...)
	cmd.Path = "/proc/self/exe"
	cmd.ExtraFiles = []*os.File{goRead, errWrite}
	return &hold{goWrite, errRead}, nil
}

// started closes what the command has now.
func (h *hold) started(cmd *exec.Cmd) {
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
}

// release lets the command run, and says why it cannot.
func (h *hold) release() error {
	defer h.close()
	if _, err := h.word.Write([]byte{1}); err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	b, err := io.ReadAll(h.failure)
	if err != nil || len(b) < 4 {
		return err
	}
	errno := syscall.Errno(binary.NativeEndian.Uint32(b))
	code := 126
	if errors.Is(errno, unix.ENOENT) {
		code = 127
	}
	return &spec.CommandError{Code: code, Err: errno}
}

func (h *hold) close() {
	h.word.Close()
	h.failure.Close()
}

// BecomeHeld is for main to call first: in a process that was started to be a
// held command it waits and does not return, in all others it does nothing.
func BecomeHeld() {
	if len(os.Args) < 3 || os.Args[0] != heldName {
		return
	}
	unix.CloseOnExec(heldGo)
	unix.CloseOnExec(heldErr)
	var word [1]byte
	for {
		n, err := unix.Read(heldGo, word[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 || err != nil {
			os.Exit(1) // nobody knows of this command
		}
		break
	}
	err := syscall.Exec(os.Args[1], os.Args[2:], os.Environ())
	var errno syscall.Errno
	if errors.As(err, &errno) {
		_, _ = unix.Write(heldErr, binary.NativeEndian.AppendUint32(nil, uint32(errno)))
	}
	os.Exit(126)
}
