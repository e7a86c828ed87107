// Package docs runs what the README, the pages on modes and the manual pages
// show: each command works as it stands, and prints what they say it prints.
package docs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/internal/firewall/nftables"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/tests/lab"
)

func TestMain(m *testing.M) { lab.Main(m, lab.Plain) }

const root = "../.."

// command is a line at a prompt, and what is shown below it.
type command struct {
	line string
	want []string
}

// commands are those in the ```console blocks of a page. In the README and in
// docs/modes every block counts that does not follow <!-- not run: WHY -->;
// elsewhere those that follow <!-- run -->.
func commands(text string, all bool) (out []command) {
	inside, before := false, ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		fence := strings.HasPrefix(line, "```")
		switch {
		case fence && inside:
			inside = false
		case strings.HasPrefix(line, "```console"):
			inside = all && !strings.HasPrefix(before, "<!-- not run: ") || before == "<!-- run -->"
		case !inside:
		case strings.HasPrefix(line, "$ "), strings.HasPrefix(line, "# "):
			out = append(out, command{line: line[2:]})
		case len(out) == 0:
		case strings.HasSuffix(out[len(out)-1].line, `\`):
			out[len(out)-1].line += "\n" + line
		default:
			c := &out[len(out)-1]
			c.want = append(c.want, line)
		}
		if line != "" {
			before = line
		}
	}
	return out
}

// examples are those of the hand-written parts of manual pages.
func examples(text string) (out []command) {
	inside := false
	for line := range strings.Lines(text) {
		switch line = strings.TrimSpace(line); {
		case line == ".EX", line == ".EE":
			inside = line == ".EX"
		case inside:
			out = append(out, command{line: strings.TrimPrefix(strings.ReplaceAll(line, `\-`, "-"), "# ")})
		}
	}
	return out
}

func TestWhatIsShown(t *testing.T) {
	ran := 0
	for _, pattern := range []string{"README.md", "docs/modes/*.md", "docs/*.md", "docs/runtimes/*.md", "packaging/man/text/*.1"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			list := commands(string(text), pattern == "README.md" || pattern == "docs/modes/*.md")
			if strings.HasSuffix(file, ".1") {
				list = examples(string(text))
			}
			if len(list) > 0 {
				ran += len(list)
				t.Run(strings.TrimPrefix(file, root+"/"), func(t *testing.T) { run(t, list) })
			}
		}
	}
	if ran < 20 {
		t.Errorf("only %d commands", ran)
	}
}

// run runs a page's commands in one shell on a new host with default paths.
func run(t *testing.T, list []command) {
	h := lab.NewHost(t)
	h.Root = ""
	dir := t.TempDir()
	script := strings.Builder{}
	// A reader waits until a server that he has started listens.
	script.WriteString("sudo() { \"$@\"; }\ncurl() { command curl -sS --retry 10 --retry-connrefused --retry-delay 1 \"$@\"; }\n")
	for i, c := range list {
		line := c.line
		if serves(line) {
			line = "timeout --foreground 1 " + line
		}
		fmt.Fprintf(&script, "{\n%s\n} >%s/out.%d 2>&1\necho $? >%[2]s/code.%d\n", line, dir, i)
	}
	script.WriteString("kill $(jobs -p) 2>/dev/null\nwait\n")
	h.RunEnv([]string{"PATH=" + filepath.Dir(h.Program) + ":" + os.Getenv("PATH"), "HOME=" + dir}, "bash", "-c", script.String())
	for i, c := range list {
		out, err := os.ReadFile(fmt.Sprintf("%s/out.%d", dir, i))
		code, err2 := os.ReadFile(fmt.Sprintf("%s/code.%d", dir, i))
		if err = errors.Join(err, err2); err != nil {
			t.Fatalf("%s: %v", c.line, err)
		}
		want := "0\n"
		if serves(c.line) {
			want = "124\n" // timeout's
		}
		if string(code) != want {
			t.Errorf("%s: exit %s%s", c.line, code, out)
		}
		if got, want := masked(string(out)), masked(strings.Join(c.want, "\n")); len(c.want) > 0 && got != want {
			t.Errorf("%s: prints\n%s\nthe page says\n%s", c.line, got, want)
		}
	}
	// The world's state is the next page's, too.
	h.Sandnet(append([]string{"rm", "-f"}, strings.Fields(h.OK("ps", "-q"))...)...)
	h.Sandnet(append([]string{"network", "rm", "-f"}, strings.Fields(h.OK("network", "ls", "-q"))...)...)
}

// serves says that a command goes on until it is ended.
func serves(line string) bool {
	return strings.Contains(line, "http.server") && !strings.HasSuffix(line, "&")
}

// masked is output without what is new each time.
func masked(s string) string {
	for _, m := range [][2]string{
		{`\b[0-9a-f]{12}\b`, "ID"}, {`(Less than a|\d+) seconds? ago`, "AGO"}, {`\bfd[0-9a-f]{2}:[0-9a-f:]+`, "ULA"}, {`[ \t]+`, " "}, {` ?\n`, "\n"},
	} {
		s = regexp.MustCompile(m[0]).ReplaceAllString(s, m[1])
	}
	return strings.TrimSpace(s)
}

// The pages name the firewall's own sets and chains.
func TestNamesInPictures(t *testing.T) {
	known := map[string]bool{}
	for _, o := range (nftables.Firewall{}).Host(0, "") {
		if table, ok := o.(plan.Table); ok {
			for _, s := range table.Sets {
				known["@"+s.Name] = true
			}
			for _, c := range table.Chains {
				known[c.Name] = true
			}
		}
	}
	for _, file := range []string{"docs/modes/bridge.md", "docs/security.md"} {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`@[a-z-]+|\b(raw-)?(pre|post)routing\b`).FindAllString(string(text), -1)
		if len(found) == 0 {
			t.Errorf("%s names none", file)
		}
		for _, name := range found {
			if !known[name] {
				t.Errorf("%s: there is no %s", file, name)
			}
		}
	}
}

// docs/security.md names a test for each promise: it has to exist.
func TestPromisesAreTested(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/security.md"))
	if err != nil {
		t.Fatal(err)
	}
	promises, inTable := 0, false
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(line, "|\n "), " | ")
		if inTable = len(cells) == 3 && (inTable || cells[0] == "promise"); !inTable || cells[0] == "promise" || cells[0] == "---" {
			continue
		}
		promises++
		tests := regexp.MustCompile("`([a-z0-9/]+): ((?:Test|Fuzz)[A-Za-z0-9]+|[a-z0-9]+\\.txtar)`").FindAllStringSubmatch(cells[2], -1)
		if len(tests) == 0 {
			t.Errorf("no test for: %s", cells[0])
		}
		for _, m := range tests {
			if !exists(t, m[1], m[2]) {
				t.Errorf("%s: there is no %s", m[1], m[2])
			}
		}
	}
	if promises < 15 {
		t.Errorf("only %d promises", promises)
	}
}

func exists(t *testing.T, dir, test string) bool {
	t.Helper()
	if strings.HasSuffix(test, ".txtar") {
		_, err := os.Stat(filepath.Join(root, dir, "testdata/script", test))
		return err == nil
	}
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if text, _ := os.ReadFile(f); strings.Contains(string(text), "\nfunc "+test+"(") {
			return true
		}
	}
	return false
}
