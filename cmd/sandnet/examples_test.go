package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

// Every command says what it does and shows it, and what it shows works.
func TestExamples(t *testing.T) {
	var visit func(cmd treeCommand, path string)
	visit = func(cmd treeCommand, path string) {
		for _, sub := range cmd.Commands {
			visit(sub, strings.TrimSpace(path+" "+sub.Name))
		}
		if path == "" {
			return
		}
		if cmd.Usage == "" || cmd.Description == "" {
			t.Errorf("%s: usage %q, description %q", path, cmd.Usage, cmd.Description)
		}
		if strings.HasSuffix(cmd.Usage, ".") || cmd.Usage[:1] != strings.ToUpper(cmd.Usage[:1]) {
			t.Errorf("%s: usage %q is not like the others'", path, cmd.Usage)
		}
		for _, o := range cmd.Options {
			if o.Usage == "" || o.Repeatable != strings.Contains(o.Usage, "repeatable") {
				t.Errorf("%s: --%s: usage %q", path, o.Names[0], o.Usage)
			}
		}
		if len(cmd.Examples) == 0 && len(cmd.Commands) == 0 {
			t.Errorf("%s: no example", path)
		}
		for _, example := range cmd.Examples {
			if !strings.Contains(example, "sandnet "+path) {
				t.Errorf("%s: %s is no example of it", path, example)
			}
			t.Run(example, func(t *testing.T) {
				t.Parallel()
				runExample(t, example)
			})
		}
	}
	visit(tree((&program{}).commands()), "")
}

// runExample runs a line in a shell, on a host that has what examples speak of
// and do not make themselves: the sandbox web and the network backend.
func runExample(t *testing.T, example string) {
	h := lab.NewHost(t)
	h.OK("create", "--name", "other", "--net", "none") // there always is something
	if !strings.Contains(example, "network create") {
		h.OK("network", "create", "--subnet", "10.61.0.0/24", "backend")
	}
	if !strings.Contains(example, "--name web") {
		args := []string{"create", "--name", "web"}
		if strings.Contains(example, "disconnect") {
			args = append(args, "--net", "backend")
		}
		if !strings.Contains(example, "-p 8080") {
			args = append(args, "-p", "8080:80")
		}
		h.OK(args...)
	}
	// No file of the machine's is touched: its directories stand below home.
	home := t.TempDir()
	for _, dir := range []string{"/srv/", "/etc/"} {
		example = strings.ReplaceAll(example, " "+dir, " "+home+dir)
	}
	for name, content := range map[string]string{
		".zfunc/x": "", ".config/fish/completions/x": "",
		"srv/bundles/web/config.json": "{}", "srv/bundles/sidecar/config.json": "{}",
		"state.json": fmt.Sprintf(`{"ociVersion":"1.0.2","id":"c","status":"creating","pid":%d,"bundle":"%s/srv/bundles/web"}`, os.Getpid(), home),
	} {
		path := filepath.Join(home, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"SANDNET_ROOT=" + h.Root, "HOME=" + home, "PATH=" + filepath.Dir(h.Program) + ":" + os.Getenv("PATH")}
	// Servers go on until they are ended.
	serves := strings.Contains(example, "http.server")
	seconds := "20"
	if serves {
		seconds = "1"
	}
	r := h.RunEnv(env, "timeout", seconds, "bash", "-euo", "pipefail", "-c", "cd ~; "+example)
	if want := map[bool]int{false: 0, true: 124}[serves]; r.Code != want || r.Stderr != "" {
		t.Errorf("want exit %d: %s", want, r)
	}
}
