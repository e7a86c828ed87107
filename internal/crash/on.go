//go:build crashpoints

// Package crash marks the instants at which tests kill sandnet: before each
// change of the kernel and of the records. Built with the tag crashpoints, the
// process kills itself at the Nth one, N from SANDNET_CRASH_AT, after
// appending its name to the file SANDNET_CRASH_LOG; without the first variable
// it logs every point and lives.
package crash

import (
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
)

// Enabled says that the build has kill points; a batch of changes is then made
// one by one.
const Enabled = true

var passed atomic.Int64

// Point marks an instant between two changes; name says which comes next.
func Point(name string) {
	n := passed.Add(1)
	at, err := strconv.ParseInt(os.Getenv("SANDNET_CRASH_AT"), 10, 64)
	if err == nil && at != n {
		return
	}
	if log := os.Getenv("SANDNET_CRASH_LOG"); log != "" {
		if f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
			f.WriteString(name + "\n")
			f.Close()
		}
	}
	if at == n {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
