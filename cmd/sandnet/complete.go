package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
	"github.com/sandnet/sandnet/sandbox"
)

// completeCommand prints what the last of its arguments, the beginning of a
// word, may become: a line for each word, with its help after a tab, and a
// last line that says what else the shell is to do. It is not for people.
func (p *program) completeCommand() *cli.Command {
	return &cli.Command{
		Name: "__complete", Hidden: true, ArgsUsage: "WORD...",
		Usage: "Print how a command line can go on",
		Action: func(c *cli.Context) error {
			words := c.Args().Slice()
			if len(words) == 0 {
				words = []string{""}
			}
			// Somebody waits at the prompt.
			ctx, cancel := context.WithTimeout(c.Context, time.Second)
			defer cancel()
			o := completion{p: p, ctx: ctx, before: words[:len(words)-1], begun: words[len(words)-1]}
			o.line, _ = takeApart(p.root, o.before)
			offers, then := o.offers()
			return p.printOffers(offers, then, words[len(words)-1])
		},
	}
}

// offer is a word that a command line may go on with.
type offer struct{ word, help string }

// What the shell is to do beside offering words.
const (
	thenSpace   = ":"
	thenNoSpace = ":nospace" // the word goes on
	thenFiles   = ":files"
	thenDirs    = ":dirs"
	// thenCommand, with a number: from that word on, the first being 0, it is
	// another program's command line.
	thenCommand = ":command"
)

func (p *program) printOffers(offers []offer, then, begun string) error {
	offers = slices.DeleteFunc(offers, func(o offer) bool { return !strings.HasPrefix(o.word, begun) })
	slices.SortStableFunc(offers, func(a, b offer) int { return cmp.Compare(a.word, b.word) })
	offers = slices.CompactFunc(offers, func(a, b offer) bool { return a.word == b.word })
	open := func(o offer) bool { return strings.HasSuffix(o.word, ":") || strings.HasSuffix(o.word, "=") }
	if then == thenSpace && len(offers) > 0 && !slices.ContainsFunc(offers, func(o offer) bool { return !open(o) }) {
		then = thenNoSpace
	}
	var b strings.Builder
	for _, o := range offers {
		b.WriteString(strings.TrimSuffix(o.word+"\t"+o.help, "\t") + "\n")
	}
	return p.println(b.String() + then)
}

// completion works out what may follow. Nothing of it is listed by hand: it
// goes by the command tree, and there by the words that help shows for
// arguments and values, such as SANDBOX, FILE or "text or json".
type completion struct {
	p      *program
	ctx    context.Context
	before []string // the words before the one in question
	begun  string   // its beginning
	line   line     // what before means
}

func (o *completion) offers() (offers []offer, then string) {
	l := o.line
	cmd := l.last()
	if l.pending != "" {
		_, f := l.find(l.pending)
		return o.value(f)
	}
	option := strings.HasPrefix(o.begun, "-") && !slices.Contains(o.before, "--")
	if takesCommand(cmd) {
		// The first argument ends the options.
		at, n := slices.Index(forms(cmd.ArgsUsage)[0].names, "COMMAND"), len(l.args)
		if n > at || n == at && (at > 0 || !option) {
			return o.command(at)
		}
	}
	if long, value, ok := strings.Cut(strings.TrimLeft(o.begun, "-"), "="); ok && option {
		_, f := l.find(long)
		if f == nil || !takesValue(f) {
			return nil, thenSpace
		}
		begun := o.begun
		o.begun = value
		offers, then = o.value(f)
		for i := range offers {
			offers[i].word = strings.TrimSuffix(begun, value) + offers[i].word
		}
		return offers, then
	}
	if option {
		return o.options(), thenSpace
	}
	if len(cmd.Subcommands) > 0 && len(l.args) == 0 {
		offers = commandNames(cmd)
	}
	then = thenSpace
	for _, f := range forms(cmd.ArgsUsage) {
		more, also := o.next(f)
		if offers = append(offers, more...); also != thenSpace {
			then = also
		}
	}
	return offers, then
}

// form is one of the ways to give arguments to a command: their names in its
// usage, of which the last may be repeated.
type form struct {
	names []string
	more  bool
}

// forms takes a usage apart, as in "SANDBOX [PORT] | add SANDBOX SPEC...".
// Options are left out. There always is one.
func forms(usage string) (out []form) {
	for part := range strings.SplitSeq(usage, " | ") {
		f, option := form{}, false
		for word := range strings.FieldsSeq(part) {
			if option = option || strings.HasPrefix(word, "[-") || word == "[OPTIONS]"; option {
				option = !strings.HasSuffix(word, "]")
				continue
			}
			if len(word) > 1 && word[0] == '[' && strings.HasSuffix(word, "]") {
				word = word[1 : len(word)-1]
			}
			word, f.more = strings.CutSuffix(word, "...")
			f.names = append(f.names, word)
		}
		out = append(out, f)
	}
	return out
}

// next is what may come next, if the arguments until here are of the form.
func (o *completion) next(f form) ([]offer, string) {
	given := map[string]string{}
	for i, arg := range o.line.args {
		name := ""
		switch {
		case i < len(f.names):
			name = f.names[i]
		case f.more && len(f.names) > 0:
			name = f.names[len(f.names)-1]
		default:
			return nil, thenSpace
		}
		if !notLiteral(name) && name != arg {
			return nil, thenSpace
		}
		given[name] = arg
	}
	switch n := len(o.line.args); {
	case n < len(f.names):
		return o.operand(f.names[n], given)
	case f.more && len(f.names) > 0:
		again, then := o.operand(f.names[len(f.names)-1], given)
		return slices.DeleteFunc(again, func(a offer) bool { return slices.Contains(o.line.args, a.word) }), then
	}
	return nil, thenSpace
}

// operand is what an argument, or a value, of that name may be; given are the
// arguments before it.
func (o *completion) operand(name string, given map[string]string) ([]offer, string) {
	switch {
	case name == "SANDBOX":
		return o.sandboxes(), thenSpace
	case name == "NETWORK":
		return o.networks(), thenSpace
	case name == "NAME|ID":
		return append(o.sandboxes(), o.networks()...), thenSpace
	case name == "FILE", name == "PATH":
		return nil, thenFiles
	case name == "DIR", name == "BUNDLE":
		return nil, thenDirs
	case name == "COMMAND": // `help`
		cmd := o.p.root
		for _, word := range o.line.args {
			if cmd = cmd.Command(word); cmd == nil {
				return nil, thenSpace
			}
		}
		return commandNames(cmd), thenSpace
	case name == "SPEC" || strings.HasPrefix(name, "PORT["):
		return append(o.published(name, given), o.protocols()...), thenSpace
	case !notLiteral(name):
		return []offer{{word: name}}, thenSpace
	}
	return words(alternatives(name)), thenSpace
}

// Values of --net that a name follows.
const joinPrefix, networkPrefix = "container:", "name="

func prefixed(prefix string, offers []offer) []offer {
	for i := range offers {
		offers[i].word = prefix + offers[i].word
	}
	return offers
}

// value is what may be given to an option.
func (o *completion) value(f cli.Flag) ([]offer, string) {
	name, text := optionUsage(f)
	if names(f)[0] == "net" {
		if strings.HasPrefix(o.begun, networkPrefix) {
			return prefixed(networkPrefix, o.networks()), thenSpace
		}
		if strings.HasPrefix(o.begun, joinPrefix) {
			return prefixed(joinPrefix, o.sandboxes()), thenSpace
		}
		return append(o.networks(), words([]string{"bridge", "host", "none", joinPrefix})...), thenSpace
	}
	offers, then := o.operand(name, nil)
	if len(offers) == 0 && then == thenSpace {
		if list := choices(text); len(list) > 1 || name == "FORMAT" {
			offers = words(list)
		}
	}
	return offers, then
}

// alternatives takes "bash|zsh|fish" apart.
func alternatives(name string) []string {
	name, _, _ = strings.Cut(name, " ")
	if list := strings.Split(name, "|"); len(list) > 1 && !slices.ContainsFunc(list, notLiteral) {
		return list
	}
	return nil
}

// choices takes the end of an option's help apart, if it lists what the value
// may be: "… the log: text or json".
func choices(text string) []string {
	if _, list, ok := strings.Cut(text, ": "); ok {
		text = list
	}
	text, _, _ = strings.Cut(text, " (")
	text, _, _ = strings.Cut(text, ";")
	var list []string
	for choice := range strings.SplitSeq(strings.ReplaceAll(text, " or ", ", "), ", ") {
		// What a literal is followed by may be named: "allow or deny CIDR".
		word, rest, _ := strings.Cut(choice, " ")
		if notLiteral(word) || rest != "" && (strings.Contains(rest, " ") || rest == strings.ToLower(rest)) {
			return nil
		}
		list = append(list, word)
	}
	return list
}

// notLiteral says that a word is not one that a user types as it stands.
func notLiteral(s string) bool {
	return s == "" || strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' })
}

func words(list []string) []offer {
	var out []offer
	for _, w := range list {
		out = append(out, offer{word: w})
	}
	return out
}

// options are those of the command; those of the program, if none of the
// command's fits. One that is given already and counts once is left out.
func (o *completion) options() []offer {
	var out []offer
	for i := len(o.line.path) - 1; i >= 0; i-- {
		for _, f := range o.line.path[i].Flags {
			word := "--" + names(f)[0]
			_, repeatable := f.(*cli.StringSliceFlag)
			if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() || !strings.HasPrefix(word, o.begun) ||
				!repeatable && slices.Contains(o.line.given[i], f) {
				continue
			}
			_, text := optionUsage(f)
			out = append(out, offer{word, text})
		}
		if len(out) > 0 {
			break
		}
	}
	return out
}

func commandNames(cmd *cli.Command) []offer {
	var out []offer
	for _, c := range cmd.Subcommands {
		if !c.Hidden {
			out = append(out, offer{c.Name, c.Usage})
		}
	}
	return out
}

// command leaves the words from the COMMAND on to that command's completion;
// before it come as many arguments as at says.
func (o *completion) command(at int) ([]offer, string) {
	l := o.line
	first := len(o.before) - max(len(l.args)-at, 0)
	if len(l.args) > at && l.args[at] == "--" {
		first++
	}
	return nil, fmt.Sprint(thenCommand, " ", first)
}

// sandboxes and networks are empty for those who may not know.
func (o *completion) sandboxes() []offer {
	var out []offer
	for _, v := range o.views() {
		out = append(out, offer{v.Name, strings.TrimSpace(v.Mode + "  " + addresses(v.Endpoints))})
	}
	return out
}

func (o *completion) networks() []offer {
	var out []offer
	if m, err := o.manager(); err == nil {
		nets, _ := m.Networks(o.ctx)
		for _, n := range nets {
			out = append(out, offer{n.Name, join(n.Subnets)})
		}
	}
	return out
}

// published are the ports of the sandbox that is given: as they are inside or,
// for a SPEC to remove, as it published them.
func (o *completion) published(name string, given map[string]string) []offer {
	var out []offer
	for _, v := range o.views() {
		for _, ep := range v.Endpoints {
			for _, port := range ep.Ports {
				switch {
				case given["SANDBOX"] != v.Name:
				case name != "SPEC":
					out = append(out, offer{fmt.Sprintf("%d/%s", port.Port, port.Proto), port.String()})
				case given["rm"] != "" || o.line.last().Name == "rm":
					out = append(out, offer{word: port.String()})
				}
			}
		}
	}
	return out
}

// protocols end a port that lacks only that.
func (o *completion) protocols() []offer {
	port, _, ok := strings.Cut(o.begun, "/")
	if !ok {
		return nil
	}
	var out []offer
	for _, proto := range []spec.Proto{spec.TCP, spec.UDP, spec.SCTP} {
		out = append(out, offer{word: port + "/" + string(proto)})
	}
	return out
}

func (o *completion) views() []sandbox.View {
	m, err := o.manager()
	if err != nil {
		return nil
	}
	views, _ := m.List(o.ctx)
	return views
}

// manager opens the host that the line's --root names.
func (o *completion) manager() (*sandbox.Manager, error) {
	root := os.Getenv("SANDNET_ROOT")
	for _, option := range o.line.options[0] {
		if dir, ok := strings.CutPrefix(option, "--root="); ok {
			root = dir
		}
	}
	return openHost(root, "auto", slog.New(slog.DiscardHandler))
}
