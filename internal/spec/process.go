package spec

import "os"

// Process is a command to start in a sandbox.
type Process struct {
	Args []string
	Env  []string
	Dir  string
	// Stdin, Stdout and Stderr are handed over as they are; nil is /dev/null.
	Stdin, Stdout, Stderr *os.File
	// Netns is the path of the namespace to run in; empty is the host's.
	Netns string
	// Hostname, if set, is given to the command's own UTS namespace.
	Hostname string
	// EtcDir has the files that the command sees in /etc instead of the
	// host's, as with `ip netns exec`.
	EtcDir string
	// Detach starts the command in its own session and does not wait for it.
	Detach bool
	// Hold keeps a detached command from running until Started has returned: if
	// this process is killed before, it never runs.
	Hold bool
	// Started, if set, is called with the PID; an error kills the command.
	Started func(pid int) error
}

// CommandError says that the command could not be started; Code is the shell's
// exit code for it: 126 not executable, 127 not found.
type CommandError struct {
	Code int
	Err  error
}

func (e *CommandError) Error() string { return e.Err.Error() }
func (e *CommandError) Unwrap() error { return e.Err }
