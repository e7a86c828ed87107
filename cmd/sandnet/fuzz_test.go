package main

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/sandnet/sandnet/internal/spec"
)

func FuzzTakeApart(f *testing.F) {
	for _, s := range []string{"ps", "rm web -f db", "run -dp 8080:80 -- sh -c x", "--root=/x network create --subnet 10.0.0.0/24 a", "exec -e A=1 web -- ls -l", "--help ps", "create -p", "-", "--", "--=", "-=", "run --net=container:x -h y"} {
		f.Add(strings.ReplaceAll(s, " ", "\x00"))
	}
	root := (&program{}).commands()
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, "\x00")
		l, err := takeApart(root, args)
		if len(l.path) != len(l.options) || len(l.path) != len(l.given) {
			t.Fatalf("%q: %d commands, %d lists of options, %d of flags", args, len(l.path), len(l.options), len(l.given))
		}
		if err != nil {
			if exitCode(err) != exitUsage || strings.ContainsFunc(oneLine(err.Error()), unicode.IsControl) {
				t.Errorf("%q: %v", args, err)
			}
			return
		}
		// What is made of it means the same again, and nothing of the rest is lost.
		again, err := takeApart(root, l.arguments())
		if err != nil || again.name() != l.name() || !slices.EqualFunc(again.options, l.options, slices.Equal) || again.help != l.help ||
			!l.help && !slices.Equal(again.args, l.args) {
			t.Errorf("%q: %q comes back as %q, %v", args, l.arguments(), again.arguments(), err)
		}
		if n := len(l.args); n > len(args) || !slices.Equal(l.args, args[len(args)-n:]) && takesCommand(l.last()) {
			t.Errorf("%q: arguments %q", args, l.args)
		}
	})
}

func FuzzEnvironment(f *testing.F) {
	f.Add("A=1", "B=2")
	f.Add("A=1", "A=2=3")
	f.Add("PATH=/bin", "PATH")
	f.Add("x", "=")
	f.Fuzz(func(t *testing.T, own, change string) {
		out, err := environment([]string{own}, []string{change})
		var input *spec.InputError
		if err != nil {
			if !errors.As(err, &input) {
				t.Errorf("%q: %v", change, err)
			}
			return
		}
		key, _, set := strings.Cut(change, "=")
		n := 0
		for _, e := range out {
			if strings.ContainsRune(e, 0) && e != own {
				t.Errorf("%q holds a NUL", e)
			}
			if strings.HasPrefix(e, key+"=") {
				n++
			}
		}
		if set && (n != 1 || !slices.Contains(out, change)) {
			t.Errorf("%q with %q: %q", own, change, out)
		}
	})
}

// FuzzCNI reads the configuration and the arguments that a runtime sends.
func FuzzCNI(f *testing.F) {
	f.Add(`{"cniVersion":"1.0.0","name":"lab","type":"sandnet","runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"TCP"}],"ips":["10.1.2.3/24"],"mac":"02:42:00:00:00:01"}}`, "IP=10.0.0.7;MAC=02:00:00:00:00:01")
	f.Add(`{"network":"host"}`, "")
	f.Add(`{"network":"container:x","mtu":-1}`, ";=;IP")
	f.Add(`{"runtimeConfig":{"portMappings":[{"hostPort":-1,"hostIP":"::"}],"ips":["::1","x"]}}`, "IP=")
	f.Fuzz(func(t *testing.T, config, args string) {
		c := &cniCall{args: &skel.CmdArgs{ContainerID: "c", IfName: "eth0", Args: args}}
		if _, err := spec.ReadJSON(strings.NewReader(config), "network configuration", &c.conf); err != nil {
			return
		}
		c.conf.Network = cmp.Or(c.conf.Network, spec.DefaultNetwork)
		s, err := c.sandbox()
		var input *spec.InputError
		if err != nil {
			if !errors.As(err, &input) || cniError(err).Code != types.ErrInvalidNetworkConfig && cniError(err).Code != types.ErrInvalidEnvironmentVariables {
				t.Errorf("%q %q: %v", config, args, err)
			}
			return
		}
		if s.Mode != spec.ModeBridge || len(s.Attach) != 1 {
			t.Errorf("%q %q: %+v", config, args, s)
		}
		if err := s.Validate(); err != nil {
			t.Errorf("%q %q: parsed, but not valid: %v", config, args, err)
		}
	})
}

// FuzzHelp is about what completion reads out of help texts, and what a
// terminal can show.
func FuzzHelp(f *testing.F) {
	for _, s := range []string{"[OPTIONS] SANDBOX [--] COMMAND [ARG...]", "bash|zsh|fish", "SANDBOX [PORT[/PROTO]]", "[--format text|json]", "A [B] | add A C... | rm", "allow or deny CIDR[:PORT]; x", "of the log: text or json", "漢字 a\u0301", "]", "[]...", "| "} {
		f.Add(s, 5)
	}
	f.Fuzz(func(t *testing.T, s string, limit int) {
		if len(forms(s)) == 0 {
			t.Errorf("%q: no form", s)
		}
		for _, form := range forms(s) {
			for _, name := range form.names {
				if strings.ContainsFunc(name, unicode.IsSpace) {
					t.Errorf("%q: argument %q", s, name)
				}
			}
		}
		for _, c := range slices.Concat(choices(s), alternatives(s)) {
			if notLiteral(c) {
				t.Errorf("%q: choice %q", s, c)
			}
		}
		if limit > 0 {
			if n := cells(cut(s, limit)); n > limit {
				t.Errorf("%q cut to %d columns takes %d", s, limit, n)
			}
		}
		if strings.ContainsFunc(oneLine(s), unicode.IsControl) {
			t.Errorf("%q on one line: %q", s, oneLine(s))
		}
	})
}
