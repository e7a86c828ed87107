package main

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
)

func (p *program) runCommand() *cli.Command {
	return &cli.Command{
		Name: "run", ArgsUsage: "[OPTIONS] COMMAND [ARG...]",
		Usage: "Run a command in a sandbox of its own",
		Description: `The sandbox is removed when the command ends, and the exit code is the
command's. With -d the command runs in the background, the sandbox's ID is
printed and the sandbox stays until 'sandnet rm'.

Examples:
  sandnet run --net none -- ip link
  sandnet run -p 8080:80 -- python3 -m http.server 80`,
		Flags: append(sandboxFlags(), processFlags()...),
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, -1, "COMMAND"); err != nil {
				return err
			}
			s, err := sandboxOptions(c).Parse()
			if err != nil {
				return err
			}
			proc, err := p.process(c, c.Args().Slice())
			if err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			v, code, err := m.Run(c.Context, s, proc)
			if err == nil && proc.Detach {
				err = p.println(v.ID)
			}
			return ended(code, err)
		},
	}
}

// processFlags are the options of `run` and `exec` about the command.
func processFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "run the command in the background, without input and output"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "`KEY=VALUE` environment variable of the command (repeatable)"},
		&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "`DIR` working directory of the command"},
	}
}

// process is the command to run: it gets sandnet's own environment and, in the
// foreground, its files.
func (p *program) process(c *cli.Context, args []string) (spec.Process, error) {
	proc := spec.Process{Args: args, Env: os.Environ(), Dir: c.String("workdir"), Detach: c.Bool("detach")}
	var err error
	if proc.Env, err = environment(proc.Env, c.StringSlice("env")); err != nil {
		return proc, err
	}
	if proc.Dir != "" {
		if st, err := os.Stat(proc.Dir); err != nil || !st.IsDir() {
			return proc, &spec.InputError{What: "--workdir", Value: proc.Dir, Why: "there is no such directory"}
		}
	}
	if !proc.Detach {
		proc.Stdin, proc.Stdout, proc.Stderr = p.stdin, p.stdout, p.stderr
	}
	return proc, nil
}

// environment is a command's: sandnet's own, changed as --env says. A KEY alone
// is passed on, as everything is.
func environment(own, changes []string) ([]string, error) {
	for _, e := range changes {
		key, _, ok := strings.Cut(e, "=")
		if key == "" || strings.ContainsRune(e, 0) {
			return nil, &spec.InputError{What: "--env", Value: e, Why: "it must be KEY=VALUE"}
		}
		if ok {
			own = slices.DeleteFunc(own, func(have string) bool { return strings.HasPrefix(have, key+"=") })
			own = append(own, e)
		}
	}
	return own, nil
}

// ended is how `run` and `exec` end.
func ended(code int, err error) error {
	var command *spec.CommandError
	switch {
	case errors.As(err, &command):
		return command
	case err != nil:
		return runError{err}
	case code != 0:
		return status(code)
	}
	return nil
}
