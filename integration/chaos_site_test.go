package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"koji-relay/internal/pgtest"
)

// chaos is one run: a whole site, what goes wrong with it, and the account of it.
type chaos struct {
	testing.TB
	seed    uint64
	length  time.Duration
	ordered bool // preserve_order

	part    string // of the topics
	kinds   [3]brokerKind
	prefix  string // topic_prefix, with %s for part
	brokers [3]*server
	open    [3]func() *inbox
	ways    [5]*way
	relays  [2]*relay
	clocks  [3]clock
	binary  string
	plain   settings // of both relays

	primary, standby *pgtest.Cluster
	disk             string // where the databases are, if it is small

	hubs      [4]*hub
	witnesses [2]*witness
	account   *account
	happened  map[string]int // what was done, by its name

	databaseOut outages // of the hub's own database

	clerk             *clerk
	replays, replayed int // how many there were, and the messages that they sent
}

const chaosDatabase = "koji"

// newChaos builds the site. Nothing goes wrong yet.
func newChaos(t *testing.T, seed uint64, length time.Duration) *chaos {
	c := &chaos{TB: t, seed: seed, length: length, ordered: seed%2 == 1, part: newPart(),
		happened: make(map[string]int)}
	c.kinds, c.prefix = chaosBus(seed)
	for i, b := range c.kinds {
		c.brokers[i] = newServer(t, b.service)
		t.Cleanup(func() { logOnFailure(t, c.brokers[i]); c.brokers[i].remove() })
	}
	var err error
	if c.binary, err = steppableBinary(); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"relay0.clock", "relay1.clock", "databases.clock"} {
		if c.clocks[i], err = newClock(name); err != nil {
			t.Fatal(err)
		}
	}
	c.startDatabases()
	for i, s := range c.brokers {
		s.awaitBroker(t)
		c.subscribe(i)
	}
	c.account, c.clerk = newAccount(c), newClerk(c)
	c.startRelays()
	return c
}

// chaosBus is the kinds of the brokers, in order of preference, and their topic_prefix. Brokers of one bus
// have one prefix, and none is served by both RabbitMQ and Artemis: every third run is of Artemis alone.
func chaosBus(seed uint64) (kinds [3]brokerKind, prefix string) {
	switch seed % 3 {
	case 0:
		return [3]brokerKind{artemis, artemis, artemis}, artemis.prefix
	case 1:
		return [3]brokerKind{rabbitmq40, rabbitmq310, rabbitmq40}, "/topic/%s"
	}
	return [3]brokerKind{rabbitmq310, rabbitmq40, rabbitmq310}, "/topic/%s"
}

// subscribe makes broker i keep what comes until the consumer reads it at the end.
func (c *chaos) subscribe(i int) {
	t, s, b := c.TB.(*testing.T), c.brokers[i], c.kinds[i]
	var address string
	if b.rabbit() {
		declareQueue(t, s, c.part, ledgerTopics)
		address = fmt.Sprintf(b.queue, c.part)
	} else {
		durable(t, b, s, c.part, ledgerTopics...)
	}
	c.open[i] = func() *inbox {
		job := protonJob{URL: "amqp://" + s.addr(), User: user, Password: password, Addresses: []string{address},
			Plain: true}
		if !b.rabbit() {
			job.Addresses = nil
			for _, source := range b.sources(c.part, ledgerTopics) {
				job.Addresses = append(job.Addresses, fmt.Sprintf("%s::durable-%s.durable-%s", source, c.part, source))
			}
		}
		return runProton(c, job)
	}
}

// startDatabases starts PostgreSQL and a standby that every COMMIT waits for, on a small disk where we may
// mount one.
func (c *chaos) startDatabases() {
	dir, err := os.MkdirTemp("", "kr-db-")
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { os.RemoveAll(dir) })
	if syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=700m,mode=0755") == nil {
		c.disk = dir
		c.Cleanup(func() {
			if err := syscall.Unmount(dir, 0); err != nil {
				c.Errorf("unmount %s: %v", dir, err)
			}
		})
	}
	c.primary = pgtest.StartClusterIn(c, dir, c.clocks[2].serverEnv(), "max_wal_size = 96MB",
		"min_wal_size = 32MB", "hot_standby = on", "fsync = off")
	c.standby = c.primary.Standby(c)
	pgtest.SQL(c, c.primary.ConnString("postgres"), "CREATE DATABASE "+chaosDatabase)
	c.synchronous(c.primary, true)
}

// synchronous makes every COMMIT wait until a standby has it, or no longer. While it does, a failover loses
// nothing that was acknowledged.
func (c *chaos) synchronous(primary *pgtest.Cluster, on bool) {
	names := map[bool]string{true: "*", false: ""}[on]
	pgtest.SQL(c, primary.ConnString("postgres"), "ALTER SYSTEM SET synchronous_standby_names = '"+names+"'")
	pgtest.SQL(c, primary.ConnString("postgres"), "SELECT pg_reload_conf()")
}

// databasePorts are the ports of the databases, as their connection strings have them.
func databasePort(c *pgtest.Cluster) string {
	for _, field := range strings.Fields(c.ConnString("x")) {
		if port, ok := strings.CutPrefix(field, "port="); ok {
			return port
		}
	}
	return ""
}

// twoHosts is a connection string that finds the primary, over the given ports.
func twoHosts(ports ...string) string {
	return fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%s user=postgres dbname=%s sslmode=disable "+
		"connect_timeout=3 target_session_attrs=read-write", strings.Join(ports, ","), chaosDatabase)
}

// startRelays starts two relays of one fleet, which reach everything by ways that can be disturbed.
func (c *chaos) startRelays() {
	var urls, ports []string
	for i, s := range c.brokers {
		c.ways[i] = newWay(c, s.service, s.addr())
		urls = append(urls, "amqp://"+user+":"+password+"@"+c.ways[i].Listen)
	}
	for i, db := range []*pgtest.Cluster{c.primary, c.standby} {
		c.ways[3+i] = newWay(c, "database "+strconv.Itoa(i), "127.0.0.1:"+databasePort(db))
		_, port, _ := net.SplitHostPort(c.ways[3+i].Listen)
		ports = append(ports, port)
	}
	c.plain = settings{}.with(c.kinds[0].settings, settings{
		"broker.urls": strings.Join(urls, " "), "broker.topic_prefix": fmt.Sprintf(c.prefix, c.part),
		"broker.send_timeout": "10", "broker.idle_timeout": "10",
		"message.durable": "on", "message.events": "*",
		"queue.store": "postgres", "queue.database": twoHosts(ports...), "queue.interval": "1",
		"queue.max_age": "240", "queue.preserve_order": map[bool]string{true: "on", false: "off"}[c.ordered],
	})
	for i := range c.relays {
		c.relays[i] = newRelay(c, c.plain)
		c.witnesses[i] = newWitness(c, i)
		c.configure(i, nil)
	}
	init := exec.Command(c.binary, "db", "init", "--config", c.relays[0].conf)
	if out, err := init.CombinedOutput(); err != nil {
		c.Fatalf("koji-relay db init: %v\n%s", err, out)
	}
	pgtest.SQL(c, c.primary.ConnString(chaosDatabase), "CREATE TABLE work (id serial PRIMARY KEY, what text)")
	for i := range c.relays {
		c.launch(i)
		c.relays[i].await(c, "ready", nil)
	}
}

// configure writes the configuration of relay i.
func (c *chaos) configure(i int, more settings) {
	c.relays[i].configure(c, c.plain.with(settings{"relay.admin": c.witnesses[i].address}, more))
}

// launch starts relay i and does not wait until it is ready.
func (c *chaos) launch(i int) {
	cmd := exec.Command(c.binary, "serve", "--config", c.relays[i].conf)
	cmd.Env = append(os.Environ(), c.clocks[i].relayEnv()...)
	c.witnesses[i].counted.restarted()
	c.relays[i].launch(c, cmd)
}

// history is what the relays' history says of a message.
func (c *chaos) history(id string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.binary, "history", "show", id, "--config",
		c.relays[0].conf).CombinedOutput()
	if err != nil {
		return err.Error() + ": " + string(out)
	}
	return string(out)
}

// database runs one statement that gives one value, on the primary.
func (c *chaos) database(sql string, result any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	db, err := pgx.Connect(ctx, c.primary.ConnString(chaosDatabase))
	if err != nil {
		return err
	}
	defer db.Close(ctx)
	return db.QueryRow(ctx, sql).Scan(result)
}

// committed are the numbers of the changes that the hub's own table has: what is true, whatever anybody was
// told.
func (c *chaos) committed() map[int]bool {
	var all []string
	if err := c.database("SELECT array_agg(what) FROM work", &all); err != nil {
		c.Fatalf("read what was committed: %v", err)
	}
	numbers := make(map[int]bool, len(all))
	for _, what := range all {
		n, err := strconv.Atoi(what)
		if err != nil {
			c.Fatal(err)
		}
		numbers[n] = true
	}
	return numbers
}

// way is the network to one server.
type way struct{ *toxiproxy.Proxy }

func newWay(t testing.TB, name, upstream string) *way {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	port := freePorts(t)
	w := &way{toxiproxy.NewProxy(server, name, "127.0.0.1:"+strconv.Itoa(port), upstream)}
	if err := w.Start(); err != nil {
		t.Fatalf("start a proxy for %s: %v", name, err)
	}
	t.Cleanup(w.Stop)
	return w
}

// disturb adds one of toxiproxy's toxics, on one direction.
func (w *way) disturb(t testing.TB, kind, direction, attributes string) {
	text := fmt.Sprintf(`{"type": %q, "stream": %q, "attributes": %s}`, kind, direction, attributes)
	if _, err := w.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
		t.Errorf("disturb the way to %s with %s: %v", w.Name, text, err)
	}
}

// clear takes all toxics away. Connections that lost bytes end with that.
func (w *way) clear() { w.Toxics.ResetToxics(context.Background()) }

// fillDatabaseDisk leaves no byte free on the disk of the databases.
func (c *chaos) fillDatabaseDisk() {
	if c.disk == "" {
		return
	}
	f, err := os.Create(filepath.Join(c.disk, "others"))
	if err != nil {
		c.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 1<<20))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		c.Fatalf("fill the disk: %v", err)
	}
}
