package relay

import (
	"context"
	"crypto/tls"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

func TestFailureToConnectHasAReasonFromABoundedSet(t *testing.T) {
	t.Parallel()
	stranger := httptest.NewTLSServer(nil)
	defer stranger.Close()
	stopped := startBroker(t, devbroker.Options{})
	stopped.Stop()
	refusing := startBroker(t, devbroker.Options{})
	refusing.Script("#", refuse(devbroker.RefuseSession, "amqp:unauthorized-access"))
	silent := startBroker(t, devbroker.Options{})
	silent.ScriptConnections(devbroker.ConnBehaviour{StallAt: devbroker.StageOpen})
	for _, row := range []struct {
		want   message.Failure
		broker *devbroker.Broker
		adjust func(*Options)
	}{
		{"connect", stopped, nil},
		{"tls", startBroker(t, devbroker.Options{TLSConfig: &tls.Config{Certificates: stranger.TLS.Certificates}}),
			nil},
		{"sasl", startBroker(t, devbroker.Options{Users: map[string]string{"u": "p"}}),
			func(o *Options) {
				o.Brokers[0].URL = strings.Replace(o.Brokers[0].URL, "amqp://", "amqp://u:wrong@", 1)
			}},
		{"link", refusing, nil},
		{"timeout", silent, func(o *Options) { o.ConnectTimeout = 100 * time.Millisecond }},
	} {
		t.Run(string(row.want), func(t *testing.T) {
			t.Parallel()
			failed := make(chan message.Failure, 100) // more than there are attempts in a test
			startRelay(t, func(o *Options) {
				if row.adjust != nil {
					row.adjust(o)
				}
				o.Observer.Failed = func(_ string, failure message.Failure) { failed <- failure }
			}, row.broker)
			select {
			case got := <-failed:
				if got != row.want {
					t.Errorf("failure is %q, want %q", got, row.want)
				}
			case <-time.After(2 * time.Minute):
				t.Error("no failure was reported")
			}
		})
	}
}

func TestStoppingIsNoFailure(t *testing.T) {
	t.Parallel()
	failed := make(chan message.Failure, 100)
	w := startRelay(t, func(o *Options) {
		o.Observer.Failed = func(_ string, failure message.Failure) { failed <- failure }
	}, startBroker(t, devbroker.Options{}))
	w.await(0, Up)
	w.stop()
	select {
	case f := <-failed:
		t.Errorf("the stop of the relay counts as a failure: %q", f)
	default:
	}
}

func TestOutcomeNamesWhatItsStateDoesNot(t *testing.T) {
	t.Parallel()
	for verdict, want := range map[verdict]message.Failure{tooLarge: "too_large", unencodable: "unencodable",
		lost: "lost", unanswered: "timeout", blocked: "timeout", refused: "", busy: "", accepted: ""} {
		if got := (result{verdict: verdict}).outcome(false).Failure; got != want {
			t.Errorf("%v gives %q, want %q", verdict, got, want)
		}
	}
	if got := judgeRefusal(context.Canceled, dialect.Peer{}).outcome(false); got.Failure != "link" ||
		got.State != message.NotSent {
		t.Errorf("a refused link gives %+v", got)
	}
}

// A proxy before a broker that is down accepts and hangs up.
func TestUnchangedCauseIsLoggedOnceWhateverTheSocketSays(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	attempts := make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1))
			_ = c.(*net.TCPConn).SetLinger(0) // a reset
			_ = c.Close()
			attempts <- struct{}{}
		}
	}()
	w, log := logged(t, func(o *Options) { o.Brokers = []Broker{{URL: "amqp://" + l.Addr().String()}} })
	for range 4 {
		<-attempts
	}
	w.stop()
	wantLines(t, log, 1, "broker down")
}
