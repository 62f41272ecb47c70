package daemon

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"testing"

	"koji-relay/config"
)

// The limits of the unit leave the relay what it says that it takes.
func TestUnitAgreesWithWhatTheRelayTakes(t *testing.T) {
	t.Parallel()
	unit, err := os.ReadFile("../../packaging/systemd/koji-relay.service")
	if err != nil {
		t.Fatal(err)
	}
	setting := func(name string) int64 {
		found := regexp.MustCompile(`(?m)^` + name + `=(\d+)(M?)$`).FindSubmatch(unit)
		if found == nil {
			t.Fatalf("the unit has no %s", name)
		}
		n, err := strconv.ParseInt(string(found[1]), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if len(found[2]) > 0 {
			n <<= 20
		}
		return n
	}
	path := filepath.Join(t.TempDir(), "protonmsg.conf")
	text := "[broker]\nurls = amqp://broker\ntopic_prefix = koji\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if takes := int64(64<<20) + c.Relay.MaxInflightBytes + 4*c.Queue.BatchBytes; setting("MemoryMax") < 2*takes {
		t.Errorf("MemoryMax is %d, want at least twice the %d bytes that the relay takes", setting("MemoryMax"),
			takes)
	}
	if got := setting("LimitNOFILE") / 4; got < mostHub {
		t.Errorf("LimitNOFILE leaves the hub %d connections, want %d", got, mostHub)
	}
	if setting("LimitCORE") != 0 {
		t.Error("a core would hold passwords")
	}
}

func TestGOGCOfTheEnvironmentGoesBeforeTheRelaysOwn(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "50") // read by the runtime at the start only
	setGCPercent()
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("with GOGC set, it is %d", got)
	}
	t.Setenv("GOGC", "")
	setGCPercent()
	if got := debug.SetGCPercent(100); got != gcPercent {
		t.Errorf("without GOGC it is %d, want %d", got, gcPercent)
	}
}
