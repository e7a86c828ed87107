package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
	"golang.org/x/text/width"
)

// What people get to see on a terminal, and files and programs do not: colour,
// lines that fit, and a sign of life.

// columns is the width of the terminal that f is; 0 if it is none.
func columns(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if size.Col == 0 {
		return 80 // a terminal that does not know
	}
	return int(size.Col)
}

// style is how a terminal shows a text (ECMA-48, SGR).
type style string

const (
	plain  style = ""
	red    style = "1;31"
	green  style = "32"
	yellow style = "33"
	cyan   style = "36"
)

// painter returns what gives texts a style: nothing, unless f is a terminal
// that shows colours to somebody who wants them (https://no-color.org).
func painter(f *os.File) func(style, string) string {
	term := os.Getenv("TERM")
	if os.Getenv("NO_COLOR") != "" || term == "" || term == "dumb" || columns(f) == 0 {
		return func(_ style, s string) string { return s }
	}
	return func(s style, text string) string {
		if s == plain {
			return text
		}
		return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
	}
}

// statusStyle is the colour of a sandbox's status.
func statusStyle(status string) style {
	switch status {
	case "running":
		return green
	case "exited":
		return yellow
	}
	return plain
}

// cells is how many columns a text takes on a terminal.
func cells(s string) int {
	n := 0
	for _, r := range s {
		n += runeCells(r)
	}
	return n
}

func runeCells(r rune) int {
	if r < 0x300 {
		return 1
	}
	if unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf) {
		return 0
	}
	if k := width.LookupRune(r).Kind(); k == width.EastAsianWide || k == width.EastAsianFullwidth {
		return 2
	}
	return 1
}

// cut shortens a text to so many columns.
func cut(s string, limit int) string {
	if cells(s) <= limit {
		return s
	}
	n := 0
	for i, r := range s {
		if n += runeCells(r); n > limit-1 {
			return s[:i] + "…"
		}
	}
	return s
}

// progress is a line on the terminal that tells that a command is at work,
// once that takes longer than people like to wait.
type progress struct {
	out   *os.File
	what  string
	start time.Time

	mu    sync.Mutex // guards what follows
	note  string
	shown bool
	timer *time.Timer // nil once it is over
}

const (
	progressDelay    = time.Second
	progressInterval = 100 * time.Millisecond
)

// watch shows progress of the command until the returned function is called.
func (p *program) watch(path string) (done func()) {
	if columns(p.stderr) == 0 {
		return func() {}
	}
	g := &progress{out: p.stderr, what: fullName(path), start: time.Now()}
	g.timer = time.AfterFunc(progressDelay, g.tick)
	p.progress = g
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.clear()
		g.timer.Stop()
		g.timer = nil
	}
}

func (g *progress) tick() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer == nil {
		return
	}
	frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	spent := time.Since(g.start)
	line := fmt.Sprintf("%c %s: %s%d s", frames[int(spent/progressInterval)%len(frames)], g.what, g.note, int(spent.Seconds()))
	fmt.Fprint(g.out, "\r\x1b[K"+cut(line, columns(g.out)-1))
	g.shown = true
	g.timer.Reset(progressInterval)
}

// step tells how far a command has come.
func (p *program) step(done, of int) {
	if g := p.progress; g != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.note = fmt.Sprintf("%d of %d, ", done, of)
	}
}

// hush takes the line of progress away: something else is to be shown there.
func (p *program) hush() {
	if g := p.progress; g != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.clear()
	}
}

// clear is hush, with the mutex held.
func (g *progress) clear() {
	if g.shown {
		fmt.Fprint(g.out, "\r\x1b[K")
		g.shown = false
	}
}

// screen is a file of the program's that progress makes way for.
type screen struct {
	p *program
	f *os.File
}

func (s screen) Write(b []byte) (int, error) {
	s.p.hush()
	return s.f.Write(b)
}

// hungUp says that err is about a reader of the output who has seen enough,
// as in `sandnet ps | head -1`. Usually SIGPIPE ends the program; a parent may
// have it ignored.
func (p *program) hungUp(err error) bool {
	var at *fs.PathError
	return errors.Is(err, syscall.EPIPE) && errors.As(err, &at) && at.Path == p.stdout.Name()
}
