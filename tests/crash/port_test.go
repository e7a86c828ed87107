package crash

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A command that is killed before it has reserved its port leaves it to
// another, which is under way already: cleaning up after the first must not
// take it from the second.
func TestInheritedPort(t *testing.T) {
	t.Parallel()
	h := newHost(t, place{})
	next(h, 0)
	empty := h.Settled()
	first := []string{"create", "--name", "first", "-p", "8080:80"}
	at, point := 0, ""
	for !strings.HasPrefix(point, "host port add") {
		if at++; at == limit {
			t.Fatal("no port is reserved")
		}
		point = crashAt(t, h, at, first...)
		h.OK("gc") // whose own points do not count
	}
	// The second has looked for killed commands, and waits for its lock.
	lock := filepath.Join(h.Root, "run/locks/sandbox:second")
	holder := h.Start(nil, "flock", "-F", lock, "sh", "-c", "echo locked; exec sleep 1000")
	holder.Await("locked")
	second := h.StartSandnet("create", "--name", "second", "-p", "8080:80")
	// Nothing shows that it has come that far; where it has not, it looks after
	// the crash, and the test proves less.
	time.Sleep(300 * time.Millisecond)
	if again := crashAt(t, h, at, first...); again != point {
		t.Fatalf("killed before %s, not before %s", again, point)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if r := second.Result(); r.Code != 0 {
		t.Fatal(r)
	}
	if out := h.OK("gc"); !strings.Contains(out, "sandbox/first") {
		t.Fatalf("gc found nothing of the first: %q", out)
	}
	box := h.Sandbox("second")
	box.ServeTCP("0.0.0.0:80")
	h.Reaches("tcp", "127.0.0.1:8080", box, "")
	if err := h.Bind("tcp4", "0.0.0.0:8080"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the port of the second can be taken: %v", err)
	}
	h.Settled() // ends the server
	h.OK("rm", "second")
	if i, d := h.Becomes(empty); i < 0 {
		t.Errorf("the host differs:\n%s", d)
	}
}
