package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

func (p *program) helpCommand() *cli.Command {
	return &cli.Command{
		Name: "help", ArgsUsage: "[COMMAND...]",
		Usage: "Show help for a command",
		Description: `The same as --help after the command.

Examples:
  sandnet help run
  sandnet help network create`,
		Action: func(c *cli.Context) error {
			cmd, path := p.root, ""
			for _, word := range c.Args().Slice() {
				sub := cmd.Command(word)
				if sub == nil {
					return unknownCommand(cmd, path, word)
				}
				cmd, path = sub, strings.TrimSpace(path+" "+sub.Name)
			}
			return p.showHelp(cmd, path)
		},
	}
}

// showHelp prints the help of the command at path, the program itself if that
// is empty. On a terminal, lines are as wide as that.
func (p *program) showHelp(cmd *cli.Command, path string) error {
	var b strings.Builder
	h := help{&b, columns(p.stdout)}
	fmt.Fprintf(&b, "Usage:  %s\n\n%s\n", strings.TrimSpace(fullName(path)+" "+cmd.ArgsUsage), cmd.Usage)
	if len(cmd.Aliases) > 0 {
		parent := fullName(strings.TrimSuffix(path, cmd.Name))
		fmt.Fprintf(&b, "\nAliases:\n  %s\n", parent+" "+strings.Join(cmd.Aliases, ", "+parent+" "))
	}
	if cmd.Description != "" {
		fmt.Fprintf(&b, "\n%s\n", cmd.Description)
	}
	h.commands(cmd)
	title := "Options"
	if path == "" {
		title = "Global options"
	}
	fmt.Fprintf(&b, "\n%s:\n", title)
	h.options(cmd.Flags)
	if len(cmd.Subcommands) > 0 {
		fmt.Fprintf(&b, "\n'%s COMMAND --help' says more of a command.\n", fullName(path))
	}
	_, err := io.WriteString(p.stdout, b.String())
	return err
}

// help lays out lists of commands and options.
type help struct {
	out   io.Writer
	width int // of the lines, 0 for whatever it takes
}

// commands lists the subcommands by topic.
func (h help) commands(cmd *cli.Command) {
	topic := "-"
	for _, c := range cmd.Subcommands {
		if c.Hidden {
			continue
		}
		if c.Category != topic {
			topic = c.Category
			title := topic
			if title == "" {
				title = "Commands"
			}
			fmt.Fprintf(h.out, "\n%s:\n", title)
		}
		h.entry("  "+c.Name, c.Usage, 14)
	}
}

// options lists options as docker does, the short one first.
func (h help) options(flags []cli.Flag) {
	var rows [][2]string
	indent := 0
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if v, can := f.(cli.VisibleFlag); !ok || can && !v.IsVisible() {
			continue
		}
		value, text := optionUsage(f)
		if value != "" {
			value = " " + value
		}
		short := "    "
		for _, n := range names(f)[1:] {
			if len(n) == 1 {
				short = "-" + n + ", "
			}
		}
		if v := defaultOf(f); v != "" {
			text += " (default " + v + ")"
		}
		if vars := d.GetEnvVars(); len(vars) > 0 {
			text += " ($" + strings.Join(vars, ", $") + ")"
		}
		row := [2]string{"  " + short + "--" + names(f)[0] + value, text}
		rows = append(rows, row)
		indent = max(indent, cells(row[0])+3)
	}
	for _, row := range rows {
		h.entry(row[0], row[1], indent)
	}
}

// entry is a term and, from column indent on, what it means.
func (h help) entry(term, text string, indent int) {
	const narrowest = 20
	room := h.width - indent
	fmt.Fprintf(h.out, "%-*s", indent, term)
	if h.width == 0 || room < narrowest {
		fmt.Fprintln(h.out, text)
		return
	}
	n := 0
	for word := range strings.FieldsSeq(text) {
		switch size := cells(word); {
		case n == 0:
			n = size
		case n+1+size > room:
			fmt.Fprintf(h.out, "\n%*s", indent, "")
			n = size
		default:
			fmt.Fprint(h.out, " ")
			n += 1 + size
		}
		fmt.Fprint(h.out, word)
	}
	fmt.Fprintln(h.out)
}

// optionUsage is the name of an option's value, if it takes one, and what help
// says of the option: a usage starts with that name, as in "`DIR` …".
func optionUsage(f cli.Flag) (value, text string) {
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return "", ""
	}
	if rest, ok := strings.CutPrefix(d.GetUsage(), "`"); ok {
		value, text, _ = strings.Cut(rest, "` ")
		return value, text
	}
	return "", d.GetUsage()
}
