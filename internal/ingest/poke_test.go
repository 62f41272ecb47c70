package ingest

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// listenBoth opens a hub socket and the one for pokes beside it.
func listenBoth(t *testing.T, mode os.FileMode) (hub net.Listener, pokes net.PacketConn) {
	t.Helper()
	hub, err := ListenUnix(SocketOptions{Path: filepath.Join(t.TempDir(), "hub.sock"), Mode: mode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	pokes, err = ListenPokes(hub.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pokes.Close() })
	return hub, pokes
}

func send(t *testing.T, hub net.Listener) {
	t.Helper()
	c, err := net.Dial("unixgram", filepath.Join(filepath.Dir(hub.Addr().String()), "poke.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("outbox")); err != nil {
		t.Fatal(err)
	}
}

// served serves pokes until the test ends; each comes on the channel.
func served(t *testing.T, pokes net.PacketConn) <-chan struct{} {
	t.Helper()
	poked, done := make(chan struct{}, 10), make(chan error, 1) // as many as a test sends
	go func() { done <- ServePokes(pokes, func() { poked <- struct{}{} }) }()
	t.Cleanup(func() {
		pokes.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return poked
}

func await(t *testing.T, poked <-chan struct{}) {
	t.Helper()
	select {
	case <-poked:
	case <-time.After(20 * time.Second):
		t.Fatal("the poke did not arrive")
	}
}

func TestEachDatagramIsAPoke(t *testing.T) {
	t.Parallel()
	hub, pokes := listenBoth(t, 0o640)
	info, err := os.Stat(pokes.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, want that of the hub's socket, 0640", info.Mode().Perm())
	}
	poked := served(t, pokes)
	for range 3 {
		send(t, hub)
		await(t, poked)
	}
	path := pokes.LocalAddr().String()
	pokes.Close()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket's file is still there")
	}
}

func TestPokeSocketOfAKilledRelayIsReplacedAndALivingOnesIsNot(t *testing.T) {
	t.Parallel()
	hub, pokes := listenBoth(t, 0o600)
	if second, err := ListenPokes(hub.Addr().String()); err == nil {
		second.Close()
		t.Error("a second relay took the socket over")
	}
	pokes.(*pokeSocket).PacketConn.Close() // the file stays, as after a kill
	third, err := ListenPokes(hub.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	poked := served(t, third)
	send(t, hub)
	await(t, poked)
}

func TestInheritedSocketsAreToldApart(t *testing.T) {
	t.Parallel()
	hub, pokes := listenBoth(t, 0o600)
	stream, err := hub.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	datagram, err := pokes.(*pokeSocket).PacketConn.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	listeners, conns, err := Inherited([]*os.File{datagram, stream})
	if err != nil || len(listeners) != 1 || len(conns) != 1 {
		t.Fatalf("%d listeners, %d for pokes, %v; want one each", len(listeners), len(conns), err)
	}
	poked := served(t, conns[0])
	send(t, hub)
	await(t, poked)
	listeners[0].Close()
	if _, err := os.Stat(hub.Addr().String()); err != nil {
		t.Errorf("systemd's socket file is gone: %v", err)
	}
	plain, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Inherited([]*os.File{plain}); err == nil {
		t.Error("a file that is no socket was taken over")
	}
}
