package spec

import (
	"net/netip"
	"strconv"
	"strings"
)

// AttachmentOptions are the options of `network connect`, as they were given.
type AttachmentOptions struct {
	Network, IP, IP6, MAC string
	Aliases               []string
	GwPriority            int
}

// Parse returns the attachment that the options ask for, or an *InputError.
func (o AttachmentOptions) Parse() (Attachment, error) {
	a := Attachment{Network: o.Network, Aliases: o.Aliases}
	if err := CheckName("network name", a.Network); err != nil {
		return Attachment{}, err
	}
	if err := o.into(&a); err != nil {
		return Attachment{}, err
	}
	return a, nil
}

// into sets what is given, which must not be set yet.
func (o AttachmentOptions) into(a *Attachment) error {
	for _, f := range []struct {
		what, value string
		to          *netip.Addr
	}{{"IP address", o.IP, &a.IP}, {"IPv6 address", o.IP6, &a.IP6}} {
		if f.value == "" {
			continue
		}
		ip, why := parseAddr(f.value)
		if why == "" && f.to.IsValid() {
			why = givenTwice
		}
		if why != "" {
			return &InputError{What: f.what, Value: f.value, Why: why}
		}
		*f.to = ip
	}
	if o.MAC != "" {
		mac, err := ParseMAC(o.MAC)
		if err != nil {
			return err
		}
		if a.MAC != "" {
			return &InputError{What: "MAC address", Value: o.MAC, Why: givenTwice}
		}
		a.MAC = mac
	}
	if o.GwPriority != 0 {
		if a.GwPriority != 0 {
			return &InputError{What: "gateway priority", Value: strconv.Itoa(o.GwPriority), Why: givenTwice}
		}
		a.GwPriority = o.GwPriority
	}
	return nil
}

const givenTwice = "it is given twice"

// ParseAttachment reads one network of --net: its name ("default" is the
// default network's other one, as with docker) or, in docker's longer form,
// name=NAME and any of ip=, ip6=, mac-address=, gw-priority= and alias=, which
// may be repeated, with commas between them.
func ParseAttachment(s string) (Attachment, error) {
	fault := func(why string) (Attachment, error) {
		return Attachment{}, &InputError{What: "network mode", Value: s, Why: why}
	}
	if !strings.Contains(s, "=") {
		return named(s, AttachmentOptions{Network: s})
	}
	var o AttachmentOptions
	for field := range strings.SplitSeq(s, ",") {
		key, value, _ := strings.Cut(field, "=")
		var to *string
		switch key {
		case "name":
			to = &o.Network
		case "ip":
			to = &o.IP
		case "ip6":
			to = &o.IP6
		case "mac-address":
			to = &o.MAC
		case "alias":
			if value != "" {
				o.Aliases = append(o.Aliases, value)
				continue
			}
		case "gw-priority":
			n, err := strconv.ParseInt(value, 10, 32)
			if err != nil {
				return fault("gw-priority is not a number")
			}
			o.GwPriority = int(n)
			continue
		default:
			return fault("unknown field " + quote(key, 32) + ", it should be name, ip, ip6, mac-address, alias or gw-priority")
		}
		switch {
		case value == "":
			return fault(key + " is empty")
		case *to != "":
			return fault(key + " is given twice")
		}
		*to = value
	}
	if o.Network == "" {
		return fault("the name is missing, it should be name=NETWORK")
	}
	return named(s, o)
}

// named checks the network's name, for the message of --net value s.
func named(s string, o AttachmentOptions) (Attachment, error) {
	if o.Network == "default" {
		o.Network = DefaultNetwork
	}
	why := nameFault(o.Network)
	switch o.Network {
	case string(ModeHost), string(ModeNone), string(ModeContainer):
		why = "that is a mode, not a network"
	}
	if why != "" {
		return Attachment{}, &InputError{What: "network mode", Value: s, Why: "network name: " + why}
	}
	a := Attachment{Network: o.Network, Aliases: o.Aliases}
	if err := o.into(&a); err != nil {
		return Attachment{}, err
	}
	return a, nil
}
