package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

// completions are lines and what each shell makes of them: every word that may
// follow, or a single one with what comes after it.
func completions(dir string) map[string]string {
	return map[string]string{
		"sandnet netw":                        "sandnet network ",
		"sandnet network i":                   "sandnet network inspect ",
		"sandnet network in -h --he":          "sandnet network in -h --help ",
		"sandnet r":                           "sandnet rm run ",
		"sandnet run --na":                    "sandnet run --name ",
		"sandnet ps --ro":                     "sandnet ps --root ",
		"sandnet ps -q --q":                   "sandnet ps -q --q",
		"sandnet ps --format ":                "sandnet ps --format json table ",
		"sandnet ps --format=j":               "sandnet ps --format=json ",
		"sandnet --log-level i":               "sandnet --log-level info ",
		"sandnet --firewall ":                 "sandnet --firewall auto iptables nftables ",
		"sandnet network create --gateway-m":  "sandnet network create --gateway-mode ",
		"sandnet create --net b":              "sandnet create --net backend bridge ",
		"sandnet create --net=h":              "sandnet create --net=host ",
		"sandnet create --net con":            "sandnet create --net container:",
		"sandnet create --net container:w":    "sandnet create --net container:web ",
		"sandnet create --net=container:w":    "sandnet create --net=container:web ",
		"sandnet create -p 8080:80/u":         "sandnet create -p 8080:80/udp ",
		"sandnet create --label ":             "sandnet create --label ",
		"sandnet create --name ":              "sandnet create --name ",
		"sandnet rm ":                         "sandnet rm quiet web ",
		"sandnet rm web ":                     "sandnet rm web quiet ",
		"sandnet port web ":                   "sandnet port web 53/udp 80/tcp ",
		"sandnet network rm ":                 "sandnet network rm backend bridge ",
		"sandnet inspect ":                    "sandnet inspect backend bridge quiet web ",
		"sandnet completion f":                "sandnet completion fish ",
		"sandnet help network pr":             "sandnet help network prune ",
		"sandnet --root " + dir + "/onlyd":    "sandnet --root " + dir + "/onlydir/",
		"sandnet --root=" + dir + "/onlyd":    "sandnet --root=" + dir + "/onlydir/",
		"sandnet run -w " + dir + "/only":     "sandnet run -w " + dir + "/onlydir/",
		"sandnet --root " + dir + "/else rm ": "sandnet --root " + dir + "/else rm ",
		"sandnet exec w":                      "sandnet exec web ",
		// From here on it is another program's line.
		"sandnet exec web sandn":            "sandnet exec web sandnet ",
		"sandnet exec web -- sandn":         "sandnet exec web -- sandnet ",
		"sandnet run sandn":                 "sandnet run sandnet ",
		"sandnet run --net none -- sandn":   "sandnet run --net none -- sandnet ",
		"sandnet run cat " + dir + "/onlyf": "sandnet run cat " + dir + "/onlyfile ",
	}
}

// completionHost has sandboxes, networks and files to complete.
func completionHost(t *testing.T) (h *lab.Host, dir string, env []string) {
	h = lab.NewHost(t)
	h.OK("network", "create", "backend")
	h.OK("create", "--name", "web", "-p", "8080:80", "-p", "5353:53/udp")
	h.OK("create", "--name", "quiet", "--net", "none")
	dir = t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "onlydir"), 0o755), os.WriteFile(filepath.Join(dir, "onlyfile"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Dir(h.Program)
	return h, dir, []string{"SANDNET_ROOT=" + h.Root, "PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + dir, "OUT=" + dir + "/out", "SCRIPTS=" + dir}
}

// In bash and zsh the line is typed at the prompt of the very shell: TAB puts
// in every completion there is, and another key notes what the line then is.
func TestCompletionAtThePrompt(t *testing.T) {
	for shell, setUp := range map[string]struct {
		args   []string
		script string
	}{
		"bash": {[]string{"--norc", "--noprofile", "-i"}, `
			bind '"\t": insert-completions'; bind 'set bell-style none'
			note() { printf '<%s>\n' "$READLINE_LINE" >>"$OUT"; READLINE_LINE= READLINE_POINT=0; }
			bind -x '"\C-g": note'; source <(sandnet completion bash)`},
		"bash with bash-completion": {[]string{"--norc", "--noprofile", "-i"}, `
			source /usr/share/bash-completion/bash_completion
			bind '"\t": insert-completions'; bind 'set bell-style none'
			note() { printf '<%s>\n' "$READLINE_LINE" >>"$OUT"; READLINE_LINE= READLINE_POINT=0; }
			bind -x '"\C-g": note'; source <(sandnet completion bash)`},
		"zsh": {[]string{"-f", "-i"}, zshSetup + `
			source <(sandnet completion zsh)`},
		"zsh, installed": {[]string{"-f", "-i"}, `
			sandnet completion zsh > $SCRIPTS/_sandnet; fpath=($SCRIPTS $fpath)` + zshSetup},
	} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			h, dir, env := completionHost(t)
			program, _, _ := strings.Cut(strings.ReplaceAll(shell, ",", ""), " ")
			script := filepath.Join(dir, "setup")
			if err := os.WriteFile(script, []byte(setUp.script+"\necho ready\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			term := h.OnTerminal(500, append(env, "PS1=> "), program, setUp.args...)
			term.Type(". " + script + "\r")
			term.Await("ready\r")
			var got []string
			lines := completions(dir)
			for i, line := range order(lines) {
				term.Type(line + "\t\a")
				lab.Eventually(t, "completion of "+line, func() error {
					out, _ := os.ReadFile(filepath.Join(dir, "out"))
					if got = strings.Split(string(out), "\n"); len(got) <= i+1 {
						return fmt.Errorf("nothing yet; on the screen: %q", term.Shown())
					}
					return nil
				})
				if want := "<" + lines[line] + ">"; !sameWords(got[i], want) {
					t.Errorf("%s TAB: got %s, want %s", line, got[i], want)
				}
			}
			term.Type("exit\r")
			term.Screen()
		})
	}
}

const zshSetup = `
	autoload -Uz compinit; compinit -u -D; setopt no_beep no_list_beep
	all() { compstate[insert]=all }; comppostfuncs=(all); zstyle ':completion:*' insert-tab false
	bindkey '^I' complete-word
	note() { comppostfuncs=(all); print -r -- "<$BUFFER>" >>$OUT; BUFFER= }; zle -N note; bindkey '^G' note`

// sameWords compares lines whose last words may be in another order. Whether a
// space or a slash follows depends on how the shell was told to insert all.
func sameWords(a, b string) bool {
	words := func(line string) []string {
		list := strings.Fields(strings.Trim(line, "<>"))
		for i, w := range list {
			list[i] = strings.TrimSuffix(w, "/")
		}
		slices.Sort(list)
		return list
	}
	return slices.Equal(words(a), words(b))
}

func order(lines map[string]string) []string {
	var out []string
	for line := range lines {
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

// fish says itself what it would offer.
func TestCompletionInFish(t *testing.T) {
	h, dir, env := completionHost(t)
	script := filepath.Join(dir, "sandnet.fish")
	if r := h.Run(h.Program, "completion", "fish"); os.WriteFile(script, []byte(r.Stdout), 0o644) != nil || r.Code != 0 {
		t.Fatal(r)
	}
	for line, want := range completions(dir) {
		r := h.RunEnv(env, "fish", "--no-config", "-c", "source "+script+"; complete -C "+shellQuote(line))
		if r.Code != 0 || r.Stderr != "" {
			t.Errorf("%s: %s", line, r)
		}
		head := line[:strings.LastIndex(line, " ")+1]
		var words []string
		for offered := range strings.Lines(r.Stdout) {
			word, _, _ := strings.Cut(strings.TrimSuffix(offered, "\n"), "\t")
			words = append(words, word)
		}
		if len(words) == 0 {
			words = []string{line[len(head):]}
		}
		if got := head + strings.Join(words, " "); !sameWords(got, strings.TrimSuffix(want, " ")) {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
