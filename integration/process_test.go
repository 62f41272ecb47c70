package integration

import (
	"os/exec"
	"runtime"
)

// startOnOwnThread starts cmd and closes ended when it is over. The parent-death signal is tied to the thread
// that started the process, so that thread waits for it as well. read consumes the output until its end.
func startOnOwnThread(cmd *exec.Cmd, ended chan<- struct{}, read func()) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			read()
			_ = cmd.Wait() // its result is in cmd.ProcessState
			close(ended)
		}
	}()
	return <-started
}
