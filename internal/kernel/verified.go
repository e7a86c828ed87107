package kernel

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// verified remembers, in a file, the generation of the rule set at which
// everything of ours in it was last found as it should be: while the kernel
// still has that generation, nobody has changed anything, and nothing needs to
// be looked at. Our own transactions carry the generation on: the kernel
// refuses one that says from which generation it starts if there has been
// another, so that the next generation is known to be ours alone.
//
// Rules in iptables' older home have no generation. Where there are any,
// nothing is ever verified.
type verified struct {
	path string // empty: nothing is remembered
	// read says that the file has been; generation is its, or what our own
	// transactions have made of it, while valid.
	read, valid bool
	cookie      uint64
	generation  uint32
	note        string
	// conn is of the last Verified, for the transaction that follows.
	conn *nfnl
}

// dial gives the connection that Verified has left, or a new one. Closing one
// may keep other transactions waiting; see close.
func (v *verified) dial() (*nfnl, error) {
	if v != nil && v.conn != nil {
		c := v.conn
		v.conn = nil
		return c, nil
	}
	c, err := dialNfnl()
	if err == nil {
		c.verified = v
	}
	return c, err
}

// RememberIn says in which file the kernel's rule set is known again.
func (k *Kernel) RememberIn(path string) { k.verified.path = path }

// Verified returns the note of the last SetVerified if the rules are still
// those that were verified then.
func (k *Kernel) Verified() (note string, ok bool) {
	v := &k.verified
	v.load()
	if v.path == "" {
		return "", false
	}
	c, err := v.dial()
	if err != nil {
		return "", false
	}
	v.conn = c
	now, err := c.generation()
	cookie, cookieErr := netnsCookie(c.fd)
	if err != nil || cookieErr != nil || legacyTables() {
		v.valid, v.cookie = false, 0
		return "", false
	}
	ok = v.valid && v.generation == now && v.cookie == cookie
	// What is verified from here on is so at this generation, or at none.
	v.valid, v.generation, v.cookie = ok, now, cookie
	return v.note, ok
}

// SetVerified notes that the rules are what they should be, as they were at
// the last Verified.
func (k *Kernel) SetVerified(note string) {
	v := &k.verified
	if v.path == "" || v.cookie == 0 {
		return
	}
	v.valid, v.note = true, note
	v.save()
}

// load reads the file, once.
func (v *verified) load() {
	if v.read || v.path == "" {
		return
	}
	v.read = true
	b, err := os.ReadFile(v.path)
	if err != nil {
		return
	}
	line, ok := strings.CutSuffix(string(b), "\n") // or it was cut short
	numbers, note, _ := strings.Cut(line, "|")
	n, err := fmt.Sscan(numbers, &v.cookie, &v.generation)
	v.valid, v.note = ok && err == nil && n == 2, note
}

// save writes the file; what cannot be written costs a look at the next command.
func (v *verified) save() {
	_ = os.WriteFile(v.path, fmt.Appendf(nil, "%d %d|%s\n", v.cookie, v.generation, v.note), 0o600)
}

// transact commits what build appends to the beginning of a batch, and carries
// the generation on if that is known. changes says whether the batch changes
// anything, given how many elements it has made.
func (v *verified) transact(c *nfnl, build func(begin []byte) []byte, changes func(made int) bool) (made int, err error) {
	if v == nil {
		return c.commit(build(c.begin()))
	}
	v.load()
	if v.valid {
		// Only in the namespace that the file is about.
		cookie, err := netnsCookie(c.fd)
		v.valid = err == nil && cookie == v.cookie
	}
	if !v.valid {
		return c.commit(build(c.begin()))
	}
	made, err = c.commit(build(c.beginAt(v.generation)))
	if errors.Is(err, unix.ERESTART) {
		v.valid = false
		return c.commit(build(c.begin()))
	}
	if err == nil && changes(made) {
		v.generation++
		v.save()
	}
	return made, err
}
