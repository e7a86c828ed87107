package modes

import (
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Host leaves a sandbox in the host's own namespace: no isolation, no cost.
type Host struct{}

// Name is "host".
func (Host) Name() string { return string(spec.ModeHost) }

// Plan makes nothing but the index entry.
func (Host) Plan(s spec.Sandbox, f spec.Facts) (plan.Plan, error) {
	return plan.Plan{Objects: []plan.Object{index(s, f)}}, nil
}
