package main

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process names a running program so that it can be told from a later one with the same pid.
type process struct {
	Name    string `json:"name"`
	Pid     int    `json:"pid"`
	Started string `json:"started"` // as the system words it; only compared
}

// identify describes a process that runs now.
func identify(name string, pid int) process {
	return process{Name: name, Pid: pid, Started: startTime(pid)}
}

// alive says whether it is still the same process that runs, and not a later one with its pid.
func (p process) alive() bool {
	return p.Pid > 0 && p.Started != "" && startTime(p.Pid) == p.Started
}

// signal reaches the process only while it is the same one.
func (p process) signal(s syscall.Signal) {
	if p.alive() {
		_ = syscall.Kill(p.Pid, s)
	}
}

// waitGone polls until the process is gone.
func (p process) waitGone(limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if !p.alive() {
			return true
		}
	}
	return !p.alive()
}

// end asks the process to end, and kills it if it has not ended by the limit.
func (p process) end(limit time.Duration) {
	p.signal(syscall.SIGTERM)
	if !p.waitGone(limit) {
		p.signal(syscall.SIGKILL)
		p.waitGone(5 * time.Second)
	}
}

// startTime is empty when there is no such process, or only a dead one that nobody has waited for.
func startTime(pid int) string {
	if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil {
		// pid (name) state ppid …: the name may hold anything, so the fields count from the last bracket; field 22 is the start.
		text := string(stat)
		fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
			return ""
		}
		return fields[19]
	} else if _, other := os.Stat("/proc/self/stat"); other == nil || !errors.Is(other, os.ErrNotExist) {
		return ""
	}
	out, err := exec.Command("ps", "-o", "stat=,lstart=", "-p", strconv.Itoa(pid)).Output()
	text := strings.TrimSpace(string(out))
	if err != nil || text == "" || strings.HasPrefix(text, "Z") {
		return ""
	}
	_, started, _ := strings.Cut(text, " ")
	return strings.TrimSpace(started)
}
