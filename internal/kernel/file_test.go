package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandnet/sandnet/internal/plan"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFilesComeAndGoWithTheirDirectory(t *testing.T) {
	k, dir := New(0, ""), t.TempDir()
	objs := []plan.Object{
		plan.File{Path: filepath.Join(dir, "web", "hosts"), Content: "a\n"},
		plan.Symlink{Path: filepath.Join(dir, "web", "link"), Target: "hosts"},
	}
	for i, want := range []int{2, 0} {
		if n := mustEnsure(t, k, objs); n != want {
			t.Errorf("time %d: %d changes, want %d", i+1, n, want)
		}
	}
	if got := read(t, filepath.Join(dir, "web", "link")); got != "a\n" {
		t.Errorf("content %q", got)
	}
	mustDelete(t, k, objs)
	mustDelete(t, k, objs)
	if _, err := os.Stat(filepath.Join(dir, "web")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

func TestHostsFilesStayCurrent(t *testing.T) {
	k, dir := New(0, ""), t.TempDir()
	app, db := filepath.Join(dir, "app"), filepath.Join(dir, "db")
	line := func(dir, addr, name string) plan.HostsLine {
		return plan.HostsLine{Dir: dir, Addr: netip.MustParseAddr(addr), Names: []string{name}}
	}
	a, b := line(app, "10.1.0.2", "a"), line(app, "10.1.0.3", "b")
	own := plan.HostsFile{Path: filepath.Join(dir, "etc", "hosts"), Header: plan.LocalHosts + "192.0.2.1\textra\n", Dirs: []string{app, db}}
	links := []plan.Object{plan.Symlink{Path: filepath.Join(app, "a.hosts"), Target: own.Path}, plan.Symlink{Path: filepath.Join(db, "a.hosts"), Target: own.Path}}
	mustEnsure(t, k, append([]plan.Object{line(db, "10.2.0.9", "old"), a}, append(links, own)...))

	shared, err := os.Stat(filepath.Join(app, plan.SharedHosts))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{2, 0} {
		if n := mustEnsure(t, k, []plan.Object{b, line(db, "10.2.0.4", "c")}); n != want {
			t.Errorf("time %d: %d changes, want %d", i+1, n, want)
		}
	}
	if d := cmp.Diff(plan.LocalHosts+a.Line()+b.Line(), read(t, filepath.Join(app, plan.SharedHosts))); d != "" {
		t.Error(d)
	}
	want := own.Header + a.Line() + "10.2.0.9\told\n" + b.Line() + "10.2.0.4\tc\n"
	if d := cmp.Diff(want, read(t, own.Path)); d != "" {
		t.Error(d)
	}
	if now, err := os.Stat(filepath.Join(app, plan.SharedHosts)); err != nil || !os.SameFile(shared, now) {
		t.Errorf("the shared file is not the same one any more (%v): mounts of it would be stale", err)
	}
	mustDelete(t, k, []plan.Object{b})
	if d := cmp.Diff(plan.LocalHosts+a.Line(), read(t, filepath.Join(app, plan.SharedHosts))); d != "" {
		t.Error(d)
	}
	if n := mustEnsure(t, k, []plan.Object{own}); n != 0 {
		t.Errorf("%d changes to a file that has all its lines, in the order they came", n)
	}
	// Off one network: the file stays the same one, since it may be mounted.
	before, err := os.Stat(own.Path)
	if err != nil {
		t.Fatal(err)
	}
	mustDelete(t, k, []plan.Object{a, links[0]})
	own.Header, own.Dirs = plan.LocalHosts, []string{db}
	mustEnsure(t, k, []plan.Object{own})
	if d := cmp.Diff(own.Header+"10.2.0.9\told\n10.2.0.4\tc\n", read(t, own.Path)); d != "" {
		t.Error(d)
	}
	if now, err := os.Stat(own.Path); err != nil || !os.SameFile(before, now) {
		t.Errorf("the file is not the same one any more (%v)", err)
	}
	mustDelete(t, k, []plan.Object{line(db, "10.2.0.9", ""), line(db, "10.2.0.4", ""), links[1], own})
	for _, d := range []string{app, db, filepath.Dir(own.Path)} {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			entries, _ := os.ReadDir(d)
			t.Errorf("%s is left with %v", d, entries)
		}
	}
}

func TestSysctlIsPutBackUnlessChanged(t *testing.T) {
	k, _ := testKernel(t)
	s := plan.Sysctl{Name: "net/ipv4/ip_forward", Value: "1", Restore: "0"}
	mustEnsure(t, k, []plan.Object{s})
	mustDelete(t, k, []plan.Object{s})
	if got := read(t, "/proc/sys/net/ipv4/ip_forward"); got != "0\n" {
		t.Errorf("ip_forward = %q after Delete, want what it was", got)
	}
	other := plan.Sysctl{Name: "net/ipv4/conf/lo/rp_filter", Value: "1", Restore: "0"}
	mustEnsure(t, k, []plan.Object{other})
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/lo/rp_filter", []byte("2"), 0); err != nil {
		t.Fatal(err)
	}
	mustDelete(t, k, []plan.Object{other})
	if got := read(t, "/proc/sys/net/ipv4/conf/lo/rp_filter"); got != "2\n" {
		t.Errorf("rp_filter = %q: an administrator's later change was undone", got)
	}
}

// A neighbour that comes while a hosts file is being made is in it, or reaches
// it: nobody falls in between.
func TestHostsFileAndNewNeighbours(t *testing.T) {
	for range 20 {
		dir := t.TempDir()
		dirs := []string{filepath.Join(dir, "n"), filepath.Join(dir, "m")}
		const count = 8
		var files [count]plan.HostsFile
		var all sync.WaitGroup
		for i := range count {
			files[i] = plan.HostsFile{Path: filepath.Join(dir, fmt.Sprint("f", i), "hosts"), Header: plan.LocalHosts + "10.9.9.9 x\n", Dirs: slices.Clone(dirs)}
			if i%2 == 1 { // in the other order, too
				slices.Reverse(files[i].Dirs)
			}
			line := plan.HostsLine{Dir: dirs[i%2], Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), Names: []string{fmt.Sprint("s", i)}}
			all.Go(func() {
				for _, d := range files[i].Dirs { // as a plan has it: the links first
					if _, err := ensureSymlink(plan.Symlink{Path: filepath.Join(d, fmt.Sprintf("f%d.hosts", i)), Target: files[i].Path}); err != nil {
						t.Error(err)
					}
				}
				if _, err := New(testMark, dir).ensureHostsFile(files[i]); err != nil {
					t.Error(err)
				}
			})
			all.Go(func() {
				if _, err := ensureHostsLine(line); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for _, f := range files {
			b, err := os.ReadFile(f.Path)
			if err != nil {
				t.Fatal(err)
			}
			for i := range count {
				if n := strings.Count(string(b), fmt.Sprintf("\ts%d\n", i)); n != 1 {
					t.Fatalf("s%d is %d times in\n%s", i, n, b)
				}
			}
		}
	}
}
