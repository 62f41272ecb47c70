package callbacks

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"koji-relay/internal/message"
)

// DecodeCommit reads one commit of the hub API:
//
//	{"commit": "UUID", "events": [{"event": 0, "callback": "postTag", "kwargs": {…}}, …]}
//
// Unknown keys are ignored, an absent event number is the position, the commit's UUID comes back in lower
// case. Kwargs are not copied: they are parts of data, which must not change while they are used. They are
// JSON values of any kind, not checked for UTF-8; Translate judges them, one event at a time. The error names
// the field or the byte offset; it is message.ErrTooManyEvents where reading on would cost too much.
func DecodeCommit(data []byte) (message.Commit, error) {
	d := decoder{cursor: cursor{data: data, room: math.MaxInt}}
	if err := d.commit(); err != nil {
		return message.Commit{}, err
	}
	return d.out, nil
}

type decoder struct {
	cursor
	out message.Commit
	// numbers has the position of each event number; nil as long as they ascend, which they do in practice.
	numbers map[int]int
}

// fieldError is a value that is JSON but not what the hub API has in that place.
type fieldError struct {
	field string
	what  string
}

func (e *fieldError) Error() string { return e.field + " " + e.what }

func (d *decoder) commit() error {
	if b := d.space(); b != '{' {
		if d.pos >= len(d.data) {
			return d.fail("the text is empty; a commit is a JSON object")
		}
		return d.unexpected("a commit, which is a JSON object,")
	}
	if err := d.enter(); err != nil {
		return err
	}
	haveID, haveEvents := false, false
	for first := true; ; first = false {
		m, more, err := d.nextMember(first)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		switch {
		case keyIs(m.key, "commit"):
			err = once(&haveID, top, "commit")
			if err == nil {
				err = d.id()
			}
		case keyIs(m.key, "events"):
			err = once(&haveEvents, top, "events")
			if err == nil {
				err = d.events()
			}
		default:
			_, err = d.value()
		}
		if err != nil {
			return err
		}
	}
	if err := d.end(); err != nil {
		return err
	}
	if !haveID {
		return &fieldError{"commit", "is missing"}
	}
	if !haveEvents {
		return &fieldError{"events", "is missing"}
	}
	return nil
}

// once notes that a field was seen and refuses it the second time.
func once(seen *bool, position int, name string) error {
	if *seen {
		return &fieldError{field(position, name), "is given twice"}
	}
	*seen = true
	return nil
}

// top is the position of the fields that belong to no event.
const top = -1

// field is the path of a field, or of the whole event where name is empty.
func field(position int, name string) string {
	if position == top {
		return name
	}
	path := "events[" + strconv.Itoa(position) + "]"
	if name != "" {
		path += "." + name
	}
	return path
}

func (d *decoder) id() error {
	raw, err := d.value()
	if err != nil {
		return err
	}
	text, err := textField(top, "commit", raw)
	if err != nil {
		return err
	}
	id, err := parseUUID(text)
	if err != nil {
		return err
	}
	d.out.ID = id.String()
	return nil
}

func (d *decoder) events() error {
	if !d.at('[') {
		raw, err := d.value()
		if err != nil {
			return err
		}
		return &fieldError{"events", "is " + kindOf(raw) + ", not an array"}
	}
	if err := d.enter(); err != nil {
		return err
	}
	for first := true; ; first = false {
		more, err := d.nextElement(first, ']')
		if err != nil || !more {
			return err
		}
		if len(d.out.Events) == message.MaxEvents {
			return message.ErrTooManyEvents
		}
		event, err := d.event()
		if err != nil {
			return err
		}
		if err := d.claim(event.Number); err != nil {
			return err
		}
		d.out.Events = append(d.out.Events, event)
	}
}

// event reads one element of events.
func (d *decoder) event() (message.Event, error) {
	position := len(d.out.Events)
	event := message.Event{Number: position}
	if !d.at('{') {
		raw, err := d.value()
		if err != nil {
			return event, err
		}
		return event, &fieldError{field(position, ""), "is " + kindOf(raw) + ", not an object"}
	}
	if err := d.enter(); err != nil {
		return event, err
	}
	var number, callback, kwargs bool
	for first := true; ; first = false {
		m, more, err := d.nextMember(first)
		if err != nil {
			return event, err
		}
		if !more {
			break
		}
		raw, err := d.value()
		if err != nil {
			return event, err
		}
		switch {
		case keyIs(m.key, "event"):
			err = once(&number, position, "event")
			if err == nil {
				event.Number, err = numberField(position, raw)
			}
		case keyIs(m.key, "callback"):
			err = once(&callback, position, "callback")
			if err == nil {
				event.Callback, err = callbackField(position, raw)
			}
		case keyIs(m.key, "kwargs"):
			err = once(&kwargs, position, "kwargs")
			event.Kwargs = raw
		}
		if err != nil {
			return event, err
		}
	}
	if !callback {
		return event, &fieldError{field(position, "callback"), "is missing"}
	}
	if !kwargs {
		return event, &fieldError{field(position, "kwargs"), "is missing"}
	}
	return event, nil
}

// textField decodes a string that goes into logs and tables.
func textField(position int, name string, raw []byte) (string, error) {
	if raw[0] != '"' {
		return "", &fieldError{field(position, name), "is " + kindOf(raw) + ", not a string"}
	}
	text, ok := stringValue(raw)
	if !ok || !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
		return "", &fieldError{field(position, name),
			"is not text: it holds U+0000, half a surrogate pair or bytes that are not UTF-8"}
	}
	return text, nil
}

// callbackField gives the callback's name; those of the table cost no allocation.
func callbackField(position int, raw []byte) (string, error) {
	if raw[0] == '"' {
		if rule := table[string(raw[1:len(raw)-1])]; rule != nil {
			return rule.callback, nil
		}
	}
	name, err := textField(position, "callback", raw)
	if err == nil && name == "" {
		err = &fieldError{field(position, "callback"), "is empty"}
	}
	return name, err
}

// numberField reads an event number. The bound is that of an integer column in the database.
func numberField(position int, raw []byte) (int, error) {
	if kind := kindOf(raw); kind != "a number" {
		return 0, &fieldError{field(position, "event"), "is " + kind + ", not a number"}
	}
	n, err := strconv.ParseInt(string(raw), 10, 32)
	if err != nil || n < 0 || !isInteger(raw) {
		return 0, &fieldError{field(position, "event"),
			fmt.Sprintf("is %s, not a whole number from 0 to %d", shorten(raw), math.MaxInt32)}
	}
	return int(n), nil
}

// claim refuses a number that an earlier event has: the two would share a message-id and one of them be lost.
func (d *decoder) claim(number int) error {
	position := len(d.out.Events)
	if d.numbers == nil {
		if position == 0 || number > d.out.Events[position-1].Number {
			return nil
		}
		d.numbers = make(map[int]int, position)
		for i, earlier := range d.out.Events {
			d.numbers[earlier.Number] = i
		}
	}
	if earlier, taken := d.numbers[number]; taken {
		return &fieldError{field(position, "event"),
			fmt.Sprintf("is %d, the number of events[%d] already", number, earlier)}
	}
	d.numbers[number] = position
	return nil
}
