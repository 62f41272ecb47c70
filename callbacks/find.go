package callbacks

// maxDepth is how deeply kwargs may be nested. Python's json.dumps, which wrote them, gives up at its
// recursion limit (1000 by default), and PostgreSQL's json type a few thousand levels later.
const maxDepth = 1000

// span is a part of the kwargs, by offsets.
type span struct{ start, end int }

// found is what one pass over the kwargs brings back for a rule.
type found struct {
	values  [maxPlaces][]byte // raw values by position, nil where missing
	build   span              // the dict whose `extra` may be cut
	extra   []byte            // its `extra`, raw; nil where missing
	taskID  bool              // the kwargs have a task_id
	members int
	end     int // behind the last member
}

// notObject is the reason why kwargs that are JSON are not kwargs.
type notObject string

func (k notObject) Error() string { return "kwargs are " + string(k) + ", not a JSON object" }

// find passes over kwargs once, checks that they are one JSON object, and collects what b reads. Of a key
// that is there twice the last one counts, as in Python.
func (b *boundRule) find(kwargs []byte) (found, error) {
	var f found
	c := cursor{data: kwargs, room: maxDepth}
	if c.space() != '{' {
		raw, err := c.value()
		if err == nil {
			err = c.end()
		}
		if err != nil {
			return f, notJSON(err)
		}
		return f, notObject(kindOf(raw))
	}
	if err := c.enter(); err != nil {
		return f, notJSON(err)
	}
	f.end = c.pos
	for {
		m, more, err := c.nextMember(f.members == 0)
		if err == nil && !more {
			err = c.end()
		}
		if err != nil {
			return f, notJSON(err)
		}
		if !more {
			return f, nil
		}
		if err := b.readMember(&c, &f, m.key); err != nil {
			return f, notJSON(err)
		}
		f.members++
		f.end = c.pos
	}
}

func notJSON(err error) error { return &kwargsError{err} }

// kwargsError is text that is not JSON.
type kwargsError struct{ err error }

func (e *kwargsError) Error() string { return "kwargs are not JSON that can be sent: " + e.err.Error() }
func (e *kwargsError) Unwrap() error { return e.err }

// readMember passes over one value of the kwargs and keeps what b wants of it.
func (b *boundRule) readMember(c *cursor, f *found, key []byte) error {
	top, dict := "", false // the name by which b knows the key, and whether b reads inside its value
	for i, p := range b.places {
		if keyIs(key, p.top) {
			top, dict = p.top, dict || p.sub != ""
			f.values[i] = nil
		}
	}
	if top != "" && top == b.build {
		f.build, f.extra = span{}, nil
	}
	if b.taskID && keyIs(key, "task_id") {
		f.taskID = true
	}
	if dict && c.at('{') {
		return b.readDict(c, f, top)
	}
	raw, err := c.value()
	if err != nil {
		return err
	}
	for i, p := range b.places {
		if p == (place{top: top}) {
			f.values[i] = raw
		}
	}
	return nil
}

// readDict does the same for the members of the dict top.
func (b *boundRule) readDict(c *cursor, f *found, top string) error {
	start, trimmed := c.pos, top == b.build
	if err := c.enter(); err != nil {
		return err
	}
	for first := true; ; first = false {
		m, more, err := c.nextMember(first)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		raw, err := c.value()
		if err != nil {
			return err
		}
		for i, p := range b.places {
			if p.sub != "" && p.top == top && keyIs(m.key, p.sub) {
				f.values[i] = raw
			}
		}
		if trimmed && keyIs(m.key, "extra") {
			f.extra = raw
		}
	}
	if trimmed {
		f.build = span{start, c.pos}
	}
	return nil
}
