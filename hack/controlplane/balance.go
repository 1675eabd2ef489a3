package main

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"
)

// dialTimeout is how long a target may take to accept a connection before the next one is tried.
const dialTimeout = 2 * time.Second

// balance passes connections on for each LISTEN=TARGET,TARGET..., until it is interrupted. Each connection goes to the next target in
// turn that takes it, as it would behind a Service whose endpoints are those that run.
func balance(specs []string, progress io.Writer) error {
	if len(specs) == 0 {
		return fmt.Errorf("%w: balance: LISTEN=TARGET,... is missing", errUsage)
	}
	ended := make(chan error, len(specs))
	for _, spec := range specs {
		listen, list, found := strings.Cut(spec, "=")
		targets := strings.Split(list, ",")
		if !found || listen == "" || list == "" {
			return fmt.Errorf("%w: balance: %q is not LISTEN=TARGET,...", errUsage, spec)
		}
		listener, err := net.Listen("tcp", listen)
		if err != nil {
			return err
		}
		fmt.Fprintf(progress, "%s to %s\n", listener.Addr(), list)
		go func() { ended <- forward(listener, targets) }()
	}
	select {
	case <-interrupted():
		return nil
	case err := <-ended:
		return err
	}
}

// forward accepts for ever.
func forward(listener net.Listener, targets []string) error {
	var turn atomic.Uint64
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			first := turn.Add(1)
			for i := range targets {
				server, err := net.DialTimeout("tcp", targets[(first+uint64(i))%uint64(len(targets))], dialTimeout)
				if err != nil {
					continue
				}
				defer server.Close()
				pipe(client, server)
				return
			}
		}()
	}
}

// pipe copies both ways until either end is done; then both are closed.
func pipe(a, b net.Conn) {
	done := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(a, b); done <- struct{}{} }()
	go func() { _, _ = io.Copy(b, a); done <- struct{}{} }()
	<-done
}
