package main

import (
	"fmt"
	"os"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/sandbox"
)

func (p *program) doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", ArgsUsage: "[OPTIONS]",
		Usage: "Check the host, and name a cure for each finding",
		Description: `An error breaks traffic, a warning may, a note explains. The exit code is 1 if
there is an error. Nothing is changed.

Example:
  sandnet doctor --format json`,
		Flags: []cli.Flag{formatFlag("text", "json")},
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0); err != nil {
				return err
			}
			f, err := format(c, "text", "json")
			if err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			findings, err := m.Doctor(c.Context)
			if err != nil {
				return err
			}
			if f == "json" {
				err = p.printJSON(append([]sandbox.Finding{}, findings...))
			} else {
				err = p.printFindings(findings)
			}
			if err == nil && slices.ContainsFunc(findings, func(f sandbox.Finding) bool { return f.Severity == sandbox.Broken }) {
				err = status(exitFailed)
			}
			return err
		},
	}
}

// printFindings prints each finding on a line, and its cure below.
func (p *program) printFindings(findings []sandbox.Finding) error {
	colour := map[sandbox.Severity]string{}
	plain := ""
	if isTerminal(p.stdout) && os.Getenv("NO_COLOR") == "" {
		colour = map[sandbox.Severity]string{sandbox.Broken: "\x1b[31m", sandbox.Warning: "\x1b[33m", sandbox.Note: "\x1b[36m"}
		plain = "\x1b[0m"
	}
	for _, f := range findings {
		text := fmt.Sprintf("%s%-8s%s %s: %s", colour[f.Severity], f.Severity, plain, f.Check, oneLine(f.What))
		if f.Cure != "" {
			text += "\n         cure: " + oneLine(f.Cure)
		}
		if err := p.println(text); err != nil {
			return err
		}
	}
	return nil
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
