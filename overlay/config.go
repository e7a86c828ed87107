package overlay

import (
	"encoding/json"
	"net/netip"
)

// Config is the network's configuration, PREFIX/config in etcd.
type Config struct {
	// Network is divided among the hosts, each has a /SubnetLen of it.
	Network   netip.Prefix
	SubnetLen int
	// SubnetMin and SubnetMax are the first and the last that are handed out.
	SubnetMin, SubnetMax netip.Addr
	// Backend is the name of the backend; Options is the object that says so,
	// with what else it says.
	Backend string
	Options json.RawMessage
}
