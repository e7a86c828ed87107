package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/sandnet/sandnet/internal/plan"
)

// forward6 owns what all networks with IPv6 share. It comes and goes under the
// host's lock.
const forward6 = "host/ipv6"

// makeForward6 lets the host route IPv6, as docs/decisions/006 has it. The
// caller has the host's lock.
func (m *Manager) makeForward6(ctx context.Context) error {
	have, err := m.store.Load(forward6)
	if err == nil {
		_, err = m.host.Ensure(ctx, have.Objects)
		return err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	want, err := m.forward6Plan()
	if err != nil {
		return err
	}
	// Its own lock lets a record that is half written be found; the host's, what
	// it says.
	unlock, err := m.lock(ctx, forward6)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.store.Begin("host"); err != nil {
		return err
	}
	_, err = m.engine.Apply(ctx, want)
	return err
}

// forward6Plan looks at what there is to restore: it is for a host without the
// record.
func (m *Manager) forward6Plan() (plan.Plan, error) {
	b, err := os.ReadFile("/proc/sys/" + plan.IPv6Forward)
	if err != nil {
		return plan.Plan{}, fmt.Errorf("IPv6 forwarding: %w", err)
	}
	if strings.TrimSpace(string(b)) != "0" {
		return m.nets.Forward6("", nil), nil
	}
	uplinks, err := m.host.RouterLinks()
	return m.nets.Forward6("0", uplinks), err
}
