package main

import (
	"bufio"
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// layer is what one package of the project may import besides the standard library, and why no more.
type layer struct {
	pkg    string   // below the module
	own    []string // packages of this project
	others []string // modules of others, by path prefix
	why    string
}

// The design's arrow: cmd -> internal/daemon -> {ingest, admin, callbacks, relay, queue} -> message. A
// package that is not listed is an error: it has no place yet.
var layers = []layer{
	{"internal/message", nil, nil,
		"message is what all stages share; whatever it imports, all of them would"},
	{"internal/pemfile", nil, nil,
		"certificates are read in one way, by what checks them and by what uses them"},
	{"internal/fnmatch", nil, nil,
		"patterns mean the same wherever one can be written, so that every package may import this one"},
	{"callbacks", []string{"internal/fnmatch", "internal/message"}, []string{"github.com/google/uuid"},
		"translation is pure: no configuration, no driver, no I/O"},
	{"config", []string{"callbacks", "internal/amqpconn/dialect", "internal/fnmatch", "internal/inspect",
		"internal/pemfile"},
		[]string{"gopkg.in/ini.v1"},
		"config knows values and the names that they may have, not the parts that use them; daemon maps the one " +
			"to the other"},
	{"internal/amqpconn/dialect", nil, nil,
		"dialects are a table that the configuration asks, too: no driver, no I/O"},
	{"internal/amqpconn/frame", nil, nil, "how values are encoded is no matter of who reads them"},
	{"internal/amqpconn/guard", []string{"internal/amqpconn/frame"}, nil,
		"the guard is there whatever the driver does: it sees bytes, and shares no code with it"},
	{"internal/amqpconn/failure", []string{"internal/inspect"}, []string{"github.com/Azure/go-amqp"},
		"what peers say is shown in one way, whichever layer hears it"},
	{"internal/amqpconn/endpoint", nil, nil, "a URL is read without regard to what connects by it"},
	{"internal/amqpconn/tlsclient", []string{"internal/amqpconn/failure", "internal/inspect",
		"internal/pemfile"}, nil,
		"a layer of the connection knows no other"},
	{"internal/amqpconn/sasl", []string{"internal/amqpconn/failure", "internal/amqpconn/frame"}, nil,
		"a layer of the connection knows no other"},
	{"internal/amqpconn/management", []string{"internal/amqpconn/dialect", "internal/amqpconn/failure"},
		[]string{"github.com/Azure/go-amqp"},
		"the node is spoken to over any connection"},
	{"internal/amqpconn", []string{"internal/amqpconn/dialect", "internal/amqpconn/endpoint",
		"internal/amqpconn/failure", "internal/amqpconn/guard", "internal/amqpconn/management",
		"internal/amqpconn/sasl", "internal/amqpconn/tlsclient", "internal/inspect", "internal/message",
		"internal/retry"},
		[]string{"github.com/Azure/go-amqp"},
		"a connection knows the words for failures, and nothing of queues or of the configuration file"},
	{"relay", []string{"internal/amqpconn", "internal/amqpconn/dialect", "internal/amqpconn/endpoint",
		"internal/amqpconn/failure", "internal/amqpconn/guard", "internal/inspect", "internal/message",
		"internal/retry"},
		[]string{"github.com/Azure/go-amqp", "golang.org/x/sync"},
		"only relay knows AMQP, and relay knows neither the queue nor the configuration file"},
	{"internal/subscribe", []string{"internal/amqpconn", "internal/amqpconn/dialect",
		"internal/amqpconn/endpoint", "internal/amqpconn/failure", "internal/inspect", "internal/retry"},
		[]string{"github.com/Azure/go-amqp"},
		"who receives has nothing to do with who sends"},
	{"queue", []string{"internal/inspect", "internal/message", "internal/retry"}, nil,
		"the contract knows no store, and no sender"},
	{"queue/drain", []string{"internal/failpoint", "internal/inspect", "internal/message", "internal/retry",
		"queue"},
		[]string{"golang.org/x/sync"},
		"the drain knows the contract, not the stores, and sends through an interface"},
	{"queue/postgres", []string{"internal/failpoint", "internal/inspect", "internal/libpq",
		"internal/message", "internal/retry", "queue", "queue/schema"},
		[]string{"github.com/jackc/pgx/v5", "github.com/google/uuid", "golang.org/x/sync"},
		"only this store knows PostgreSQL, and it does not send"},
	{"queue/file", []string{"internal/failpoint", "internal/inspect", "internal/message", "queue"},
		[]string{"go.etcd.io/bbolt"},
		"only this store knows the file, and it does not send"},
	{"queue/schema", nil, nil, "the steps of the schema are text"},
	{"queue/storetest", []string{"internal/failpoint", "internal/golden", "internal/inspect", "internal/message",
		"queue", "queue/drain"},
		[]string{"github.com/google/go-cmp", "github.com/google/uuid"},
		"the suite knows the contract; a store that runs it opens itself"},
	{"history", []string{"internal/fnmatch", "internal/inspect", "internal/message", "internal/retry"},
		[]string{"github.com/google/uuid", "github.com/klauspost/compress", "golang.org/x/sync"},
		"the record knows no store, and does not decide what becomes of a message"},
	{"history/postgres", []string{"history", "internal/inspect", "internal/libpq"},
		[]string{"github.com/jackc/pgx/v5", "github.com/google/uuid"}, "only this store knows PostgreSQL"},
	{"history/audit", []string{"internal/inspect", "internal/libpq"}, []string{"github.com/jackc/pgx/v5"},
		"audit reads the hub's tables, and is given the history"},
	{"history/file", []string{"history", "internal/inspect"},
		[]string{"github.com/google/uuid", "go.etcd.io/bbolt"}, "only this store knows the files"},
	{"history/storetest", []string{"history", "internal/golden", "internal/inspect", "internal/message"},
		[]string{"github.com/google/go-cmp", "github.com/google/uuid"},
		"the suite knows the contract; a store that runs it opens itself"},
	{"internal/ingest", []string{"internal/message"}, []string{"golang.org/x/sync"},
		"ingest hands commits on through an interface; stages do not import each other"},
	{"internal/inspect", nil, nil,
		"what is shown is the same for whoever shows it; the stages must be able to import it"},
	{"internal/admin", []string{"internal/inspect", "internal/message"},
		[]string{"github.com/prometheus/client_golang"},
		"admin shows what daemon tells it; it reaches into no stage"},
	{"internal/devbroker", []string{"internal/devbroker/wire"}, []string{"golang.org/x/sync"},
		"the embedded broker is the relay's peer: sharing code with it would hide mistakes of both"},
	{"internal/daemon",
		[]string{"callbacks", "config", "history", "history/file", "history/postgres", "internal/admin",
			"internal/amqpconn", "internal/amqpconn/endpoint", "internal/amqpconn/failure",
			"internal/failpoint", "internal/ingest", "internal/inspect",
			"internal/message",
			"internal/pemfile", "internal/retry", "internal/subscribe", "queue", "queue/drain", "queue/file",
			"queue/postgres", "relay"},
		[]string{"github.com/coreos/go-systemd/v22", "github.com/google/uuid",
			"github.com/prometheus/client_golang", "golang.org/x/sync"},
		"daemon builds the parts; drivers stay behind them"},
	{"cmd/koji-relay",
		[]string{"callbacks", "config", "history/audit", "internal/admin", "internal/amqpconn",
			"internal/amqpconn/dialect", "internal/amqpconn/tlsclient", "internal/daemon", "internal/demo",
			"internal/inspect", "internal/journal",
			"internal/logbuffer", "internal/message", "internal/subscribe", "queue/postgres", "queue/schema"},
		[]string{"github.com/coreos/go-systemd/v22/journal", "github.com/spf13/cobra", "golang.org/x/sync",
			"golang.org/x/term"},
		"commands parse flags and print; what they do is done by the packages below"},
	{"internal/devbroker/wire", nil, nil,
		"the codec shares nothing with the driver that it is the peer of"},
	{"internal/demo", []string{"callbacks", "internal/devbroker", "internal/inspect"}, nil,
		"the demo runs the relay through a function of the command's: what it shows is the program, not parts " +
			"of it"},
	{"internal/journal", nil, []string{"github.com/coreos/go-systemd/v22/journal"},
		"a log handler knows nothing of what is logged"},
	{"internal/logbuffer", nil, nil, "a log handler knows nothing of what is logged"},
	{"internal/libpq", nil, []string{"github.com/jackc/pgx/v5"},
		"what a connection string means is no matter of who connects"},
	{"internal/retry", nil, []string{"github.com/cenkalti/backoff/v5"},
		"how often something is tried again is no matter of what it is"},
	{"internal/failpoint", nil, nil,
		"a failpoint is called from guarded places: it must not be able to change what they do"},
	{"internal/pgtest", nil, []string{"github.com/jackc/pgx/v5"},
		"pgtest starts databases for tests; no program imports it"},
	{"internal/certtest", nil, nil, "certtest issues certificates for tests; no program imports it"},
	{"internal/golden", []string{"internal/message"}, nil,
		"golden reads messages for tests; no program imports it"},
	{"packaging/sbom", nil, []string{"github.com/CycloneDX/cyclonedx-go", "github.com/google/licensecheck"},
		"sbom reads the built program from outside"},
	{"examples/consumers/go", nil, []string{"github.com/Azure/go-amqp"},
		"the example is for teams to copy: it may need nothing of this project"},
	{"integration/workers", nil, []string{"github.com/google/uuid"},
		"the workers stand for the hub, which shares no code with the relay"},
	{"integration", nil, nil, "integration drives the built program from outside; nothing imports it"},
}

func TestImportsPointInward(t *testing.T) {
	t.Parallel()
	const module = "koji-relay/"
	for pkg, imports := range packageImports(t) {
		i := slices.IndexFunc(layers, func(l layer) bool { return module+l.pkg == pkg })
		if i < 0 {
			t.Errorf("%s has no place in the layout: give it one in this test and in the design", pkg)
			continue
		}
		l := layers[i]
		for _, imported := range imports {
			if own, ok := strings.CutPrefix(imported, module); ok {
				if !slices.Contains(l.own, own) {
					t.Errorf("%s must not import %s: %s", l.pkg, own, l.why)
				}
				continue
			}
			first, _, _ := strings.Cut(imported, "/")
			if !strings.Contains(first, ".") {
				continue // standard library
			}
			if !slices.ContainsFunc(l.others, func(p string) bool {
				return imported == p || strings.HasPrefix(imported, p+"/")
			}) {
				t.Errorf("%s must not import %s: %s", l.pkg, imported, l.why)
			}
		}
	}
}

// packageImports lists what each package imports, its tests left out.
func packageImports(t *testing.T) map[string][]string {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`,
		"koji-relay/...").Output()
	if err != nil {
		t.Fatalf("list the packages: %v", err)
	}
	graph := make(map[string][]string)
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		graph[fields[0]] = fields[1:]
	}
	if len(graph) < 4 {
		t.Fatalf("found %d packages only: %v", len(graph), graph)
	}
	return graph
}
