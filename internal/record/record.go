// Package record keeps plans on disk, one JSON file per owner, and the locks
// that go with them. The files live and die with the kernel state they
// describe: a store found from an earlier boot is emptied.
//
// An owner's lock file exists only while an operation on it is under way. One
// that nobody holds, and whose holder had begun to change something, says that
// the operation was killed: Interrupted finds
// those, so that every command can clean up after its predecessor at the
// price of reading one directory, which is nearly always empty.
package record

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// Store is a directory of records. It is safe for concurrent use by any number
// of processes.
type Store struct {
	dir string
	log *slog.Logger
}

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// New returns the store in dir; it reads and changes nothing yet. What it has
// to set aside it tells log.
func New(dir string, log *slog.Logger) *Store { return &Store{dir, log} }

// Prepare makes the directory (0700) if need be, and empties it if the machine
// has booted since it was written. It comes before any use that writes.
func (s *Store) Prepare() error {
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return err
	}
	if s.isOf(boot) {
		return nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	// The first commands after a boot often start together: one clears, the
	// others wait and find what it has made.
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := flock(dir, unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", s.dir, err)
	}
	if s.isOf(boot) {
		return nil
	}
	stamp := s.stamp()
	if old, err := os.ReadFile(stamp); err == nil && len(old) > 0 {
		if err := empty(dir); err != nil {
			return fmt.Errorf("clear state of an earlier boot: %w", err)
		}
	}
	for _, d := range []string{"records", "locks", "attached"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return err
		}
	}
	return writeFile(stamp, boot, false)
}

func (s *Store) stamp() string { return filepath.Join(s.dir, "boot-id") }

// isOf reports whether the directory was made since the machine has booted.
func (s *Store) isOf(boot []byte) bool {
	old, err := os.ReadFile(s.stamp())
	return err == nil && bytes.Equal(old, boot)
}

// flock takes a lock on a file or directory, waiting for it unless how says not to.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// empty removes everything in a directory but the directory, and the stamp
// last: a command that is killed in between leaves it to the next.
func empty(dir *os.File) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == "boot-id" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir.Name(), name)); err != nil {
			return err
		}
	}
	return os.Remove(filepath.Join(dir.Name(), "boot-id"))
}

// Has reports whether owner has a record.
func (s *Store) Has(owner string) bool {
	_, err := os.Stat(s.path(owner))
	return err == nil
}

func (s *Store) path(owner string) string { return filepath.Join(s.dir, "records", owner+".json") }

// Load reads owner's plan; fs.ErrNotExist if it has none. One that cannot be
// read as a plan is set aside, and then there is none either: what it named
// carries a mark, by which gc finds it.
func (s *Store) Load(owner string) (plan.Plan, error) {
	data, err := os.ReadFile(s.path(owner))
	if err != nil {
		return plan.Plan{}, err
	}
	p, err := decode(owner, data)
	var newer *plan.UnknownKindError
	if err == nil || errors.As(err, &newer) {
		return p, err
	}
	if aside := s.SetAside(s.path(owner), data, err); aside != nil {
		return p, aside
	}
	return p, fmt.Errorf("record of %s: %w", owner, fs.ErrNotExist)
}

func decode(owner string, data []byte) (p plan.Plan, err error) {
	if err = json.Unmarshal(data, &p); err == nil && p.Owner != owner {
		err = fmt.Errorf("it is of %q", p.Owner)
	}
	if err != nil {
		return p, fmt.Errorf("record of %s: %w", owner, err)
	}
	return p, nil
}

// SetAside moves a corrupt file out of the way, for somebody to look at, and
// says so. corrupt is what was read: if another process has replaced the file
// since, it stays, and the next command reads it.
func (s *Store) SetAside(path string, corrupt []byte, why error) error {
	now, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(now, corrupt) {
		return nil
	}
	dir := filepath.Join(s.dir, "corrupt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// One name per content: two processes that find the same file agree on it.
	sum := fnv.New32a()
	sum.Write(corrupt)
	to := filepath.Join(dir, fmt.Sprintf("%s:%s-%08x", filepath.Base(filepath.Dir(path)), filepath.Base(path), sum.Sum32()))
	if err := os.Rename(path, to); errors.Is(err, unix.EXDEV) {
		// A definition may lie on another file system.
		if err := os.WriteFile(to, corrupt, 0o600); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.log.Warn("set a corrupt file aside; 'sandnet gc' removes what only it knew", "file", path, "as", to, "error", why)
	return nil
}

// Same reports whether p is what its owner's record says. It compares the sums
// alone, which costs a fraction of reading the plan.
func (s *Store) Same(p plan.Plan) bool {
	want := `{"sum":"` + p.Sum() + `"`
	f, err := os.Open(s.path(p.Owner))
	if err != nil {
		return false
	}
	defer f.Close()
	have := make([]byte, len(want))
	_, err = io.ReadFull(f, have)
	return err == nil && string(have) == want
}

// Meta is what owner's record says of itself, or nil; it is near the file's
// beginning, and the plan behind it is not read.
func (s *Store) Meta(owner string) json.RawMessage {
	f, err := os.Open(s.path(owner))
	if err != nil {
		return nil
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	for {
		key, err := dec.Token()
		if err != nil || key == "objects" {
			return nil
		}
		if key == "meta" {
			var meta json.RawMessage
			if dec.Decode(&meta) != nil {
				return nil
			}
			return meta
		}
	}
}

// Save replaces owner's plan atomically.
func (s *Store) Save(p plan.Plan) error {
	data, err := p.MarshalJSON() // json.Marshal would go over it once more
	if err != nil {
		return fmt.Errorf("record of %s: %w", p.Owner, err)
	}
	path := s.path(p.Owner)
	err = writeFile(path, data, false)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		err = writeFile(path, data, false)
	}
	return err
}

// Remove drops owner's record; a missing one is no error.
func (s *Store) Remove(owner string) error {
	crash.Point("record remove")
	if err := os.Remove(s.path(owner)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Owners lists all owners with a record, sorted.
func (s *Store) Owners() ([]string, error) {
	root := filepath.Join(s.dir, "records")
	var out []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if rel, ok := strings.CutSuffix(p[len(root):], ".json"); ok && !d.IsDir() && !strings.HasPrefix(d.Name(), ".") {
			out = append(out, rel[1:])
		}
		return nil
	})
	return out, err
}

// Lock takes owner's lock, waiting for its holder until ctx ends. It gives
// fs.ErrExist if the last operation on owner was killed: what that left has to
// be cleaned up first, see Interrupted.
func (s *Store) Lock(ctx context.Context, owner string) (unlock func(), err error) {
	unlock, err = s.wait(ctx, "locks", owner)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", owner, err)
	}
	crash.Point("record lock")
	return unlock, nil
}

// wait claims a lock once its holder lets go of it.
func (s *Store) wait(ctx context.Context, kind, owner string) (release func(), err error) {
	for {
		release, err := s.claim(kind, owner)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another sandnet is working on it: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// claim takes a lock that nobody has and nobody died with.
func (s *Store) claim(kind, owner string) (unlock func(), err error) {
	f, begun, err := s.tryLock(kind, owner, os.O_CREATE)
	if err != nil {
		return nil, err
	}
	if begun {
		f.Close()
		return nil, fs.ErrExist
	}
	release := releaser(f)
	return func() { release(true) }, nil
}

// How long a lock file is once its holder has begun to change something, in
// bytes: the owner is being made or removed, or it lives and is changed.
const (
	begun    = 1
	changing = 2
)

// Begin says that the holder of owner's lock is about to make or remove it: if
// it is killed from now on, Interrupted returns the owner. Until then a lock
// file is empty and says nothing.
func (s *Store) Begin(owner string) error {
	crash.Point("record begin")
	return begin(s.lockPath("locks", owner), begun)
}

// BeginChange is Begin for an owner that lives on: killed from now on, the
// operation has to be finished, and nothing else removed. Changing tells.
func (s *Store) BeginChange(owner string) error {
	crash.Point("record begin change")
	return begin(s.lockPath("locks", owner), changing)
}

// Changing reports whether the operation on owner, under way or killed, is one
// that BeginChange has begun.
func (s *Store) Changing(owner string) bool {
	info, err := os.Stat(s.lockPath("locks", owner))
	return err == nil && info.Size() == changing
}

// begin gives a lock file the length that says what is under way. That takes no
// space: what is to be removed from a full disk can be.
func begin(lock string, what int64) error { return os.Truncate(lock, what) }

// Locked reports whether an operation on owner is under way, or was killed.
func (s *Store) Locked(owner string) bool {
	_, err := os.Stat(s.lockPath("locks", owner))
	return err == nil
}

func (s *Store) lockPath(kind, owner string) string {
	return filepath.Join(s.dir, kind, strings.ReplaceAll(owner, "/", ":"))
}

// Attach ties owner to this process: once the process is gone without having
// called release, Abandoned returns the owner. The owner must be new.
func (s *Store) Attach(ctx context.Context, owner string) (release func(), err error) {
	release, err = s.wait(ctx, "attached", owner)
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", owner, err)
	}
	crash.Point("record attach")
	return release, begin(s.lockPath("attached", owner), begun)
}

// Interrupted locks and returns every owner whose operation was killed after
// it had begun. The caller cleans each up and calls its release, with false if
// it could not: the owner is then returned again.
func (s *Store) Interrupted() (map[string]func(done bool), error) { return s.unheld("locks") }

// Abandoned returns every owner that was attached to a process which is gone.
// The caller removes each and calls its release, as for Interrupted.
func (s *Store) Abandoned() (map[string]func(done bool), error) { return s.unheld("attached") }

func (s *Store) unheld(kind string) (map[string]func(done bool), error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, kind))
	if err != nil || len(entries) == 0 {
		return nil, err
	}
	out := map[string]func(bool){}
	for _, e := range entries {
		owner := strings.ReplaceAll(e.Name(), ":", "/")
		f, begun, err := s.tryLock(kind, owner, 0)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return out, err
		}
		if kind == "locks" { // nobody is writing the record: what is half written stays so
			os.Remove(tempName(s.path(owner)))
		}
		if begun {
			out[owner] = releaser(f)
		} else {
			releaser(f)(true)
		}
	}
	return out, nil
}

// tryLock opens and flocks a lock file, and says whether its holder
// had begun to change something. The file may have been unlinked by its last holder in between, then
// it is opened again.
func (s *Store) tryLock(kind, owner string, flag int) (f *os.File, begun bool, err error) {
	name := s.lockPath(kind, owner)
	for {
		f, err := os.OpenFile(name, os.O_RDWR|flag, 0o600)
		if err != nil {
			return nil, false, err
		}
		if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, false, err
		}
		var have, named unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &have); err != nil {
			f.Close()
			return nil, false, err
		}
		if err := unix.Stat(name, &named); err == nil && have.Ino == named.Ino && have.Dev == named.Dev {
			return f, have.Size > 0, nil
		}
		f.Close()
	}
}

// releaser ends a lock. What is not done keeps its file, for the next to find.
func releaser(f *os.File) func(done bool) {
	return func(done bool) {
		crash.Point("record unlock")
		if done {
			os.Remove(f.Name())
		}
		f.Close()
	}
}

// WriteDurable replaces a file outside the records so that it survives a loss
// of power, too.
func (s *Store) WriteDurable(path string, data []byte) error { return writeFile(path, data, true) }

// RemoveDurable removes such a file, and what a killed WriteDurable left of it.
func (s *Store) RemoveDurable(path string) error {
	for _, p := range []string{tempName(path), path} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// writeFile replaces path atomically (0600). Durable writes survive a loss of
// power as well as of the process: the file and its directory are synced. A
// name that starts with a dot is never a record, only a write that was killed.
func writeFile(path string, data []byte, durable bool) error {
	tmp := tempName(path)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	crash.Point("record create")
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	crash.Point("record rename")
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	crash.Point("record renamed")
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func tempName(path string) string {
	dir, base := filepath.Split(path)
	return filepath.Join(dir, ".tmp-"+base)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
