package devbroker_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/devbroker"
)

func TestDurableSubscriptionOutlivesItsConnection(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	subscribe := func() (*amqp.Conn, *amqp.Receiver) {
		c := dial(t, b, &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous(), ContainerID: "viewer"})
		r, err := session(t, c).NewReceiver(soon(t), "topic://koji.#", &amqp.ReceiverOptions{
			Name: "mine", SourceDurability: amqp.DurabilityUnsettledState, SourceExpiryPolicy: amqp.ExpiryPolicyNever,
			Credit: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		return c, r
	}
	s := sender(t, b, "koji.build.tag")
	c, r := subscribe()
	outcome(t, s, text("1", "x"))
	outcome(t, s, text("2", "x"))
	if m, err := r.Receive(soon(t), nil); err != nil || m.Properties.MessageID != "1" {
		t.Fatal(m, err)
	}
	c.Close() // without having settled 1
	outcome(t, s, text("3", "x"))
	b.Stop()
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	_, r = subscribe()
	for i := 1; i <= 3; i++ {
		if m := receive(t, r); m.Properties.MessageID != fmt.Sprint(i) {
			t.Errorf("message %d is %v", i, m.Properties.MessageID)
		}
	}
	if err := r.Close(soon(t)); err != nil { // for good
		t.Fatal(err)
	}
	outcome(t, sender(t, b, "koji.build.tag"), text("4", "x"))
	if _, r = subscribe(); r.Prefetched() != nil {
		t.Error("a subscription that was closed got a message")
	}
}

func TestSubscriptionOfADurableUserOutlivesAnyClient(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{DurableUsers: []string{"viewer"}})
	s := sender(t, b, "koji.build.tag")
	for i := range 3 {
		c := dial(t, b, &amqp.ConnOptions{SASLType: amqp.SASLTypePlain("viewer", "x")})
		r, err := session(t, c).NewReceiver(soon(t), "topic://koji.#", nil)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if m := receive(t, r); m.Properties.MessageID != fmt.Sprint(i) {
				t.Errorf("received %v", m)
			}
		}
		if err := r.Close(soon(t)); err != nil {
			t.Fatal(err)
		}
		outcome(t, s, text(fmt.Sprint(i+1), "x"))
	}
}

func TestLyingBrokerAcceptsAndLoses(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{Queues: map[string][]string{"q": {"#"}}})
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Lost: true}, Times: 1})
	s := sender(t, b, "a")
	for range 2 {
		if state := outcome(t, s, text("1", "x")); !accepted(state) {
			t.Error(state)
		}
	}
	if n := b.Depth("q"); n != 1 || b.Pending() != 1 {
		t.Errorf("%d messages in the queue, %d in all", n, b.Pending())
	}
}

func TestReleasedMessageComesAgainAndRejectedDoesNot(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{Queues: map[string][]string{"q": {"#"}}})
	s := sender(t, b, "a")
	for i := range 4 {
		outcome(t, s, text(fmt.Sprint(i), "x"))
	}
	r := receiver(t, b, "queue://q", &amqp.ReceiverOptions{Credit: -1})
	settle := []func(*amqp.Message) error{
		func(m *amqp.Message) error { return r.ReleaseMessage(soon(t), m) },
		func(m *amqp.Message) error { return r.RejectMessage(soon(t), m, nil) },
		func(m *amqp.Message) error {
			return r.ModifyMessage(soon(t), m, &amqp.ModifyMessageOptions{DeliveryFailed: true})
		},
		func(m *amqp.Message) error { return r.AcceptMessage(soon(t), m) },
	}
	if err := r.IssueCredit(4); err != nil {
		t.Fatal(err)
	}
	for i, f := range settle {
		m, err := r.Receive(soon(t), nil)
		if err != nil || m.Properties.MessageID != fmt.Sprint(i) {
			t.Fatal(m, err)
		}
		if err := f(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.IssueCredit(4); err != nil {
		t.Fatal(err)
	}
	again := map[any]bool{}
	for range 2 {
		again[receive(t, r).Properties.MessageID] = true
	}
	if !again["0"] || !again["2"] || b.Depth("q") != 0 {
		t.Errorf("came again: %v, left: %d", again, b.Depth("q"))
	}
	if err := r.DrainCredit(soon(t), nil); err != nil {
		t.Errorf("drain the two credits that are left: %v", err)
	}
}

func TestReceiverMaySettleSecond(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{Queues: map[string][]string{"q": {"#"}}})
	outcome(t, sender(t, b, "a"), text("1", "x"))
	r := receiver(t, b, "queue://q", &amqp.ReceiverOptions{SettlementMode: amqp.ReceiverSettleModeSecond.Ptr()})
	receive(t, r) // its AcceptMessage returns when the broker has settled
}

func TestTwoConsumersShareAQueue(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	one := receiver(t, b, "/queues/q", &amqp.ReceiverOptions{Credit: 5})
	two := receiver(t, b, "/queues/q", &amqp.ReceiverOptions{Credit: 5})
	s := sender(t, b, "queue://q")
	for i := range 10 {
		outcome(t, s, text(fmt.Sprint(i), "x"))
	}
	seen := map[any]bool{}
	for range 5 {
		for _, r := range []*amqp.Receiver{one, two} {
			m, err := r.Receive(soon(t), nil) // unsettled, so that no credit comes back
			if err != nil {
				t.Fatal(err)
			}
			seen[m.Properties.MessageID] = true
		}
	}
	if len(seen) != 10 {
		t.Errorf("seen %v", seen)
	}
}

func TestUnroutedMessagesAreReleasedWhereTheBrokerDoesSo(t *testing.T) {
	t.Parallel()
	kind := start(t, devbroker.Options{})
	strict := start(t, devbroker.Options{ReleaseUnrouted: true,
		Queues: map[string][]string{"q": {"koji.*.tag"}}})
	if state := outcome(t, sender(t, kind, "koji.repo.init"), text("1", "x")); !accepted(state) {
		t.Error(state)
	}
	if state := outcome(t, sender(t, strict, "koji.build.tag"), text("1", "x")); !accepted(state) {
		t.Error(state)
	}
	if state, ok := outcome(t, sender(t, strict, "koji.repo.init"), text("1", "x")).(*amqp.StateReleased); !ok {
		t.Error(state)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{
		MaxQueueBytes: 10000, MaxRecordBytes: 10000, Queues: map[string][]string{"q": {"#"}}, Credit: 10,
	})
	s := sender(t, b, "a")
	body := strings.Repeat("x", 900)
	var rejected *amqp.StateRejected
	for i := 0; i < 100 && rejected == nil; i++ {
		rejected, _ = outcome(t, s, text(fmt.Sprint(i), body)).(*amqp.StateRejected)
	}
	if rejected == nil || rejected.Error.Condition != "amqp:resource-limit-exceeded" || b.Depth("q") != 10 {
		t.Errorf("%v, %d messages in the queue", rejected, b.Depth("q"))
	}
	for range 10 {
		outcome(t, s, text("last", body))
	}
	got, stats := b.Received(), b.Stats()
	if len(got) > 10 || got[len(got)-1].ID != "last" || stats.Messages != 21 {
		t.Errorf("%d recorded, %+v", len(got), stats)
	}

	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{When: devbroker.Held,
		Outcome: devbroker.Release}})
	for range 40 {
		if _, err := s.SendWithReceipt(notYet(t), text("held", body), nil); err != nil {
			break // the credit is used up
		}
	}
	if n := b.Stats().Messages - stats.Messages; n < 5 || n > 20 {
		t.Errorf("%d messages held with a credit of 10", n)
	}
	b.SettleHeld()
	if state, ok := outcomeHeld(t, b, s).(*amqp.StateReleased); !ok {
		t.Errorf("%T", state)
	}
}

func outcomeHeld(t *testing.T, b *devbroker.Broker, s *amqp.Sender) amqp.DeliveryState {
	t.Helper()
	before := b.Stats().Messages
	receipt := send(t, s, "one more")
	if err := b.WaitReceived(soon(t), before+1); err != nil {
		t.Fatal(err)
	}
	b.SettleHeld()
	state, err := receipt.Wait(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func TestMaximumMessageSizeIsAnnouncedAndKept(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{MaxMessageSize: 2000})
	b.Script("small", devbroker.Behaviour{MaxMessageSize: 100})
	if n := sender(t, b, "a").MaxMessageSize(); n != 2000 {
		t.Errorf("announced %d", n)
	}
	if n := sender(t, b, "small").MaxMessageSize(); n != 100 {
		t.Errorf("announced %d", n)
	}
}

func TestPresettledMessageIsRecordedAsSuch(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	s, err := session(t, dial(t, b, nil)).NewSender(soon(t), "a", &amqp.SenderOptions{
		SettlementMode: amqp.SenderSettleModeSettled.Ptr(), TargetCapabilities: []string{"topic"},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := text("1", "x")
	if err := s.Send(soon(t), m, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.WaitReceived(soon(t), 1); err != nil {
		t.Fatal(err)
	}
	want, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	got := b.Received()[0]
	if !got.Settled || got.ID != "1" || got.Link != s.LinkName() || got.Conn != 1 ||
		!bytes.Equal(got.Payload, want) {
		t.Errorf("%+v", got)
	}
	info := b.Connections()
	if len(info) != 1 || len(info[0].Links) != 1 || info[0].Links[0].Address != "a" ||
		!info[0].Links[0].Sender ||
		fmt.Sprint(info[0].Links[0].Capabilities) != "[topic]" {
		t.Errorf("%+v", info)
	}
}

func TestTooManyLinksEndTheConnection(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{MaxLinks: 2})
	s := session(t, dial(t, b, nil))
	for i := range 3 {
		_, err := s.NewSender(soon(t), fmt.Sprint("a", i), nil)
		if (err != nil) != (i == 2) {
			t.Errorf("link %d: %v", i, err)
		}
	}
}

func TestWhateverIsNotAMQPIsShownTheDoor(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{AllowBare: true})
	sasl := start(t, devbroker.Options{})
	for name, c := range map[string]struct {
		b     *devbroker.Broker
		input string
		want  string // in the answer
	}{
		"http":          {sasl, "GET / HTTP/1.1\r\n\r\n", "AMQP\x03"},
		"no sasl":       {sasl, "AMQP\x00\x01\x00\x00", "AMQP\x03"},
		"half a header": {b, "AM", ""},
		"no open": {b, "AMQP\x00\x01\x00\x00\x00\x00\x00\x0c\x02\x00\x00\x00\x00\x53\x11\x45",
			"open is due"},
		"open without id": {b, "AMQP\x00\x01\x00\x00\x00\x00\x00\x0c\x02\x00\x00\x00\x00\x53\x10\x45",
			"lacks field"},
		"frame too large":     {b, "AMQP\x00\x01\x00\x00\xff\xff\xff\xff\x02\x00\x00\x00", ""},
		"begin is not a list": {b, bareOpen + "\x00\x00\x00\x0c\x02\x00\x00\x00\x00\x53\x11\x40", "is no list"},
		"no session": {b, bareOpen + "\x00\x00\x00\x0c\x02\x00\x00\x00\x00\x53\x13\x45",
			"without a session"},
		"garbage frame":   {b, bareOpen + "\x00\x00\x00\x0c\x02\x00\x00\x00garb", "decode-error"},
		"frame cut short": {b, bareOpen + "\x00\x00\x00\x07\x02\x00\x00\x00", "framing-error"},
		"SASL frame":      {b, bareOpen + "\x00\x00\x00\x0c\x02\x01\x00\x00\x00\x53\x40\x45", "framing-error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc, err := net.Dial("tcp", c.b.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			nc.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.WriteString(nc, c.input); err != nil {
				t.Fatal(err)
			}
			nc.(*net.TCPConn).CloseWrite()
			got, _ := io.ReadAll(nc) // ends with EOF or, where input was left unread, a reset
			if !strings.Contains(string(got), c.want) {
				t.Errorf("answer %q", got)
			}
		})
	}
}

// bareOpen is a protocol header and an open with container-id "c".
const bareOpen = "AMQP\x00\x01\x00\x00\x00\x00\x00\x11\x02\x00\x00\x00\x00\x53\x10\xc0\x04\x01\xa1\x01c"

// certificate makes a self-signed certificate for 127.0.0.1.
func certificate(t *testing.T, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestExternalTakesTheUserFromTheClientCertificate(t *testing.T) {
	t.Parallel()
	server, serverPool := certificate(t, "broker")
	client, clientPool := certificate(t, "koji-hub")
	b := start(t, devbroker.Options{
		Mechanisms: []string{"EXTERNAL"},
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{server}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clientPool,
		},
	})
	external := func(certificates ...tls.Certificate) error {
		c, err := amqp.Dial(soon(t), b.URL(), &amqp.ConnOptions{
			SASLType: amqp.SASLTypeExternal(""), TLSConfig: &tls.Config{RootCAs: serverPool,
				Certificates: certificates},
		})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	}
	if err := external(); err == nil {
		t.Error("a client without a certificate came in")
	}
	if err := external(client); err != nil {
		t.Fatal(err)
	}
	if info := b.Connections(); len(info) != 1 || info[0].User != "koji-hub" {
		t.Errorf("%+v", info)
	}
	b.Inflict("", devbroker.DropConnection, devbroker.Cause{})
	if err := b.Wait(soon(t), func(s devbroker.Stats) bool { return s.Live == 0 }); err != nil {
		t.Error(err)
	}
}

func TestClosedBrokerStaysClosed(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	b.Close()
	b.Close()
	if err := b.Start(); err == nil {
		t.Error("it starts again")
	}
	if _, err := devbroker.New(devbroker.Options{MaxFrameSize: 100}); err == nil {
		t.Error("frames of 100 bytes are too small for AMQP")
	}
	taken := start(t, devbroker.Options{})
	second, err := devbroker.New(devbroker.Options{Addr: taken.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	var inUse *net.OpError
	if err := second.Start(); !errors.As(err, &inUse) {
		t.Errorf("address in use: %v", err)
	}
}
