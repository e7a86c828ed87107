package record

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sandnet/sandnet/internal/plan"
)

func open(t *testing.T) *Store {
	t.Helper()
	s := New(filepath.Join(t.TempDir(), "run"), slog.New(slog.DiscardHandler))
	if err := s.Prepare(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSaveLoadRemove(t *testing.T) {
	s := open(t)
	want := plan.Plan{Owner: "sandbox/web", Objects: []plan.Object{plan.Symlink{Path: "a", Target: "b"}}}
	if err := s.Save(want); err != nil {
		t.Fatal(err)
	}
	got, err := s.Load("sandbox/web")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	other := want
	other.Objects = []plan.Object{plan.Symlink{Path: "a", Target: "c"}}
	if !s.Same(want) || s.Same(other) || s.Same(plan.Plan{Owner: "sandbox/db"}) {
		t.Error("Same does not tell the record's plan from others")
	}
	if owners, _ := s.Owners(); len(owners) != 1 || owners[0] != "sandbox/web" {
		t.Errorf("Owners() = %v", owners)
	}
	for range 2 { // the second time there is nothing to do
		if err := s.Remove("sandbox/web"); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Load("sandbox/web"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load after Remove: %v, want fs.ErrNotExist", err)
	}
}

func TestStateIsRootsAlone(t *testing.T) {
	s := open(t)
	for _, dir := range []string{"", "records", "locks", "attached"} {
		st, err := os.Stat(filepath.Join(s.dir, dir))
		if err != nil {
			t.Fatal(err)
		}
		if perm := st.Mode().Perm(); perm != 0o700 {
			t.Errorf("%s has mode %o, want 0700", dir, perm)
		}
	}
}

func TestAnotherBootEmptiesTheStore(t *testing.T) {
	s := open(t)
	if err := s.Save(plan.Plan{Owner: "sandbox/web"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(); err != nil || !s.Has("sandbox/web") {
		t.Fatalf("Prepare in the same boot: %v; the record must stay", err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "boot-id"), []byte("another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(); err != nil || s.Has("sandbox/web") {
		t.Errorf("Prepare after a boot: %v; the record must be gone", err)
	}
}

func TestADamagedRecordIsNamed(t *testing.T) {
	s := open(t)
	if err := s.Save(plan.Plan{Owner: "sandbox/web"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path("sandbox/web"), []byte(`{"owner":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load("sandbox/web"); err == nil || !strings.Contains(err.Error(), "sandbox/web") {
		t.Errorf("Load = %v, want an error that names the owner", err)
	}
}

func TestLockExcludes(t *testing.T) {
	s := open(t)
	unlock, err := s.Lock(t.Context(), "sandbox/web")
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Lock(short, "sandbox/web"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second Lock: %v, want it to wait", err)
	}
	if in, err := s.Interrupted(); len(in) != 0 || err != nil {
		t.Errorf("Interrupted() = %v, %v while the lock is held", in, err)
	}
	unlock()
	if s.Locked("sandbox/web") {
		t.Error("the lock file is left")
	}
}

// Who settles waits for those at work, and comes before those who come later.
func TestSettle(t *testing.T) {
	s := open(t)
	first, err := s.Work(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Work(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second()
	settled := make(chan func())
	go func() {
		resume, err := s.Settle(t.Context())
		if err != nil {
			t.Error(err)
		}
		settled <- resume
	}()
	work := func() error {
		short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		done, err := s.Work(short)
		if err == nil {
			done()
		}
		return err
	}
	for range 1000 {
		if err = work(); err != nil {
			break
		}
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("work begins though somebody waits to settle: %v", err)
	}
	select {
	case <-settled:
		t.Fatal("settled while somebody was at work")
	default:
	}
	first()
	resume := <-settled
	if err := work(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("work beside settling: %v", err)
	}
	resume()
	if err := work(); err != nil {
		t.Error(err)
	}
}

func TestAChangeIsNoRemoval(t *testing.T) {
	s := open(t)
	for _, begin := range []func(string) error{s.Begin, s.BeginChange} {
		unlock, err := s.Lock(t.Context(), "sandbox/web")
		if err != nil {
			t.Fatal(err)
		}
		if s.Changing("sandbox/web") {
			t.Error("a lock alone counts as a change")
		}
		if err := begin("sandbox/web"); err != nil {
			t.Fatal(err)
		}
		unlock()
	}
	unlock, err := s.Lock(t.Context(), "sandbox/web")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := s.Begin("sandbox/web"); err != nil || s.Changing("sandbox/web") {
		t.Errorf("a making counts as a change (%v)", err)
	}
	if err := s.BeginChange("sandbox/web"); err != nil || !s.Changing("sandbox/web") {
		t.Errorf("a change does not count as one (%v)", err)
	}
}

// TestAKilledHolderIsFound kills a real process that holds a lock.
func TestAKilledHolderIsFound(t *testing.T) {
	if dir := os.Getenv("RECORD_TEST_DIR"); dir != "" {
		s := New(dir, slog.New(slog.DiscardHandler))
		if _, err := s.Lock(context.Background(), "sandbox/web"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Lock(context.Background(), "sandbox/idle"); err != nil {
			t.Fatal(err)
		}
		if err := s.Begin("sandbox/web"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Attach(context.Background(), "sandbox/run"); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("held\n")
		time.Sleep(time.Minute)
	}
	s := open(t)
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "RECORD_TEST_DIR="+s.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	tmp := tempName(s.path("sandbox/web"))
	if err := os.MkdirAll(filepath.Dir(tmp), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tmp, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	check := func(what string, find func() (map[string]func(bool), error), owner string) {
		for _, done := range []bool{false, true} { // what could not be cleaned up comes again
			found, err := find()
			if err != nil || len(found) != 1 || found[owner] == nil {
				t.Fatalf("%s = %v, %v; want %s alone", what, found, err, owner)
			}
			found[owner](done)
		}
		if again, err := find(); len(again) != 0 || err != nil {
			t.Errorf("%s after release = %v, %v", what, again, err)
		}
	}
	check("Interrupted", s.Interrupted, "sandbox/web")
	check("Abandoned", s.Abandoned, "sandbox/run")
	if _, err := os.Stat(tmp); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a half-written record is left: %v", err)
	}
}

// What cannot be read is set aside and told; the rest goes on. A record of a
// newer version is not corrupt: it stays, and is refused.
func TestCorruptRecords(t *testing.T) {
	good := plan.Plan{Owner: "sandbox/good"}
	for name, text := range map[string]string{
		"empty": "", "garbage": "\x00\x01", "cut": `{"sum":"x","owner":"sandbox/x","obj`, "another's": `{"owner":"sandbox/y","objects":[]}`,
	} {
		t.Run(name, func(t *testing.T) {
			var told strings.Builder
			s := New(t.TempDir(), slog.New(slog.NewTextHandler(&told, nil)))
			if err := errors.Join(s.Prepare(), s.Save(good), s.Save(plan.Plan{Owner: "sandbox/x"})); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.path("sandbox/x"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Load("sandbox/x"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Load: %v", err)
			}
			owners, err := s.Owners()
			if err != nil || len(owners) != 1 {
				t.Errorf("owners %v, %v", owners, err)
			}
			aside, _ := filepath.Glob(filepath.Join(s.dir, "corrupt", "*"))
			if len(aside) != 1 || !strings.Contains(told.String(), aside[0]) || strings.Count(told.String(), "\n") != 1 {
				t.Fatalf("set aside %v, told %q", aside, told.String())
			}
			if b, err := os.ReadFile(aside[0]); err != nil || string(b) != text {
				t.Errorf("it holds %q, %v", b, err)
			}
			if _, err := s.Load("sandbox/good"); err != nil {
				t.Error(err)
			}
		})
	}
	s := open(t)
	if err := s.Save(good); err != nil {
		t.Fatal(err)
	}
	newer := `{"owner":"sandbox/good","objects":[{"kind":"teleport"}]}`
	if err := os.WriteFile(s.path("sandbox/good"), []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load("sandbox/good"); err == nil || errors.Is(err, fs.ErrNotExist) || !s.Has("sandbox/good") {
		t.Errorf("a newer record: %v", err)
	}
}

// A file that was replaced between the look and the setting aside stays.
func TestSetAsideLeavesWhatIsNew(t *testing.T) {
	s := open(t)
	if err := s.Save(plan.Plan{Owner: "sandbox/x"}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetAside(s.path("sandbox/x"), []byte("garbage"), errors.New("x")); err != nil || !s.Has("sandbox/x") {
		t.Errorf("a new record was set aside: %v", err)
	}
}
