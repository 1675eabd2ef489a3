package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of one control plane. Its key is never written to disk.
type authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
	pem         []byte
}

// pair is a certificate and its key, both PEM.
type pair struct{ certificate, key []byte }

const lifetime = 365 * 24 * time.Hour

func serial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
}

func newAuthority(name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	number, err := serial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		IsCA:     true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{key, certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// issue makes a certificate for a client (a user and its groups) and, with names or addresses, for a server.
func (a *authority) issue(user string, groups []string, dns []string, addresses []net.IP) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	number, err := serial()
	if err != nil {
		return pair{}, err
	}
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(dns)+len(addresses) > 0 {
		usages = append(usages, x509.ExtKeyUsageServerAuth)
	}
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: user, Organization: groups},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usages, DNSNames: dns, IPAddresses: addresses,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		return pair{}, err
	}
	keyPEM, err := encodeKey(key)
	return pair{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM}, err
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// identities is everything that the components need to know each other.
type identities struct {
	ca    *authority
	admin pair
}

// writeIdentities makes a fresh set in folder: two authorities (API server, etcd), serving certificates, service account keys.
func writeIdentities(folder string) (*identities, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	loopback := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	ca, err := newAuthority("remit development control plane")
	if err != nil {
		return nil, err
	}
	etcdCA, err := newAuthority("remit development etcd")
	if err != nil {
		return nil, err
	}
	service := append([]net.IP{net.IPv4(10, 0, 0, 1)}, loopback...)
	serving, err := ca.issue("kube-apiserver", nil, []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}, service)
	if err != nil {
		return nil, err
	}
	admin, err := ca.issue("remit-development-admin", []string{"system:masters"}, nil, nil)
	if err != nil {
		return nil, err
	}
	controllers, err := ca.issue("system:kube-controller-manager", nil, nil, nil)
	if err != nil {
		return nil, err
	}
	etcd, err := etcdCA.issue("etcd", nil, []string{"localhost"}, loopback)
	if err != nil {
		return nil, err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	accountsKey, err := encodeKey(accounts)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(&accounts.PublicKey)
	if err != nil {
		return nil, err
	}
	for name, content := range map[string][]byte{
		"ca.crt": ca.pem, "etcd-ca.crt": etcdCA.pem,
		"apiserver.crt": serving.certificate, "apiserver.key": serving.key,
		"controllers.crt": controllers.certificate, "controllers.key": controllers.key,
		"etcd.crt": etcd.certificate, "etcd.key": etcd.key,
		"service-accounts.key": accountsKey,
		"service-accounts.pub": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
	} {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	return &identities{ca, admin}, nil
}

// kubeconfig is one cluster, one user, all embedded. JSON is YAML, and every client reads it.
func kubeconfig(server, user string, ca []byte, client pair) ([]byte, error) {
	encode := base64.StdEncoding.EncodeToString
	type object = map[string]any
	config := object{
		"apiVersion": "v1", "kind": "Config", "current-context": "remit",
		"clusters": []object{{"name": "remit", "cluster": object{"server": server, "certificate-authority-data": encode(ca)}}},
		"users": []object{{"name": user, "user": object{
			"client-certificate-data": encode(client.certificate), "client-key-data": encode(client.key)}}},
		"contexts": []object{{"name": "remit", "context": object{"cluster": "remit", "user": user}}},
	}
	bytes, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	return append(bytes, '\n'), nil
}
