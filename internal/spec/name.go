package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
)

// Longest names, in characters.
const (
	maxName      = 64
	maxInterface = 15  // IFNAMSIZ less the final NUL, linux/if.h
	maxLabel     = 63  // of a host name, RFC 1035, 2.3.4
	maxDomain    = 253 // the same section's 255 octets as text
	maxNodeName  = 64  // __NEW_UTS_LEN, linux/utsname.h
)

// CheckName checks the name of a sandbox or network: [a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}.
// Such a name is safe as a file name and as a word of a command. what says
// whose name it is, for the *InputError.
func CheckName(what, s string) error {
	if why := nameFault(s); why != "" {
		return &InputError{What: what, Value: s, Why: why}
	}
	return nil
}

func nameFault(s string) string {
	if why := lengthFault(s, maxName); why != "" {
		return why
	}
	for i := range len(s) {
		if !alnum(s[i]) && (i == 0 || !strings.ContainsRune("_.-", rune(s[i]))) {
			return "only letters, digits, '_', '.' and '-' are allowed, and a letter or digit comes first"
		}
	}
	return ""
}

func lengthFault(s string, limit int) string {
	switch {
	case s == "":
		return "it is empty"
	case len(s) > limit:
		return fmt.Sprintf("%d characters at most, this has %d", limit, len(s))
	}
	return ""
}

func alnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// CheckInterface checks the name of a network device. It allows less than the
// kernel does (dev_valid_name in net/core/dev.c): what means something to nft,
// sysctl or the kernel's own numbering ('*', '/', '%') is refused.
func CheckInterface(s string) error {
	why := lengthFault(s, maxInterface)
	switch {
	case why != "":
	case s == "all" || s == "default":
		why = "the kernel keeps the name for its own settings"
	case !alnum(s[0]) && s[0] != '_' || strings.ContainsFunc(s, func(r rune) bool {
		return r > 0x7e || !alnum(byte(r)) && !strings.ContainsRune("_.-", r)
	}):
		why = "only letters, digits, '_', '.' and '-' are allowed, and a letter, digit or '_' comes first"
	default:
		return nil
	}
	return &InputError{What: "interface name", Value: s, Why: why}
}

// BridgeName is the bridge device of a user-defined network: "sn-" and 12 hex
// digits of the SHA-256 of its name, 15 characters.
func BridgeName(network string) string {
	sum := sha256.Sum256([]byte(network))
	return "sn-" + hex.EncodeToString(sum[:6])
}

// CheckHostname checks a host name: labels of 1 to 63 letters, digits and
// inner hyphens, joined by dots, 253 characters in all (RFC 1123, 2.1).
func CheckHostname(s string) error {
	if why := domainFault(s, false); why != "" {
		return &InputError{What: "hostname", Value: s, Why: why}
	}
	return nil
}

// domainFault is what is wrong with a host name. One that is only looked up
// may have '_', as the names of sandboxes may.
func domainFault(s string, underscore bool) string {
	if why := lengthFault(s, maxDomain); why != "" {
		return why
	}
	for label := range strings.SplitSeq(s, ".") {
		switch {
		case label == "":
			return "a part between dots is empty"
		case len(label) > maxLabel:
			return fmt.Sprintf("%d characters at most between dots, %s has %d", maxLabel, quote(label, 32), len(label))
		case label[0] == '-' || label[len(label)-1] == '-':
			return fmt.Sprintf("%s begins or ends with '-'", quote(label, 32))
		}
		for i := range len(label) {
			switch c := label[i]; {
			case alnum(c) || c == '-' || c == '_' && underscore:
			case underscore:
				return "only letters, digits, '-', '_' and dots are allowed"
			default:
				return "only letters, digits, '-' and dots are allowed"
			}
		}
	}
	return ""
}

// ParseMAC reads a MAC address that an interface can have, six bytes and not a
// group's, and returns it in lower case with colons.
func ParseMAC(s string) (string, error) {
	fault := func(why string) (string, error) {
		return "", &InputError{What: "MAC address", Value: s, Why: why}
	}
	mac, err := net.ParseMAC(s)
	switch {
	case err != nil || len(mac) != 6:
		return fault("not six bytes in hex, like 02:42:ac:1e:00:02")
	case mac[0]&1 != 0: // IEEE 802, the I/G bit
		return fault("it is a multicast address")
	case strings.Trim(mac.String(), "0:") == "":
		return fault("it is all zeros")
	}
	return mac.String(), nil
}
