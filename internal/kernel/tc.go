package kernel

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// Queueing disciplines and redirections live on links of the host, go with
// them, and are ours because these are: they need no mark of their own.

// The handles: 1: of our roots (the kernel's own defaults have 0:), ffff: of an
// ingress, whichever it is, and 800::800 of the first filter of a u32 table.
const (
	rootHandle     = 0x00010000
	ingressHandle  = 0xffff0000
	redirectHandle = 0x80000800
)

// tcLink finds a link; ENODEV if there is none of the name.
func tcLink(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("link %s: %w", name, unix.ENODEV)
	}
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	return l, nil
}

func qdiscAttrs(l netlink.Link, q plan.Qdisc) netlink.Qdisc {
	if q.Type == plan.Ingress {
		return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: ingressHandle, Parent: netlink.HANDLE_INGRESS}}
	}
	rate := q.Rate / 8
	return &netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: rootHandle, Parent: netlink.HANDLE_ROOT},
		Rate: rate, Limit: q.Limit, Buffer: netlink.Xmittime(rate, q.Burst)}
}

func ensureQdisc(q plan.Qdisc) (int, error) {
	l, err := tcLink(q.Link)
	if err != nil {
		return 0, err
	}
	if ok, err := hasQdisc(l, q); ok || err != nil {
		return 0, err
	}
	crash.Point(q.Key())
	return 1, tcError(q.Key(), netlink.QdiscReplace(qdiscAttrs(l, q)), map[plan.QdiscType]string{plan.TBF: "NET_SCH_TBF", plan.Ingress: "NET_SCH_INGRESS"}[q.Type])
}

// hasQdisc reports whether the link has q, with its numbers.
func hasQdisc(l netlink.Link, q plan.Qdisc) (bool, error) {
	want := qdiscAttrs(l, q)
	have, err := retryDump(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(l) })
	if err != nil {
		return false, fmt.Errorf("%s: %w", q.Key(), err)
	}
	for _, h := range have {
		if h.Attrs().Parent != want.Attrs().Parent || h.Type() != want.Type() {
			continue
		}
		was, ok := h.(*netlink.Tbf)
		now, _ := want.(*netlink.Tbf)
		if !ok || was.Rate == now.Rate && was.Limit == now.Limit && nearly(was.Buffer, now.Buffer) {
			return true, nil
		}
	}
	return false, nil
}

// nearly compares numbers of ticks: what others have computed is rounded otherwise.
func nearly(a, b uint32) bool { return max(a, b)-min(a, b) <= max(a, b)/1000+1 }

// tcError explains the kernel's answer to a kind that it does not know.
func tcError(what string, err error, config string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s: the kernel may lack CONFIG_%s: %w", what, config, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func deleteQdisc(q plan.Qdisc) error {
	l, err := tcLink(q.Link)
	if err != nil {
		return absentIsFine(err)
	}
	crash.Point(q.Key() + " delete")
	err = netlink.QdiscDel(qdiscAttrs(l, q))
	if errors.Is(err, unix.EINVAL) { // the kernel's word for a link without one
		return nil
	}
	return absentIsFine(err)
}

// redirect is the filter that matches everything: u32, since not every kernel
// has matchall.
func redirect(from, to netlink.Link) *netlink.U32 {
	return &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: ingressHandle, Priority: 1,
			Protocol: unix.ETH_P_ALL, Handle: redirectHandle},
		Sel:     &netlink.TcU32Sel{Nkeys: 1, Flags: netlink.TC_U32_TERMINAL, Keys: []netlink.TcU32Key{{}}},
		Actions: []netlink.Action{netlink.NewMirredAction(to.Attrs().Index)},
	}
}

func ensureRedirect(r plan.Redirect) (int, error) {
	from, err := tcLink(r.Link)
	if err != nil {
		return 0, err
	}
	to, err := tcLink(r.To)
	if err != nil {
		return 0, err
	}
	if ok, err := redirects(from, to); ok || err != nil {
		return 0, err
	}
	crash.Point(r.Key())
	return 1, tcError(r.Key(), netlink.FilterReplace(redirect(from, to)), "NET_CLS_U32 or CONFIG_NET_ACT_MIRRED")
}

// redirects reports whether everything that comes in at from goes out at to.
func redirects(from, to netlink.Link) (bool, error) {
	filters, err := retryDump(func() ([]netlink.Filter, error) {
		return netlink.FilterList(from, ingressHandle)
	})
	if err != nil {
		return false, fmt.Errorf("filters of %s: %w", from.Attrs().Name, err)
	}
	for _, f := range filters {
		u, ok := f.(*netlink.U32)
		if !ok || u.Handle != redirectHandle {
			continue
		}
		for _, a := range u.Actions {
			if m, ok := a.(*netlink.MirredAction); ok && m.Ifindex == to.Attrs().Index {
				return true, nil
			}
		}
	}
	return false, nil
}

func deleteRedirect(r plan.Redirect) error {
	from, err := tcLink(r.Link)
	if err != nil {
		return absentIsFine(err)
	}
	crash.Point(r.Key() + " delete")
	err = netlink.FilterDel(&netlink.U32{FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: ingressHandle,
		Priority: 1, Protocol: unix.ETH_P_ALL}})
	if errors.Is(err, unix.EINVAL) { // no ingress to have it
		return nil
	}
	return absentIsFine(err)
}
