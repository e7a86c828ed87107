package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// hold takes the lock on the map, and waits for it until ctx is over. Its file
// is there only as long as somebody holds it or waits for it.
func (g portGuard) hold(ctx context.Context) (unlock func(), err error) {
	for {
		fd, err := unix.Open(g.lock, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, &os.PathError{Op: "lock host ports: open", Path: g.lock, Err: err}
		}
		if err := flockWithin(ctx, fd); err != nil {
			return nil, fmt.Errorf("lock host ports: %w", err)
		}
		var have, named unix.Stat_t
		if err := unix.Fstat(fd, &have); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("lock host ports: %w", os.NewSyscallError("fstat", err))
		}
		if unix.Stat(g.lock, &named) == nil && have.Ino == named.Ino && have.Dev == named.Dev {
			return func() {
				unix.Unlink(g.lock)
				unix.Close(fd)
			}, nil
		}
		unix.Close(fd) // unlinked by its last holder while we waited
	}
}

// flockWithin takes an exclusive flock(2); on an error it closes fd.
func flockWithin(ctx context.Context, fd int) error {
	lock := func(how int) (err error) {
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.Flock(fd, how)
		}
		return os.NewSyscallError("flock", err)
	}
	err := lock(unix.LOCK_EX | unix.LOCK_NB)
	if !errors.Is(err, unix.EWOULDBLOCK) {
		if err != nil {
			unix.Close(fd)
		}
		return err
	}
	got := make(chan error, 1)
	go func() { got <- lock(unix.LOCK_EX) }()
	select {
	case err = <-got:
		if err != nil {
			unix.Close(fd)
		}
		return err
	case <-ctx.Done():
		go func() { // the wait itself cannot be ended
			<-got
			unix.Close(fd)
		}()
		return fmt.Errorf("another sandnet has it: %w", ctx.Err())
	}
}
