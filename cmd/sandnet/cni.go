package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/sandnet/sandnet/internal/spec"
	"github.com/sandnet/sandnet/sandbox"
)

// cniTimeout is how long a CNI command may wait for others; runtimes give up
// after a minute or two.
const cniTimeout = 50 * time.Second

// Codes of the specification that package types has no name for.
const (
	cniNotAvailable = 50 // STATUS: no ADD can succeed
	cniFailed       = 100
)

// cniConf is the plugin's part of a network configuration.
type cniConf struct {
	types.PluginConf
	// Network is sandnet's network, bridge if empty.
	Network string `json:"network"`
	// IPMasq, if given, must be what the network does.
	IPMasq *bool `json:"ipMasq"`
	// MTU in bytes; 0 is the network's.
	MTU     int `json:"mtu"`
	Runtime struct {
		Ports []struct {
			HostPort      uint16 `json:"hostPort"`
			ContainerPort uint16 `json:"containerPort"`
			Protocol      string `json:"protocol"`
			HostIP        string `json:"hostIP"`
		} `json:"portMappings"`
		IPs       []string            `json:"ips"`
		MAC       string              `json:"mac"`
		Aliases   map[string][]string `json:"aliases"`
		Bandwidth struct {
			IngressRate uint64 `json:"ingressRate"` // bit/s
			EgressRate  uint64 `json:"egressRate"`
		} `json:"bandwidth"`
	} `json:"runtimeConfig"`
}

// cniCall is one command of the CNI.
type cniCall struct {
	ctx  context.Context
	p    *program
	m    *sandbox.Manager
	conf cniConf
	args *skel.CmdArgs
}

// cni is sandnet as a CNI plugin (github.com/containernetworking/cni, SPEC.md
// 1.1.0). It returns the exit code.
func (p *program) cni() int {
	err := p.cniInput()
	if err == nil {
		err = cniError(hookEnvironment())
	}
	if err == nil {
		err = skel.PluginMainFuncsWithError(skel.CNIFuncs{
			Add: p.cniCommand((*cniCall).add), Del: p.cniCommand((*cniCall).del), Check: p.cniCommand((*cniCall).check),
			GC: p.cniCommand((*cniCall).gc), Status: p.cniCommand((*cniCall).status),
		}, cniversion.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"), "")
	}
	if err == nil {
		return 0
	}
	// Runtimes ask for the error on standard output.
	_ = err.Print()
	return exitFailed
}

// cniInput reads what the runtime sends and checks what package skel does not.
func (p *program) cniInput() *types.Error {
	var any json.RawMessage
	data, err := spec.ReadJSON(p.stdin, "network configuration", &any)
	if os.Getenv("CNI_COMMAND") == "VERSION" && len(bytes.TrimSpace(data)) == 0 {
		err = nil // some ask without
	}
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, oneLine(err.Error()), "")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	go func() {
		_, _ = io.Copy(w, bytes.NewReader(data))
		w.Close()
	}()
	os.Stdin = r
	return nil
}

// cniCommand opens the host for a command.
func (p *program) cniCommand(do func(*cniCall) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		ctx, cancel := context.WithTimeout(context.Background(), cniTimeout)
		defer cancel()
		c := &cniCall{ctx: ctx, p: p, args: args}
		if err := json.Unmarshal(args.StdinData, &c.conf); err != nil {
			return types.NewError(types.ErrDecodingFailure, oneLine(err.Error()), "")
		}
		c.conf.Network = cmp.Or(c.conf.Network, spec.DefaultNetwork)
		if c.conf.RawPrevResult != nil {
			if err := cniversion.ParsePrevResult(&c.conf.PluginConf); err != nil {
				return types.NewError(types.ErrDecodingFailure, "prevResult: "+oneLine(err.Error()), "")
			}
		}
		log, err := p.logger("warn", "text")
		if err != nil {
			return err
		}
		if c.m, err = openHost(os.Getenv("SANDNET_ROOT"), os.Getenv("SANDNET_FIREWALL"), log); err != nil {
			return err
		}
		if err := do(c); err != nil {
			return cniError(err)
		}
		return nil
	}
}

// cniError is an error with the code that the specification has for it.
func cniError(err error) *types.Error {
	if err == nil {
		return nil
	}
	var own *types.Error
	if errors.As(err, &own) {
		return own
	}
	code := uint(cniFailed)
	var input *spec.InputError
	var missing *sandbox.NotFoundError
	switch {
	case errors.As(err, &input) && input.What == "network namespace":
		code = types.ErrInvalidEnvironmentVariables
	case errors.As(err, &input):
		code = types.ErrInvalidNetworkConfig
	case errors.As(err, &missing):
		code = types.ErrUnknownContainer
	case errors.Is(err, context.DeadlineExceeded):
		code = types.ErrTryAgainLater
	}
	return types.NewError(code, oneLine(err.Error()), hint(err, ""))
}

// id is the sandbox's ID: an attachment is told by network, container and interface.
func (c *cniCall) id(container, ifname string) string {
	return sandbox.ContainerID(spec.SourceCNI, c.conf.Name, container, ifname)
}

func (c *cniCall) add() error {
	s, err := c.sandbox()
	if err != nil {
		return err
	}
	release, err := c.delegate(&s)
	if err != nil {
		return err
	}
	v, err := c.m.AddContainer(c.ctx, s)
	if err != nil {
		return errors.Join(err, release())
	}
	n, _, err := c.m.GetNetwork(c.ctx, c.conf.Network)
	if err != nil {
		return err
	}
	r, err := c.result(v, n)
	if err != nil {
		return err
	}
	return types.PrintResult(r, c.conf.CNIVersion)
}

// sandbox is what the configuration asks for.
func (c *cniCall) sandbox() (spec.Sandbox, error) {
	o := spec.SandboxOptions{Net: []string{c.conf.Network}, MAC: c.conf.Runtime.MAC, MTU: c.conf.MTU,
		NetworkAlias: c.conf.Runtime.Aliases[c.conf.Name]}
	id := c.id(c.args.ContainerID, c.args.IfName)
	o.Name = "cni-" + id[:12]
	for _, p := range c.conf.Runtime.Ports {
		if p.HostPort == 0 {
			continue // not published, as with the portmap plugin
		}
		text := fmt.Sprintf("%d:%d/%s", p.HostPort, p.ContainerPort, cmp.Or(strings.ToLower(p.Protocol), "tcp"))
		if ip, err := netip.ParseAddr(p.HostIP); err == nil && ip.Is6() {
			text = "[" + p.HostIP + "]:" + text
		} else if p.HostIP != "" {
			text = p.HostIP + ":" + text
		}
		o.Publish = append(o.Publish, text)
	}
	ips := c.conf.Runtime.IPs
	for _, arg := range strings.Split(c.args.Args, ";") {
		switch key, value, _ := strings.Cut(arg, "="); key {
		case "IP":
			ips = append(ips, value)
		case "MAC":
			o.MAC = cmp.Or(o.MAC, value)
		}
	}
	for _, text := range ips {
		ip, _, _ := strings.Cut(text, "/")
		if strings.Contains(ip, ":") {
			o.IP6 = ip
		} else {
			o.IP = ip
		}
	}
	s, err := o.Parse()
	if err != nil {
		return s, err
	}
	if s.Mode != spec.ModeBridge || len(s.Attach) != 1 {
		return s, &spec.InputError{What: "network", Value: c.conf.Network, Why: "it is not a bridge network"}
	}
	s.ID, s.Source, s.Container, s.Adopt = id, spec.SourceCNI, c.args.ContainerID, c.args.Netns
	s.Attach[0].Interface, s.Config = c.args.IfName, c.conf.Name
	s.IngressRate, s.EgressRate = c.conf.Runtime.Bandwidth.IngressRate, c.conf.Runtime.Bandwidth.EgressRate
	return s, c.checkMasquerade()
}

// checkMasquerade refuses an ipMasq that the network does not do: masquerading
// is the network's, not one container's.
func (c *cniCall) checkMasquerade() error {
	if c.conf.IPMasq == nil {
		return nil
	}
	n, _, err := c.m.GetNetwork(c.ctx, c.conf.Network)
	var missing *sandbox.NotFoundError
	if errors.As(err, &missing) && c.conf.Network == spec.DefaultNetwork {
		err = nil // made by its first use
	}
	if err != nil {
		return err
	}
	if does := !n.NoMasquerade && !n.Internal; does != *c.conf.IPMasq {
		return &spec.InputError{What: "ipMasq", Value: fmt.Sprint(*c.conf.IPMasq), Why: fmt.Sprintf("network %s does otherwise", c.conf.Network),
			Hint: "leave it out, or make the network with or without --no-masquerade"}
	}
	return nil
}

// delegate has another plugin choose the addresses, if the configuration names
// one; release gives them back to it.
func (c *cniCall) delegate(s *spec.Sandbox) (release func() error, err error) {
	nothing := func() error { return nil }
	if c.conf.IPAM.Type == "" || c.conf.IPAM.Type == programName {
		return nothing, nil
	}
	release = func() error {
		return invoke.DelegateDel(context.WithoutCancel(c.ctx), c.conf.IPAM.Type, c.args.StdinData, nil)
	}
	r, err := invoke.DelegateAdd(c.ctx, c.conf.IPAM.Type, c.args.StdinData, nil)
	if err != nil {
		return nothing, err
	}
	result, err := types100.NewResultFromResult(r)
	if err != nil {
		return nothing, errors.Join(err, release())
	}
	for _, ip := range result.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		switch a = a.Unmap(); {
		case !ok:
		case a.Is4():
			s.Attach[0].IP = a
		default:
			s.Attach[0].IP6 = a
		}
	}
	return release, nil
}

// result is what the runtime learns, behind what earlier plugins of the chain did.
func (c *cniCall) result(v sandbox.View, n spec.Network) (*types100.Result, error) {
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if c.conf.PrevResult != nil {
		prev, err := types100.NewResultFromResult(c.conf.PrevResult)
		if err != nil {
			return nil, types.NewError(types.ErrDecodingFailure, "prevResult: "+oneLine(err.Error()), "")
		}
		r.Interfaces, r.IPs, r.Routes, r.DNS = prev.Interfaces, prev.IPs, prev.Routes, prev.DNS
	}
	ep := v.Endpoints[0]
	inside := len(r.Interfaces) + 2
	r.Interfaces = append(r.Interfaces, &types100.Interface{Name: n.Bridge}, &types100.Interface{Name: ep.HostInterface},
		&types100.Interface{Name: ep.Interface, Mac: ep.MAC, Mtu: ep.MTU, Sandbox: c.args.Netns})
	for i, a := range ep.Addresses {
		ip := &types100.IPConfig{Interface: &inside, Address: ipNet(a)}
		if i < len(ep.Gateways) {
			ip.Gateway = ep.Gateways[i].AsSlice()
			if !n.Internal {
				r.Routes = append(r.Routes, &types.Route{Dst: defaultRoute(a.Addr()), GW: ip.Gateway})
			}
		}
		r.IPs = append(r.IPs, ip)
	}
	if !c.conf.DNS.IsEmpty() {
		r.DNS = c.conf.DNS
	}
	return r, nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func defaultRoute(a netip.Addr) net.IPNet {
	if a.Is4() {
		return ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	}
	return ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
}

// del succeeds, too, where the namespace, or everything, is gone.
func (c *cniCall) del() error {
	err := c.m.RemoveContainer(c.ctx, c.id(c.args.ContainerID, c.args.IfName))
	if c.conf.IPAM.Type != "" && c.conf.IPAM.Type != programName {
		err = errors.Join(err, invoke.DelegateDel(c.ctx, c.conf.IPAM.Type, c.args.StdinData, nil))
	}
	return err
}

// check holds what there is against what ADD said.
func (c *cniCall) check() error {
	v, err := c.m.GetContainer(c.ctx, c.id(c.args.ContainerID, c.args.IfName))
	if err != nil {
		return err
	}
	if c.conf.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "CHECK needs the prevResult of ADD", "")
	}
	prev, err := types100.NewResultFromResult(c.conf.PrevResult)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult: "+oneLine(err.Error()), "")
	}
	ep := v.Endpoints[0]
	for _, a := range ep.Addresses {
		if !slices.ContainsFunc(prev.IPs, func(ip *types100.IPConfig) bool { return ip.Address.String() == a.String() }) {
			return types.NewError(cniFailed, fmt.Sprintf("address %s of %s is not in prevResult", a, ep.Interface), "")
		}
	}
	if c.conf.IPAM.Type != "" && c.conf.IPAM.Type != programName {
		if err := invoke.DelegateCheck(c.ctx, c.conf.IPAM.Type, c.args.StdinData, nil); err != nil {
			return err
		}
	}
	return c.m.CheckContainer(c.ctx, v.ID)
}

// gc removes the attachments to this network that the runtime does not know.
func (c *cniCall) gc() error {
	valid := map[string]bool{}
	for _, a := range c.conf.ValidAttachments {
		valid[c.id(a.ContainerID, a.IfName)] = true
	}
	all, err := c.m.List(c.ctx)
	if err != nil {
		return err
	}
	errs := []error{}
	for _, v := range all {
		if v.Source == spec.SourceCNI && v.Config == c.conf.Name && !valid[v.ID] {
			errs = append(errs, c.m.RemoveContainer(c.ctx, v.ID))
		}
	}
	if c.conf.IPAM.Type != "" && c.conf.IPAM.Type != programName {
		errs = append(errs, invoke.DelegateGC(c.ctx, c.conf.IPAM.Type, c.args.StdinData, nil))
	}
	return errors.Join(errs...)
}

// status says whether an ADD could succeed.
func (c *cniCall) status() error {
	_, _, err := c.m.GetNetwork(c.ctx, c.conf.Network)
	var missing *sandbox.NotFoundError
	if errors.As(err, &missing) && c.conf.Network == spec.DefaultNetwork {
		err = nil
	}
	if err != nil {
		return types.NewError(cniNotAvailable, oneLine(err.Error()), hint(err, ""))
	}
	return nil
}
