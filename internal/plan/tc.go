package plan

import "fmt"

// QdiscType is a queueing discipline in tc's words.
type QdiscType string

// The queueing disciplines sandnet makes.
const (
	// TBF is a token bucket, as the root of what a link sends.
	TBF QdiscType = "tbf"
	// Ingress is where what a link receives can be redirected from.
	Ingress QdiscType = "ingress"
)

// Qdisc is a queueing discipline of a host's link; it goes with the link.
type Qdisc struct {
	Link string    `json:"link"`
	Type QdiscType `json:"type"`
	// Rate is in bit/s; Burst, the bucket's size, and Limit, of which the queue
	// is what is beyond the bucket, are in bytes. They are a TBF's alone.
	Rate  uint64 `json:"rate,omitempty"`
	Burst uint32 `json:"burst,omitempty"`
	Limit uint32 `json:"limit,omitempty"`
}

func (Qdisc) Kind() Kind { return KindQdisc }

// Key says where it is: a link has one root and one ingress.
func (q Qdisc) Key() string {
	if q.Type == Ingress {
		return "qdisc " + q.Link + " ingress"
	}
	return "qdisc " + q.Link + " root"
}
func (q Qdisc) Commands() []string {
	if q.Type == Ingress {
		return []string{"tc qdisc add dev " + q.Link + " ingress"}
	}
	return []string{fmt.Sprintf("tc qdisc replace dev %s root %s rate %dbit burst %d limit %d", q.Link, q.Type, q.Rate, q.Burst, q.Limit)}
}

// Redirect sends all that Link receives through the link To, an ifb, from which
// it comes back. Link has an Ingress qdisc, with which the redirection goes.
type Redirect struct {
	Link string `json:"link"`
	To   string `json:"to"`
}

func (Redirect) Kind() Kind    { return KindRedirect }
func (r Redirect) Key() string { return "redirect " + r.Link }
func (r Redirect) Commands() []string {
	return []string{fmt.Sprintf("tc filter replace dev %s ingress protocol all prio 1 handle 800::800 u32 match u32 0 0 action mirred egress redirect dev %s", r.Link, r.To)}
}
