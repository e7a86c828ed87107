package runtimes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/tests/lab"
)

// podman is a podman with storage and configuration of its own.
type podman struct {
	*lab.Host
	t   *testing.T
	dir string
}

func newPodman(t *testing.T, h *lab.Host) *podman {
	t.Helper()
	p := &podman{h, t, t.TempDir()}
	const conf = `[containers]
default_sysctls = []
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
`
	if err := os.WriteFile(filepath.Join(p.dir, "containers.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	// podman keeps locks there.
	if err := unix.Mount("tmpfs", "/dev/shm", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd("rm", "--all", "--force", "--time", "0")
		p.Run("sh", "-c", fmt.Sprintf("awk '{print $5}' /proc/self/mountinfo | grep ^%s/ | sort -r | xargs -r umount -l", p.dir))
		_ = unix.Unmount("/dev/shm", unix.MNT_DETACH)
	})
	return p
}

func (p *podman) cmd(args ...string) lab.Result {
	p.t.Helper()
	at := func(name string) string { return filepath.Join(p.dir, name) }
	// Its output would keep it waiting for what it has started.
	script := fmt.Sprintf(`podman --root %s --runroot %s --tmpdir %s --storage-driver vfs --hooks-dir %s "$@" >%s 2>&1 </dev/null; code=$?; cat %s; exit $code`,
		at("store"), at("run"), at("tmp"), at("hooks"), at("out"), at("out"))
	return p.RunEnv([]string{"CONTAINERS_CONF=" + at("containers.conf")}, "sh", append([]string{"-c", script, "podman"}, args...)...)
}

func (p *podman) ok(args ...string) string {
	p.t.Helper()
	r := p.cmd(args...)
	if r.Code != 0 {
		p.t.Fatalf("podman %s: %s", strings.Join(args, " "), r)
	}
	return r.Out()
}

func TestPodman(t *testing.T) {
	l := lab.New(t)
	p := newPodman(t, l.Host("host"))
	before := used(t, p.Host)
	if out := p.OK("hook", "install", "--dir", filepath.Join(p.dir, "hooks")); strings.Count(out, "\n") != 1 {
		t.Errorf("hook install says %q", out)
	}
	p.OK("network", "create", "app", "--subnet", "10.61.0.0/24")
	for name, annotations := range map[string][]string{
		"web": {"io.sandnet.network=bridge", `"io.sandnet.publish=8080:80,8443:443"`, "io.sandnet.name=front"},
		"db":  {"io.sandnet.network=app", "io.sandnet.ip=10.61.0.9"},
		"own": nil,
	} {
		args := []string{"run", "-d", "--name", name, "--network", "none"}
		for _, a := range annotations {
			args = append(args, "--annotation", a)
		}
		p.ok(append(args, "--rootfs", rootfs(t, filepath.Join(p.dir, name)), "/bin/sh", "-c", serve)...)
	}
	id := p.ok("inspect", "--format", "{{.Id}}", "web")
	c := inspect(t, p.Host, "front")
	if c.ID != id || c.Container != id || c.Source != "oci" {
		t.Errorf("podman calls it %s, sandnet says %+v", id, c)
	}
	if again := inspect(t, p.Host, id[:12]); again.Name != "front" {
		t.Errorf("by the beginning of its ID it is %+v", again)
	}
	other := l.Host("other")
	greets(t, other.NS, p.IP.String()+":8080")
	greets(t, p.NS, "10.61.0.9:80")
	if hosts := p.ok("exec", "web", "cat", "/etc/hosts"); !strings.Contains(hosts, c.address()) {
		t.Errorf("/etc/hosts lacks the container: %s", hosts)
	}
	if out := p.ok("exec", "own", "ip", "-o", "link"); strings.Contains(out, "eth0") {
		t.Errorf("a container without annotations has\n%s", out)
	}
	if n := len(strings.Fields(p.OK("ps", "-q"))); n != 2 {
		t.Errorf("sandnet has %d sandboxes", n)
	}
	p.ok("rm", "-f", "-t", "0", "web", "db", "own")
	p.OK("network", "rm", "app")
	if i, d := p.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}
