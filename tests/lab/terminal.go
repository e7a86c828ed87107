package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Terminal is a program that runs on a terminal of its own, as if somebody sat
// in front of it.
type Terminal struct {
	*Process
	keys *os.File
	done chan struct{}
}

// OnTerminal starts a command on a terminal so many characters wide.
func (n *NS) OnTerminal(columns int, env []string, name string, args ...string) *Terminal {
	n.t.Helper()
	screen, line, err := openTerminal(columns)
	if err != nil {
		n.t.Fatalf("%s: terminal: %v", n.Name, err)
	}
	defer line.Close()
	t := &Terminal{Process: &Process{Cmd: exec.Command(name, args...), t: n.t}, keys: screen, done: make(chan struct{})}
	t.Env = append(append(cleanEnv(), "TERM=xterm", "NO_COLOR=", "LC_ALL=C.UTF-8"), env...)
	t.Stdin, t.Stdout, t.Stderr = line, line, line
	t.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	n.Do(func() { err = t.Cmd.Start() })
	if err != nil {
		n.t.Fatalf("%s: start %s: %v", n.Name, name, err)
	}
	go func() {
		defer close(t.done)
		buf := make([]byte, 4096)
		for {
			k, err := screen.Read(buf)
			_, _ = t.out.Write(buf[:k])
			if err != nil {
				return // EIO: nobody has the other end open any more
			}
		}
	}()
	n.t.Cleanup(func() {
		_ = t.Process.Process.Kill()
		_ = t.Cmd.Wait()
		screen.Close()
	})
	return t
}

func openTerminal(columns int) (screen, line *os.File, err error) {
	screen, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(screen.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	err = errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0),
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: uint16(columns)}))
	if err == nil {
		line, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		screen.Close()
	}
	return screen, line, err
}

// Type sends keys.
func (t *Terminal) Type(keys string) {
	t.t.Helper()
	if _, err := t.keys.WriteString(keys); err != nil {
		t.t.Fatal(err)
	}
}

// Screen waits for the end and gives everything that was shown.
func (t *Terminal) Screen() Result {
	t.t.Helper()
	r := t.Result()
	<-t.done
	r.Stdout = strings.ReplaceAll(t.out.String(), "\r\n", "\n")
	return r
}

// Shown is what is on the screen by now.
func (t *Terminal) Shown() string { return t.out.String() }
