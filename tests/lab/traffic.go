package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
)

// A server answers every client with one line, "NAME SOURCE": its own name and
// the address it saw the client come from.

// family is the network ("tcp", "udp") for addr's family alone: tcp4, or tcp6
// for one with an address in brackets.
func family(network, addr string) string {
	if strings.HasPrefix(addr, "[") {
		return network + "6"
	}
	return network + "4"
}

// ServeTCP listens on addr ("0.0.0.0:80", "[::]:80") inside the namespace.
func (n *NS) ServeTCP(addr string) {
	n.t.Helper()
	l := n.listen(family("tcp", addr), addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s %s\n", n.Name, host(c.RemoteAddr()))
			}()
		}
	}()
}

// ServeHTTP is ServeTCP with HTTP around the line.
func (n *NS) ServeHTTP(addr string) {
	n.t.Helper()
	l := n.listen(family("tcp", addr), addr)
	srv := &http.Server{ReadHeaderTimeout: Patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		src, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s %s\n", n.Name, src)
	})}
	go func() { _ = srv.Serve(l) }()
	n.onEnd(func() { _ = srv.Close() })
}

func (n *NS) listen(network, addr string) net.Listener {
	n.t.Helper()
	var l net.Listener
	var err error
	n.Do(func() { l, err = net.Listen(network, addr) })
	if err != nil {
		n.t.Fatalf("%s: listen on %s: %v", n.Name, addr, err)
	}
	n.onEnd(func() { _ = l.Close() })
	return l
}

// ServeUDP answers every datagram that arrives at addr.
func (n *NS) ServeUDP(addr string) {
	n.t.Helper()
	var c net.PacketConn
	var err error
	n.Do(func() { c, err = net.ListenPacket(family("udp", addr), addr) })
	if err != nil {
		n.t.Fatalf("%s: listen on %s: %v", n.Name, addr, err)
	}
	n.onEnd(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(fmt.Appendf(nil, "%s %s\n", n.Name, host(from)), from)
		}
	}()
}

func host(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

// Bind tries to take a port as any other program would, and lets it go.
func (n *NS) Bind(network, addr string) error {
	n.t.Helper()
	var err error
	n.Do(func() {
		if strings.HasPrefix(network, "udp") {
			var c net.PacketConn
			if c, err = net.ListenPacket(network, addr); err == nil {
				_ = c.Close()
			}
			return
		}
		var l net.Listener
		if l, err = net.Listen(network, addr); err == nil {
			_ = l.Close()
		}
	})
	return err
}

// Answer is what a client heard.
type Answer struct {
	// Server is the name of the NS that answered, Source the client as seen by it.
	Server string
	Source netip.Addr
}

// ErrSilence is the error of a client that nobody answered, not even with a
// refusal.
var ErrSilence = errors.New("no answer")

// Ask connects from inside the namespace and returns the server's answer.
// Network is tcp or udp.
func (n *NS) Ask(network, addr string, timeout time.Duration) (Answer, error) {
	n.t.Helper()
	return n.AskFrom(network, "", addr, timeout)
}

// AskFrom is Ask from one of the namespace's addresses.
func (n *NS) AskFrom(network, source, addr string, timeout time.Duration) (a Answer, err error) {
	n.t.Helper()
	n.Do(func() {
		d := net.Dialer{Timeout: timeout}
		if source != "" {
			src := net.ParseIP(source)
			d.LocalAddr = &net.TCPAddr{IP: src}
			if network == "udp" {
				d.LocalAddr = &net.UDPAddr{IP: src}
			}
		}
		var c net.Conn
		if c, err = d.DialContext(context.Background(), family(network, addr), addr); err != nil {
			return
		}
		defer c.Close()
		a, err = converse(c, timeout)
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%s: %w", addr, ErrSilence)
	}
	return a, err
}

func converse(c net.Conn, timeout time.Duration) (Answer, error) {
	_ = c.SetDeadline(time.Now().Add(timeout))
	if c.RemoteAddr().Network() == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return Answer{}, err
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return Answer{}, err
	}
	name, src, _ := strings.Cut(strings.TrimSpace(line), " ")
	ip, err := netip.ParseAddr(src)
	return Answer{Server: name, Source: ip}, err
}

// Get fetches http://ADDR/ and returns the answer.
func (n *NS) Get(addr string, timeout time.Duration) (Answer, error) {
	n.t.Helper()
	var body string
	var err error
	n.Do(func() {
		var c net.Conn
		if c, err = net.DialTimeout(family("tcp", addr), addr, timeout); err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(timeout))
		fmt.Fprintf(c, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", addr)
		var resp *http.Response
		if resp, err = http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			return
		}
		defer resp.Body.Close()
		body, err = bufio.NewReader(resp.Body).ReadString('\n')
	})
	if err != nil {
		return Answer{}, err
	}
	name, src, _ := strings.Cut(strings.TrimSpace(body), " ")
	ip, err := netip.ParseAddr(src)
	return Answer{Server: name, Source: ip}, err
}

// Reaches fails the test unless server answers at addr, having seen the client
// as source ("" for any).
func (n *NS) Reaches(network, addr string, server *NS, source string) {
	n.t.Helper()
	a, err := n.Ask(network, addr, 3*time.Second)
	switch {
	case err != nil:
		n.t.Errorf("%s → %s %s: %v", n.Name, network, addr, err)
	case a.Server != server.Name:
		n.t.Errorf("%s → %s %s: answered by %s, not %s", n.Name, network, addr, a.Server, server.Name)
	case source != "" && a.Source.String() != source:
		n.t.Errorf("%s → %s %s: the server saw %s, not %s", n.Name, network, addr, a.Source, source)
	}
}

// Barred fails the test if anything answers at addr. A refusal counts as no
// answer; a dropped packet as well.
func (n *NS) Barred(network, addr string) {
	n.t.Helper()
	if a, err := n.Ask(network, addr, 400*time.Millisecond); err == nil {
		n.t.Errorf("%s → %s %s: open, answered by %s which saw %s", n.Name, network, addr, a.Server, a.Source)
	}
}

// Refused reports whether err is the peer's refusal rather than silence.
func Refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
