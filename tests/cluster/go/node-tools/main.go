// node-tools is the one small program that the node's own pods run, so that the test bed needs no
// image from elsewhere. Without arguments it is the sandbox's pause process; with the arguments of
// local-path-provisioner (-a create|delete -p PATH) it makes or removes a volume's folder.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func pause() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

func volume(action, path string) error {
	switch action {
	case "create":
		if err := os.MkdirAll(path, 0o777); err != nil {
			return err
		}
		return os.Chmod(path, 0o777) // past the umask: the engine runs as uid 65532
	case "delete":
		return os.RemoveAll(path)
	}
	return fmt.Errorf("action must be create or delete, got %q", action)
}

func main() {
	path := flag.String("p", "", "the volume's folder")
	action := flag.String("a", "", "create or delete")
	flag.String("s", "", "size in bytes (not enforced)")
	flag.String("m", "", "volume mode")
	flag.Parse()
	if *action == "" {
		pause()
		return
	}
	if err := volume(*action, *path); err != nil {
		fmt.Fprintln(os.Stderr, "node-tools:", err)
		os.Exit(1)
	}
}
