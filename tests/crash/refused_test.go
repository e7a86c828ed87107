package crash

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// TestRefused kills commands that would have been refused: what they are about
// lives on, with its processes.
func TestRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t, place{})
	h.OK("create", "--name", "x", "-p", "8080:80")
	h.OK("run", "-d", "--name", "job", "--", "sleep", "1000")
	h.OK("create", "--name", "side", "--net", "container:x")
	before := h.OK("ps", "--format", "json")
	for _, op := range [][]string{
		{"create", "--name", "x"},
		{"run", "--name", "x", "--", "true"},
		{"rm", "job"},
		{"rm", "x"},
		{"network", "rm", "bridge"},
		{"network", "create", "bridge"},
		{"network", "connect", "bridge", "x"},
		{"network", "disconnect", "bridge", "side"},
		{"port", "add", "x", "9000:90", "8080:81"},
		{"port", "add", "job", "8080:80"},
	} {
		n := 1
		for ; n < limit; n++ {
			r := h.SandnetEnv([]string{fmt.Sprint("SANDNET_CRASH_AT=", n)}, op...)
			if r.Signal != syscall.SIGKILL {
				if r.Code == 0 {
					t.Fatalf("not refused: %s", r)
				}
				break
			}
			for _, next := range []string{"ps", "gc"} {
				h.OK(next)
			}
			if after := h.OK("ps", "--format", "json"); after != before {
				t.Fatalf("%s, killed at %d: sandboxes were %s\nand are %s", strings.Join(op, " "), n, before, after)
			}
		}
		t.Logf("%s: killed at each of %d points", strings.Join(op, " "), n-1)
	}
	h.OK("rm", "-f", "side", "job", "x")
}
