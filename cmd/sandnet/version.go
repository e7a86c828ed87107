package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", ArgsUsage: "[OPTIONS]",
		Usage: "Print the version",
		Description: `It needs neither root nor valid settings.

Examples:
  sandnet version
  sandnet version --format json | jq -r .version`,
		Flags: []cli.Flag{formatFlag("text", "json")},
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0); err != nil {
				return err
			}
			f, err := format(c, "text", "json")
			if err != nil {
				return err
			}
			b := build{Version: version, Commit: revision(), Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
			if f == "json" {
				return p.printJSON(b)
			}
			return p.println(fmt.Sprintf("sandnet %s (commit %s, %s)", b.Version, b.Commit, b.Go))
		},
	}
}

type build struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// revision is the commit that the linker or the go command has noted.
func revision() string {
	if commit != "" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return shortID(s.Value)
			}
		}
	}
	return "unknown"
}
