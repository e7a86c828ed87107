// Package arch holds the architecture of docs/architecture.md as tests: which
// package may import which, and what the code has to look like. It contains
// nothing but tests.
package arch

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sandnet/sandnet"

// imports says what each package may import, apart from the standard library.
// Names without a dot are the module's own. A package that is not listed here
// fails the test: it needs a place in the picture first.
var imports = map[string][]string{
	"internal/spec":              {},
	"internal/plan":              {},
	"internal/crash":             {},
	"internal/firewall":          {"internal/spec", "internal/plan"},
	"internal/firewall/nftables": {"internal/spec", "internal/plan", "internal/firewall"},
	"internal/firewall/iptables": {"internal/spec", "internal/plan", "internal/firewall"},
	"internal/reconcile":         {"internal/plan"},
	"internal/record":            {"internal/plan", "internal/crash", "golang.org/x/sys/unix"},
	"internal/kernel": {"internal/plan", "internal/spec", "internal/crash",
		"github.com/vishvananda/netlink", "github.com/vishvananda/netlink/nl", "github.com/vishvananda/netns",
		"github.com/coreos/go-iptables/iptables", "github.com/google/nftables", "github.com/google/nftables/",
		"github.com/mdlayher/netlink", "github.com/songgao/water",
		"golang.org/x/sys/unix"},
	"modes":         {"internal/spec", "internal/plan"},
	"sandbox":       {"internal/spec", "internal/plan", "internal/reconcile", "internal/crash", "golang.org/x/sys/unix"},
	"overlay":       {"internal/plan"},
	"packaging/man": {},
	"cmd/sandnet": {"internal/spec", "internal/plan", "internal/reconcile", "internal/record", "internal/kernel", "internal/firewall/nftables", "internal/firewall/iptables", "modes", "sandbox", "github.com/urfave/cli/v2", "golang.org/x/sys/unix", "golang.org/x/text/width",
		"github.com/opencontainers/runtime-spec/specs-go", "github.com/containernetworking/cni/"},
}

// kernelOnly may be imported by internal/kernel alone: nobody else changes the
// machine.
var kernelOnly = []string{
	"github.com/vishvananda/", "github.com/coreos/go-iptables", "github.com/songgao/water", "github.com/google/nftables",
	"github.com/mdlayher/netlink", "github.com/cilium/ebpf", "os/exec",
}

// unreachable from cmd/sandnet, which must start in 2 ms and stay small.
var unreachable = []string{"github.com/cilium/ebpf", "go.etcd.io/", "google.golang.org/grpc", "github.com/prometheus/", "net/http", "k8s.io/"}

type pkg struct {
	ImportPath, Dir string
	Standard        bool
	Imports, Deps   []string
	GoFiles         []string
}

// list is `go list`, without tests and without the programs of the tests.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Standard,Imports,Deps,GoFiles"}, args...)...)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(p.ImportPath, module+"/tests/") {
			pkgs = append(pkgs, p)
		}
	}
}

const root = "../.."

func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

func matches(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		return path == p || strings.HasSuffix(p, "/") && strings.HasPrefix(path, p)
	})
}

func TestImports(t *testing.T) {
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		allowed, known := imports[name]
		if !known {
			t.Errorf("%s has no place in the import rules of tests/arch", name)
			continue
		}
		for _, path := range p.Imports {
			if short := strings.TrimPrefix(path, module+"/"); !standard(path) && !matches(short, allowed) {
				t.Errorf("%s must not import %s", name, short)
			}
			if name != "internal/kernel" && slices.ContainsFunc(kernelOnly, func(k string) bool { return strings.HasPrefix(path, k) }) {
				t.Errorf("%s imports %s: only internal/kernel may", name, path)
			}
		}
	}
}

func TestSandnetStaysSmall(t *testing.T) {
	for _, p := range list(t, "./cmd/sandnet") {
		for _, dep := range p.Deps {
			if slices.ContainsFunc(unreachable, func(u string) bool { return strings.HasPrefix(dep, u) }) {
				t.Errorf("cmd/sandnet reaches %s", dep)
			}
		}
	}
}

// source calls visit for every Go file of the module.
func source(t *testing.T, visit func(path string, set *token.FileSet, f *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err == nil {
			visit(rel, set, f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Every package says, in exactly one place, what it does.
func TestPackageComments(t *testing.T) {
	comments, packages := map[string][]string{}, map[string]bool{}
	source(t, func(path string, _ *token.FileSet, f *ast.File) {
		dir := filepath.Dir(path)
		if strings.HasSuffix(path, "_test.go") && (strings.HasSuffix(f.Name.Name, "_test") || hasCode(t, dir)) {
			return
		}
		packages[dir] = true
		if f.Doc == nil {
			return
		}
		// Files of one build or the other (on.go, off.go) may each have one.
		if !slices.ContainsFunc(f.Comments, func(c *ast.CommentGroup) bool { return strings.HasPrefix(c.List[0].Text, "//go:build ") }) || len(comments[dir]) == 0 {
			comments[dir] = append(comments[dir], path)
		}
		want := "Package " + f.Name.Name + " "
		if f.Name.Name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(f.Doc.Text(), want) {
			t.Errorf("%s: the package comment should begin with %q", path, want)
		}
	})
	for dir := range packages {
		if len(comments[dir]) != 1 {
			t.Errorf("%s: %d package comments, in %v", dir, len(comments[dir]), comments[dir])
		}
	}
}

func hasCode(t *testing.T, dir string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(f string) bool { return !strings.HasSuffix(f, "_test.go") })
}

// Nothing happens before main: a program that starts in 2 ms has no time for
// it, and it hides dependencies.
func TestNoInit(t *testing.T) {
	source(t, func(path string, set *token.FileSet, f *ast.File) {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: init function", set.Position(fn.Pos()))
			}
		}
	})
}

const (
	maxFile     = 500
	maxFunction = 80
)

func TestSize(t *testing.T) {
	source(t, func(path string, set *token.FileSet, f *ast.File) {
		if n := set.File(f.Pos()).LineCount(); n > maxFile {
			t.Errorf("%s has %d lines, more than %d", path, n, maxFile)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			if n := set.Position(fn.End()).Line - set.Position(fn.Pos()).Line + 1; n > maxFunction {
				t.Errorf("%s: %s has %d lines, more than %d", path, fn.Name.Name, n, maxFunction)
			}
		}
	})
}

// A goroutine whose thread has changed its namespace must never run anything
// else: the two calls are internal/kernel's to get right (and the test lab's).
func TestNamespaceCalls(t *testing.T) {
	banned := []string{"Setns", "Unshare", "SYS_SETNS", "SYS_UNSHARE", "Unshareflags", "Cloneflags"}
	source(t, func(path string, set *token.FileSet, f *ast.File) {
		if strings.HasPrefix(path, "internal/kernel/") || strings.HasPrefix(path, "tests/") {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && slices.Contains(banned, id.Name) {
				t.Errorf("%s: %s outside internal/kernel", set.Position(id.Pos()), id.Name)
			}
			return true
		})
	})
}
