package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// tool is a binary that is needed, and how it is built.
type tool struct {
	name    string
	path    string // where it is, or will be
	module  string // wrapper module's folder; empty when the binary is given (KUBEBUILDER_ASSETS)
	pkg     string
	version string
	ldflags string
	answers []string // arguments that make it print its version
}

// names in the order of building: the first kubernetes binary takes longest, the others share its packages.
var names = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "helm"}

// locate says where each binary is expected, from the versions in the wrapper modules and KUBEBUILDER_ASSETS.
func locate() (map[string]tool, error) {
	source, err := sourceFolder()
	if err != nil {
		return nil, err
	}
	kubernetes, err := required(filepath.Join(source, "kubernetes"), "k8s.io/kubernetes")
	if err != nil {
		return nil, err
	}
	etcd, err := required(filepath.Join(source, "etcd"), "go.etcd.io/etcd/server/v3")
	if err != nil {
		return nil, err
	}
	helm, err := required(filepath.Join(source, "helm"), "helm.sh/helm/v4")
	if err != nil {
		return nil, err
	}
	cache, err := cacheFolder()
	if err != nil {
		return nil, err
	}
	platform := runtime.GOOS + "-" + runtime.GOARCH
	cluster := filepath.Join(cache, fmt.Sprintf("k8s-%s-etcd-%s-%s", kubernetes, etcd, platform))

	tools := map[string]tool{}
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kubectl"} {
		answers := []string{"--version"}
		if name == "kubectl" {
			answers = []string{"version", "--client"}
		}
		tools[name] = tool{
			name: name, path: filepath.Join(cluster, name), module: filepath.Join(source, "kubernetes"),
			pkg: "k8s.io/kubernetes/cmd/" + name, version: kubernetes, ldflags: kubernetesStamp(kubernetes), answers: answers,
		}
	}
	tools["etcd"] = tool{
		name: "etcd", path: filepath.Join(cluster, "etcd"), module: filepath.Join(source, "etcd"),
		pkg: "go.etcd.io/etcd/server/v3", version: etcd, ldflags: "-s -w", answers: []string{"--version"},
	}
	tools["helm"] = tool{
		name: "helm", path: filepath.Join(cache, fmt.Sprintf("helm-%s-%s", helm, platform), "helm"),
		module: filepath.Join(source, "helm"), pkg: "helm.sh/helm/v4/cmd/helm", version: helm,
		ldflags: "-s -w -X helm.sh/helm/v4/internal/version.version=" + helm, answers: []string{"version", "--short"},
	}
	return tools, useAssets(tools, os.Getenv("KUBEBUILDER_ASSETS"))
}

// useAssets takes the binaries of a folder that the user names, whatever their version.
func useAssets(tools map[string]tool, assets string) error {
	if assets == "" {
		return nil
	}
	for _, name := range []string{"kube-apiserver", "etcd", "kubectl", "kube-controller-manager"} {
		path := filepath.Join(assets, name)
		if _, err := os.Stat(path); err != nil {
			if name == "kube-controller-manager" {
				continue // envtest's archives have none: ours is built
			}
			return fmt.Errorf("KUBEBUILDER_ASSETS is %s, but %w", assets, err)
		}
		absolute, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		tools[name] = tool{name: name, path: absolute}
	}
	return nil
}

// kubernetesStamp sets the version, without which clients see v0.0.0-master and refuse to work.
func kubernetesStamp(version string) string {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	flags := []string{"-s", "-w"}
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags = append(flags,
			"-X", pkg+".gitVersion="+version, "-X", pkg+".gitMajor="+parts[0],
			"-X", pkg+".gitMinor="+parts[1], "-X", pkg+".gitTreeState=clean")
	}
	return strings.Join(flags, " ")
}

// sourceFolder is the folder of this program, with the wrapper modules in it.
func sourceFolder() (string, error) {
	folder := os.Getenv("REMIT_CONTROLPLANE_SOURCE")
	if folder == "" {
		folder = "."
	}
	if _, err := os.Stat(filepath.Join(folder, "kubernetes", "go.mod")); err != nil {
		return "", fmt.Errorf("the wrapper modules are not in %q; run hack/controlplane/run, or set REMIT_CONTROLPLANE_SOURCE to the folder hack/controlplane", folder)
	}
	return filepath.Abs(folder)
}

func cacheFolder() (string, error) {
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(home, ".cache")
	}
	return filepath.Join(cache, "remit", "controlplane"), nil
}

// required reads a module's version out of a go.mod.
func required(folder, module string) (string, error) {
	path := filepath.Join(folder, "go.mod")
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	found := regexp.MustCompile(`(?m)^(?:require)?\s+` + regexp.QuoteMeta(module) + ` (v\S+)`).FindSubmatch(text)
	if found == nil {
		return "", fmt.Errorf("%s does not require %s", path, module)
	}
	return string(found[1]), nil
}

// ensureBuilt builds what is missing of the named binaries (all, if none is named).
func ensureBuilt(wanted []string, progress io.Writer) (map[string]tool, error) {
	tools, err := locate()
	if err != nil {
		return nil, err
	}
	if len(wanted) == 0 {
		wanted = names
	}
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("%w: %q can't be built, only %s", errUsage, name, strings.Join(names, ", "))
		}
	}
	var missing []tool
	for _, name := range names {
		if slices.Contains(wanted, name) && !executable(tools[name].path) {
			missing = append(missing, tools[name])
		}
	}
	if len(missing) == 0 {
		return tools, nil
	}
	if _, err := exec.LookPath("go"); err != nil {
		return nil, fmt.Errorf("building %s needs Go (https://go.dev/dl): %w", missing[0].name, err)
	}
	fmt.Fprintf(progress, "Building %d of %d binaries. It is done once: they are kept in %s\n",
		len(missing), len(names), filepath.Dir(filepath.Dir(missing[0].path)))
	begun := time.Now()
	for i, t := range missing {
		label := fmt.Sprintf("[%d/%d] %s %s", i+1, len(missing), t.name, t.version)
		if err := build(t, label, progress); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(progress, "Built in %s\n", time.Since(begun).Round(time.Second))
	return tools, nil
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// build makes one binary, under a lock: two clones that build at once share the work instead of doing it twice.
func build(t tool, label string, progress io.Writer) error {
	if t.module == "" {
		return fmt.Errorf("%s is not executable", t.path)
	}
	folder := filepath.Dir(t.path)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(folder, ".lock"), label, progress)
	if err != nil {
		return err
	}
	defer unlock()
	if executable(t.path) {
		fmt.Fprintf(progress, "%s: built meanwhile by another process\n", label)
		return nil
	}

	temporary := filepath.Join(folder, fmt.Sprintf(".%s.%d", t.name, os.Getpid()))
	defer os.Remove(temporary)
	command := exec.Command("go", "build", "-v", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", t.ldflags, "-o", temporary, t.pkg)
	command.Dir = t.module
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	var compiled atomic.Int64
	output, err := runWithProgress(command, &compiled, func(seconds int) {
		fmt.Fprintf(progress, "%s: %d s, %d packages compiled\n", label, seconds, compiled.Load())
	})
	if errors.Is(err, errInterrupted) {
		return fmt.Errorf("%s: %w", label, err)
	}
	if err != nil {
		return fmt.Errorf("%s: go build failed: %w\n%s", label, err, tail(output, 20))
	}
	if answer, err := exec.Command(temporary, t.answers...).CombinedOutput(); err != nil || !strings.Contains(string(answer), strings.TrimPrefix(t.version, "v")) {
		return fmt.Errorf("%s: the binary says %q instead of its version (%v)", label, tail(answer, 3), err)
	}
	return os.Rename(temporary, t.path)
}

// errInterrupted: a person or the system asked to stop; the compiler has nothing to say about that.
var errInterrupted = errors.New("interrupted")

// runWithProgress calls report about every 10 seconds, and at the start. With -v, go prints one line a package.
func runWithProgress(command *exec.Cmd, lines *atomic.Int64, report func(seconds int)) ([]byte, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	command.Stdout, command.Stderr = writer, writer
	signals := interrupted()
	begun := time.Now()
	report(0)
	if err := command.Start(); err != nil {
		writer.Close()
		return nil, err
	}
	writer.Close()
	var output bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		scanner := bufio.NewScanner(reader)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			lines.Add(1)
			output.Write(scanner.Bytes())
			output.WriteByte('\n')
		}
		ended <- command.Wait()
	}()
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case err := <-ended:
			return output.Bytes(), err
		case <-ticker.C:
			report(int(time.Since(begun).Seconds()))
		case s := <-signals:
			_ = command.Process.Signal(syscall.SIGTERM)
			<-ended
			return output.Bytes(), fmt.Errorf("%w (%v)", errInterrupted, s)
		}
	}
}

// lock takes an advisory lock that the kernel drops when this process ends, however it ends.
func lock(path, label string, progress io.Writer) (func(), error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	for waited := 0; ; waited++ {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			file.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if waited%50 == 0 {
			fmt.Fprintf(progress, "%s: another process builds it, waiting, %d s\n", label, int(time.Since(begun).Seconds()))
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// tail is the end of a text, at most so many lines.
func tail(text []byte, lines int) string {
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}
