// Package reconcile makes the kernel match plans. It is the only place where
// the order of recording and changing is decided: a plan is on disk before
// the kernel changes, so that whoever comes after a crash knows everything
// that may exist. It knows no kinds of objects and no modes.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"

	"github.com/sandnet/sandnet/internal/plan"
)

// Kernel is the only way sandnet changes the machine. It is idempotent:
// already right, or already absent, is success.
type Kernel interface {
	// Ensure makes objs exist with their properties, in order, and says how
	// many it had to change. It refuses to touch an object that is not ours.
	Ensure(ctx context.Context, objs []plan.Object) (changed int, err error)
	// Delete removes objs, last first; it goes on past failures and joins them.
	Delete(ctx context.Context, objs []plan.Object) error
	// Owned lists everything on the machine that carries our mark.
	Owned(ctx context.Context) iter.Seq2[plan.Object, error]
}

// Store keeps one plan per owner. Load gives fs.ErrNotExist for an owner
// without one. An owner must be locked while its plan changes.
type Store interface {
	Load(owner string) (plan.Plan, error)
	Save(p plan.Plan) error
	Remove(owner string) error
	Owners() ([]string, error)
	Lock(ctx context.Context, owner string) (unlock func(), err error)
	// Work begins a change of what a record names; see record.Store.
	Work(ctx context.Context) (done func(), err error)
}

// Engine applies plans. The caller holds the owner's lock.
type Engine struct {
	Kernel Kernel
	Store  Store
}

// Apply makes want what its owner has: it saves old ∪ want, deletes what is
// stale, ensures want, saves want. After an error the record names everything
// that may exist; Remove, or another Apply, clears it.
func (e *Engine) Apply(ctx context.Context, want plan.Plan) (changed int, err error) {
	return e.apply(ctx, want, func([]plan.Object) []plan.Object { return want.Objects })
}

// Change is Apply for an owner that is in use, and whose record is true: it
// ensures only what the record does not have just so, and leaves alone what
// somebody may have made of the rest meanwhile.
func (e *Engine) Change(ctx context.Context, want plan.Plan) (changed int, err error) {
	return e.apply(ctx, want, func(old []plan.Object) []plan.Object { return plan.Changed(old, want.Objects) })
}

func (e *Engine) apply(ctx context.Context, want plan.Plan, ensure func(old []plan.Object) []plan.Object) (changed int, err error) {
	done, err := e.Store.Work(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	old, err := e.Store.Load(want.Owner)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	both := plan.Plan{Owner: want.Owner, Meta: want.Meta, Objects: plan.Union(old.Objects, want.Objects)}
	if err := e.Store.Save(both); err != nil {
		return 0, err
	}
	stale := plan.Stale(old.Objects, want.Objects)
	if err := e.Kernel.Delete(ctx, stale); err != nil {
		return 0, fmt.Errorf("%s: %w", want.Owner, err)
	}
	changed, err = e.Kernel.Ensure(ctx, ensure(old.Objects))
	if err != nil {
		return changed, fmt.Errorf("%s: %w", want.Owner, err)
	}
	if len(stale) > 0 {
		err = e.Store.Save(want)
	}
	return changed + len(stale), err
}

// Remove deletes everything the record of owner names, then the record. An
// owner without a record is already removed. The record stays if anything
// could not be deleted.
func (e *Engine) Remove(ctx context.Context, owner string) error {
	done, err := e.Store.Work(ctx)
	if err != nil {
		return err
	}
	defer done()
	p, err := e.Store.Load(owner)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := e.Kernel.Delete(ctx, p.Objects); err != nil {
		return fmt.Errorf("%s: %w", owner, err)
	}
	return e.Store.Remove(owner)
}

// Orphans returns everything that carries our mark and is in no record. The
// machine is looked at before the records are: what another process makes
// meanwhile was recorded before it was made. By the time that the caller
// deletes one, its name may be another's: that is the caller's to rule out.
func (e *Engine) Orphans(ctx context.Context) ([]plan.Object, error) {
	var found []plan.Object
	for o, err := range e.Kernel.Owned(ctx) {
		if err != nil {
			return nil, err
		}
		found = append(found, o)
	}
	owners, err := e.Store.Owners()
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, owner := range owners {
		p, err := e.Store.Load(owner)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, o := range p.Objects {
			known[o.Key()] = true
		}
	}
	return slices.DeleteFunc(found, func(o plan.Object) bool { return known[o.Key()] }), nil
}
