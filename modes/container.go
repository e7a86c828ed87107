package modes

import (
	"errors"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Container puts a sandbox into the namespace of another sandbox or process:
// the two share interfaces, addresses and ports.
type Container struct{}

// Name is "container".
func (Container) Name() string { return string(spec.ModeContainer) }

// Plan pins the other's namespace under this sandbox's name. Of a sandbox it
// also takes the files, and marks it as in use.
func (Container) Plan(s spec.Sandbox, f spec.Facts) (plan.Plan, error) {
	if f.JoinPath == "" {
		return plan.Plan{}, errors.New("no namespace to join")
	}
	objs := []plan.Object{index(s, f)}
	if f.JoinedPath != "" {
		objs = append(objs, plan.File{Path: f.JoinedPath})
	}
	objs = append(objs, plan.Netns{Path: f.Netns, Join: f.JoinPath})
	if f.JoinEtcDir != "" {
		objs = append(objs, plan.Symlink{Path: f.EtcDir, Target: f.JoinEtcDir})
		objs = append(objs, etcLink(f)...)
	}
	return plan.Plan{Objects: objs}, nil
}
