package modes

import (
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// rates plans the bandwidth limits of one endpoint, all of it on the host's
// side, where root in the sandbox cannot take it away. Towards the sandbox the
// host's end of the veth sends, and so can queue. What comes from the sandbox
// is only received there, which cannot be queued: it takes the way over an
// intermediate device (ifb), which sends.
func rates(s spec.Sandbox, ep spec.Endpoint, f spec.Facts) []plan.Object {
	var objs []plan.Object
	if s.IngressRate != 0 {
		objs = append(objs, limit(ep.HostInterface, s.IngressRate, ep.MTU))
	}
	if s.EgressRate != 0 {
		ifb := rateInterface(ep)
		objs = append(objs,
			plan.Link{Name: ifb, Type: plan.IFB, MTU: ep.MTU, Mark: f.Mark},
			limit(ifb, s.EgressRate, ep.MTU),
			plan.Qdisc{Link: ep.HostInterface, Type: plan.Ingress},
			plan.Redirect{Link: ep.HostInterface, To: ifb})
	}
	return objs
}

// rateInterface is the ifb that goes with a veth: "si" for its "sv".
func rateInterface(ep spec.Endpoint) string { return "si" + ep.HostInterface[2:] }

// limit is a token bucket: 10 ms worth of tokens, so that the kernel need not
// be woken more often than that, and 50 ms worth of queue, with room for some
// packets however slow it is. What is larger than the bucket, as a packet that
// is to be segmented by the device may be, the kernel segments first; that
// needs a bucket of two packets at least.
func limit(link string, rate uint64, mtu int) plan.Qdisc {
	const ethernet = 18 // header with a VLAN tag
	packet := uint64(mtu + ethernet)
	burst := max(rate/8/100, 2*packet)
	queue := max(rate/8/20, 16*packet)
	const most = 1<<32 - 1
	return plan.Qdisc{Link: link, Type: plan.TBF, Rate: rate, Burst: uint32(min(burst, most/2)), Limit: uint32(min(burst+queue, most))}
}
