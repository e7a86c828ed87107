// Package e2e tests sandnet as its users meet it: the program, on hosts made
// of namespaces, with real traffic. What it expects is the contract: commands,
// exit codes, JSON, who reaches whom. It contains nothing but tests.
package e2e

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

func TestMain(m *testing.M) { lab.Main(m, lab.Plain) }

// sandbox is `sandnet inspect SANDBOX`, as far as tests look at it.
type sandbox struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Mode      string            `json:"mode"`
	Netns     string            `json:"netns"`
	PID       int               `json:"pid"`
	Created   string            `json:"created"`
	Status    string            `json:"status"`
	Labels    map[string]string `json:"labels"`
	Endpoints []endpoint        `json:"endpoints"`
}

type endpoint struct {
	Network       string         `json:"network"`
	Interface     string         `json:"interface"`
	HostInterface string         `json:"hostInterface"`
	MAC           string         `json:"mac"`
	MTU           int            `json:"mtu"`
	Addresses     []netip.Prefix `json:"addresses"`
	Gateways      []netip.Addr   `json:"gateways"`
	Aliases       []string       `json:"aliases"`
	Ports         []port         `json:"ports"`
}

type port struct {
	HostIP   string `json:"hostIP"`
	HostPort int    `json:"hostPort"`
	Port     int    `json:"port"`
	Protocol string `json:"protocol"`
}

var fullID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// used is a host on which sandnet has been used before: the default network
// exists, and a dump of it is what everything has to return to.
func used(t *testing.T, h *lab.Host) lab.Dump {
	t.Helper()
	h.OK("create", "--name", "warmup")
	h.OK("rm", "warmup")
	return h.Settled()
}

type constError string

func (e constError) Error() string { return string(e) }

func inspect(t *testing.T, h *lab.Host, name string) sandbox {
	t.Helper()
	out := h.OK("inspect", name)
	var s []sandbox
	if err := json.Unmarshal([]byte(out), &s); err != nil || len(s) != 1 {
		t.Fatalf("inspect %s: %v: %s", name, err, out)
	}
	return s[0]
}

// address is a sandbox's address on its first network.
func address(t *testing.T, h *lab.Host, name string) string {
	t.Helper()
	s := inspect(t, h, name)
	if len(s.Endpoints) == 0 || len(s.Endpoints[0].Addresses) == 0 {
		t.Fatalf("%s has no address: %+v", name, s)
	}
	return s.Endpoints[0].Addresses[0].Addr().String()
}

// create makes a sandbox and returns its inside.
func create(t *testing.T, h *lab.Host, name string, args ...string) *lab.NS {
	t.Helper()
	id := h.OK(append([]string{"create", "--name", name}, args...)...)
	if !fullID.MatchString(id) {
		t.Fatalf("create printed %q, not an ID", id)
	}
	return h.Sandbox(name)
}

// server makes a sandbox with something listening on TCP and UDP port 80.
func server(t *testing.T, h *lab.Host, name string, args ...string) *lab.NS {
	t.Helper()
	s := create(t, h, name, args...)
	s.ServeTCP("0.0.0.0:80")
	s.ServeUDP("0.0.0.0:80")
	return s
}
