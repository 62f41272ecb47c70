package history

import (
	"os"
	"testing"

	"koji-relay/internal/message"
)

func TestMain(m *testing.M) {
	// The packer makes its channels at first use, which must not be in a bubble of synthetic time.
	if _, err := Pack(&message.Message{}); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
