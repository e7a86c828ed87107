package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
	"github.com/sandnet/sandnet/sandbox"
)

// The exit codes of sandnet itself.
const (
	exitFailed = 1
	exitUsage  = 2
	// exitRunFailed is exitFailed of `run` and `exec`, where 1 is the command's.
	exitRunFailed = 125
	// exitHungUp is what a shell shows of a command that SIGPIPE has ended.
	exitHungUp = 128 + 13
)

// failure is an error of one command.
type failure struct {
	// what is the command, as in "network create", or a word of the command
	// line that is none.
	what string
	err  error
}

func (f *failure) Error() string { return f.what + ": " + f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// several are errors of a command that goes on past each; every one is
// reported on its own.
type several []error

func (s several) Error() string   { return errors.Join(s...).Error() }
func (s several) Unwrap() []error { return s }

// or is nil if there are none.
func (s several) or() error {
	if len(s) == 0 {
		return nil
	}
	return s
}

// usageError says that the command line is wrong. Without a hint of its own it
// gets one that points to the command's help.
type usageError struct{ why, hint string }

func (e *usageError) Error() string { return e.why }
func (e *usageError) Hint() string  { return e.hint }

func usage(format string, args ...any) error { return &usageError{why: fmt.Sprintf(format, args...)} }

func seeHelp(path string) string { return "see '" + fullName(path) + " --help'" }

func fullName(path string) string { return strings.TrimSpace(programName + " " + path) }

// status is the exit code of the command that sandnet ran, which has said
// itself what there was to say.
type status int

func (s status) Error() string { return "exit status " + strconv.Itoa(int(s)) }

// runError is a failure of sandnet, not of the command it was to run.
type runError struct{ error }

func (e runError) Unwrap() error { return e.error }

// report prints an error and returns the exit code for it.
func (p *program) report(err error) int {
	if err == nil {
		return 0
	}
	var own status
	if errors.As(err, &own) {
		return int(own)
	}
	what := ""
	var f *failure
	if errors.As(err, &f) {
		what, err = f.what, f.err
	}
	list := several{err}
	var many several
	if errors.As(err, &many) {
		list = many
	}
	if list = slices.DeleteFunc(slices.Clone(list), p.hungUp); len(list) == 0 {
		return exitHungUp
	}
	paint := painter(p.stderr)
	for _, e := range list {
		fmt.Fprintf(p.stderr, "%s %s: %s\n", paint(red, programName+":"), oneLine(what), oneLine(e.Error()))
	}
	for _, e := range list {
		if h := hint(e, what); h != "" {
			fmt.Fprintln(p.stderr, paint(cyan, "hint:")+" "+oneLine(h))
			break
		}
	}
	code := exitCode(list[0])
	for _, e := range list[1:] {
		if exitCode(e) != code {
			code = exitFailed
		}
	}
	return code
}

// oneLine makes a message fit on one line, whatever somebody has put into it.
func oneLine(s string) string {
	var b strings.Builder
	for _, r := range strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ") {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

// hint is the known cure of an error of the command at path, or empty.
func hint(err error, path string) string {
	var input *spec.InputError
	if errors.As(err, &input) && input.Hint != "" {
		return input.Hint
	}
	var wrong *usageError
	if errors.As(err, &wrong) && wrong.hint == "" {
		return seeHelp(path)
	}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func exitCode(err error) int {
	var wrong *usageError
	var input *spec.InputError
	var command *spec.CommandError
	var run runError
	switch {
	case errors.As(err, &wrong), errors.As(err, &input), errors.Is(err, sandbox.ErrNotRoot):
		return exitUsage
	case errors.As(err, &command):
		return command.Code
	case errors.As(err, &run):
		return exitRunFailed
	}
	return exitFailed
}

// badValue is the flag package's error in our words: what it says of a value
// that is no number or truth value.
func badValue(path string, err error) error {
	s := err.Error()
	quoted, rest, ok := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(s, "invalid value "), "invalid boolean value "), " for ")
	value, unquoteErr := strconv.Unquote(quoted)
	option, _, _ := strings.Cut(strings.TrimPrefix(rest, "flag "), ":")
	if !ok || unquoteErr != nil {
		return &failure{what: path, err: usage("%s", s)}
	}
	why := "it must be a number"
	if strings.HasPrefix(s, "invalid boolean") {
		why = "it must be true or false"
	}
	return &failure{what: path, err: &spec.InputError{What: "--" + strings.TrimLeft(option, "-"), Value: value, Why: why}}
}

func unknownOption(l *line, option string) error {
	var names []string
	for _, c := range l.path {
		for _, f := range c.Flags {
			names = append(names, "--"+f.Names()[0])
		}
	}
	guess := ""
	if near := closest(option, names); near != "" {
		guess = ", did you mean " + near + "?"
	}
	if path := l.name(); path != "" {
		return &failure{what: path, err: usage("unknown option %s%s", option, guess)}
	}
	return &failure{what: option, err: &usageError{"unknown option" + guess, seeHelp("")}}
}

func unknownCommand(parent *cli.Command, path, word string) error {
	var names []string
	for _, c := range parent.Subcommands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	hint := seeHelp(path)
	if near := closest(word, names); near != "" {
		hint = fmt.Sprintf("did you mean '%s %s'? See '%s --help'", fullName(path), near, fullName(path))
	}
	return &failure{what: strings.TrimSpace(path + " " + word), err: &usageError{"unknown command", hint}}
}

// closest is the candidate that most likely was meant, or empty: the one with
// the fewest changes of a character, if they are a third of it at most.
func closest(word string, candidates []string) string {
	best, least := "", 0
	for _, c := range candidates {
		limit := len(strings.TrimLeft(c, "-"))/3 + 1
		if len(c)-len(word) > limit || len(word)-len(c) > limit {
			continue
		}
		if d := distance(word, c); d <= limit && (best == "" || d < least) {
			best, least = c, d
		}
	}
	return best
}

// distance is Levenshtein's, with two neighbours exchanged as one change.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
