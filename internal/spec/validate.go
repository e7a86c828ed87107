package spec

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
)

// Validate checks the request as far as it goes without the host, and that
// its parts go together. It returns an *InputError. Every front door ends in
// it: flags, OCI annotations, CNI configuration.
func (s Sandbox) Validate() error {
	for _, check := range []func() error{s.checkNames, s.checkMode, s.checkConflicts, s.checkAttach, s.checkPorts, s.checkFiles, s.checkLimits} {
		if err := check(); err != nil {
			return err
		}
	}
	if s.MTU != 0 {
		if err := CheckMTU(s.MTU, false); err != nil {
			return err
		}
	}
	if err := checkLabels(s.Labels); err != nil {
		return err
	}
	return checkSysctls(s.Sysctls)
}

func (s Sandbox) checkNames() error {
	if s.Name != "" {
		if err := CheckName("sandbox name", s.Name); err != nil {
			return err
		}
	}
	if s.Hostname == "" {
		return nil
	}
	if err := CheckHostname(s.Hostname); err != nil {
		return err
	}
	if why := lengthFault(s.Hostname, maxNodeName); why != "" {
		return &InputError{What: "hostname", Value: s.Hostname, Why: "the kernel takes " + why}
	}
	return nil
}

func (s Sandbox) checkMode() error {
	why := ""
	switch s.Mode {
	case ModeBridge, ModeHost, ModeNone, ModeContainer:
	default:
		why = "it should be bridge, host, container:REF, none or a network's name"
	}
	switch {
	case why != "":
	case s.Mode == ModeContainer && nameFault(s.Join) != "":
		why = "sandbox name: " + nameFault(s.Join)
	case s.Mode != ModeContainer && s.Join != "":
		why = "there is a sandbox to join, which only mode container does"
	case s.Mode == ModeBridge && len(s.Attach) == 0:
		why = "there is no network"
	case s.Mode != ModeBridge && len(s.Attach) > 0:
		why = "there is a network, which only mode bridge has"
	}
	if why != "" {
		return &InputError{What: "network mode", Value: string(s.Mode), Why: why}
	}
	return nil
}

// checkConflicts refuses what the mode would have to ignore.
func (s Sandbox) checkConflicts() error {
	mtu := nonzero(uint64(max(s.MTU, 0)))
	return firstConflict(s.Mode, []request{
		{"published port", first(s.Ports), withoutNetwork},
		{"MTU", mtu, withoutNetwork},
		{"ingress rate", nonzero(s.IngressRate), withoutNetwork},
		{"egress rate", nonzero(s.EgressRate), withoutNetwork},
		{"egress rule", first(s.Egress), withoutNetwork},
		{"hostname", s.Hostname, joining},
		{"DNS server", first(s.DNS), sharing},
		{"DNS search domain", first(s.DNSSearch), sharing},
		{"host entry", first(s.Hosts), sharing},
		{"sysctl", first(slices.Sorted(maps.Keys(s.Sysctls))), sharing},
	})
}

// request is something asked for, empty if it is not, and which modes cannot
// do it.
type request struct {
	what, value string
	refused     func(Mode) bool
}

func withoutNetwork(m Mode) bool { return m != ModeBridge }
func sharing(m Mode) bool        { return m == ModeHost || m == ModeContainer }
func joining(m Mode) bool        { return m == ModeContainer }

func firstConflict(m Mode, requests []request) error {
	why := "with network mode none the sandbox has no network"
	switch m {
	case ModeHost:
		why = "with network mode host the sandbox has what the host has"
	case ModeContainer:
		why = "with network mode container the sandbox has what the other one has"
	}
	for _, r := range requests {
		if r.value != "" && r.refused(m) {
			return &InputError{What: r.what, Value: r.value, Why: why}
		}
	}
	return nil
}

func nonzero(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

func first[T any](list []T) string {
	if len(list) == 0 {
		return ""
	}
	return fmt.Sprint(list[0])
}

func (s Sandbox) checkAttach() error {
	for i, a := range s.Attach {
		if err := CheckName("network name", a.Network); err != nil {
			return err
		}
		if slices.ContainsFunc(s.Attach[:i], func(o Attachment) bool { return o.Network == a.Network }) {
			return &InputError{What: "network mode", Value: a.Network, Why: "it is given twice"}
		}
		if err := checkFixed("IP address", a.IP, true); err != nil {
			return err
		}
		if err := checkFixed("IPv6 address", a.IP6, false); err != nil {
			return err
		}
		if a.MAC != "" {
			if mac, err := ParseMAC(a.MAC); err != nil {
				return err
			} else if mac != a.MAC {
				return &InputError{What: "MAC address", Value: a.MAC, Why: "it should be " + mac}
			}
		}
		for _, alias := range a.Aliases {
			if why := domainFault(alias, true); why != "" {
				return &InputError{What: "network alias", Value: alias, Why: why}
			}
			if a.Network == DefaultNetwork {
				return &InputError{What: "network alias", Value: alias, Why: "only user-defined networks have aliases",
					Hint: "make a network with 'sandnet network create NAME' and use --net NAME"}
			}
		}
	}
	return nil
}

// checkFixed checks the address that a sandbox asks for, if it does.
func checkFixed(what string, a netip.Addr, is4 bool) error {
	if !a.IsValid() {
		return nil
	}
	why, hint := unicastFault(a), ""
	switch {
	case why != "" || a.Is4() == is4:
	case is4:
		why, hint = "it is not an IPv4 address", "use --ip6"
	default:
		why, hint = "it is not an IPv6 address", "use --ip"
	}
	if why != "" {
		return &InputError{What: what, Value: a.String(), Why: why, Hint: hint}
	}
	return nil
}

func (s Sandbox) checkPorts() error {
	for _, p := range s.Ports {
		if why := portFault(p); why != "" {
			return &InputError{What: "published port", Value: p.String(), Why: why}
		}
	}
	return ConflictingPorts(s.Ports)
}

func (s Sandbox) checkFiles() error {
	for _, a := range s.DNS {
		if why := dnsFault(a); why != "" {
			return &InputError{What: "DNS server", Value: a.String(), Why: why}
		}
	}
	for _, d := range s.DNSSearch {
		if why := domainFault(d, true); why != "" && d != "." {
			return &InputError{What: "DNS search domain", Value: d, Why: why}
		}
	}
	for _, h := range s.Hosts {
		why := domainFault(h.Name, true)
		if why != "" {
			why = "name: " + why
		} else if !h.Addr.IsValid() || h.Addr.Zone() != "" {
			why = "it has no usable IP address"
		}
		if why != "" {
			return &InputError{What: "host entry", Value: h.String(), Why: why}
		}
	}
	return nil
}
