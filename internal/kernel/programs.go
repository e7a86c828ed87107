package kernel

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// withPrograms does what starts programs that change something, one command
// after another. A program goes on when the command that has started it is
// killed, and would undo what the next one makes: it inherits the lock, and has
// it until it ends, too.
func (k *Kernel) withPrograms(ctx context.Context, do func() error) error {
	dir := filepath.Dir(k.verified.path)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0) // open in programs, too
	switch {
	case k.verified.path == "" || errors.Is(err, unix.ENOENT):
		return do() // nothing was ever made here
	case err != nil:
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	if err := flockWithin(ctx, fd); err != nil {
		return err
	}
	defer unix.Close(fd)
	return do()
}
