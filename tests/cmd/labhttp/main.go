// Command labhttp is a web server and its client for demonstrations, so that
// they need no other program:
//
//	labhttp serve NAME ADDR    answers every request with NAME and the client's address
//	labhttp get ADDR           prints the answer of http://ADDR/; exit 1 without one
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

const patience = 3 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "labhttp:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "serve":
		return serve(args[1], args[2])
	case len(args) == 2 && args[0] == "get":
		return get(args[1])
	}
	return fmt.Errorf("usage: labhttp serve NAME ADDR | get ADDR")
}

func serve(name, addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Printf("%s listens on %s\n", name, l.Addr())
	srv := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		src, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "Hello %s, this is %s.\n", src, name)
	})}
	return srv.Serve(l)
}

func get(addr string) error {
	client := http.Client{Timeout: patience}
	resp, err := client.Get("http://" + addr + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", addr, resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
