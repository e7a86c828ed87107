package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestTakeApart(t *testing.T) {
	root := (&program{}).commands()
	for _, test := range []struct{ in, want string }{
		{"ps", "ps --"},
		{"rm web -f db", "rm --force -- web db"},
		{"rm -f -- -web", "rm --force -- -web"},
		{"create -dp 80", "error: create: unknown option -d"},
		{"run -dp 8080:80 sh", "run --detach --publish=8080:80 -- sh"},
		{"run -p8080:80 -e A=1 sh -c x", "run --publish=8080:80 --env=A=1 -- sh -c x"},
		{"run -p=8080:80 --publish 9090:90 true", "run --publish=8080:80 --publish=9090:90 -- true"},
		{"run --net none -- -x --help", "run --net=none -- -x --help"},
		{"run sh --help", "run -- sh --help"},
		{"run sh -- x", "run -- sh -- x"},
		{"run -h web true", "run --hostname=web -- true"},
		{"exec -d web -- ls -l", "exec --detach -- web -- ls -l"},
		{"ps -h", "ps --help"},
		{"--help ps", "ps --help"},
		{"network create net1 --subnet 10.0.0.0/24 --root /x", "--root=/x network create --subnet=10.0.0.0/24 -- net1"},
		{"network create --network-alias x", "error: network create: unknown option --network-alias"},
		{"nonsense --x", "-- nonsense --x"},
		{"network nonsense --x", "network -- nonsense --x"},
		{"--nonsense", "error: --nonsense: unknown option"},
		{"create -name web", "error: create: unknown option -n"},
		{"create --name", "error: create: option --name needs a value"},
		{"create --name=", "create --name= --"},
		{"create --h x", "error: create: unknown option --h"},
		{"run -d=false true", "run --detach=false -- true"},
		{"run --egress allow 10.0.0.0/8 sh -c x", "run --egress=allow 10.0.0.0/8 -- sh -c x"},
		{"create --egress=deny fd00::/8 --egress deny:10.0.0.0/8 --egress allow=10.1.0.0/16 --mtu 1400",
			"create --egress=deny fd00::/8 --egress=deny:10.0.0.0/8 --egress=allow=10.1.0.0/16 --mtu=1400 --"},
		{"create --egress allow", "error: create: option --egress needs a value"},
		{"create --egress=deny", "error: create: option --egress=deny needs a value"},
		{"inspect -", "inspect -- -"},
	} {
		l, err := takeApart(root, strings.Fields(test.in))
		got := strings.Join(l.arguments(), " ")
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.in, got, test.want)
		}
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb":          "a; b",
		"a\x1b[31mb\r":  `a\x1b[31mb`,
		"no such: ü \"": "no such: ü \"",
		"\xff":          "\ufffd",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestClosest(t *testing.T) {
	names := []string{"create", "rm", "ps", "inspect", "--publish", "--net"}
	for in, want := range map[string]string{
		"crate": "create", "creaet": "create", "insepct": "inspect", "xyzzy": "", "--pubish": "--publish",
		"--nett": "--net", "--frobnicate": "", "": "", "sp": "ps",
	} {
		if got := closest(in, names); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestAgo(t *testing.T) {
	const day = 24 * time.Hour
	for d, want := range map[time.Duration]string{
		-time.Second: "Less than a second ago", time.Second: "1 second ago", 59 * time.Second: "59 seconds ago",
		time.Minute: "About a minute ago", 2 * time.Minute: "2 minutes ago", 90 * time.Minute: "About an hour ago",
		47 * time.Hour: "47 hours ago", 2 * day: "2 days ago", 14 * day: "2 weeks ago", 60 * day: "2 months ago",
		800 * day: "2 years ago",
	} {
		if got := ago(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}

// What completion reads out of usages and helps, as commands have or may have them.
func TestFormsAndChoices(t *testing.T) {
	for usage, want := range map[string]string{
		"":                               "[{[] false}]",
		"[OPTIONS]":                      "[{[] false}]",
		"[OPTIONS] SANDBOX...":           "[{[SANDBOX] true}]",
		"SANDBOX [PORT[/PROTO]]":         "[{[SANDBOX PORT[/PROTO]] false}]",
		"[--dir DIR] NETWORK SANDBOX":    "[{[NETWORK SANDBOX] false}]",
		"[OPTIONS] COMMAND [ARG...]":     "[{[COMMAND ARG] true}]",
		"SANDBOX | add SANDBOX SPEC...":  "[{[SANDBOX] false} {[add SANDBOX SPEC] true}]",
		"bash|zsh|fish":                  "[{[bash|zsh|fish] false}]",
		"[-f] NETWORK... | [--all] FILE": "[{[NETWORK] true} {[FILE] false}]",
	} {
		if got := fmt.Sprint(forms(usage)); got != want {
			t.Errorf("%s: %s, want %s", usage, got, want)
		}
	}
	for text, want := range map[string]string{
		"text or json":                            "[text json]",
		"of the log on stderr: text or json":      "[text json]",
		"a, b or c (repeatable)":                  "[a b c]",
		"allow or deny CIDR[:PORT]; the first is": "[allow deny]",
		"address on the first network":            "[]",
		"bridge, the name of a network, or none":  "[]",
		"publish [IP:]PORT; without on a free":    "[publish]",
	} {
		if got := fmt.Sprint(choices(text)); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}
