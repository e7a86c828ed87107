package spec

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseNet reads the values of --net: bridge (also "default", as with docker,
// and no value at all), host, none, container:REF, or one or more bridge networks
// as ParseAttachment reads them. REF is a sandbox's name or ID, or a PID; join returns it.
func ParseNet(values []string) (mode Mode, join string, attach []Attachment, err error) {
	if len(values) == 0 {
		values = []string{DefaultNetwork}
	}
	seen := make(map[string]bool, len(values))
	for _, v := range values {
		ref, isJoin := strings.CutPrefix(v, "container:")
		fault := func(why string) (Mode, string, []Attachment, error) {
			return "", "", nil, &InputError{What: "network mode", Value: v, Why: why}
		}
		switch {
		case v == string(ModeContainer) || isJoin && ref == "":
			return fault("it should be container:NAME, container:ID or container:PID")
		case isJoin:
			mode, join = ModeContainer, ref
			if why := nameFault(ref); why != "" {
				return fault("sandbox name: " + why)
			}
		case v == string(ModeHost) || v == string(ModeNone):
			mode = Mode(v)
		default:
			if mode == "" {
				mode = ModeBridge
			}
			a, err := ParseAttachment(v)
			if err != nil {
				return "", "", nil, err
			}
			attach = append(attach, a)
			v = a.Network
		}
		if seen[v] {
			return fault("it is given twice")
		}
		seen[v] = true
		if mode != ModeBridge && len(values) > 1 {
			return fault(fmt.Sprintf("mode %s does not go with another network", mode))
		}
	}
	return mode, join, attach, nil
}

// SandboxOptions are the options of `run` and `create` as they were given.
type SandboxOptions struct {
	// Net is read by ParseNet; Publish, Labels, Sysctls, AddHost, DNS and
	// DNSSearch by the function of that name.
	Net     []string
	Name    string
	Publish []string
	// IP, IP6 and MAC are for the first network, NetworkAlias for every one
	// that is user-defined.
	IP, IP6, MAC            string
	Hostname                string
	DNS, DNSSearch, AddHost []string
	NetworkAlias            []string
	Labels, Sysctls         []string
	// The rates are read by ParseRate, Egress by ParseEgress.
	IngressRate, EgressRate string
	Egress                  []string
	// GwPriority is for the first network, too.
	GwPriority int
	// MTU in bytes; 0 is not given.
	MTU int
}

// Parse returns the sandbox that the options ask for, or an *InputError.
func (o SandboxOptions) Parse() (Sandbox, error) {
	mode, join, attach, err := ParseNet(o.Net)
	if err != nil {
		return Sandbox{}, err
	}
	s := Sandbox{Name: o.Name, Mode: mode, Join: join, Attach: attach, Hostname: o.Hostname, MTU: o.MTU}
	for _, parse := range []func(*Sandbox) error{o.parseEndpoint, o.parsePorts, o.parseFiles, o.parseLimits} {
		if err := parse(&s); err != nil {
			return Sandbox{}, err
		}
	}
	if s.Labels, err = parseMap(o.Labels, ParseLabel); err != nil {
		return Sandbox{}, err
	}
	if s.Sysctls, err = parseMap(o.Sysctls, ParseSysctl); err != nil {
		return Sandbox{}, err
	}
	if err := s.Validate(); err != nil {
		return Sandbox{}, err
	}
	return s, nil
}

// parseEndpoint reads what belongs to an attachment; a mode without any
// refuses it here, before there is nowhere to put it.
func (o SandboxOptions) parseEndpoint(s *Sandbox) error {
	if s.Mode != ModeBridge {
		priority := ""
		if o.GwPriority != 0 {
			priority = strconv.Itoa(o.GwPriority)
		}
		return firstConflict(s.Mode, []request{
			{"IP address", o.IP, withoutNetwork}, {"IPv6 address", o.IP6, withoutNetwork}, {"MAC address", o.MAC, withoutNetwork},
			{"network alias", strings.Join(o.NetworkAlias, ","), withoutNetwork}, {"gateway priority", priority, withoutNetwork},
		})
	}
	options := AttachmentOptions{IP: o.IP, IP6: o.IP6, MAC: o.MAC, GwPriority: o.GwPriority}
	if err := options.into(&s.Attach[0]); err != nil {
		return err
	}
	for i := range s.Attach {
		// Alone, the default network refuses them; among others it has none.
		if len(s.Attach) == 1 || s.Attach[i].Network != DefaultNetwork {
			s.Attach[i].Aliases = append(s.Attach[i].Aliases, o.NetworkAlias...)
		}
	}
	return nil
}

func (o SandboxOptions) parsePorts(s *Sandbox) error {
	for _, v := range o.Publish {
		ports, err := ParsePublish(v)
		if err != nil {
			return err
		}
		s.Ports = append(s.Ports, ports...)
	}
	return nil
}

func (o SandboxOptions) parseFiles(s *Sandbox) error {
	for _, v := range o.DNS {
		a, err := ParseDNS(v)
		if err != nil {
			return err
		}
		s.DNS = append(s.DNS, a)
	}
	for _, v := range o.DNSSearch {
		d, err := ParseDNSSearch(v)
		if err != nil {
			return err
		}
		s.DNSSearch = append(s.DNSSearch, d)
	}
	for _, v := range o.AddHost {
		h, err := ParseAddHost(v)
		if err != nil {
			return err
		}
		s.Hosts = append(s.Hosts, h)
	}
	return nil
}
