package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// startOptions says where, and for how long.
type startOptions struct {
	dir     string
	parent  int           // 0: nobody's
	timeout time.Duration // until everything is ready
}

// portTries bounds how often a start is tried again when another process took a port between its choice and its use.
const portTries = 5

// owned is what start writes in DIR, and "attached", which is for whoever starts it: stop removes it. Nothing else is touched.
var owned = []string{"state.json", "kubeconfig", "certs", "etcd", "logs", "apiserver", "attached"}

// component is a running part of the control plane.
type component struct {
	process
	log    string
	ended  chan struct{}
	result error // valid after ended is closed
}

// controlPlane is what one supervisor runs.
type controlPlane struct {
	options    startOptions
	tools      map[string]tool
	progress   io.Writer
	state      state
	components []*component
}

// startForeground runs until it is interrupted, the parent is gone or a component ends.
func startForeground(options startOptions, progress io.Writer) error {
	return superviseUntilEnd(options, progress, func() {
		fmt.Fprintf(progress, "Ready. In another shell: eval \"$(hack/controlplane/run env --dir %s)\". Ctrl-C stops it.\n", quote(options.dir))
	})
}

// superviseDetached is the background half of startDetached: it reports on file descriptor 3 and closes it when all is ready.
func superviseDetached(options startOptions) error {
	report := os.NewFile(3, "report")
	if report == nil {
		return fmt.Errorf("%w: --supervise is for start itself", errUsage)
	}
	syscall.CloseOnExec(3)
	defer report.Close()
	return superviseUntilEnd(options, report, func() { report.Close() })
}

// startDetached starts a supervisor in a session of its own and returns when it says that all is ready.
func startDetached(options startOptions, progress io.Writer) error {
	if _, err := ensureBuilt(nil, progress); err != nil {
		return err
	}
	if err := claim(options.dir); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(options.dir, "logs", "supervisor.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	command := exec.Command(self, "start", "--supervise", "--dir", options.dir,
		"--parent-pid", strconv.Itoa(options.parent), "--timeout", options.timeout.String())
	command.Stdout, command.Stderr = log, log
	command.ExtraFiles = []*os.File{writer}
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	signals := interrupted()
	err = command.Start()
	writer.Close()
	if err != nil {
		return err
	}
	reported := make(chan struct{})
	go func() { _, _ = io.Copy(progress, reader); close(reported) }()
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case <-reported:
	case s := <-signals:
		_ = command.Process.Signal(syscall.SIGTERM)
		<-ended
		return fmt.Errorf("interrupted (%v)", s)
	}
	if s, err := readState(options.dir); err == nil && s.Ready && s.Supervisor.alive() {
		return nil
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		_ = command.Process.Kill()
	}
	text, _ := os.ReadFile(log.Name())
	return fmt.Errorf("it did not start:\n%s", tail(text, 30))
}

// claim makes DIR ready for a start: refuses a running control plane, clears what a dead one left.
func claim(dir string) error {
	if s, err := readState(dir); err == nil {
		if s.Supervisor.alive() && s.Supervisor.Pid != os.Getpid() {
			return fmt.Errorf("a control plane already runs in %s (pid %d); stop it first", dir, s.Supervisor.Pid)
		}
		if err := stop(dir, io.Discard); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(dir, "logs"), 0o700)
}

func superviseUntilEnd(options startOptions, progress io.Writer, ready func()) error {
	// Parent death signals are tied to the thread that started the child: stay on one.
	runtime.LockOSThread()
	tools, err := ensureBuilt(nil, progress)
	if err != nil {
		return err
	}
	if err := claim(options.dir); err != nil {
		return err
	}
	signals := interrupted()
	var parent process
	if options.parent > 0 {
		if parent = identify("parent", options.parent); !parent.alive() {
			return fmt.Errorf("--parent-pid: there is no process %d", options.parent)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), options.timeout)
	defer cancel()
	stopping := make(chan string, 1)
	go func() {
		ticker := time.NewTicker(300 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case s := <-signals:
				stopping <- s.String()
				cancel()
				return
			case <-ticker.C:
				if options.parent > 0 && !parent.alive() {
					stopping <- "the parent process is gone"
					cancel()
					return
				}
			}
		}
	}()

	plane := &controlPlane{options: options, tools: tools, progress: progress}
	plane.state = state{
		Supervisor: identify("controlplane", os.Getpid()), Kubeconfig: filepath.Join(options.dir, "kubeconfig"),
		Kubernetes: tools["kube-apiserver"].version, Kubectl: tools["kubectl"].path, Helm: tools["helm"].path,
	}
	begun := time.Now()
	if err := plane.startWithRetries(ctx); err != nil {
		plane.stopAll()
		select {
		case reason := <-stopping:
			remove(options.dir)
			return fmt.Errorf("stopped while starting: %s", reason)
		default:
			removeAllBut(options.dir, "logs") // for whoever wants to know why
			return err
		}
	}
	plane.state.Ready = true
	if err := writeState(options.dir, plane.state); err != nil {
		plane.stopAll()
		return err
	}
	fmt.Fprintf(progress, "Control plane ready after %.1f s: %s\n", time.Since(begun).Seconds(), plane.state.Server)
	ready()

	failed := plane.waitForAny(stopping)
	plane.stopAll()
	if failed != nil {
		removeAllBut(options.dir, "logs")
		return failed
	}
	remove(options.dir)
	return nil
}

// waitForAny returns nil when asked to stop, and an error when a component ends by itself.
func (p *controlPlane) waitForAny(stopping <-chan string) error {
	dead := make(chan *component, len(p.components))
	for _, c := range p.components {
		go func() { <-c.ended; dead <- c }()
	}
	select {
	case <-stopping:
		return nil
	case c := <-dead:
		return c.died()
	}
}

func (p *controlPlane) startWithRetries(ctx context.Context) error {
	var err error
	for range portTries {
		if err = p.startOnce(ctx); err == nil || !errors.Is(err, errPortTaken) || ctx.Err() != nil {
			return err
		}
		p.stopAll()
		for _, name := range []string{"etcd", "certs", "apiserver"} {
			_ = os.RemoveAll(filepath.Join(p.options.dir, name))
		}
		fmt.Fprintln(p.progress, "a port was taken meanwhile, trying others")
	}
	return err
}

// errPortTaken marks an end that other ports may avoid.
var errPortTaken = errors.New("a port was taken by another process")

func (p *controlPlane) startOnce(ctx context.Context) error {
	dir := p.options.dir
	certs := filepath.Join(dir, "certs")
	ids, err := writeIdentities(certs)
	if err != nil {
		return err
	}
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	cert := func(name string) string { return filepath.Join(certs, name) }
	client, peer := fmt.Sprintf("https://127.0.0.1:%d", ports[0]), fmt.Sprintf("https://127.0.0.1:%d", ports[1])
	server := fmt.Sprintf("https://127.0.0.1:%d", ports[2])
	p.state.Server = server

	etcd, err := p.run("etcd",
		"--name=remit", "--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=remit="+peer,
		"--cert-file="+cert("etcd.crt"), "--key-file="+cert("etcd.key"), "--trusted-ca-file="+cert("etcd-ca.crt"), "--client-cert-auth",
		"--peer-cert-file="+cert("etcd.crt"), "--peer-key-file="+cert("etcd.key"), "--peer-trusted-ca-file="+cert("etcd-ca.crt"), "--peer-client-cert-auth")
	if err != nil {
		return err
	}
	api, err := p.run("kube-apiserver",
		"--etcd-servers="+client, "--etcd-cafile="+cert("etcd-ca.crt"), "--etcd-certfile="+cert("etcd.crt"), "--etcd-keyfile="+cert("etcd.key"),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+strconv.Itoa(ports[2]),
		"--cert-dir="+filepath.Join(dir, "apiserver"), "--tls-cert-file="+cert("apiserver.crt"), "--tls-private-key-file="+cert("apiserver.key"),
		"--client-ca-file="+cert("ca.crt"), "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+cert("service-accounts.pub"), "--service-account-signing-key-file="+cert("service-accounts.key"),
		"--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24", "--endpoint-reconciler-type=none", "--profiling=false")
	if err != nil {
		return err
	}
	etcdClient, err := httpClient(cert("etcd-ca.crt"), cert("etcd.crt"), cert("etcd.key"))
	if err != nil {
		return err
	}
	if err := p.await(ctx, etcd, etcdClient, client+"/health"); err != nil {
		return err
	}
	if err := os.WriteFile(cert("admin.crt"), ids.admin.certificate, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(cert("admin.key"), ids.admin.key, 0o600); err != nil {
		return err
	}
	admin, err := httpClient(cert("ca.crt"), cert("admin.crt"), cert("admin.key"))
	if err != nil {
		return err
	}
	if err := p.await(ctx, api, admin, server+"/readyz"); err != nil {
		return err
	}
	config, err := kubeconfig(server, "admin", ids.ca.pem, ids.admin)
	if err != nil {
		return err
	}
	if err := writeAtomically(p.state.Kubeconfig, config, 0o600); err != nil {
		return err
	}
	controllers, err := p.runControllers(server, ids, cert)
	if err != nil {
		return err
	}
	// It has no port of its own; that the default ServiceAccount appears shows that its controllers work.
	return p.await(ctx, controllers, admin, server+"/api/v1/namespaces/default/serviceaccounts/default")
}

func (p *controlPlane) runControllers(server string, ids *identities, cert func(string) string) (*component, error) {
	certificate, err := os.ReadFile(cert("controllers.crt"))
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(cert("controllers.key"))
	if err != nil {
		return nil, err
	}
	config, err := kubeconfig(server, "controllers", ids.ca.pem, pair{certificate, key})
	if err != nil {
		return nil, err
	}
	if err := writeAtomically(cert("controllers.kubeconfig"), config, 0o600); err != nil {
		return nil, err
	}
	return p.run("kube-controller-manager",
		"--kubeconfig="+cert("controllers.kubeconfig"), "--leader-elect=false", "--secure-port=0",
		// Each controller under its own ServiceAccount: the roles for those come with the API server, one for all does not.
		"--use-service-account-credentials=true",
		"--root-ca-file="+cert("ca.crt"), "--service-account-private-key-file="+cert("service-accounts.key"),
		"--kube-api-qps=200", "--kube-api-burst=400", "--profiling=false")
}

// run starts a component with a log of its own, and notes it before anything else can fail.
func (p *controlPlane) run(name string, args ...string) (*component, error) {
	path := filepath.Join(p.options.dir, "logs", name+".log")
	log, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command := exec.Command(p.tools[name].path, args...)
	command.Stdout, command.Stderr = log, log
	command.Dir = p.options.dir
	command.SysProcAttr = diesWithParent()
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	c := &component{process: identify(name, command.Process.Pid), log: path, ended: make(chan struct{})}
	go func() { c.result = command.Wait(); close(c.ended) }()
	p.components = append(p.components, c)
	p.state.Components = append(p.state.Components, c.process)
	return c, writeState(p.options.dir, p.state)
}

// await polls until the URL answers 200, the component ends, or the time is over.
func (p *controlPlane) await(ctx context.Context, c *component, client *http.Client, url string) error {
	begun, said, last := time.Now(), time.Now(), "no answer yet"
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err == nil {
			body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				fmt.Fprintf(p.progress, "%s ready after %.1f s\n", c.Name, time.Since(begun).Seconds())
				return nil
			}
			last = response.Status + " " + tail(body, 3)
		} else {
			last = err.Error()
		}
		select {
		case <-c.ended:
			return c.died()
		case <-ctx.Done():
			text, _ := os.ReadFile(c.log)
			return fmt.Errorf("%s was not ready after %.0f s (%s); the end of its log %s:\n%s",
				c.Name, time.Since(begun).Seconds(), last, c.log, tail(text, 20))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(said) >= 10*time.Second {
			said = time.Now()
			fmt.Fprintf(p.progress, "waiting for %s, %.0f s\n", c.Name, time.Since(begun).Seconds())
		}
	}
}

// died explains the end of a component by its log.
func (c *component) died() error {
	text, _ := os.ReadFile(c.log)
	err := fmt.Errorf("%s ended (%v); the end of its log %s:\n%s", c.Name, c.result, c.log, tail(text, 20))
	if strings.Contains(string(text), "address already in use") {
		return fmt.Errorf("%w: %w", errPortTaken, err)
	}
	return err
}

// stopAll ends the components, last started first, and waits for them.
func (p *controlPlane) stopAll() {
	for i := len(p.components) - 1; i >= 0; i-- {
		c := p.components[i]
		// Only a development control plane: nothing in it is worth a slow, graceful end.
		c.signal(syscall.SIGTERM)
		select {
		case <-c.ended:
			continue
		case <-time.After(2 * time.Second):
		}
		c.signal(syscall.SIGKILL)
		select {
		case <-c.ended:
		case <-time.After(5 * time.Second):
		}
	}
	p.components, p.state.Components = nil, nil
}

// stop ends what state.json names, if it still is what was started, and removes what start wrote.
func stop(dir string, progress io.Writer) error {
	s, err := readState(dir)
	if err != nil {
		return err
	}
	s.Supervisor.end(20 * time.Second)
	for i := len(s.Components) - 1; i >= 0; i-- {
		s.Components[i].end(2 * time.Second)
	}
	for _, c := range append(s.Components, s.Supervisor) {
		if c.alive() {
			return fmt.Errorf("%s (pid %d) does not end", c.Name, c.Pid)
		}
	}
	remove(dir)
	fmt.Fprintln(progress, "Control plane stopped")
	return nil
}

// remove deletes what start wrote, and the folder if nothing else is in it.
func remove(dir string) {
	removeAllBut(dir, "")
}

func removeAllBut(dir, kept string) {
	for _, name := range owned {
		if name != kept {
			_ = os.RemoveAll(filepath.Join(dir, name))
		}
	}
	_ = os.Remove(dir)
}

// freePorts holds all of them open while choosing, so that they differ.
func freePorts(count int) ([]int, error) {
	var ports []int
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func httpClient(ca, certificate, key string) (*http.Client, error) {
	bytes, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bytes)
	own, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS12}
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: config}}, nil
}
