package record

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// While an owner's objects are made or deleted, its record names more than
// there is. Whoever puts back what everybody has lost, without everybody's lock,
// would bring back what is just being deleted, and undo what is just being
// changed. Hence work, which many do at once, and settling, when nobody does.

// Work begins a change of what some record names; done ends it. It waits while
// somebody settles.
func (s *Store) Work(ctx context.Context) (done func(), err error) {
	// Whoever wants to settle comes next, however many are at work.
	pass, err := s.lockDir(ctx, "locks", unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer pass()
	return s.lockDir(ctx, "records", unix.LOCK_SH)
}

// Settle waits until all work is done, and lets none begin before resume: unless
// its last operation was killed, every owner has just what its record names.
func (s *Store) Settle(ctx context.Context) (resume func(), err error) {
	pass, err := s.lockDir(ctx, "locks", unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	settled, err := s.lockDir(ctx, "records", unix.LOCK_EX)
	if err != nil {
		pass()
		return nil, err
	}
	return func() {
		settled()
		pass()
	}, nil
}

// lockDir takes a flock(2) on one of the store's directories, waiting until ctx ends.
func (s *Store) lockDir(ctx context.Context, name string, how int) (unlock func(), err error) {
	d, err := os.Open(filepath.Join(s.dir, name))
	if err != nil {
		return nil, err
	}
	for {
		if err = flock(d, how|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		select {
		case <-ctx.Done():
			d.Close()
			return nil, fmt.Errorf("another sandnet is at work: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("lock %s: %w", d.Name(), err)
	}
	return func() { d.Close() }, nil
}
