package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// line is a command line taken apart.
type line struct {
	// path is the command with those above it, the program first; options are
	// what each of them is given, spelt --name=value, and given which they are.
	path    []*cli.Command
	options [][]string
	given   [][]cli.Flag
	// args are the arguments of the last command in path.
	args []string
	// help and version: somebody asks for that instead.
	help, version bool
	// pending is the option that the line ends with, if it lacks its value.
	pending string
}

// takeApart reads arguments the way docker's users write them, which is more
// than the flag package accepts: options may follow arguments, short ones may
// be bundled (-dp 80) and have their value attached (-p80), global ones may
// follow the command. For `run` and `exec` the first argument ends the
// options. After an error the line is what could be read until there.
func takeApart(root *cli.Command, args []string) (line, error) {
	l := line{path: []*cli.Command{root}, options: [][]string{nil}, given: [][]cli.Flag{nil}}
	for len(args) > 0 {
		word := args[0]
		args = args[1:]
		if word == "--" {
			l.args = append(l.args, args...)
			break
		}
		if len(word) > 1 && word[0] == '-' {
			var err error
			if args, err = l.option(word, args); err != nil {
				return l, err
			}
			continue
		}
		cmd := l.last()
		if sub := cmd.Command(word); sub != nil {
			l.path, l.options, l.given = append(l.path, sub), append(l.options, nil), append(l.given, nil)
			continue
		}
		l.args = append(l.args, word)
		if takesCommand(cmd) || len(cmd.Subcommands) > 0 {
			l.args = append(l.args, args...)
			break
		}
	}
	return l, nil
}

func (l *line) last() *cli.Command { return l.path[len(l.path)-1] }

// name is the command without the program, as in "network create".
func (l *line) name() string {
	var words []string
	for _, c := range l.path[1:] {
		words = append(words, c.Name)
	}
	return strings.Join(words, " ")
}

// arguments is the line as the flag package reads it.
func (l *line) arguments() []string {
	var out []string
	for i, c := range l.path {
		if i > 0 {
			out = append(out, c.Name)
		}
		out = append(out, l.options[i]...)
	}
	if l.help {
		return append(out, "--help")
	}
	return append(append(out, "--"), l.args...)
}

// option takes one word of options, and its value from args if it has to; it
// returns what is left of args.
func (l *line) option(word string, args []string) ([]string, error) {
	if long, ok := strings.CutPrefix(word, "--"); ok {
		long, value, hasValue := strings.Cut(long, "=")
		level, f := l.find(long)
		switch {
		case f == nil || len(long) == 1:
			return args, unknownOption(l, "--"+long)
		case hasValue && isVerb(f, value):
			return l.next(level, f, "--"+long+"="+value, append([]string{value}, args...))
		case hasValue:
			l.set(level, f, "="+value)
		case takesValue(f):
			return l.next(level, f, "--"+long, args)
		default:
			l.set(level, f, "")
		}
		return args, nil
	}
	letters := word[1:]
	for i, r := range letters {
		level, f := l.find(string(r))
		if f == nil {
			return args, unknownOption(l, "-"+string(r))
		}
		rest := letters[i+len(string(r)):]
		switch {
		case strings.HasPrefix(rest, "="):
			l.set(level, f, rest)
		case !takesValue(f):
			l.set(level, f, "")
			continue
		case rest == "":
			return l.next(level, f, "-"+string(r), args)
		default:
			l.set(level, f, "="+rest)
		}
		break
	}
	return args, nil
}

// next sets an option to the next argument.
func (l *line) next(level int, f cli.Flag, spelling string, args []string) ([]string, error) {
	words := 1
	if len(args) > 0 && isVerb(f, args[0]) {
		words = 2
	}
	if len(args) < words {
		l.pending = names(f)[0]
		what := l.name()
		if what == "" {
			what = spelling
		}
		return nil, &failure{what: what, err: usage("option %s needs a value", spelling)}
	}
	l.set(level, f, "="+strings.Join(args[:words], " "))
	return args[words:], nil
}

// egressOption takes one word, as in --egress=allow:10.0.0.0/8, or two: no rule
// is "allow" or "deny" alone.
const egressOption = "egress"

func isVerb(f cli.Flag, value string) bool {
	return names(f)[0] == egressOption && (value == "allow" || value == "deny")
}

// set records an option under its first name: the flag package refuses two
// names of one option side by side.
func (l *line) set(level int, f cli.Flag, value string) {
	long := names(f)[0]
	l.given[level] = append(l.given[level], f)
	switch {
	case long == "help" && value == "":
		l.help = true
	case long == "version" && value == "":
		l.version = true
	default:
		l.options[level] = append(l.options[level], "--"+long+value)
	}
}

// find looks for an option of the command or, for a long one, of those above it.
func (l *line) find(name string) (level int, f cli.Flag) {
	for i := len(l.path) - 1; i >= 0; i-- {
		for _, f := range l.path[i].Flags {
			if slices.Contains(names(f), name) {
				return i, f
			}
		}
		if len(name) == 1 {
			break // -v of a command is not the program's
		}
	}
	return 0, nil
}

// names is f.Names without the regular expression that it runs.
func names(f cli.Flag) []string {
	switch f := f.(type) {
	case *cli.StringFlag:
		return append([]string{f.Name}, f.Aliases...)
	case *cli.StringSliceFlag:
		return append([]string{f.Name}, f.Aliases...)
	case *cli.BoolFlag:
		return append([]string{f.Name}, f.Aliases...)
	}
	return f.Names()
}

// command is what the library has to see of the line: of the commands only
// the one in question, since it prepares every one that it is given, and of
// the options only those that were given or have a value all the same, since
// it looks at each once for every other.
func (l *line) command(level int) *cli.Command {
	c := *l.path[level]
	c.Flags = slices.DeleteFunc(slices.Clone(c.Flags), func(f cli.Flag) bool {
		d, ok := f.(cli.DocGenerationFlag)
		return ok && d.GetValue() == "" && len(d.GetEnvVars()) == 0 && names(f)[0] != "help" && !slices.Contains(l.given[level], f)
	})
	c.Subcommands = nil
	if level+1 < len(l.path) {
		c.Subcommands = []*cli.Command{l.command(level + 1)}
	}
	return &c
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

func hasOption(c *cli.Command, name string) bool {
	return slices.ContainsFunc(c.Flags, func(f cli.Flag) bool { return slices.Contains(names(f), name) })
}

// wantArgs checks the number of arguments; the names are those of the
// required ones. More than max, unless that is negative, are refused.
func wantArgs(c *cli.Context, max int, names ...string) error {
	switch n := c.NArg(); {
	case n < len(names):
		return usage("%s is missing", names[n])
	case max >= 0 && n > max:
		return usage("unexpected argument %q", c.Args().Get(max))
	}
	return nil
}
