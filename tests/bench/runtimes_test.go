package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/tests/lab"
)

const (
	// together20 is how many containers are connected at once.
	together20 = 20
	// settling is longer than the kernel takes to free links and rules.
	settling = 50 * time.Millisecond
)

// containers measures sandnet as container runtimes call it: as an OCI hook, by
// hand and by crun, and as a CNI plugin beside Debian's chain.
func containers(b *testing.B, l *lab.Lab) []row {
	b.Helper()
	s := series{}
	hooks(b, l, s)
	crun(b, l, s)
	plugins(b, l, s)
	created, without, with, both := s.median("hook"), s.median("crun"), s.median("crun, hook"), s.median("crun, hooks")
	rows := []row{
		{"`sandnet hook createRuntime`, whole process", ms(created), "", "≤ 7 ms", verdict(created <= 7*time.Millisecond)},
		{"`sandnet hook poststop`", ms(s.median("poststop")), "", "", ""},
		{"`crun run` of /bin/true", ms(without), "1", "", ""},
		{"`crun run` with the createRuntime hook", ms(with), "+ " + ms(with-without), "≤ + 9 ms", verdict(with-without <= 9*time.Millisecond)},
		{"`crun run` with both hooks, which leaves nothing", ms(both), "+ " + ms(both-without), "", ""},
	}
	for _, how := range []string{"one after another", fmt.Sprintf("%d at once, for each", together20)} {
		faster := s.ratio("chain, "+how, "plugin, "+how)
		rows = append(rows,
			row{"CNI ADD + DEL with a port, " + how, ms(s.median("plugin, " + how)), "1", "", ""},
			row{"bridge + host-local + portmap + firewall, " + how, ms(s.median("chain, " + how)),
				fmt.Sprintf("sandnet is %.1f × faster", faster), "≥ 20 ×", verdict(faster >= 20)})
	}
	return rows
}

// hooks calls the hooks as a runtime does, for a process that waits in
// namespaces of its own.
func hooks(b *testing.B, l *lab.Lab, s series) {
	b.Helper()
	h := l.Host("hook")
	waits := h.Start(nil, "unshare", "--net", "--mount", "sh", "-c", "echo up; exec sleep 1000")
	waits.Await("up")
	dir := bundle(b, map[string]string{"io.sandnet.publish": "8080:80"}, nil)
	state := fmt.Sprintf(`{"ociVersion":"1.0.2","id":"c","status":"created","pid":%d,"bundle":%q}`, waits.Process.Pid, dir)
	for n := range *rounds + 1 {
		for _, stage := range []string{"createRuntime", "poststop"} {
			figure := stage
			if stage == "createRuntime" {
				figure = "hook"
			}
			time.Sleep(settling)
			h.Do(func() {
				_, _ = fed(nil, "", h.Program, "version") // see round
				took, err := fed(nil, state, h.Program, "--root", h.Root, "hook", stage)
				if err != nil {
					b.Error(err)
				} else if n > 0 { // the first makes the bridge
					s[figure] = append(s[figure], took)
				}
			})
		}
	}
}

// crun runs a container that ends at once, with and without the hooks.
func crun(b *testing.B, l *lab.Lab, s series) {
	b.Helper()
	// crun refuses a machine that has both versions of cgroups here. sandnet
	// would have to mount the second for every command, did it not find it.
	aside := b.TempDir()
	if err := unix.Mount("/sys/fs/cgroup/unified", aside, "", unix.MS_MOVE, ""); err == nil {
		b.Cleanup(func() { _ = unix.Mount(aside, "/sys/fs/cgroup/unified", "", unix.MS_MOVE, "") })
	} else if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		b.Fatal(err)
	}
	h := l.Host("crun")
	calls := func(stage string) []any {
		return []any{map[string]any{"path": h.Program, "args": []string{"sandnet", "--root", h.Root, "hook", stage}}}
	}
	plain := bundle(b, nil, nil)
	publish := map[string]string{"io.sandnet.publish": "8080:80"}
	create := bundle(b, publish, map[string]any{"createRuntime": calls("createRuntime")})
	both := bundle(b, publish, map[string]any{"createRuntime": calls("createRuntime"), "poststop": calls("poststop")})
	root := filepath.Join(b.TempDir(), "crun")
	for n := range *rounds/2 + 1 {
		for _, run := range []struct{ figure, dir string }{{"crun", plain}, {"crun, hook", create}, {"crun, hooks", both}} {
			time.Sleep(settling)
			h.Do(func() {
				_, _ = fed(nil, "", h.Program, "version") // see round
				took, err := fed(nil, "", "crun", "--root", root, "run", "--bundle", run.dir, "c")
				if err != nil {
					b.Error(err)
				} else if n > 0 {
					s[run.figure] = append(s[run.figure], took)
				}
				_, _ = fed(nil, `{"ociVersion":"1.0.2","id":"c","status":"stopped"}`, h.Program, "--root", h.Root, "hook", "poststop")
			})
		}
	}
}

// bundle is a container that runs true from busybox.
func bundle(b *testing.B, annotations map[string]string, hooks map[string]any) string {
	b.Helper()
	dir := b.TempDir()
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev"} {
		must(os.MkdirAll(filepath.Join(dir, "rootfs", d), 0o755))
	}
	busybox, err := exec.LookPath("busybox")
	must(err)
	data, err := os.ReadFile(busybox)
	must(err)
	must(os.WriteFile(filepath.Join(dir, "rootfs/bin/true"), data, 0o755))
	cmd := exec.Command("crun", "spec")
	cmd.Dir = dir
	must(cmd.Run())
	path := filepath.Join(dir, "config.json")
	var config map[string]any
	data, err = os.ReadFile(path)
	must(err)
	must(json.Unmarshal(data, &config))
	process := config["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/bin/true"}
	config["annotations"], config["hooks"] = annotations, hooks
	data, err = json.Marshal(config)
	must(err)
	must(os.WriteFile(path, data, 0o644))
	return dir
}

// plugins compares sandnet as a CNI plugin with the chain that does the same.
func plugins(b *testing.B, l *lab.Lab, s series) {
	b.Helper()
	type contender struct {
		name string
		cni  *cni
		ns   []*lab.NS
	}
	list := []*contender{{name: "plugin", cni: newPlugin(l)}, {name: "chain", cni: newCNI(b, l, "cni-peer", true)}}
	for _, c := range list {
		for n := range together20 {
			c.ns = append(c.ns, l.Namespace(fmt.Sprintf("%s%d", c.name, n)))
		}
	}
	const serial, atOnce = "one after another", "%d at once, for each"
	for n := range *peerRounds + 1 {
		for _, c := range list {
			took, err := c.cni.connect(c.ns[:1])
			if err != nil {
				b.Fatal(err)
			}
			if n > 0 {
				s[c.name+", "+serial] = append(s[c.name+", "+serial], took)
			}
		}
	}
	for range 3 {
		for _, c := range list {
			took, err := c.cni.connect(c.ns)
			if err != nil {
				b.Fatal(err)
			}
			figure := c.name + ", " + fmt.Sprintf(atOnce, together20)
			s[figure] = append(s[figure], took/together20)
		}
	}
}

// newPlugin is sandnet in the place of the whole chain.
func newPlugin(l *lab.Lab) *cni {
	h := l.Host("plugin")
	return &cni{host: h, program: h.Program, plugins: []cniPlugin{{"sandnet", `"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`}}}
}

// connect adds all containers at once, then removes them all at once.
func (c *cni) connect(list []*lab.NS) (time.Duration, error) {
	errs := make([]error, len(list))
	results := make([]*cni, len(list))
	for i := range results {
		results[i] = c.withPort(8080 + i)
	}
	// Nobody pays for what the kernel still has to do for the one before; and
	// see round.
	time.Sleep(settling)
	c.host.Do(func() { _ = run(c.host, "version") })
	start := time.Now()
	for _, del := range []bool{false, true} {
		var all sync.WaitGroup
		for i, ns := range list {
			all.Go(func() {
				c.host.Do(func() {
					step := results[i].add
					if del {
						step = results[i].del
					}
					errs[i] = errors.Join(errs[i], step(ns.Path))
				})
			})
		}
		all.Wait()
	}
	return time.Since(start), errors.Join(errs...)
}
