package devbroker

import (
	"net"
	"slices"

	"koji-relay/internal/devbroker/wire"
)

// ConnInfo describes a live connection.
type ConnInfo struct {
	ID        int
	Remote    net.Addr
	Container string // the peer's container-id
	Hostname  string // as the peer's open said
	Mechanism string // SASL; empty without
	User      string // authenticated user; empty for ANONYMOUS
	Links     []LinkInfo
}

// LinkInfo describes a live link of a connection.
type LinkInfo struct {
	Name    string
	Address string
	// Sender is true when the peer sends.
	Sender bool
	// Capabilities are those that the peer put on the terminus that holds Address.
	Capabilities []string
}

// Connections describes the live connections that have come as far as open. It waits for none of them.
func (b *Broker) Connections() []ConnInfo {
	var all []ConnInfo
	b.each(func(c *conn) {
		if info, ok := c.describe(); ok {
			all = append(all, info)
		}
	})
	return all
}

func (c *conn) describe() (ConnInfo, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info := c.info
	info.Links = slices.Clone(info.Links)
	return info, info.ID != 0
}

func (c *conn) describeLogin(mechanism, user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info.Mechanism, c.info.User = mechanism, user
}

func (c *conn) describeOpen() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info.ID, c.info.Container, c.info.Hostname = c.id, c.peer.ContainerID, c.peer.Hostname
}

func (c *conn) describeLink(l *link, capabilities wire.Symbols) {
	info := LinkInfo{Name: l.name, Address: l.target, Sender: !l.receives}
	for _, s := range capabilities {
		info.Capabilities = append(info.Capabilities, string(s))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info.Links = append(c.info.Links, info)
}

func (c *conn) undescribeLink(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info.Links = slices.DeleteFunc(c.info.Links, func(i LinkInfo) bool {
		return i.Name == l.name && i.Sender == !l.receives
	})
}
