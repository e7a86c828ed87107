package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

func (p *program) helpCommand() *cli.Command {
	return &cli.Command{
		Name: "help", ArgsUsage: "[COMMAND...]",
		Usage: "Show help for a command",
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
// is empty.
func (p *program) showHelp(cmd *cli.Command, path string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Usage:  %s %s\n\n%s\n", fullName(path), cmd.ArgsUsage, cmd.Usage)
	if cmd.Description != "" {
		fmt.Fprintf(&b, "\n%s\n", cmd.Description)
	}
	writeCommands(&b, cmd)
	title := "Options"
	if path == "" {
		title = "Global options"
	}
	fmt.Fprintf(&b, "\n%s:\n", title)
	writeOptions(&b, cmd.Flags)
	if len(cmd.Subcommands) > 0 {
		fmt.Fprintf(&b, "\n'%s COMMAND --help' says more of a command.\n", fullName(path))
	}
	_, err := p.stdout.Write(b.Bytes())
	return err
}

// writeCommands lists the subcommands by topic.
func writeCommands(out io.Writer, cmd *cli.Command) {
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
			fmt.Fprintf(out, "\n%s:\n", title)
		}
		fmt.Fprintf(out, "  %-12s%s\n", c.Name, c.Usage)
	}
}

// writeOptions lists options as docker does, the short one first.
func writeOptions(out io.Writer, flags []cli.Flag) {
	w := tabwriter.NewWriter(out, 0, 1, 3, ' ', 0)
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		value, text := optionUsage(f)
		if value != "" {
			value = " " + value
		}
		short := "    "
		for _, n := range f.Names()[1:] {
			if len(n) == 1 {
				short = "-" + n + ", "
			}
		}
		if vars := d.GetEnvVars(); len(vars) > 0 {
			text += " ($" + strings.Join(vars, ", $") + ")"
		}
		fmt.Fprintf(w, "  %s--%s%s\t%s\n", short, f.Names()[0], value, text)
	}
	w.Flush()
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
