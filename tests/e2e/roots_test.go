package e2e

import (
	"strings"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

// TestSecondRoot: another state directory in the same network namespace neither
// adopts nor removes what is there.
func TestSecondRoot(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	h.OK("create", "--name", "x", "-p", "8080:80")
	before := h.Settled()
	other := t.TempDir()
	h.OK("--root", other, "gc")
	h.Unchanged(before, "gc of another root")
	for _, args := range [][]string{{"create"}, {"network", "create", "n"}} {
		r := h.Sandnet(append([]string{"--root", other}, args...)...)
		if r.Code == 0 || strings.Count(strings.TrimSpace(r.Stderr), "\n") > 1 {
			t.Errorf("a second root: %s", r)
		}
		h.Unchanged(before, "another root")
	}
	h.OK("rm", "x")
}
