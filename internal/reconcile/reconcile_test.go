package reconcile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandnet/sandnet/internal/plan"
)

// errKilled stands for the end of the process at some step.
var errKilled = errors.New("killed")

// world is a kernel and a store in memory, with a budget of steps after which
// every further step fails, as if the process had been killed there.
type world struct {
	live   map[string]plan.Object
	plans  map[string]plan.Plan
	budget int
}

func newWorld() *world {
	return &world{live: map[string]plan.Object{}, plans: map[string]plan.Plan{}, budget: 1 << 30}
}

func (w *world) step() error {
	if w.budget--; w.budget < 0 {
		return errKilled
	}
	return nil
}

func (w *world) Ensure(_ context.Context, objs []plan.Object) (changed int, err error) {
	for _, o := range objs {
		if have, ok := w.live[o.Key()]; ok && plan.Equal(have, o) {
			continue
		}
		if err := w.step(); err != nil {
			return changed, err
		}
		w.live[o.Key()] = o
		changed++
	}
	return changed, nil
}

func (w *world) Delete(_ context.Context, objs []plan.Object) error {
	for _, o := range objs {
		if _, ok := w.live[o.Key()]; !ok {
			continue
		}
		if err := w.step(); err != nil {
			return err
		}
		delete(w.live, o.Key())
	}
	return nil
}

func (w *world) Owned(context.Context) iter.Seq2[plan.Object, error] {
	return func(yield func(plan.Object, error) bool) {
		for _, o := range w.live {
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (w *world) Load(owner string) (plan.Plan, error) {
	if p, ok := w.plans[owner]; ok {
		return p, nil
	}
	return plan.Plan{}, fs.ErrNotExist
}

func (w *world) Save(p plan.Plan) error {
	if err := w.step(); err != nil {
		return err
	}
	w.plans[p.Owner] = p
	return nil
}

func (w *world) Remove(owner string) error {
	if err := w.step(); err != nil {
		return err
	}
	delete(w.plans, owner)
	return nil
}

func (w *world) Owners() ([]string, error) {
	var out []string
	for o := range w.plans {
		out = append(out, o)
	}
	return out, nil
}

func (w *world) Lock(context.Context, string) (func(), error) { return func() {}, nil }
func (w *world) Work(context.Context) (func(), error)         { return func() {}, nil }

func links(names ...string) plan.Plan {
	p := plan.Plan{Owner: "sandbox/x"}
	for _, n := range names {
		p.Objects = append(p.Objects, plan.Symlink{Path: n, Target: "t"})
	}
	return p
}

// Change touches only what differs from the record: what somebody has made of
// the rest stays.
func TestChangeLeavesTheRestAlone(t *testing.T) {
	w := newWorld()
	e := &Engine{Kernel: w, Store: w}
	if _, err := e.Apply(t.Context(), links("a", "b", "c")); err != nil {
		t.Fatal(err)
	}
	theirs := plan.Symlink{Path: "b", Target: "theirs"}
	w.live[theirs.Key()] = theirs
	want := links("b", "c", "d")
	want.Objects[1] = plan.Symlink{Path: "c", Target: "new"}
	n, err := e.Change(t.Context(), want)
	if err != nil || n != 3 {
		t.Errorf("%d changes, %v; want 3", n, err)
	}
	live := map[string]plan.Object{theirs.Key(): theirs}
	for _, o := range want.Objects[1:] {
		live[o.Key()] = o
	}
	if d := cmp.Diff(live, w.live); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want, w.plans[want.Owner]); d != "" {
		t.Error(d)
	}
}

func TestApplyMakesTheKernelMatch(t *testing.T) {
	w := newWorld()
	e := &Engine{Kernel: w, Store: w}
	for _, p := range []plan.Plan{links("a", "b"), links("b", "c"), links()} {
		if _, err := e.Apply(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if len(w.live) != len(p.Objects) {
			t.Errorf("after %d wanted objects the kernel has %v", len(p.Objects), w.live)
		}
		if changed, err := e.Apply(t.Context(), p); changed != 0 || err != nil {
			t.Errorf("the second time changed %d (%v), want nothing", changed, err)
		}
		if d := cmp.Diff(len(p.Objects), len(w.plans["sandbox/x"].Objects)); d != "" {
			t.Error(d)
		}
	}
	if err := e.Remove(t.Context(), "sandbox/x"); err != nil || len(w.plans) != 0 {
		t.Errorf("Remove: %v, left %v", err, w.plans)
	}
}

// TestNothingLeaksWhereverItIsKilled is design.md's experiment: create, update
// and remove, killed at each step; what the record names must cover what exists.
func TestNothingLeaksWhereverItIsKilled(t *testing.T) {
	run := func(w *world) error {
		e := &Engine{Kernel: w, Store: w}
		if _, err := e.Apply(context.Background(), links("a", "b", "c")); err != nil {
			return err
		}
		if _, err := e.Apply(context.Background(), links("c", "d")); err != nil {
			return err
		}
		return e.Remove(context.Background(), "sandbox/x")
	}
	for k := 0; ; k++ {
		w := newWorld()
		w.budget = k
		err := run(w)
		if err != nil && !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		w.budget = 1 << 30
		e := &Engine{Kernel: w, Store: w}
		if rerr := e.Remove(t.Context(), "sandbox/x"); rerr != nil {
			t.Fatal(rerr)
		}
		if len(w.live) != 0 {
			t.Errorf("killed at step %d: %v is left", k, w.live)
		}
		if err == nil {
			if k < 10 {
				t.Errorf("only %d steps: the test does not reach what it should", k)
			}
			return
		}
	}
}

func TestOrphansAreWhatNobodyOwns(t *testing.T) {
	w := newWorld()
	e := &Engine{Kernel: w, Store: w}
	if _, err := e.Apply(t.Context(), links("a")); err != nil {
		t.Fatal(err)
	}
	orphan := plan.Symlink{Path: "orphan"}
	w.live[orphan.Key()] = orphan
	got, err := e.Orphans(t.Context())
	if err != nil || len(got) != 1 || got[0] != plan.Object(orphan) {
		t.Errorf("Orphans = %v, %v", got, err)
	}
	if len(w.live) != 2 {
		t.Errorf("left: %v", w.live)
	}
}

func TestFailuresNameTheOwner(t *testing.T) {
	w := newWorld()
	w.budget = 1 // the record, not the object
	_, err := (&Engine{Kernel: w, Store: w}).Apply(t.Context(), links("a"))
	if want := fmt.Sprintf("sandbox/x: %v", errKilled); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if len(w.plans["sandbox/x"].Objects) != 1 {
		t.Error("the record must name what may exist")
	}
}
