package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/sandbox"
)

// terminal is both ends of a pseudo terminal.
func terminal(t *testing.T) (outer, inner *os.File) {
	t.Helper()
	outer, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outer.Close() })
	n, err := unix.IoctlGetInt(int(outer.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(outer.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		inner, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	return outer, inner
}

func TestColourOnlyOnATerminal(t *testing.T) {
	findings := []sandbox.Finding{{Severity: sandbox.Broken, Check: "x", What: "y", Cure: "z"}}
	outer, inner := terminal(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		read, out *os.File
		noColour  string
		want      bool
	}{{"terminal", outer, inner, "", true}, {"terminal, NO_COLOR", outer, inner, "1", false}, {"pipe", r, w, "", false}} {
		t.Setenv("NO_COLOR", c.noColour)
		if err := (&program{stdout: c.out}).printFindings(findings); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1000)
		n, err := c.read.Read(b)
		if err != nil || strings.Contains(string(b[:n]), "\x1b[31m") != c.want {
			t.Errorf("%s: %q, %v", c.name, b[:n], err)
		}
	}
}
