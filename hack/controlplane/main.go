// Controlplane builds a real Kubernetes control plane (kube-apiserver, kube-controller-manager, kubectl, etcd) and helm from
// their Go modules, and starts and stops it on free loopback ports with certificates of its own. Tests, demo and `make dev`
// share it. It is for development only, never writes outside its cache and the folder it is given, and ends no process but
// those that it started.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const usage = `controlplane: a real Kubernetes control plane on this machine, for development and tests

  controlplane build [NAME...]      build what is missing (kube-apiserver, kube-controller-manager, kubectl, etcd, helm)
  controlplane start --dir DIR      start it; returns when it is ready
      --foreground                  stay until interrupted, then stop it and remove its data
      --parent-pid PID              stop it and remove its data once process PID is gone
      --timeout DURATION            give up when it is not ready by then (default 3m)
  controlplane stop --dir DIR       stop what start began in DIR, and remove its data
  controlplane balance --dir DIR LISTEN=TARGET,TARGET... ...
                                    passes TCP connections on to targets that take them, as a Service would, until interrupted
  controlplane env [--dir DIR]      lines to be sourced by a shell: PATH, and KUBECONFIG of what runs in DIR

Binaries are cached in ${XDG_CACHE_HOME:-$HOME/.cache}/remit/controlplane, by version. KUBEBUILDER_ASSETS, if set, names a
folder to take kube-apiserver, etcd and kubectl from (and kube-controller-manager, where it has one).
`

// errUsage marks errors of the command line: exit code 2.
var errUsage = errors.New("usage")

func main() {
	err := run(os.Args[1:], os.Stdout)
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage)
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "controlplane: %v\n\n%s", err, usage)
		os.Exit(2)
	default:
		fmt.Fprintf(os.Stderr, "controlplane: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("%w: a command is missing", errUsage)
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	dir := flags.String("dir", "", "")
	foreground := flags.Bool("foreground", false, "")
	supervise := flags.Bool("supervise", false, "") // what a detached start runs in the background
	parent := flags.Int("parent-pid", 0, "")
	timeout := flags.Duration("timeout", 3*time.Minute, "")
	if args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		return flag.ErrHelp
	}
	if err := flags.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %v", errUsage, err)
	}
	if args[0] != "build" && args[0] != "balance" && flags.NArg() > 0 {
		return fmt.Errorf("%w: unexpected argument %q", errUsage, flags.Arg(0))
	}
	if *dir == "" && (args[0] == "start" || args[0] == "stop") {
		return fmt.Errorf("%w: --dir is missing", errUsage)
	}
	if *dir != "" {
		absolute, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = absolute
	}

	switch args[0] {
	case "build":
		_, err := ensureBuilt(flags.Args(), os.Stderr)
		return err
	case "start":
		options := startOptions{dir: *dir, parent: *parent, timeout: *timeout}
		switch {
		case *supervise:
			return superviseDetached(options)
		case *foreground:
			return startForeground(options, os.Stderr)
		default:
			return startDetached(options, os.Stderr)
		}
	case "stop":
		return stop(*dir, os.Stderr)
	case "balance":
		return balance(flags.Args(), os.Stderr)
	case "env":
		return printEnv(*dir, out)
	default:
		return fmt.Errorf("%w: unknown command %q", errUsage, args[0])
	}
}

// printEnv writes lines for a shell. Without a folder it only says where the tools are, and builds nothing.
func printEnv(dir string, out io.Writer) error {
	if dir == "" {
		tools, err := locate()
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "export PATH=%s:%s:\"$PATH\"\n", quote(filepath.Dir(tools["kubectl"].path)), quote(filepath.Dir(tools["helm"].path)))
		return nil
	}
	state, err := readState(dir)
	if err != nil {
		return err
	}
	if !state.Ready || !state.Supervisor.alive() {
		return fmt.Errorf("no control plane runs in %s", dir)
	}
	fmt.Fprintf(out, "export KUBECONFIG=%s\n", quote(state.Kubeconfig))
	fmt.Fprintf(out, "export PATH=%s:%s:\"$PATH\"\n", quote(filepath.Dir(state.Kubectl)), quote(filepath.Dir(state.Helm)))
	return nil
}

// quote makes a text one word of a POSIX shell.
func quote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// state is what start leaves in DIR/state.json, for stop, env and the test harness.
type state struct {
	Supervisor process   `json:"supervisor"`
	Components []process `json:"components"`
	Ready      bool      `json:"ready"`
	Server     string    `json:"server"`
	Kubeconfig string    `json:"kubeconfig"`
	Kubernetes string    `json:"kubernetes"`
	Kubectl    string    `json:"kubectl"`
	Helm       string    `json:"helm"`
}

func readState(dir string) (state, error) {
	var s state
	bytes, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if errors.Is(err, os.ErrNotExist) {
		return s, fmt.Errorf("no control plane was started in %s", dir)
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(bytes, &s); err != nil {
		return s, fmt.Errorf("%s/state.json: %w", dir, err)
	}
	return s, nil
}

func writeState(dir string, s state) error {
	bytes, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeAtomically(filepath.Join(dir, "state.json"), append(bytes, '\n'), 0o600)
}

// writeAtomically leaves the old or the new content, never a part.
func writeAtomically(path string, bytes []byte, mode os.FileMode) error {
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(temporary, bytes, mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// interrupted returns a channel that gets the first interrupt or request to terminate.
func interrupted() <-chan os.Signal {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	return signals
}
