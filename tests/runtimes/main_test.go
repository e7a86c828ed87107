// Package runtimes tests sandnet under the container runtimes that call it:
// runc, crun and podman through OCI hooks, and whoever speaks CNI. They are
// real, run real containers made of busybox, and have to find and leave the
// host as they would without sandnet. It contains nothing but tests.
package runtimes

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/tests/lab"
)

func TestMain(m *testing.M) { lab.Main(m, lab.Plain, lab.Crashing) }

// runtimes are the OCI runtimes under test.
var runtimes = []string{"runc", "crun"}

// container is what `sandnet inspect` says of a container's sandbox.
type container struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Mode      string `json:"mode"`
	PID       int    `json:"pid"`
	Status    string `json:"status"`
	Source    string `json:"source"`
	Container string `json:"container"`
	Endpoints []struct {
		Network   string   `json:"network"`
		Interface string   `json:"interface"`
		MAC       string   `json:"mac"`
		MTU       int      `json:"mtu"`
		Addresses []string `json:"addresses"`
	} `json:"endpoints"`
}

func inspect(t *testing.T, h *lab.Host, name string) container {
	t.Helper()
	var c []container
	if out := h.OK("inspect", name); json.Unmarshal([]byte(out), &c) != nil || len(c) != 1 {
		t.Fatalf("inspect %s: %s", name, out)
	}
	return c[0]
}

func (c container) address() string {
	a, _, _ := strings.Cut(c.Endpoints[0].Addresses[0], "/")
	return a
}

// used is a dump of a host on which sandnet has been used before.
func used(t *testing.T, h *lab.Host) lab.Dump {
	t.Helper()
	// crun refuses a machine with both versions of cgroups; what a bundle has to
	// do with them is not the question here.
	if err := unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	h.OK("create", "--name", "warmup")
	h.OK("rm", "warmup")
	return h.Settled()
}

// runtime is one OCI runtime on a host.
type runtime struct {
	*lab.Host
	t    *testing.T
	name string
	dir  string
}

func newRuntime(t *testing.T, h *lab.Host, name string) *runtime {
	return &runtime{h, t, name, t.TempDir()}
}

// rootfs is a root directory with busybox in it.
func rootfs(t *testing.T, dir string) string {
	t.Helper()
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "run"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []string{"sh", "cat", "sleep", "true", "httpd", "ip", "ls"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", cmd)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// bundle makes a bundle whose container runs a shell script.
func (r *runtime) bundle(name, script string) string {
	r.t.Helper()
	dir := filepath.Join(r.dir, name)
	rootfs(r.t, dir)
	r.Must("runc", "spec", "--bundle", dir)
	path := filepath.Join(dir, "config.json")
	var c map[string]any
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	process := c["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/bin/sh", "-c", script}
	c["root"].(map[string]any)["readonly"] = false
	c["hostname"] = name
	if data, err = json.Marshal(c); err == nil {
		err = os.WriteFile(path, data, 0o644)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return dir
}

// cmd runs the runtime.
func (r *runtime) cmd(args ...string) lab.Result {
	r.t.Helper()
	return r.Run(r.name, append([]string{"--root", filepath.Join(r.dir, "state")}, args...)...)
}

// start makes a bundle, patches it and starts its container in the background.
func (r *runtime) start(name, script string, options ...string) {
	r.t.Helper()
	dir := r.bundle(name, script)
	r.OK(append(append([]string{"oci", "patch"}, options...), dir)...)
	// Its output would keep the runtime waiting.
	res := r.Run("sh", "-c", fmt.Sprintf("exec %s --root %s run --detach --bundle %s %s </dev/null >%s/out 2>&1",
		r.name, filepath.Join(r.dir, "state"), dir, name, dir))
	if res.Code != 0 {
		out, _ := os.ReadFile(filepath.Join(dir, "out"))
		r.t.Fatalf("%s: %s", res, out)
	}
	r.t.Cleanup(func() { r.cmd("delete", "--force", name) })
}

func (r *runtime) delete(name string) {
	r.t.Helper()
	if res := r.cmd("delete", "--force", name); res.Code != 0 {
		r.t.Fatalf("%s", res)
	}
}
