package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// treeCommand is a command as what writes manual pages reads it.
type treeCommand struct {
	Name        string        `json:"name"`
	Aliases     []string      `json:"aliases,omitempty"`
	Category    string        `json:"category,omitempty"`
	Arguments   string        `json:"arguments"`
	Usage       string        `json:"usage"`
	Description string        `json:"description"`
	Examples    []string      `json:"examples"`
	Options     []treeOption  `json:"options"`
	Commands    []treeCommand `json:"commands"`
}

type treeOption struct {
	Names      []string `json:"names"`
	Value      string   `json:"value,omitempty"`
	Usage      string   `json:"usage"`
	Default    string   `json:"default,omitempty"`
	Env        []string `json:"env,omitempty"`
	Repeatable bool     `json:"repeatable,omitempty"`
}

// treeCommand is `__tree`, the command tree in JSON: packaging/man and tests go
// by it.
func (p *program) treeCommand() *cli.Command {
	return &cli.Command{
		Name: "__tree", Hidden: true,
		Usage:  "Print all commands and options, as JSON",
		Action: func(*cli.Context) error { return p.printJSON(tree(p.root)) },
	}
}

// tree is what help shows of a command and of those below it.
func tree(cmd *cli.Command) treeCommand {
	t := treeCommand{
		Name: cmd.Name, Aliases: cmd.Aliases, Category: cmd.Category, Arguments: cmd.ArgsUsage, Usage: cmd.Usage,
		Examples: []string{}, Options: []treeOption{}, Commands: []treeCommand{},
	}
	t.Description, t.Examples = examples(cmd)
	for _, f := range cmd.Flags {
		d, ok := f.(cli.DocGenerationFlag)
		if v, can := f.(cli.VisibleFlag); !ok || can && !v.IsVisible() {
			continue
		}
		o := treeOption{Names: names(f), Env: d.GetEnvVars(), Default: defaultOf(f)}
		o.Value, o.Usage = optionUsage(f)
		_, o.Repeatable = f.(*cli.StringSliceFlag)
		t.Options = append(t.Options, o)
	}
	for _, c := range cmd.Subcommands {
		if !c.Hidden {
			t.Commands = append(t.Commands, tree(c))
		}
	}
	return t
}

// defaultOf is the value that an option has without being given, if it is one
// that a user could give.
func defaultOf(f cli.Flag) string {
	if s, ok := f.(*cli.StringFlag); ok {
		return strings.Trim(s.GetDefaultText(), `"`) // not what the environment says
	}
	return ""
}

// examples takes a command's description and the examples at its end apart.
func examples(cmd *cli.Command) (text string, lines []string) {
	text, list, found := strings.Cut("\n"+cmd.Description, "\nExample")
	lines = []string{}
	if _, list, _ = strings.Cut(list, "\n"); found {
		for line := range strings.Lines(list) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.TrimSpace(text), lines
}
