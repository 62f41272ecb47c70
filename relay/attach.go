package relay

import (
	"context"

	"koji-relay/internal/amqpconn"
)

type attachRequest struct {
	address string
	reply   chan<- attachReply // buffered: the asker may be gone
}

type attachReply struct {
	sender *amqpconn.Sender
	err    error
}

// attachLoop serves link goroutines, one at a time.
func (c *conn) attachLoop(ctx context.Context) {
	for {
		select {
		case req := <-c.attach:
			s, err := c.OpenSender(ctx, req.address)
			req.reply <- attachReply{s, err}
		case <-ctx.Done():
			return
		}
	}
}
