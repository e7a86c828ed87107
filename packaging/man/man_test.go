package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sandnetTree is what the program itself says of its commands.
func sandnetTree(t *testing.T) (data []byte, root command) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "sandnet")
	build := exec.Command("go", "build", "-buildvcs=false", "-tags", "urfave_cli_no_docs", "-o", bin, "../../cmd/sandnet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := exec.Command(bin, "__tree").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &root); err != nil {
		t.Fatal(err)
	}
	return data, root
}

// every calls visit for each command, with its page's name.
func every(cmd command, above string, visit func(name string, cmd command)) {
	name := strings.TrimPrefix(above+"-"+cmd.Name, "-")
	visit(name, cmd)
	for _, sub := range cmd.Commands {
		every(sub, name, visit)
	}
}

func TestPages(t *testing.T) {
	data, root := sandnetTree(t)
	dir := t.TempDir()
	if err := write(bytes.NewReader(data), dir, "v0.0.0-test", "2026-01-02"); err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		pages[strings.TrimSuffix(filepath.Base(f), ".1")] = string(text)
	}

	// A page for each command, with each option and example of it.
	commands := 0
	options := map[string]bool{"--": true}
	every(root, "", func(name string, cmd command) {
		commands++
		page := pages[name]
		for _, o := range cmd.Options {
			for _, n := range o.Names {
				dashes := "--"[:min(2, len(n))]
				options[dashes+n] = true
				if tag := `\fB` + escape(dashes+n) + `\fR`; !strings.Contains(page, "\n.TP\n"+tag) && !strings.Contains(page, ", "+tag) {
					t.Errorf("%s(1) does not have %s%s", name, dashes, n)
				}
			}
		}
		for _, e := range cmd.Examples {
			if !strings.Contains(page, "\n# "+verbatim(e)+"\n") {
				t.Errorf("%s(1) does not have the example %s", name, e)
			}
		}
		for _, sub := range cmd.Commands {
			if !strings.Contains(page, ".BR "+escape(name+"-"+sub.Name)+" (1)") {
				t.Errorf("%s(1) does not have the command %s", name, sub.Name)
			}
		}
	})
	if commands != len(pages) || commands < 10 {
		t.Errorf("%d pages for %d commands", len(pages), commands)
	}

	// What is written by hand names only commands and options that there are.
	for name, page := range pages {
		for _, m := range regexp.MustCompile(`\.[BI]R (sandnet\S*) \(1\)`).FindAllStringSubmatch(page, -1) {
			if pages[strings.ReplaceAll(m[1], `\-`, "-")] == "" {
				t.Errorf("%s(1) refers to %s(1)", name, m[1])
			}
		}
		for _, m := range regexp.MustCompile(`(?m)(?:^|[ "])((?:\\f.|\\-\\-)[-\\a-z0-9]+)`).FindAllStringSubmatch(page, -1) {
			o, _, _ := strings.Cut(strings.ReplaceAll(m[1], `\-`, "-"), `\f`) // a change of font
			if strings.HasPrefix(o, "--") && !options[o] {
				t.Errorf("%s(1) speaks of %s", name, o)
			}
		}
	}
	if t.Failed() {
		return
	}

	out, err := exec.Command("mandoc", append([]string{"-T", "lint", "-W", "style"}, files...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("mandoc: %v\n%s", err, out)
	}
	// As people see it.
	shown, err := exec.Command("mandoc", "-T", "utf8", "-O", "width=78", filepath.Join(dir, "sandnet-run.1")).Output()
	text := regexp.MustCompile(".\x08").ReplaceAllString(string(shown), "")
	for _, want := range []string{"sandnet-run - run a command in a sandbox of its own", "-p, --publish SPEC", "# sandnet run --net none -- ip link", "128+N"} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("no %q, %v:\n%s", want, err, text)
		}
	}
}

// A section for a command that is no longer there must not go unseen.
func TestTextIsUsed(t *testing.T) {
	err := write(strings.NewReader(`{"name":"sandnet","usage":"Nothing"}`), t.TempDir(), "v0", "2026-01-02")
	if err == nil || !strings.Contains(err.Error(), "is about no command") {
		t.Errorf("got %v", err)
	}
}

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("make", "-C", "../..", "install", "DESTDIR="+dir, "PREFIX=/usr", "VERSION=v0.0.0-test")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var got []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.Contains(d.Name(), "sandnet-") {
			got = append(got, strings.TrimPrefix(path, dir))
		}
		return err
	})
	want := []string{"/usr/sbin/sandnet", "/usr/share/bash-completion/completions/sandnet", "/usr/share/fish/vendor_completions.d/sandnet.fish",
		"/usr/share/man/man1/sandnet.1", "/usr/share/zsh/site-functions/_sandnet"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("installed %q, want %q, %v", got, want, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "usr/share/man/man1/sandnet-network-create.1")); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command(dir+"/usr/sbin/sandnet", "version").Output(); err != nil || !strings.Contains(string(out), "v0.0.0-test") {
		t.Errorf("%q, %v", out, err)
	}
}
