package lab

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// ServeEcho answers all that TCP clients send to addr with the same.
func (n *NS) ServeEcho(addr string) {
	n.t.Helper()
	l := n.listen("tcp4", addr)
	var mu sync.Mutex
	var conns []net.Conn // guarded by mu
	n.onEnd(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			_ = c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			abrupt(c)
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()
}

// abrupt has a connection end without a farewell: one that nobody can receive
// any more keeps the namespace alive while it is repeated.
func abrupt(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }

// Dialogue is a TCP connection that stays open while things change around it.
type Dialogue struct {
	t    testing.TB
	conn net.Conn
}

// Talk connects to a ServeEcho.
func (n *NS) Talk(addr string) Dialogue {
	n.t.Helper()
	d := Dialogue{t: n.t}
	var err error
	n.Do(func() { d.conn, err = net.DialTimeout("tcp4", addr, 3*time.Second) })
	if err != nil {
		n.t.Fatalf("%s → %s: %v", n.Name, addr, err)
	}
	abrupt(d.conn)
	n.onEnd(func() { _ = d.conn.Close() })
	d.GoesOn("being opened")
	return d
}

// GoesOn fails the test unless the connection still answers.
func (d Dialogue) GoesOn(after string) {
	d.t.Helper()
	_ = d.conn.SetDeadline(time.Now().Add(3 * time.Second))
	_, err := d.conn.Write([]byte("ping"))
	if err == nil {
		_, err = io.ReadFull(d.conn, make([]byte, 4))
	}
	if err != nil {
		d.t.Errorf("the connection to %s broke after %s: %v", d.conn.RemoteAddr(), after, err)
	}
}
