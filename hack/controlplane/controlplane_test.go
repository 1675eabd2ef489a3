package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAProcessIsKnownByMoreThanItsPid(t *testing.T) {
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	p := identify("sleep", child.Process.Pid)
	if !p.alive() {
		t.Fatal("a running process counts as gone")
	}
	other := p
	other.Started += "0"
	other.end(time.Second)
	if !p.alive() {
		t.Fatal("a process with the same pid but another start was ended")
	}
	go child.Wait()
	p.end(5 * time.Second)
	if p.alive() {
		t.Fatal("the process was not ended")
	}
}

func TestVersionsComeFromTheWrapperModules(t *testing.T) {
	folder := t.TempDir()
	text := "module x\n\nrequire (\n\tk8s.io/kubernetes-csi v9.9.9\n\tk8s.io/kubernetes v1.2.3 // indirect\n)\n"
	if err := os.WriteFile(filepath.Join(folder, "go.mod"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := required(folder, "k8s.io/kubernetes"); err != nil || got != "v1.2.3" {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := required(folder, "k8s.io/other"); err == nil {
		t.Fatal("a module that is not required was found")
	}
}

func TestAssetsReplaceWhatTheyHave(t *testing.T) {
	assets := t.TempDir()
	tools, err := locate()
	if err != nil {
		t.Fatal(err)
	}
	if err := useAssets(tools, assets); err == nil || !strings.Contains(err.Error(), "kube-apiserver") {
		t.Fatalf("an empty KUBEBUILDER_ASSETS must name what is missing, got %v", err)
	}
	for _, name := range []string{"kube-apiserver", "etcd", "kubectl"} {
		if err := os.WriteFile(filepath.Join(assets, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	own := tools["kube-controller-manager"].path
	if err := useAssets(tools, assets); err != nil {
		t.Fatal(err)
	}
	if tools["etcd"].path != filepath.Join(assets, "etcd") || tools["kube-controller-manager"].path != own {
		t.Fatalf("took %v", tools)
	}
}

func TestTheServingCertificateIsForLoopbackOnly(t *testing.T) {
	folder := t.TempDir()
	ids, err := writeIdentities(folder)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(folder, "apiserver.crt"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ids.ca.certificate)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "example.com"}); err == nil {
		t.Fatal("valid for another name")
	}
}

func TestOnlyOneBuildsAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(path, "first", &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	entered := make(chan func(), 1)
	go func() {
		second, err := lock(path, "second", &bytes.Buffer{})
		if err == nil {
			entered <- second
		}
	}()
	select {
	case <-entered:
		t.Fatal("two hold the lock")
	case <-time.After(500 * time.Millisecond):
	}
	unlock()
	select {
	case second := <-entered:
		second()
	case <-time.After(10 * time.Second):
		t.Fatal("the lock was not passed on")
	}
}
