package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sandnet/sandnet/internal/plan"
)

func (c *checker) sysctl(s plan.Sysctl) error {
	if s.Netns != "" && !pinned(s.Netns) {
		c.missing()
		return nil
	}
	var have []byte
	read := func() (err error) {
		have, err = os.ReadFile(procSys + s.Name)
		return err
	}
	var err error
	if s.Netns == "" {
		err = read()
	} else {
		err = inNetns(s.Netns, read)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.Optional:
	case errors.Is(err, fs.ErrNotExist): // it is a link's, and went with it
		c.missing()
	case err != nil:
		return err
	case !sameSetting(s.Value, string(have)):
		c.differs("value", s.Value, strings.Join(strings.Fields(string(have)), " "))
	}
	return nil
}

func (c *checker) file(f plan.File) error {
	have, err := os.ReadFile(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		c.missing()
		return nil
	}
	if err == nil && string(have) != f.Content {
		c.differs("content", size(f.Content), size(string(have)))
	}
	return err
}

// size stands for a content that would not fit on a line.
func size(s string) string {
	return fmt.Sprintf("%d lines, %d bytes", strings.Count(s, "\n"), len(s))
}

func (c *checker) symlink(s plan.Symlink) error {
	have, err := os.Readlink(s.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.missing()
	case err != nil: // it is no link
		if _, err := os.Lstat(s.Path); err != nil {
			return err
		}
		c.differs("target", s.Target, "no symbolic link")
	default:
		c.compare("target", s.Target, have)
	}
	return nil
}

// allHostsLines looks at every hosts file of each network, once: where all
// sandboxes have files of their own, all are in all of them.
func (c *checker) allHostsLines() error {
	defer func(at int) { c.at = at }(c.at)
	wanted := map[string]map[int]string{} // by directory, of each object
	for i, o := range c.objs {
		if h, ok := o.(plan.HostsLine); ok {
			if wanted[h.Dir] == nil {
				wanted[h.Dir] = map[int]string{}
			}
			wanted[h.Dir][i] = h.Line()
		}
	}
	for dir, want := range wanted {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		shared := false
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed just now, or a link that has lost its file
			}
			if err != nil {
				return err
			}
			shared = shared || e.Name() == plan.SharedHosts
			have := map[string]bool{}
			for line := range strings.Lines(string(text)) {
				have[line] = true
			}
			for i, line := range want {
				if c.at = i; !have[line] {
					c.differs("line in "+e.Name(), strings.TrimSpace(line), "")
				}
			}
		}
		for i := range want {
			if c.at = i; !shared {
				c.missing()
			}
		}
	}
	return nil
}

func (c *checker) hostsFile(h plan.HostsFile) error {
	have, err := os.ReadFile(h.Path)
	if errors.Is(err, fs.ErrNotExist) {
		c.missing()
		return nil
	}
	if err == nil && !strings.HasPrefix(string(have), h.Header) {
		c.differs("content", "its own lines first", size(string(have)))
	}
	return err
}
