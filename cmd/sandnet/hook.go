package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
	"github.com/sandnet/sandnet/sandbox"
)

func (p *program) hookCommand() *cli.Command {
	stage := func(name, use, help string, hidden bool, action cli.ActionFunc) *cli.Command {
		return &cli.Command{Name: name, Usage: use, Hidden: hidden, Description: help, Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0); err != nil {
				return err
			}
			return action(c)
		}}
	}
	const state = "\nOn standard input the runtime gives the container's state (OCI runtime-spec)."
	return &cli.Command{
		Name: "hook", ArgsUsage: "COMMAND",
		Usage: "Network the containers of runc, crun, podman and CRI-O",
		Description: `Runtimes call these for containers whose annotations say which network they want.
'sandnet hook install' tells podman and CRI-O to; runc and crun read it in a
bundle's config.json, where 'sandnet oci patch' puts it.`,
		Subcommands: []*cli.Command{
			stage("createRuntime", "Give a container that is being created its network",
				`Containers say what they want by annotations: io.sandnet.network, .publish, .ip,
.ip6, .mac, .name, .aliases and .labels. One without any is left alone.`+state+`

Example:
  sandnet hook createRuntime < state.json`, false, p.hookCreate),
			stage("prestart", "createRuntime, as runtimes before 1.0.2 call it", "The same as createRuntime."+state, true, p.hookCreate),
			stage("poststop", "Take the network of a deleted container away",
				`Succeeds, too, when there is nothing left to take away.`+state+`

Example:
  sandnet hook poststop < state.json`, false, p.hookStop),
			p.hookInstallCommand(),
		},
	}
}

// hookEnvironment makes up for what a runtime does not give to its hooks: their
// environment is empty.
func hookEnvironment() error {
	if os.Getenv("PATH") != "" {
		return nil
	}
	return os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

func (p *program) readState() (specs.State, error) {
	var s specs.State
	if err := hookEnvironment(); err != nil {
		return s, err
	}
	if _, err := spec.ReadJSON(p.stdin, "OCI state", &s); err != nil {
		return s, err
	}
	if s.ID == "" || len(s.ID) > 1024 {
		return s, &spec.InputError{What: "OCI state", Value: s.ID, Why: "id is empty or too long"}
	}
	return s, nil
}

func (p *program) hookCreate(c *cli.Context) error {
	state, err := p.readState()
	if err != nil {
		return err
	}
	if state.Pid <= 0 {
		return &spec.InputError{What: "OCI state", Value: fmt.Sprint(state.Pid), Why: "pid is not a process's"}
	}
	config, err := readBundle(state.Bundle)
	if err != nil {
		return err
	}
	options, asked, unknown := spec.Annotations(config.Annotations)
	for _, key := range unknown {
		fmt.Fprintf(p.stderr, "%s: hook createRuntime: unknown annotation %s is ignored\n", programName, oneLine(key))
	}
	if !asked {
		return nil
	}
	s, err := containerSpec(options, state, config.Hostname)
	if err != nil {
		return err
	}
	m, err := p.manager(c)
	if err != nil {
		return err
	}
	v, err := m.AddContainer(c.Context, s)
	if err != nil {
		return err
	}
	root := config.Root.Path
	if !filepath.IsAbs(root) {
		root = filepath.Join(state.Bundle, root)
	}
	if err := m.ShowFiles(v, state.Pid, root); err != nil {
		return errors.Join(err, m.RemoveContainer(c.Context, s.ID))
	}
	return nil
}

// containerSpec is the sandbox that a container asks for.
func containerSpec(o spec.SandboxOptions, state specs.State, hostname string) (spec.Sandbox, error) {
	if o.Name == "" {
		o.Name = state.ID
		if spec.CheckName("", o.Name) != nil {
			o.Name = sandbox.ContainerID(spec.SourceOCI, state.ID)[:12]
		}
	}
	s, err := o.Parse()
	if err != nil {
		return s, err
	}
	if s.Mode == spec.ModeBridge && spec.CheckHostname(hostname) == nil {
		s.Hostname = hostname // the runtime sets it; /etc/hosts has to know it
	}
	s.ID = sandbox.ContainerID(spec.SourceOCI, state.ID)
	s.Source, s.Container, s.PID = spec.SourceOCI, state.ID, state.Pid
	s.Adopt = fmt.Sprintf("/proc/%d/ns/net", state.Pid)
	return s, nil
}

func (p *program) hookStop(c *cli.Context) error {
	state, err := p.readState()
	if err != nil {
		return err
	}
	m, err := p.manager(c)
	if err != nil {
		return err
	}
	return m.RemoveContainer(c.Context, sandbox.ContainerID(spec.SourceOCI, state.ID))
}

// bundleConfig is what sandnet reads of a bundle's config.json.
type bundleConfig struct {
	Hostname    string            `json:"hostname"`
	Annotations map[string]string `json:"annotations"`
	Root        struct {
		Path string `json:"path"`
	} `json:"root"`
}

func readBundle(dir string) (c bundleConfig, err error) {
	f, err := openConfig(dir)
	if err != nil {
		return c, err
	}
	defer f.Close()
	_, err = spec.ReadJSON(f, "config.json", &c)
	return c, err
}

// openConfig opens a bundle's config.json, which must lie in the bundle and be
// an ordinary file.
func openConfig(dir string) (*os.File, error) {
	fault := func(why string) error { return &spec.InputError{What: "bundle", Value: dir, Why: why} }
	if !filepath.IsAbs(dir) {
		return nil, fault("it is not an absolute path")
	}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault("there is no such directory")
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	info, err := root.Lstat("config.json")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault("it has no config.json")
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fault("its config.json is not an ordinary file")
	}
	return root.Open("config.json")
}

func (p *program) hookInstallCommand() *cli.Command {
	return &cli.Command{
		Name: "install", ArgsUsage: "[OPTIONS]",
		Usage: "Write the files that make podman and CRI-O call sandnet",
		Description: `One file for each of the two stages, in the hooks.d format of version 1.0.0; they
call this very program for containers with an io.sandnet annotation.

Example:
  sandnet hook install --dir /etc/containers/oci/hooks.d`,
		Flags: []cli.Flag{&cli.StringFlag{Name: "dir", Value: "/etc/containers/oci/hooks.d", Usage: "`DIR` to write them to"}},
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0); err != nil {
				return err
			}
			return p.installHooks(c.String("dir"), globalOptions(c))
		},
	}
}

// hookFile is a file of hooks.d (containers/common, pkg/hooks/docs/oci-hooks.5.md).
type hookFile struct {
	Version string      `json:"version"`
	Hook    specs.Hook  `json:"hook"`
	When    hookMatcher `json:"when"`
	Stages  []string    `json:"stages"`
}

type hookMatcher struct {
	Annotations map[string]string `json:"annotations"`
}

func hookStages() []string { return []string{"createRuntime", "poststop"} }

func (p *program) installHooks(dir string, global []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, stage := range hookStages() {
		hook, err := stageHook(stage, global)
		if err != nil {
			return err
		}
		data, err := json.MarshalIndent(hookFile{Version: "1.0.0", Hook: hook, Stages: []string{stage},
			When: hookMatcher{map[string]string{"^" + strings.ReplaceAll(spec.AnnotationNetwork, ".", `\.`) + "$": ".*"}}}, "", "  ")
		if err != nil {
			return err
		}
		path := filepath.Join(dir, "50-sandnet-"+stage+".json")
		if err := replaceFile(path, append(data, '\n'), 0o644); err != nil {
			return err
		}
		if err := p.println(path); err != nil {
			return err
		}
	}
	return nil
}

// stageHook is how a runtime calls this program at a stage, with the global
// options that this run of it has.
func stageHook(stage string, global []string) (specs.Hook, error) {
	self, err := os.Executable()
	if err != nil {
		return specs.Hook{}, err
	}
	timeout := 30 // seconds
	return specs.Hook{Path: self, Args: append(append([]string{programName}, global...), "hook", stage), Timeout: &timeout}, nil
}

// globalOptions are those that say which host is meant.
func globalOptions(c *cli.Context) []string {
	var out []string
	if root := c.String("root"); root != "" {
		out = append(out, "--root", root)
	}
	if kind := c.String("firewall"); kind != "" && kind != "auto" {
		out = append(out, "--firewall", kind)
	}
	return out
}

// replaceFile writes a file whole or not at all.
func replaceFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
