module remit.dev/hack/controlplane

go 1.26
