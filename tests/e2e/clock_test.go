package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

var stamp = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)

// restamp makes the host's state one that was written at another time, as it
// looks once the clock was set.
func restamp(t *testing.T, h *lab.Host, at time.Time) (stamps int) {
	t.Helper()
	err := filepath.WalkDir(h.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 || filepath.Base(filepath.Dir(path)) == "netns" {
			return err
		}
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			n := len(stamp.FindAll(data, -1))
			stamps += n
			if n > 0 {
				data = stamp.ReplaceAll(data, []byte(at.Format(time.RFC3339)))
				if err := os.WriteFile(path, data, 0o600); err != nil {
					return err
				}
			}
		}
		return os.Chtimes(path, at, at)
	})
	if err != nil {
		t.Fatal(err)
	}
	return stamps
}

// Nothing depends on the wall clock: what was made in the future (the clock was
// set back), or before there was a clock, is what it was.
func TestClock(t *testing.T) {
	for _, at := range []time.Time{time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(0, 0).UTC()} {
		t.Run(at.Format("2006"), func(t *testing.T) {
			t.Parallel()
			h := lab.NewHost(t)
			before := used(t, h)
			h.OK("network", "create", "n", "--subnet", "10.61.0.0/24")
			web := create(t, h, "web", "--net", "n", "-p", "8080:80")
			h.OK("run", "-d", "--name", "job", "--", "sleep", "1000")
			front := h.StartSandnet("run", "--name", "front", "--", "sh", "-c", "echo ready; sleep 1000")
			front.Await("ready")
			if n := restamp(t, h, at); n < 5 { // three sandboxes, two networks
				t.Fatalf("%d stamps", n)
			}
			if out := h.OK("gc"); out != "" {
				t.Errorf("gc removes %s", out)
			}
			for name, want := range map[string]string{"web": "created", "job": "running", "front": "running"} {
				if s := inspect(t, h, name); s.Status != want || s.Created != at.Format(time.RFC3339) {
					t.Errorf("%s is %s, made %s; not %s", name, s.Status, s.Created, want)
				}
			}
			h.Refused(1, []string{"job is running"}, "rm", "job")
			h.OK("exec", "web", "--", "true")
			late := create(t, h, "late", "--net", "n")
			web.ServeTCP("0.0.0.0:80")
			late.Reaches("tcp", "10.61.0.2:80", web, "")
			h.Reaches("tcp", "127.0.0.1:8080", web, "")
			if err := front.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			front.Result()
			h.OK("gc")
			h.OK("rm", "-f", "web", "job", "late")
			h.OK("network", "rm", "n")
			if r := h.Sandnet("inspect", "front"); r.Code == 0 {
				t.Errorf("a killed run is still there: %s", r)
			}
			restamp(t, h, time.Now().UTC())
			h.Unchanged(before, "rm of everything")
		})
	}
}
