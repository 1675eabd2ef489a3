package main

import (
	"io"
	"net"
	"testing"
)

// answering listens and says its name to whoever connects.
func answering(t *testing.T, name string) (string, func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(connection, name)
			connection.Close()
		}
	}()
	return listener.Addr().String(), func() { listener.Close() }
}

func TestBalanceTakesTurnsAndSkipsWhatIsGone(t *testing.T) {
	one, stopOne := answering(t, "one")
	two, stopTwo := answering(t, "two")
	defer stopTwo()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() { _ = forward(listener, []string{one, two}) }()
	ask := func() string {
		connection, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		text, err := io.ReadAll(connection)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if first, second := ask(), ask(); first == second {
		t.Errorf("both went to %q", first)
	}
	stopOne()
	for range 3 {
		if got := ask(); got != "two" {
			t.Errorf("got %q after one is gone", got)
		}
	}
}

func TestBalanceNamesWhatIsWrong(t *testing.T) {
	for _, specs := range [][]string{nil, {"127.0.0.1:0"}, {"=a"}, {"127.0.0.1:0="}} {
		if err := balance(specs, io.Discard); err == nil {
			t.Errorf("%q is taken", specs)
		}
	}
}
