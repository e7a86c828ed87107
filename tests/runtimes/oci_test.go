package runtimes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/tests/lab"
)

const serve = "echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp"

// greets waits until what `serve` serves is there.
func greets(t *testing.T, from *lab.NS, addr string) {
	t.Helper()
	lab.Eventually(t, "greeting from "+addr, func() (err error) {
		from.Do(func() { err = get(addr) })
		return err
	})
}

func get(addr string) error {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprint(c, "GET /index.html HTTP/1.0\r\n\r\n")
	body, err := io.ReadAll(c)
	if err == nil && !strings.Contains(string(body), "hello") {
		err = fmt.Errorf("it says %q", body)
	}
	return err
}

// each runs a test with every runtime, on a host of its own.
func each(t *testing.T, f func(t *testing.T, r *runtime, l *lab.Lab, before lab.Dump)) {
	for _, name := range runtimes {
		t.Run(name, func(t *testing.T) {
			l := lab.New(t)
			r := newRuntime(t, l.Host("host"), name)
			f(t, r, l, used(t, r.Host))
		})
	}
}

func TestContainerIsReachedAndCleanedUp(t *testing.T) {
	each(t, func(t *testing.T, r *runtime, l *lab.Lab, before lab.Dump) {
		r.start("web", serve, "-p", "8080:80", "--name", "front", "--label", "app=web")
		c := inspect(t, r.Host, "front")
		if c.Source != "oci" || c.Container != "web" || c.Status != "running" || c.PID == 0 || c.Mode != "bridge" {
			t.Errorf("inspect says %+v", c)
		}
		other := l.Host("other")
		for _, from := range []struct {
			ns   *lab.NS
			addr string
		}{{other.NS, r.IP.String() + ":8080"}, {r.NS, "127.0.0.1:8080"}, {r.NS, c.address() + ":80"}} {
			greets(t, from.ns, from.addr)
		}
		if out := r.OK("ps"); !strings.Contains(out, "front") || !strings.Contains(out, "0.0.0.0:8080->80/tcp") {
			t.Errorf("ps says\n%s", out)
		}
		if out := r.OK("port", "front"); out != "80/tcp -> 0.0.0.0:8080" {
			t.Errorf("port says %q", out)
		}
		r.delete("web")
		if i, d := r.Becomes(before); i < 0 {
			t.Errorf("the host differs from before:\n%s", d)
		}
	})
}

func TestContainersFindEachOtherByName(t *testing.T) {
	each(t, func(t *testing.T, r *runtime, _ *lab.Lab, before lab.Dump) {
		r.OK("network", "create", "app", "--subnet", "10.61.0.0/24")
		r.start("db", "sleep 1000", "--net", "app", "--ip", "10.61.0.9", "--network-alias", "store")
		r.start("web", "sleep 1000", "--net", "app", "--mac-address", "02:42:00:00:00:07")
		r.start("late", "sleep 1000", "--net", "app")
		hosts := r.cmd("exec", "web", "cat", "/etc/hosts").Out()
		for _, want := range []string{"10.61.0.9\tdb", " store", "\tlate ", "\tweb "} {
			if !strings.Contains(hosts, want) {
				t.Errorf("/etc/hosts of the container lacks %q:\n%s", want, hosts)
			}
		}
		if mac := inspect(t, r.Host, "web").Endpoints[0].MAC; mac != "02:42:00:00:00:07" {
			t.Errorf("MAC is %s", mac)
		}
		for _, name := range []string{"db", "web", "late"} {
			r.delete(name)
		}
		r.OK("network", "rm", "app")
		if i, d := r.Becomes(before); i < 0 {
			t.Errorf("the host differs from before:\n%s", d)
		}
	})
}

// The image's own links are followed inside the image, never on the host.
func TestFilesFollowTheImagesLinks(t *testing.T) {
	each(t, func(t *testing.T, r *runtime, _ *lab.Lab, _ lab.Dump) {
		dir := r.bundle("web", "cat /etc/resolv.conf; cat /run/resolv.conf; sleep 1000")
		trap := filepath.Join(t.TempDir(), "trap")
		if err := os.WriteFile(trap, []byte("host file\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		etc := filepath.Join(dir, "rootfs/etc")
		if err := os.Symlink("../run/resolv.conf", filepath.Join(etc, "resolv.conf")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(trap, filepath.Join(etc, "hosts")); err != nil {
			t.Fatal(err)
		}
		r.OK("oci", "patch", dir)
		res := r.cmd("run", "--detach", "--bundle", dir, "web")
		defer r.delete("web")
		if res.Code != 0 {
			t.Fatal(res)
		}
		if data, _ := os.ReadFile(trap); string(data) != "host file\n" {
			t.Errorf("the host's file is now %q", data)
		}
	})
}

func TestModesOfContainers(t *testing.T) {
	each(t, func(t *testing.T, r *runtime, _ *lab.Lab, before lab.Dump) {
		r.OK("create", "--name", "pod", "-p", "8080:80")
		r.start("side", serve, "--net", "container:pod")
		greets(t, r.NS, "127.0.0.1:8080")
		r.start("alone", "sleep 1000", "--net", "none")
		if out := r.cmd("exec", "alone", "ip", "-o", "link").Out(); strings.Count(out, "\n") != 0 {
			t.Errorf("a container without a network has the links\n%s", out)
		}
		r.start("open", "sleep 1000", "--net", "host")
		if c := inspect(t, r.Host, "open"); c.Mode != "host" {
			t.Errorf("inspect says %+v", c)
		}
		for _, name := range []string{"side", "alone", "open"} {
			r.delete(name)
		}
		r.OK("rm", "pod")
		if i, d := r.Becomes(before); i < 0 {
			t.Errorf("the host differs from before:\n%s", d)
		}
	})
}

// A container that cannot have what it asks for is not started, and leaves
// nothing, although not every runtime calls poststop then.
func TestFailingHookLeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, r *runtime, _ *lab.Lab, before lab.Dump) {
		r.OK("create", "--name", "first", "-p", "8080:80")
		dir := r.bundle("web", serve)
		r.OK("oci", "patch", "-p", "8080:80", dir)
		res := r.cmd("run", "--bundle", dir, "web")
		if res.Code == 0 {
			t.Errorf("it started: %s", res)
		}
		if r.name == "runc" && !strings.Contains(res.Stderr, "8080") { // crun keeps it to itself
			t.Errorf("nothing says why: %s", res)
		}
		r.cmd("delete", "--force", "web")
		r.OK("rm", "first")
		if i, d := r.Becomes(before); i < 0 {
			t.Errorf("the host differs from before:\n%s", d)
		}
	})
}

// A container whose process is gone, and that nobody deletes, is gc's.
func TestDeadContainerIsCollected(t *testing.T) {
	each(t, func(t *testing.T, r *runtime, _ *lab.Lab, before lab.Dump) {
		r.start("web", serve, "-p", "8080:80")
		pid := inspect(t, r.Host, "web").PID
		if out := r.OK("gc"); out != "" {
			t.Errorf("gc of a living container says %q", out)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, "end of the container", func() error {
			if s := inspect(t, r.Host, "web").Status; s != "exited" {
				return fmt.Errorf("it is %s", s)
			}
			return nil
		})
		if out := r.OK("gc"); !strings.Contains(out, "web") {
			t.Errorf("gc says %q", out)
		}
		if i, d := r.Becomes(before); i < 0 {
			t.Errorf("the host differs from before:\n%s", d)
		}
		r.delete("web") // its poststop finds nothing left
	})
}

// state is what a runtime sends to a hook.
func state(t *testing.T, id string, pid int, bundle string) string {
	t.Helper()
	data, err := json.Marshal(map[string]any{"ociVersion": "1.0", "id": id, "status": "created", "pid": pid, "bundle": bundle, "root": "/x"})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// hook calls a hook with an empty environment, as runtimes do.
func hook(t *testing.T, h *lab.Host, stage, stdin string, env ...string) lab.Result {
	t.Helper()
	in := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(in, []byte(stdin), 0o600); err != nil {
		t.Fatal(err)
	}
	return h.Run("sh", "-c", fmt.Sprintf("exec env -i %s %s --root %s hook %s <%s", strings.Join(env, " "), h.Program, h.Root, stage, in))
}

// stranger is a process in namespaces of its own, and a bundle for it.
func stranger(t *testing.T, h *lab.Host, annotations map[string]string) (pid int, bundle string) {
	t.Helper()
	p := h.Start(nil, "unshare", "--net", "--mount", "sh", "-c", "echo up; exec sleep 1000")
	p.Await("up")
	bundle = t.TempDir()
	rootfs(t, bundle)
	writeConfig(t, bundle, map[string]any{"annotations": annotations, "root": map[string]any{"path": "rootfs"}})
	return p.Process.Pid, bundle
}

func writeConfig(t *testing.T, bundle string, config any) {
	t.Helper()
	data, err := json.Marshal(config)
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestHooksMayBeRepeated(t *testing.T) {
	h := lab.NewHost(t)
	before := used(t, h)
	pid, bundle := stranger(t, h, map[string]string{"io.sandnet.publish": "8080:80", "io.sandnet.labels": "a=b, c=d", "io.sandnet.unheard": "1"})
	in := state(t, "c1", pid, bundle)
	r := hook(t, h, "createRuntime", in)
	if r.Code != 0 || !strings.Contains(r.Stderr, "io.sandnet.unheard") {
		t.Errorf("an unknown annotation is not warned about: %s", r)
	}
	first := inspect(t, h, "c1")
	if r := hook(t, h, "prestart", in); r.Code != 0 {
		t.Errorf("the second time: %s", r)
	}
	if again := inspect(t, h, "c1"); again.address() != first.address() || again.ID != first.ID {
		t.Errorf("the second time made it anew: %+v, %+v", first, again)
	}
	for range 2 {
		// A poststop knows neither process nor bundle any more.
		if r := hook(t, h, "poststop", state(t, "c1", 0, "/nonexistent")); r.Code != 0 {
			t.Errorf("poststop: %s", r)
		}
	}
	if i, d := h.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}

func TestContainerWithoutAnnotationsIsLeftAlone(t *testing.T) {
	h := lab.NewHost(t)
	before := used(t, h)
	pid, bundle := stranger(t, h, map[string]string{"org.example": "1"})
	for _, stage := range []string{"createRuntime", "poststop"} {
		if r := hook(t, h, stage, state(t, "c1", pid, bundle)); r.Code != 0 || r.Stdout+r.Stderr != "" {
			t.Errorf("%s: %s", stage, r)
		}
	}
	if i, d := h.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}

func TestHookRefusesBadInput(t *testing.T) {
	h := lab.NewHost(t)
	before := used(t, h)
	asks := func(key, value string) map[string]string { return map[string]string{"io.sandnet." + key: value} }
	pid, bundle := stranger(t, h, asks("network", "bridge"))
	with := func(annotations map[string]string) string {
		b := t.TempDir()
		writeConfig(t, b, map[string]any{"annotations": annotations, "root": map[string]any{"path": "rootfs"}})
		return state(t, "c1", pid, b)
	}
	own := h.Start(nil, "sleep", "1000")
	outside := t.TempDir()
	writeConfig(t, outside, map[string]any{"annotations": asks("network", "bridge")})
	linked := t.TempDir()
	if err := os.Symlink(filepath.Join(outside, "config.json"), filepath.Join(linked, "config.json")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, stdin, word string }{
		{"nothing", "", "empty"},
		{"truncated", state(t, "c1", pid, bundle)[:20], "too early"},
		{"no object", `["c1"]`, "not an object"},
		{"wrong type", `{"id":"c1","pid":"12","bundle":"/x"}`, "pid"},
		{"a key twice", `{"id":"c1","id":"c2","pid":1,"bundle":"/x"}`, "twice"},
		{"huge", `{"id":"` + strings.Repeat("x", 1<<20) + `"}`, "longer"},
		{"trailing", state(t, "c1", pid, bundle) + "{}", "follows"},
		{"no ID", `{"pid":1,"bundle":"/x"}`, "id"},
		{"pid 0", state(t, "c1", 0, bundle), "pid"},
		{"no such process", state(t, "c1", 4194000, bundle), "4194000"},
		{"the host's own process", state(t, "c1", own.Process.Pid, bundle), "the host's own"},
		{"relative bundle", state(t, "c1", pid, "bundle"), "bundle"},
		{"no bundle", state(t, "c1", pid, "/nonexistent"), "/nonexistent"},
		{"linked config", state(t, "c1", pid, linked), "config.json"},
		{"port list", with(asks("publish", "8080:80,x")), "x"},
		{"port 0", with(asks("publish", "0:0")), "0"},
		{"network", with(asks("network", "nosuch")), "nosuch"},
		{"name", with(map[string]string{"io.sandnet.network": "bridge", "io.sandnet.name": "../x"}), "../x"},
		{"address", with(asks("ip", "1.2.3")), "1.2.3"},
		{"host mode", with(asks("network", "host")), "host"},
	} {
		r := hook(t, h, "createRuntime", c.stdin)
		if r.Code == 0 || !strings.HasPrefix(r.Stderr, "sandnet: hook createRuntime: ") || !strings.Contains(r.Stderr, c.word) {
			t.Errorf("%s: %s", c.name, r)
		}
		if line, rest, _ := strings.Cut(r.Stderr, "\n"); rest != "" && !strings.HasPrefix(rest, "hint: ") {
			t.Errorf("%s: more than one line after %q: %q", c.name, line, rest)
		}
		if d := lab.Diff(before, h.Dump()); d != "" {
			t.Fatalf("%s changed the host:\n%s", c.name, d)
		}
	}
}

func TestPatchKeepsTheRest(t *testing.T) {
	h := lab.NewHost(t)
	used(t, h)
	dir := t.TempDir()
	path := filepath.Join(dir, "config.json")
	const config = `{"ociVersion":"1.0.2","zeta":{"b":1,"a":[1.50,"x<y"]},"hooks":{"poststop":[{"path":"/bin/true"}],"startContainer":[{"path":"/x"}]},` +
		`"linux":{"resources":{"z":1},"namespaces":[{"type":"pid"},{"type":"network","path":"/x"}]},"annotations":{"org.example":"kept","io.sandnet.ip":"10.0.0.9"}}`
	if err := os.WriteFile(path, []byte(config), 0o640); err != nil {
		t.Fatal(err)
	}
	h.OK("oci", "patch", "-p", "8080:80", "--name", "web", dir)
	once, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h.OK("oci", "patch", "-p", "8080:80", "--name", "web", dir)
	if twice, _ := os.ReadFile(path); !bytes.Equal(once, twice) {
		t.Errorf("twice is not once:\n%s\n%s", once, twice)
	}
	var flat bytes.Buffer
	if err := json.Compact(&flat, once); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{"ociVersion":"1.0.2","zeta":{"b":1,"a":[1.50,"x<y"]},"hooks":`, `{"path":"/bin/true"}`, `"startContainer":[{"path":"/x"}]`,
		`"resources":{"z":1}`, `[{"type":"pid"},{"type":"network"}]`, `"org.example":"kept"`, `"io.sandnet.publish":"8080:80"`} {
		if !strings.Contains(flat.String(), want) {
			t.Errorf("%s is not in %s", want, flat.String())
		}
	}
	if strings.Contains(flat.String(), "io.sandnet.ip") {
		t.Error("an annotation of an earlier patch is still there")
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
		t.Errorf("the mode is %v", info.Mode())
	}
	before := h.Dump()
	for _, c := range []struct {
		words []string
		args  []string
	}{
		{[]string{"BUNDLE"}, nil},
		{[]string{"/nonexistent"}, []string{"/nonexistent"}},
		{[]string{"70000"}, []string{"-p", "70000:80", dir}},
		{[]string{"nosuch"}, []string{"--net", "container:nosuch", dir}},
		{[]string{"a,b"}, []string{"--label", "k=a,b", dir}},
	} {
		h.Refused(2, c.words, append([]string{"oci", "patch"}, c.args...)...)
	}
	if d := lab.Diff(before, h.Dump()); d != "" {
		t.Error(d)
	}
}
