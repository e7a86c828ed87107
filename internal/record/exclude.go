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

// Two directories serve as locks. Whoever changes something holds the inner
// one, shared, and passes the outer one on the way; whoever wants to be alone
// closes the outer one, so that nobody else comes in, and waits until the
// inner one is free.
const (
	outerLock = "locks"
	innerLock = "records"
)

// maxExclude is how long Exclude waits for the others to end.
const maxExclude = 5 * time.Second

// Enter says that this process changes things, until it calls leave: nobody
// who has excluded others is at work meanwhile. It comes before any Lock.
func (s *Store) Enter(ctx context.Context) (leave func(), err error) {
	outer, err := s.flockDir(ctx, outerLock, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer outer.Close()
	inner, err := s.flockDir(ctx, innerLock, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return func() { inner.Close() }, nil
}

// Exclude waits until nobody is changing anything, and keeps it so until
// release. The caller holds no lock.
func (s *Store) Exclude(ctx context.Context) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, maxExclude)
	defer cancel()
	outer, err := s.flockDir(ctx, outerLock, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	inner, err := s.flockDir(ctx, innerLock, unix.LOCK_EX)
	if err != nil {
		outer.Close()
		return nil, err
	}
	return func() {
		inner.Close()
		outer.Close()
	}, nil
}

func (s *Store) flockDir(ctx context.Context, name string, how int) (*os.File, error) {
	d, err := os.Open(filepath.Join(s.dir, name))
	if err != nil {
		return nil, err
	}
	for {
		err := flock(d, how|unix.LOCK_NB)
		if err == nil {
			return d, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			d.Close()
			return nil, fmt.Errorf("lock %s: %w", d.Name(), err)
		}
		select {
		case <-ctx.Done():
			d.Close()
			return nil, fmt.Errorf("another sandnet is at work and does not end: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}
