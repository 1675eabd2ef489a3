//go:build !linux

package main

import "syscall"

// diesWithParent: only Linux can end a component when this process is killed; elsewhere `stop` does it by the recorded pids.
func diesWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
