package kernel

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

func (c *checker) qdisc(q plan.Qdisc) error {
	ok := false
	l, err := tcLink(q.Link)
	if err == nil {
		ok, err = hasQdisc(l, q)
	}
	return c.tc(ok, err)
}

func (c *checker) redirect(r plan.Redirect) error {
	ok := false
	from, err := tcLink(r.Link)
	if err == nil {
		to, e := tcLink(r.To)
		if err = e; err == nil {
			ok, err = redirects(from, to)
		}
	}
	return c.tc(ok, err)
}

// tc notes what is not as it should be as missing: replacing mends it either way.
func (c *checker) tc(ok bool, err error) error {
	if errors.Is(err, unix.ENODEV) {
		err = nil
	}
	if !ok && err == nil {
		c.missing()
	}
	return err
}
