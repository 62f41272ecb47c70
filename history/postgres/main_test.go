package postgres

import (
	"os"
	"testing"

	"koji-relay/internal/pgtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	pgtest.Stop()
	os.Exit(code)
}
