package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
)

func (p *program) ociCommand() *cli.Command {
	return &cli.Command{
		Name: "oci", ArgsUsage: "COMMAND",
		Usage:       "Prepare OCI bundles",
		Description: `A bundle is a directory with a container's config.json (OCI runtime-spec).`,
		Subcommands: []*cli.Command{{
			Name: "patch", ArgsUsage: "[OPTIONS] BUNDLE",
			Usage: "Rewrite a bundle's config.json so that sandnet networks its container",
			Description: `Sets the annotations, the hooks and the network namespace that the mode asks for;
everything else stays as it is. What an earlier patch has set is replaced.

Examples:
  sandnet oci patch -p 8080:80 /srv/bundles/web
  sandnet oci patch --net container:web /srv/bundles/sidecar`,
			Flags: slices.DeleteFunc(sandboxFlags(), func(f cli.Flag) bool {
				return !slices.Contains(patchOptions(), names(f)[0])
			}),
			Action: p.ociPatch,
		}},
	}
}

// patchOptions are the options of `create` that have an annotation.
func patchOptions() []string {
	return []string{"net", "publish", "ip", "ip6", "mac-address", "name", "network-alias", "label"}
}

func (p *program) ociPatch(c *cli.Context) error {
	if err := wantArgs(c, 1, "BUNDLE"); err != nil {
		return err
	}
	o := sandboxOptions(c)
	s, err := o.Parse()
	if err != nil {
		return err
	}
	for _, values := range [][]string{o.Publish, o.NetworkAlias, o.Labels} {
		for _, v := range values {
			if strings.ContainsRune(v, ',') {
				return &spec.InputError{What: "annotation", Value: v, Why: "it would be taken apart at the comma"}
			}
		}
	}
	dir, err := filepath.Abs(c.Args().First())
	if err != nil {
		return err
	}
	f, err := openConfig(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var config object
	if _, err := spec.ReadJSON(f, "config.json", &config); err != nil {
		return err
	}
	netns := "" // a new one
	switch s.Mode {
	case spec.ModeHost:
		netns = hostNetns
	case spec.ModeContainer:
		m, err := p.manager(c)
		if err != nil {
			return err
		}
		if netns, err = m.NetnsOf(c.Context, s.Join); err != nil {
			return err
		}
	}
	if err := patch(&config, o, netns, globalOptions(c)); err != nil {
		return err
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "\t")
	if err := e.Encode(config); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, "config.json"), out.Bytes(), info.Mode().Perm())
}

// hostNetns stands for the host's namespace, which a container is in that has
// no entry for it.
const hostNetns = "host"

// patch changes the annotations, hooks and network namespace of config.
func patch(config *object, o spec.SandboxOptions, netns string, global []string) error {
	return edit(config, "annotations", func(a *map[string]string) error {
		maps.DeleteFunc(*a, func(key, _ string) bool { _, ours, _ := spec.Annotations(map[string]string{key: ""}); return ours })
		if *a == nil {
			*a = map[string]string{}
		}
		maps.Copy(*a, o.ToAnnotations())
		return edit(config, "hooks", func(h *object) error {
			for _, stage := range hookStages() {
				hook, err := stageHook(stage, global)
				if err != nil {
					return err
				}
				err = edit(h, stage, func(list *[]specs.Hook) error {
					// Ours comes first: what others do at this stage finds the network.
					*list = append([]specs.Hook{hook}, slices.DeleteFunc(*list, isOurs)...)
					return nil
				})
				if err != nil {
					return err
				}
			}
			return edit(config, "linux", func(l *object) error {
				return edit(l, "namespaces", func(list *[]specs.LinuxNamespace) error {
					*list = slices.DeleteFunc(*list, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
					if netns != hostNetns {
						*list = append(*list, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netns})
					}
					return nil
				})
			})
		})
	})
}

// isOurs knows a hook that an earlier patch has set.
func isOurs(h specs.Hook) bool {
	n := len(h.Args)
	return n >= 3 && h.Args[0] == programName && h.Args[n-2] == "hook" && slices.Contains(hookStages(), h.Args[n-1])
}

// edit changes one member of an object.
func edit[T any](o *object, key string, change func(*T) error) error {
	var v T
	if raw, ok := o.values[key]; ok {
		if err := json.Unmarshal(raw, &v); err != nil {
			return &spec.InputError{What: "config.json", Value: key, Why: "it is not what the runtime specification says: " + err.Error()}
		}
	}
	if err := change(&v); err != nil {
		return err
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	o.set(key, raw)
	return nil
}

// object is a JSON object of which only some members are understood: the
// others, and the order of all, stay as they are.
type object struct {
	keys   []string
	values map[string]json.RawMessage
}

func (o *object) set(key string, value json.RawMessage) {
	if _, ok := o.values[key]; !ok {
		o.keys = append(o.keys, key)
	}
	if o.values == nil {
		o.values = map[string]json.RawMessage{}
	}
	o.values[key] = value
}

// UnmarshalJSON reads an object.
func (o *object) UnmarshalJSON(data []byte) error {
	*o = object{}
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		if t == nil && err == nil {
			return nil // null
		}
		return fmt.Errorf("not an object")
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		o.set(key.(string), value)
	}
	return nil
}

// MarshalJSON writes it.
func (o object) MarshalJSON() ([]byte, error) {
	out := []byte{'{'}
	for i, key := range o.keys {
		if i > 0 {
			out = append(out, ',')
		}
		name, err := json.Marshal(key)
		if err != nil {
			return nil, err
		}
		out = append(append(append(out, name...), ':'), o.values[key]...)
	}
	return append(out, '}'), nil
}
