package integration

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/uuid"
)

// TestChaosAccountFindsFaults: an account that finds nothing wrong is believed because it finds what is.
func TestChaosAccountFindsFaults(t *testing.T) {
	t.Parallel()
	const build, events = 1, 6
	for _, row := range []struct {
		name   string
		spoil  func(arrivals [][]delivery)
		state  string // of the third commit
		result result // what must be found
	}{
		{"nothing is wrong", func([][]delivery) {}, "handed", result{HandedOver: events}},
		{"one is missing", func(a [][]delivery) { a[0] = a[0][1:] }, "handed", result{HandedOver: events, Lost: 1}},
		{"another body", func(a [][]delivery) { *a[0][2].Body += " " }, "handed",
			result{HandedOver: events, Altered: 1}},
		{"another message-id", func(a [][]delivery) { a[0][2].ID = uuid.NewString() }, "handed",
			result{HandedOver: events, Altered: 1}},
		{"another property", func(a [][]delivery) { a[0][2].Props[0].Value = json.RawMessage(`"x"`) }, "handed",
			result{HandedOver: events, Altered: 1}},
		{"overtaken", func(a [][]delivery) { a[0][1], a[0][2] = a[0][2], a[0][1] }, "handed",
			result{HandedOver: events, Disorder: 1}},
		{"overtaken at another broker", func(a [][]delivery) { a[1], a[0] = a[0][:2], a[0][2:] }, "handed",
			result{HandedOver: events}},
		{"twice", func(a [][]delivery) { a[1] = append(a[1], a[0][4]) }, "handed",
			result{HandedOver: events, Duplicates: 1}},
		{"undone, but received", func([][]delivery) {}, "undone", result{HandedOver: events - 1, Phantoms: 1}},
	} {
		t.Run(row.name, func(t *testing.T) {
			quiet := &recorder{TB: t}
			c := &chaos{TB: quiet, ordered: true, kinds: [3]brokerKind{rabbitmq40, rabbitmq40, rabbitmq40}}
			c.account = newAccount(c)
			committed := make(map[int]bool)
			var arrivals [3][]delivery
			for i := range events {
				number, state := build*numbersEach+1+i, "handed"
				if i == 2 {
					state = row.state
				}
				committed[number] = state == "handed"
				arrivals[0] = append(arrivals[0], c.account.pretend(t, build, number, state))
			}
			row.spoil(arrivals[:])
			r := c.account.close(arrivals, committed)
			got := result{HandedOver: r.HandedOver, Lost: r.Lost, Altered: r.Altered, Disorder: r.Disorder,
				Duplicates: r.Duplicates, Phantoms: r.Phantoms}
			if fmt.Sprint(got) != fmt.Sprint(row.result) {
				t.Errorf("found %+v, want %+v", got, row.result)
			}
			wrong := row.result.Lost+row.result.Altered+row.result.Disorder+row.result.Phantoms > 0
			if quiet.failed != wrong {
				t.Errorf("the run failed: %v, want %v", quiet.failed, wrong)
			}
		})
	}
}

// pretend makes the lines of a hub for a commit of one event, and the message that must come of it.
func (a *account) pretend(t *testing.T, build, number int, state string) delivery {
	t.Helper()
	id, kind := uuid.NewString(), kinds[number%2]
	body := fmt.Sprintf(`{"build": {"build_id": %d}}`, number)
	var line workerLine
	text := fmt.Sprintf(`{"commit": %q, "build": %d, "events": [[%d, %q, %q, true]]}`, id, build, number,
		kind.callback, body)
	if err := json.Unmarshal([]byte(text), &line); err != nil {
		t.Fatal(err)
	}
	h := &hub{delivery: "direct"}
	a.hear(h, line)
	a.hear(h, workerLine{End: id, State: state, Ways: []string{"exchange"}})
	d := delivery{ID: messageID(id, 0), Body: &body}
	for _, p := range [][2]string{{"name", fmt.Sprintf("pkg-%d", build)},
		{"release", fmt.Sprintf("%d.fc39", number)}, {"tag", "f39-candidate"}, {"type", kind.kind},
		{"user", "kojiadmin"}, {"version", "1.0"}} {
		d.Props = append(d.Props, prop{p[0], "string", json.RawMessage(fmt.Sprintf("%q", p[1]))})
	}
	return d
}

// recorder notes that a test would have failed.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Errorf(string, ...any) { r.failed = true }
func (r *recorder) Error(...any)          { r.failed = true }
func (r *recorder) Logf(string, ...any)   {}
