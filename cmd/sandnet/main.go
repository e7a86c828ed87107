// A command that runs for milliseconds does not adapt to CPU limits; looking
// them up costs a tenth of its start.
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command sandnet manages the network sandboxes of one host: it needs no
// daemon, and what it is told is done when it returns.
//
// This package is the command line and nothing else: it turns arguments into
// requests of package spec, has package sandbox carry them out, and prints the
// results. Every command has its own file; everything is wired up here.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/firewall/iptables"
	"github.com/sandnet/sandnet/internal/firewall/nftables"
	"github.com/sandnet/sandnet/internal/kernel"
	"github.com/sandnet/sandnet/internal/record"
	"github.com/sandnet/sandnet/internal/spec"
	"github.com/sandnet/sandnet/modes"
	"github.com/sandnet/sandnet/sandbox"
)

// Set by the linker: -X main.version=… -X main.commit=…
var version, commit = "dev", ""

func main() {
	kernel.BecomeHeld()
	p := &program{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(p.main(os.Args[1:]))
}

// program is one run of sandnet, with the files it talks to.
type program struct {
	stdin, stdout, stderr *os.File
	root                  *cli.Command
	progress              *progress // of the command under way, on a terminal
}

// commands is the whole tree, in the order in which help shows it.
func (p *program) commands() *cli.Command {
	const sandboxes, networks, runtimes, host, about = "Sandboxes", "Networks", "Container runtimes", "This host", "About sandnet"
	in := func(category string, commands ...*cli.Command) []*cli.Command {
		for _, c := range commands {
			c.Category = category
		}
		return commands
	}
	root := &cli.Command{
		Name: programName, HelpName: programName, ArgsUsage: "[OPTIONS] COMMAND",
		Usage: "Network sandboxes without a daemon",
		Flags: globalFlags(),
	}
	root.Subcommands = append(root.Subcommands, in(sandboxes,
		p.runCommand(), p.createCommand(), p.execCommand(), p.rmCommand(),
		p.psCommand(), p.inspectCommand(), p.portCommand())...)
	root.Subcommands = append(root.Subcommands, in(networks, p.networkCommand())...)
	root.Subcommands = append(root.Subcommands, in(runtimes, p.hookCommand(), p.ociCommand())...)
	root.Subcommands = append(root.Subcommands, in(host, p.planCommand(), p.diffCommand(), p.gcCommand(), p.doctorCommand())...)
	root.Subcommands = append(root.Subcommands, in(about,
		p.versionCommand(), p.completionCommand(), p.helpCommand(), p.completeCommand(), p.treeCommand())...)
	p.finish(root, "")
	return root
}

const programName = "sandnet"

func globalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "root", EnvVars: []string{"SANDNET_ROOT"},
			Usage: "`DIR` keep all state there instead of in /run/sandnet and /var/lib/sandnet"},
		&cli.StringFlag{Name: "firewall", EnvVars: []string{"SANDNET_FIREWALL"}, Value: "auto",
			Usage: "`KIND` what to filter and publish with: auto, nftables or iptables"},
		&cli.StringFlag{Name: "log-level", Value: "warn", Usage: "`LEVEL` debug, info, warn or error"},
		&cli.StringFlag{Name: "log-format", Value: "text", Usage: "`FORMAT` of the log on stderr: text or json"},
		&cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version"},
	}
}

// main runs the command that args ask for and returns the exit code.
func (p *program) main(args []string) int {
	if len(args) == 0 && os.Getenv("CNI_COMMAND") != "" {
		return p.cni()
	}
	// Help, like every other message, is printed by this package alone.
	cli.HelpFlag = nil
	p.root = p.commands()
	l, err := takeApart(p.root, args)
	if err != nil {
		return p.report(err)
	}
	if l.version {
		l = line{path: []*cli.Command{p.root, p.root.Command("version")}, options: [][]string{nil, nil}, given: [][]cli.Flag{nil, nil}}
	}
	root := l.command(0)
	app := &cli.App{
		Name: programName, HelpName: programName,
		Flags: root.Flags, Commands: root.Subcommands,
		Action: p.root.Action, OnUsageError: p.root.OnUsageError,
		HideHelp: true, HideVersion: true,
		// A comma is an ordinary character of a label's value.
		DisableSliceFlagSeparator: true,
		Writer:                    io.Discard, ErrWriter: io.Discard,
		ExitErrHandler: func(*cli.Context, error) {}, // report does it
	}
	return p.report(app.RunContext(context.Background(), append([]string{programName}, l.arguments()...)))
}

// finish gives a command and those below it what all have in common: --help
// and errors that name the command. Signals are left alone: a command that is
// ended by one is cleaned up after like any that is killed, by the next.
func (p *program) finish(cmd *cli.Command, path string) {
	help := &cli.BoolFlag{Name: "help", Usage: "show this help"}
	if !hasOption(cmd, "h") {
		help.Aliases = []string{"h"}
	}
	cmd.Flags = append(cmd.Flags, help)
	cmd.HideHelp = true
	cmd.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return badValue(path, err) }
	action := cmd.Action
	cmd.Action = func(c *cli.Context) error {
		if c.Bool("help") {
			return p.showHelp(cmd, path)
		}
		if len(cmd.Subcommands) > 0 {
			return p.noSuchCommand(c, cmd, path)
		}
		if !takesCommand(cmd) { // there the terminal is the command's
			defer p.watch(path)()
		}
		if err := action(c); err != nil {
			return &failure{what: path, err: err}
		}
		return nil
	}
	for _, sub := range cmd.Subcommands {
		p.finish(sub, strings.TrimSpace(path+" "+sub.Name))
	}
}

// takesCommand says that what follows a command's first argument is somebody
// else's command line.
func takesCommand(c *cli.Command) bool { return c.Name == "run" || c.Name == "exec" }

// noSuchCommand is the action of commands that only have subcommands.
func (p *program) noSuchCommand(c *cli.Context, cmd *cli.Command, path string) error {
	word := c.Args().First()
	switch {
	case word != "":
		return unknownCommand(cmd, path, word)
	case path == "":
		return p.showHelp(cmd, path)
	}
	return &failure{what: path, err: usage("COMMAND is missing")}
}

// manager opens the host that the global options name.
func (p *program) manager(c *cli.Context) (*sandbox.Manager, error) {
	log, err := p.logger(c.String("log-level"), c.String("log-format"))
	if err != nil {
		return nil, err
	}
	return openHost(c.String("root"), c.String("firewall"), log)
}

// openHost wires up the host at root. It does not touch anything yet.
func openHost(root, kind string, log *slog.Logger) (*sandbox.Manager, error) {
	// Namespaces are pinned by mounts, which have to outlive this process.
	if err := kernel.LeaveTransientMounts(); err != nil {
		return nil, err
	}
	paths, err := sandbox.PathsFor(root)
	if err != nil {
		return nil, err
	}
	store := record.New(paths.Run, log)
	fw, err := firewall(kind, store)
	if err != nil {
		return nil, err
	}
	host := kernel.New(paths.Mark, paths.Netns)
	host.RememberIn(filepath.Join(paths.Run, "verified"))
	bridge := modes.Bridge{Firewall: fw}
	return sandbox.New(paths, host, store, log,
		bridge, // plans the networks, too
		bridge, modes.Host{}, modes.Container{}, modes.None{}), nil
}

// firewall is the one that --firewall asks for. What the host has in use it
// keeps, unless another one is named.
func firewall(kind string, store *record.Store) (modes.Firewall, error) {
	var inUse struct{ Firewall string }
	if meta := store.Meta("host"); meta != nil {
		if err := json.Unmarshal(meta, &inUse); err != nil {
			return nil, fmt.Errorf("record of the host: %w", err)
		}
	}
	legacy := iptables.Firewall{Legacy: true}
	switch kind {
	case "nftables":
		return nftables.Firewall{}, nil
	case "", "auto":
		if inUse.Firewall == (nftables.Firewall{}).Name() || inUse.Firewall == "" && kernel.HasNftables() {
			return nftables.Firewall{}, nil
		}
	case "iptables":
	default:
		return nil, &spec.InputError{What: "--firewall", Value: kind, Why: "it must be auto, nftables or iptables"}
	}
	switch inUse.Firewall {
	case legacy.Name():
		return legacy, nil
	case (iptables.Firewall{}).Name():
		return iptables.Firewall{}, nil
	}
	return iptables.Firewall{Legacy: kernel.LegacyIptables()}, nil
}

func (p *program) logger(level, format string) (*slog.Logger, error) {
	var o slog.HandlerOptions
	switch level {
	case "debug":
		o.Level = slog.LevelDebug
	case "info":
		o.Level = slog.LevelInfo
	case "warn":
		o.Level = slog.LevelWarn
	case "error":
		o.Level = slog.LevelError
	default:
		return nil, &spec.InputError{What: "--log-level", Value: level, Why: "it must be debug, info, warn or error"}
	}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(screen{p, p.stderr}, &o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(screen{p, p.stderr}, &o)), nil
	}
	return nil, &spec.InputError{What: "--log-format", Value: format, Why: "it must be text or json"}
}
