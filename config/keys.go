package config

import (
	"math"
	"time"

	"koji-relay/internal/amqpconn/dialect"
)

// key describes one key, for everything that has to agree: parsing, defaults, what check prints, the table in
// docs/configuration.md, and the test of protonmsg.conf.example.
type key struct {
	section, name string
	def           string // as it would stand in the file; empty = none
	required      bool
	example       string // value in protonmsg.conf.example where it differs from the default
	sample        string // a value for keys without a default
	doc           string // meaning, in an administrator's words
	access
	// a reload does not change it: it is bound to an open socket, file or database
	restart   bool
	shown     func(*Config) string     // the effective value, masked; nil = the text
	masked    func(string) string      // masks text that may not be well formed; nil = nothing to mask
	warn      func(string) valueErrors // what is odd about a value that is taken
	lines     bool                     // whether the value may go on over several lines
	retired   string                   // for a retired key: its successor
	gone      string                   // for a key that is not read any more: what to do instead
	protonmsg bool                     // a key that protonmsg had
}

func (k *key) id() string { return k.section + "." + k.name }

// inUse reports whether the key is read under its own name.
func (k *key) inUse() bool { return k.retired == "" && k.gone == "" }

const maxSeconds = 1e6

// keys is in the order of the documentation. "age" must follow "max_age": see maxAge.
var keys = []key{
	{section: "broker", name: "urls", required: true, protonmsg: true,
		sample: "amqps://broker1.example.com:5671 amqps://broker2.example.com:5671",
		doc: "`amqp://` or `amqps://` URLs, separated by spaces, in order of preference; a path is " +
			"RabbitMQ's virtual host",
		access: into(func(c *Config) *[]BrokerURL { return &c.Broker.URLs }, parseBrokerURLs),
		shown:  shownURLs, masked: maskURLs, warn: warnURLs, lines: true},
	{section: "broker", name: "cert", sample: "/etc/koji-hub/plugins/client.pem", protonmsg: true,
		doc:    "PEM file with the client certificate; it may hold the private key too",
		access: into(func(c *Config) *string { return &c.Broker.Cert }, filePath)},
	{section: "broker", name: "key", sample: "/etc/koji-hub/plugins/client.key",
		doc:    "PEM file with the private key of `cert`, where that does not hold it",
		access: into(func(c *Config) *string { return &c.Broker.Key }, filePath)},
	{section: "broker", name: "cacert", sample: "/etc/koji-hub/plugins/ca.pem", protonmsg: true,
		doc: "PEM file with the authorities that sign the brokers' certificates, or a directory of such " +
			"files; none = those of the system",
		access: into(func(c *Config) *string { return &c.Broker.CACert }, filePath)},
	{section: "broker", name: "legacy_tls", def: "off",
		doc: "take from brokers what protonmsg took: a certificate whose only name is the common name, and RSA " +
			"key exchange, by which whoever gets the broker's key can read what was recorded before",
		access: into(func(c *Config) *bool { return &c.Broker.LegacyTLS }, boolean)},
	{section: "broker", name: "topic_prefix", required: true, sample: "topic://koji", protonmsg: true,
		doc: "what stands before the topic in an address, such as `topic://koji` (ActiveMQ) or `/topic/koji` " +
			"(RabbitMQ)",
		access: into(func(c *Config) *string { return &c.Broker.TopicPrefix }, someText), warn: warnTopicPrefix},
	{section: "broker", name: "virtual_host", sample: "koji",
		doc: "RabbitMQ's virtual host, for URLs that name none (`amqps://HOST:5671/VHOST`); none = the " +
			"broker's default",
		access: into(func(c *Config) *string { return &c.Broker.VirtualHost }, anyText)},
	{section: "broker", name: "connect_timeout", def: "10", protonmsg: true,
		doc: "seconds for opening a connection to one broker",
		access: into(func(c *Config) *time.Duration { return &c.Broker.ConnectTimeout },
			wholeUnits(time.Second, 1, maxSeconds))},
	{section: "broker", name: "send_timeout", def: "60", protonmsg: true,
		doc: "seconds that a broker may take to answer a message before its connection is dropped",
		access: into(func(c *Config) *time.Duration { return &c.Broker.SendTimeout },
			wholeUnits(time.Second, 1, maxSeconds))},
	{section: "broker", name: "test_mode", def: "off", protonmsg: true,
		doc:    "log messages instead of sending them",
		access: into(func(c *Config) *bool { return &c.Broker.TestMode }, boolean)},
	{section: "broker", name: "test_mode_fail", def: "0", protonmsg: true,
		doc:    "percentage of the messages that `test_mode` pretends it could not send",
		access: into(func(c *Config) *int { return &c.Broker.TestModeFail }, whole(0, 100))},
	{section: "broker", name: "url_order", def: OrderListed,
		doc:    "`listed` prefers the first URL that works; `random` spreads relays over the brokers",
		access: into(func(c *Config) *string { return &c.Broker.URLOrder }, oneOf(OrderListed, OrderRandom))},
	{section: "broker", name: "dialect", def: Auto,
		doc: "how topics become addresses: `auto` recognises the broker; " + orList(dialect.Names()[1:]) +
			" name it",
		access: into(func(c *Config) *string { return &c.Broker.Dialect }, oneOf(dialect.Names()...))},
	{section: "broker", name: "sasl", def: Auto,
		doc: "how to log in: `auto`, `plain`, `external` (client certificate) or `anonymous`; never " +
			"anonymous where a user is set",
		access: into(func(c *Config) *string { return &c.Broker.SASL },
			oneOf(Auto, SASLPlain, SASLExternal, SASLAnon))},
	{section: "broker", name: "user_file", sample: "/etc/koji-relay/broker.user",
		doc: "file that holds the user's name, instead of the URLs; a name without `/` is one of the " +
			"service's systemd credentials",
		access: into(func(c *Config) *string { return &c.Broker.UserFile }, credentialPath)},
	{section: "broker", name: "password_file", sample: "/etc/koji-relay/broker.password",
		doc:    "file that holds the password of `user_file`; likewise",
		access: into(func(c *Config) *string { return &c.Broker.PasswordFile }, credentialPath)},
	{section: "broker", name: "unroutable", def: Enqueue,
		doc:    "`queue` or `drop` messages that the broker returns because nobody has bound their topic",
		access: into(func(c *Config) *string { return &c.Broker.Unroutable }, oneOf(Enqueue, Drop))},
	{section: "broker", name: "idle_timeout", def: "30",
		doc:    "seconds of silence after which a connection counts as dead",
		access: into(func(c *Config) *time.Duration { return &c.Broker.IdleTimeout }, seconds(1, maxSeconds))},

	{section: "message", name: "extra_limit", def: "0", protonmsg: true,
		doc:    "leave `extra` out of a build when it is longer than this many characters; 0 = never",
		access: into(func(c *Config) *int { return &c.Message.ExtraLimit }, magnitude)},
	{section: "message", name: "extra_keep", sample: "typeinfo osbs_build",
		doc:    "keys of `extra` that stay when `extra_limit` cuts it, separated by spaces",
		access: into(func(c *Config) *[]string { return &c.Message.ExtraKeep }, wordList), lines: true},
	{section: "message", name: "ttl", sample: "86400", protonmsg: true,
		doc:    "seconds after which brokers may throw a message away; none or 0 = never",
		access: into(func(c *Config) *time.Duration { return &c.Message.TTL }, timeToLive)},
	{section: "message", name: "events", def: "protonmsg", example: "*",
		doc: "which hub callbacks become messages: `protonmsg` for its ten, or patterns of names such as `*` " +
			"or `postTag postUntag`, separated by spaces",
		access: into(func(c *Config) *[]string { return &c.Message.Events }, eventList), lines: true,
		warn: warnEvents},
	{section: "message", name: "exclude_tags", sample: "*-rebuild eln-*",
		doc:    "patterns of tags whose tag and untag events are not published, separated by spaces",
		access: into(func(c *Config) *[]string { return &c.Message.ExcludeTags }, patternList), lines: true,
		warn: warnUnclosed},
	{section: "message", name: "durable", def: "off", example: "on",
		doc:    "brokers keep messages through a restart of their own",
		access: into(func(c *Config) *bool { return &c.Message.Durable }, boolean)},
	{section: "message", name: "priority", def: "4",
		doc:    "AMQP priority; 4 is the middle",
		access: into(func(c *Config) *uint8 { return &c.Message.Priority }, whole[uint8](0, math.MaxUint8))},
	{section: "message", name: "body_section", def: SectionValue,
		doc:    "`value` as protonmsg sent it; `data` for RabbitMQ sites whose readers speak AMQP 0-9-1",
		access: into(func(c *Config) *string { return &c.Message.BodySection }, oneOf(SectionValue, SectionData))},

	{section: "queue", name: "enabled", restart: true, def: "on", protonmsg: true,
		doc:    "keep what no broker took and send it later; `off` hands it back to the hub",
		access: into(func(c *Config) *bool { return &c.Queue.Enabled }, boolean)},
	{section: "queue", name: "store", restart: true, def: StorePostgres,
		doc:    "where the queue is: `postgres`, or `file` for trying out and for hosts without a database",
		access: into(func(c *Config) *string { return &c.Queue.Store }, oneOf(StorePostgres, StoreFile))},
	{section: "queue", name: "database", restart: true, def: string(HubDatabase),
		doc: "`hub` takes the connection from /etc/koji-hub/hub.conf; else a connection string such as " +
			"`host=db dbname=koji user=koji`",
		access: into(func(c *Config) *ConnString { return &c.Queue.Database }, parseConnString),
		masked: maskConnString, lines: true},
	{section: "queue", name: "path", restart: true, def: "/var/lib/koji-relay/queue.db",
		doc: "the file of `store = file`; 8 MiB beside it, `PATH.reserve`, keep room for draining on a full " +
			"disk",
		access: into(func(c *Config) *string { return &c.Queue.Path }, someFilePath)},
	{section: "queue", name: "batch_size", def: "100", example: "1000", protonmsg: true,
		doc:    "most messages that are read from the queue at a time",
		access: into(func(c *Config) *int { return &c.Queue.BatchSize }, whole(1, 1_000_000))},
	{section: "queue", name: "batch_bytes", def: "8388608",
		doc:    "most bytes that are read from the queue at a time",
		access: into(func(c *Config) *int64 { return &c.Queue.BatchBytes }, whole[int64](1024, 1<<40))},
	{section: "queue", name: "max_age", def: "24", protonmsg: true,
		doc:    "hours after which a queued message is given up; 0 = 24, as in protonmsg",
		access: into(func(c *Config) *time.Duration { return &c.Queue.MaxAge }, wholeUnits(time.Hour, 0, maxHours)),
		shown:  shownMaxAge},
	{section: "queue", name: "age", protonmsg: true, retired: "max_age",
		access: access{set: retiredAge}},
	{section: "queue", name: "expired", def: Drop, example: DeadLetter,
		doc:    "`drop` messages older than `max_age`, or keep them as `dead_letter` to look at",
		access: into(func(c *Config) *string { return &c.Queue.Expired }, oneOf(Drop, DeadLetter))},
	{section: "queue", name: "dead_max_age", def: "30",
		doc: "days after which a dead letter is deleted",
		access: into(func(c *Config) *time.Duration { return &c.Queue.DeadMaxAge },
			wholeUnits(24*time.Hour, 1, maxDays))},
	{section: "queue", name: "max_bytes", def: "0",
		doc:    "most bytes that the queue may hold before commits are handed back to the hub; 0 = no bound",
		access: into(func(c *Config) *int64 { return &c.Queue.MaxBytes }, whole[int64](0, math.MaxInt64))},
	{section: "queue", name: "preserve_order", def: "off",
		doc: "put new messages behind the queued ones instead of trying them at once, and send topic after " +
			"topic in the order of the hub; slower",
		access: into(func(c *Config) *bool { return &c.Queue.PreserveOrder }, boolean)},
	{section: "queue", name: "max_attempts", def: "8",
		doc:    "how often brokers may refuse a message before it becomes a dead letter",
		access: into(func(c *Config) *int { return &c.Queue.MaxAttempts }, whole(1, 1_000_000))},
	{section: "queue", name: "interval", def: "30",
		doc:    "seconds between looks at the queue when nothing else wakes the relay",
		access: into(func(c *Config) *time.Duration { return &c.Queue.Interval }, seconds(0.1, maxSeconds))},
	{section: "queue", name: "store_timeout", def: "0.8",
		doc: "seconds for putting up to 500 events of a commit into the queue; a larger commit is put in " +
			"several steps",
		access: into(func(c *Config) *time.Duration { return &c.Queue.StoreTimeout }, seconds(0.01, maxSeconds))},
	{section: "queue", name: "rate_limit", def: "0",
		doc:    "most messages a second that are sent from the queue; 0 = no limit",
		access: into(func(c *Config) *int { return &c.Queue.RateLimit }, whole(0, math.MaxInt32))},

	{section: "history", name: "keep", restart: true, def: "7",
		doc: "days for which the relay remembers what became of every message; 0 = it does not",
		access: into(func(c *Config) *time.Duration { return &c.History.Keep },
			wholeUnits(24*time.Hour, 0, maxDays))},
	{section: "history", name: "max_bytes", def: "1073741824",
		doc:    "most bytes that the history may take; above it whole days go, the oldest first",
		access: into(func(c *Config) *int64 { return &c.History.MaxBytes }, whole[int64](1<<20, math.MaxInt64))},
	{section: "history", name: "store", restart: true, def: StoreQueue,
		doc: "where the history is: `queue`, the store of the queue; or `file`, to spare Koji's database the " +
			"load",
		access: into(func(c *Config) *string { return &c.History.Store }, oneOf(StoreQueue, StoreFile))},
	{section: "history", name: "path", restart: true, def: "/var/lib/koji-relay/history",
		doc: "the directory of `store = file`, with a file for each day; " +
			"a queue that is a file has its history in `PATH.history`",
		access: into(func(c *Config) *string { return &c.History.Path }, someFilePath)},

	{section: "relay", name: "name", restart: true, sample: "new-bus",
		doc: "makes the relay a reader of the outbox of its own, for a second bus beside that of the relay " +
			"without a name: with a queue and a history in files below /var/lib/koji-relay-NAME, sockets below " +
			"/run/koji-relay-NAME, and no `admin` port unless one is set. It needs `delivery = outbox` in the hub " +
			"plugin; `[queue] database` says where the outbox is",
		access: into(func(c *Config) *string { return &c.Relay.Name }, readerName)},
	{section: "relay", name: "socket", restart: true, def: "/run/koji-relay/hub.sock",
		doc: "Unix socket on which the hub hands over commits. Like the next two ignored under socket " +
			"activation, where the .socket unit decides",
		access: into(func(c *Config) *string { return &c.Relay.Socket }, someSocketPath)},
	{section: "relay", name: "socket_group", restart: true, sample: "apache",
		doc:    "group that owns the socket; none = the relay's own",
		access: into(func(c *Config) *string { return &c.Relay.SocketGroup }, anyText)},
	{section: "relay", name: "socket_mode", restart: true, def: "0660",
		doc:    "file mode of the socket, in octal",
		access: into(func(c *Config) *uint32 { return &c.Relay.SocketMode }, fileMode)},
	{section: "relay", name: "listen", gone: socketOnly},
	{section: "relay", name: "token_file", gone: socketOnly},
	{section: "relay", name: "control", restart: true, def: "/run/koji-relay/control.sock",
		doc:    "Unix socket, for its owner only, of the commands that change something",
		access: into(func(c *Config) *string { return &c.Relay.Control }, someSocketPath)},
	{section: "relay", name: "admin", restart: true, def: "127.0.0.1:9763",
		doc:    "loopback host:port of the read-only page, health and metrics; empty = off",
		access: into(func(c *Config) *string { return &c.Relay.Admin }, loopback)},
	{section: "relay", name: "handoff_timeout", def: "1",
		doc:    "seconds that a commit may wait for brokers before it goes into the queue",
		access: into(func(c *Config) *time.Duration { return &c.Relay.HandoffTimeout }, seconds(0.01, maxSeconds))},
	{section: "relay", name: "max_request_bytes", restart: true, def: "67108864",
		doc:    "longest request that the hub may send; it may hold 100000 events at most",
		access: into(func(c *Config) *int64 { return &c.Relay.MaxRequestBytes }, whole[int64](1024, 1<<40))},
	{section: "relay", name: "max_inflight_bytes", def: "134217728",
		doc: "most memory for commits at work at a time: bodies, events and messages; " +
			"above it the hub is told to keep its commit",
		access: into(func(c *Config) *int64 { return &c.Relay.MaxInflightBytes }, whole[int64](1024, 1<<40))},
	{section: "relay", name: "log_level", def: "info",
		doc: "`debug`, `info`, `warn` or `error`",
		access: into(func(c *Config) *string { return &c.Relay.LogLevel },
			oneOf("debug", "info", "warn", "error"))},
	{section: "relay", name: "log_format", restart: true, def: Auto,
		doc: "`journal`, `text` or `json`; `auto` = journal under systemd, text on a terminal, else json",
		access: into(func(c *Config) *string { return &c.Relay.LogFormat },
			oneOf(Auto, LogJournal, LogText, LogJSON))},
}

// socketOnly is the remedy for the keys of the loopback port.
// docs/decisions/0011-only-the-socket.md says why it went.
const socketOnly = "the hub hands over on the Unix socket alone; remove it, and give the web server's " +
	"group access by socket_group, or by SocketGroup= in koji-relay.socket"

const (
	maxHours = 1_000_000 // a time.Duration ends at two and a half times that
	maxDays  = maxHours / 24
)
