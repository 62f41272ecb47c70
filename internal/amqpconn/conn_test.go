package amqpconn

import (
	"errors"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"go.uber.org/goleak"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/endpoint"
	"koji-relay/internal/amqpconn/sasl"
	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startBroker gives a running scripted broker.
func startBroker(t testing.TB, o devbroker.Options) *devbroker.Broker {
	t.Helper()
	b, err := devbroker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func testOptions() Options {
	return Options{
		TopicPrefix: "/topic/koji", Dialect: dialect.Auto, SASL: sasl.Auto,
		ConnectTimeout: 5 * time.Second, SendTimeout: time.Minute, IdleTimeout: 30 * time.Second,
	}
}

// connect dials b; what is open is closed at the end of the test.
func connect(t *testing.T, b *devbroker.Broker, adjust func(*Options)) (*Conn, error) {
	t.Helper()
	o := testOptions()
	if adjust != nil {
		adjust(&o)
	}
	e, err := endpoint.Parse(b.URL())
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial(t.Context(), &o, e, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func TestEndOfAConnectionHasAReason(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]message.Failure{
		errors.New("EOF"): message.FailedLost, DropError{"nothing settled"}: message.FailedTimeout,
	} {
		if got := EndedBy(err); got != want {
			t.Errorf("the end by %v is %q, want %q", err, got, want)
		}
	}
}

// RabbitMQ before 4.1.3 loses a begin that takes up the number of a session right after its end. The driver
// gives the lowest free number at once.
func TestSessionAfterTheEndOfAnotherIsAnswered(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{SlowEnd: numberRest * 4 / 5})
	b.Script("/topic/koji.refused", devbroker.Behaviour{Refuse: devbroker.RefuseSession})
	c, err := connect(t, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		if _, err := c.OpenSender(t.Context(), "/topic/koji.refused"); err == nil {
			t.Fatal("it is not refused")
		}
		s, err := c.OpenSender(t.Context(), "/topic/koji."+strconv.Itoa(round))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Send(&amqp.Message{Value: "x"}, nil, false); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEndOfAConnectionIsBounded(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	c, err := connect(t, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	c.spawn(func() { <-release })
	if c.Close() {
		t.Error("what does not end has ended")
	}
	close(release)
	if !c.Close() {
		t.Error("what has ended has not")
	}
}
