package main

import "syscall"

// diesWithParent makes the kernel end a component when this process is killed and can't do it itself.
func diesWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
