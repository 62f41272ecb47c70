package integration

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	tcexec "github.com/testcontainers/testcontainers-go/exec"
)

// server is one real server of ours. It keeps its ports and its data through kill and start.
type server struct {
	service string // the image's name
	host    string // "": this machine
	port    int
	tlsPort int // brokers only, as otherPort
	// What is not AMQP 1.0: STOMP, and the Java brokers' own protocols.
	otherPort int
	machine   machine

	mu      sync.Mutex
	removed bool
}

// machine is where a server runs: a container, or a process in a directory tree.
type machine interface {
	start(ctx context.Context) error
	kill(ctx context.Context) error // as a power cut
	freeze(ctx context.Context) error
	thaw(ctx context.Context) error
	exec(ctx context.Context, args ...string) (string, error)
	write(ctx context.Context, path string, content []byte) error
	remove()
	logs() string
}

// where says how servers are run here; the error is the reason why none can be.
var where = sync.OnceValues(func() (string, error) {
	mode := os.Getenv("KOJI_RELAY_SERVERS")
	switch mode {
	case "docker", "native":
		return mode, nil
	case "none":
		return "", errors.New("no way to run servers; run make test as root")
	case "":
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		engine, err := testcontainers.NewDockerClientWithOpts(ctx)
		if err != nil {
			return "", fmt.Errorf("no container engine: %w", err)
		}
		defer engine.Close()
		if _, err := engine.ImageInspect(ctx, imageName("rabbitmq-4.0")); err != nil {
			return "", fmt.Errorf("no server images; run integration/images/build: %w", err)
		}
		return "docker", nil
	}
	return "", fmt.Errorf("KOJI_RELAY_SERVERS is docker, native or none, not %q", mode)
})

func imageName(service string) string { return "koji-relay-test/" + service }

// fleet is every server of this run, so that none outlives it.
var fleet struct {
	sync.Mutex // guards servers
	servers    []*server
}

func removeServers() {
	fleet.Lock()
	servers := fleet.servers
	fleet.Unlock()
	for _, s := range servers {
		s.remove()
	}
}

// newServer starts a server that lasts until the end of the run, or until remove. It does not wait until the
// server answers.
func newServer(t testing.TB, service string) *server {
	t.Helper()
	mode, err := where()
	if err != nil {
		skipOrFail(t, "%s: %v", service, err)
	}
	s := &server{service: service}
	s.port = freePorts(t)
	s.tlsPort, s.otherPort = s.port+1, s.port+4 // RabbitMQ has the two between them
	tls := certificates(t)
	switch mode {
	case "native":
		s.machine, err = newTree(s, tls.files())
	default:
		s.machine, err = newContainer(within(t, time.Minute), s, tls.files())
	}
	if err != nil {
		t.Fatalf("create a %s: %v", service, err)
	}
	fleet.Lock()
	fleet.servers = append(fleet.servers, s)
	fleet.Unlock()
	if err := s.machine.start(within(t, time.Minute)); err != nil {
		t.Fatalf("start %s: %v", service, err)
	}
	return s
}

func (s *server) remove() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.removed {
		s.machine.remove()
		s.removed = true
	}
}

func (s *server) addr() string {
	return net.JoinHostPort(cmp.Or(s.host, "127.0.0.1"), strconv.Itoa(s.port))
}

// do runs one of the machine's actions.
func (s *server) do(t testing.TB, what string, action func(context.Context) error) {
	t.Helper()
	if err := action(within(t, time.Minute)); err != nil {
		t.Fatalf("%s %s: %v", what, s.service, err)
	}
}

func (s *server) kill(t testing.TB)   { t.Helper(); s.do(t, "kill", s.machine.kill) }
func (s *server) freeze(t testing.TB) { t.Helper(); s.do(t, "freeze", s.machine.freeze) }
func (s *server) thaw(t testing.TB)   { t.Helper(); s.do(t, "thaw", s.machine.thaw) }

// exec runs a command inside the server's machine.
func (s *server) exec(t testing.TB, args ...string) string {
	t.Helper()
	out, err := s.machine.exec(within(t, time.Minute), args...)
	if err != nil {
		t.Fatalf("%s in %s: %v\n%s", strings.Join(args, " "), s.service, err, out)
	}
	return out
}

var ports struct {
	sync.Mutex // guards given
	given      map[int]bool
}

// freePorts finds five neighbouring free ports and gives the first. They are below those that the system
// gives to outgoing connections: a restarted server must get the same ones again.
func freePorts(t testing.TB) int {
	t.Helper()
	const together = 5
	ports.Lock()
	defer ports.Unlock()
	if ports.given == nil {
		ports.given = make(map[int]bool)
	}
search:
	for range 1000 {
		port := 20000 + together*rand.IntN(2400)
		for i := range together {
			if ports.given[port] || !free(port+i) {
				continue search
			}
		}
		ports.given[port] = true
		return port
	}
	t.Fatal("found no free ports between 20000 and 32000")
	return 0
}

func free(port int) bool {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// --- in a container ---------------------------------------------------------------------------------------

const dataDir = "/var/lib/koji-relay-test"

type dockerMachine struct {
	container testcontainers.Container
	engine    client.APIClient
}

func newContainer(ctx context.Context, s *server, files map[string][]byte) (*dockerMachine, error) {
	bind := network.PortMap{}
	local := func(inside, outside int) {
		bind[network.MustParsePort(strconv.Itoa(inside)+"/tcp")] = []network.PortBinding{{
			HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: strconv.Itoa(outside),
		}}
	}
	exposed := []string{"5672/tcp", "5671/tcp", "61613/tcp"}
	if strings.HasPrefix(s.service, "postgres") {
		exposed = []string{"5432/tcp"}
		local(5432, s.port)
	} else {
		local(5672, s.port)
		local(5671, s.tlsPort)
		local(61613, s.otherPort)
	}
	request := testcontainers.ContainerRequest{
		Image:        imageName(s.service),
		ExposedPorts: exposed,
		Labels:       map[string]string{"koji-relay.run": os.Getenv("KOJI_RELAY_RUN")},
		HostConfigModifier: func(h *container.HostConfig) {
			h.PortBindings = bind
		},
	}
	for name, content := range files {
		request.Files = append(request.Files, testcontainers.ContainerFile{
			Reader: bytes.NewReader(content), ContainerFilePath: dataDir + "/tls/" + name, FileMode: 0o644,
		})
	}
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return nil, err
	}
	c, err := provider.CreateContainer(ctx, request)
	if err != nil {
		return nil, err
	}
	return &dockerMachine{container: c, engine: provider.Client()}, nil
}

// silent is a logger for testcontainers, whose progress nobody needs.
type silent struct{}

func (silent) Printf(string, ...any) {}

func (m *dockerMachine) id() string { return m.container.GetContainerID() }

func (m *dockerMachine) start(ctx context.Context) error { return m.container.Start(ctx) }

func (m *dockerMachine) kill(ctx context.Context) error {
	if _, err := m.engine.ContainerKill(ctx, m.id(), client.ContainerKillOptions{}); err != nil {
		return err
	}
	return poll(30*time.Second, func() error {
		state, err := m.container.State(ctx)
		if err == nil && state.Running {
			err = errors.New("it still runs")
		}
		return err
	})
}

// freeze tries several times: on a busy machine the kernel may not freeze all processes soon enough for the
// engine.
func (m *dockerMachine) freeze(ctx context.Context) error {
	return poll(20*time.Second, func() error {
		_, err := m.engine.ContainerPause(ctx, m.id(), client.ContainerPauseOptions{})
		return err
	})
}

func (m *dockerMachine) thaw(ctx context.Context) error {
	_, err := m.engine.ContainerUnpause(ctx, m.id(), client.ContainerUnpauseOptions{})
	return err
}

func (m *dockerMachine) write(ctx context.Context, path string, content []byte) error {
	return m.container.CopyToContainer(ctx, content, path, 0o644)
}

func (m *dockerMachine) exec(ctx context.Context, args ...string) (string, error) {
	code, out, err := m.container.Exec(ctx, args, tcexec.Multiplexed())
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(out)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d", code)
	}
	return string(text), err
}

func (m *dockerMachine) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := m.engine.ContainerRemove(ctx, m.id(),
		client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
		fmt.Fprintf(os.Stderr, "remove the container %s: %v\n", m.id(), err)
	}
}

func (m *dockerMachine) logs() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := m.container.Logs(ctx)
	if err != nil {
		return err.Error()
	}
	defer r.Close()
	text, _ := io.ReadAll(r)
	return string(text)
}

// --- in a directory tree ----------------------------------------------------------------------------------

// treeMachine runs a server natively: a process group of the directory that `integration/images/build
// --native` made. That is a Debian tree entered with chroot, or for the Java brokers a directory like any
// other.
type treeMachine struct {
	root    string // of the tree; empty: the machine's own
	data    string // below root
	run     string // the script that starts it, below root
	env     []string
	log     string
	process *exec.Cmd
	ended   chan struct{}
}

func newTree(s *server, files map[string][]byte) (*treeMachine, error) {
	dir, err := filepath.Abs(filepath.Join("..", ".cache", "native", s.service))
	if err != nil {
		return nil, err
	}
	name := s.service + "-" + strconv.Itoa(s.port)
	m := &treeMachine{root: dir, data: "/var/lib/" + name, run: runScript,
		log: filepath.Join(scratch, name+".log")}
	if _, err := os.Stat(filepath.Join(dir, "etc")); err != nil {
		m.root, m.data, m.run = "", filepath.Join(scratch, name), filepath.Join(dir, runScript)
	}
	m.env = []string{
		"PATH=" + os.Getenv("PATH") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"PORT=" + strconv.Itoa(s.port), "TLS_PORT=" + strconv.Itoa(s.tlsPort),
		"OTHER_PORT=" + strconv.Itoa(s.otherPort), "DATA=" + m.data,
	}
	tls := filepath.Join(m.root, m.data, "tls")
	if err := os.MkdirAll(tls, 0o755); err != nil {
		return nil, err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(tls, name), content, 0o644); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *treeMachine) command(ctx context.Context, args ...string) *exec.Cmd {
	if m.root != "" {
		args = append([]string{"chroot", m.root}, args...)
		if mountable() {
			// RabbitMQ 3.10 does not start without /proc, and what a server leaves running dies with the
			// first process of its own namespace.
			args = append([]string{"unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c",
				`mount -t proc proc "$0/proc" && exec "$@"`, m.root}, args...)
		}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = m.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

const runScript = "/opt/koji-relay-test/run"

// mountable reports whether we may mount; not in most containers.
var mountable = sync.OnceValue(func() bool {
	return exec.Command("unshare", "--mount", "--pid", "--fork", "true").Run() == nil
})

func (m *treeMachine) start(context.Context) error {
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	m.process = m.command(context.Background(), m.run)
	m.process.Stdout, m.process.Stderr = log, log
	m.process.SysProcAttr.Pdeathsig = syscall.SIGKILL
	m.ended = make(chan struct{})
	return startOnOwnThread(m.process, m.ended, func() {})
}

func (m *treeMachine) signal(s syscall.Signal) error {
	return syscall.Kill(-m.process.Process.Pid, s)
}

func (m *treeMachine) kill(ctx context.Context) error {
	// unshare itself stays, to wait until the last process of the namespace is gone.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", m.process.Process.Pid))
	first, convErr := strconv.Atoi(strings.TrimSpace(string(children)))
	if m.root != "" && mountable() && err == nil && convErr == nil {
		err = syscall.Kill(first, syscall.SIGKILL)
	} else {
		err = m.signal(syscall.SIGKILL)
	}
	if err != nil {
		return err
	}
	select {
	case <-m.ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if strings.Contains(m.root, "rabbitmq") {
		m.command(ctx, m.run, "stopped").Run()
	}
	return nil
}

func (m *treeMachine) freeze(context.Context) error { return m.signal(syscall.SIGSTOP) }
func (m *treeMachine) thaw(context.Context) error   { return m.signal(syscall.SIGCONT) }

func (m *treeMachine) write(_ context.Context, path string, content []byte) error {
	return os.WriteFile(filepath.Join(m.root, path), content, 0o644)
}

func (m *treeMachine) exec(ctx context.Context, args ...string) (string, error) {
	out, err := m.command(ctx, args...).CombinedOutput()
	return string(out), err
}

func (m *treeMachine) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if m.process != nil {
		m.kill(ctx)
	}
	os.RemoveAll(filepath.Join(m.root, m.data))
}

func (m *treeMachine) logs() string {
	text, err := os.ReadFile(m.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
