package modes

import (
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// None gives a sandbox a namespace with nothing but loopback.
type None struct{}

// Name is "none".
func (None) Name() string { return string(spec.ModeNone) }

// Plan makes the namespace and its files.
func (None) Plan(s spec.Sandbox, f spec.Facts) (plan.Plan, error) {
	objs := append(namespace(s, f), sysctls(s, f)...)
	objs = append(objs, plan.File{Path: f.EtcDir + "/hosts",
		Content: plan.LocalHosts + "127.0.1.1\t" + s.HostnameOrID() + "\n" + hostLines(s)})
	return plan.Plan{Objects: append(objs, etcFiles(s, f)...)}, nil
}
