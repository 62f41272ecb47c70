package devbroker

// Descriptors (AMQP 1.0, parts 2, 3 and 5).
const (
	codeOpen           = 0x10
	codeBegin          = 0x11
	codeAttach         = 0x12
	codeFlow           = 0x13
	codeTransfer       = 0x14
	codeDisposition    = 0x15
	codeDetach         = 0x16
	codeEnd            = 0x17
	codeClose          = 0x18
	codeError          = 0x1d
	codeReceived       = 0x23
	codeAccepted       = 0x24
	codeRejected       = 0x25
	codeReleased       = 0x26
	codeModified       = 0x27
	codeSource         = 0x28
	codeTarget         = 0x29
	codeSASLMechanisms = 0x40
	codeSASLInit       = 0x41
	codeSASLOutcome    = 0x44
	codeProperties     = 0x73
)

// descriptorCodes maps the symbolic descriptors, which a peer may use instead of the numbers.
var descriptorCodes = map[symbol]uint64{
	"amqp:open:list":                  codeOpen,
	"amqp:begin:list":                 codeBegin,
	"amqp:attach:list":                codeAttach,
	"amqp:flow:list":                  codeFlow,
	"amqp:transfer:list":              codeTransfer,
	"amqp:disposition:list":           codeDisposition,
	"amqp:detach:list":                codeDetach,
	"amqp:end:list":                   codeEnd,
	"amqp:close:list":                 codeClose,
	"amqp:error:list":                 codeError,
	"amqp:received:list":              codeReceived,
	"amqp:accepted:list":              codeAccepted,
	"amqp:rejected:list":              codeRejected,
	"amqp:released:list":              codeReleased,
	"amqp:modified:list":              codeModified,
	"amqp:source:list":                codeSource,
	"amqp:target:list":                codeTarget,
	"amqp:sasl-mechanisms:list":       codeSASLMechanisms,
	"amqp:sasl-init:list":             codeSASLInit,
	"amqp:sasl-outcome:list":          codeSASLOutcome,
	"amqp:header:list":                0x70,
	"amqp:delivery-annotations:map":   0x71,
	"amqp:message-annotations:map":    0x72,
	"amqp:properties:list":            codeProperties,
	"amqp:application-properties:map": 0x74,
}

func canonicalDescriptor(d any) any {
	if s, ok := d.(symbol); ok {
		if code, known := descriptorCodes[s]; known {
			return code
		}
	}
	return d
}

// code is v's numeric descriptor, or 0 when it has none that this package knows.
func (v described) code() uint64 {
	code, _ := v.descriptor.(uint64)
	return code
}

// fields reads the positional fields of a described list. The first field of a wrong type is remembered
// in err, and everything read after it is to be thrown away.
type fields struct {
	of   string
	list []any
	err  error
}

func fieldsOf(of string, v any) *fields {
	list, ok := v.([]any)
	f := &fields{of: of, list: list}
	if !ok {
		f.err = malformed("%s is no list", of)
	}
	return f
}

func (f *fields) at(i int) any {
	if i >= len(f.list) {
		return nil
	}
	return f.list[i]
}

// field reads field i as a T. ok is false when it is absent.
func field[T any](f *fields, i int) (v T, ok bool) {
	raw := f.at(i)
	if raw == nil {
		return v, false
	}
	v, ok = raw.(T)
	if !ok && f.err == nil {
		f.err = malformed("%s field %d is a %T", f.of, i, raw)
	}
	return v, ok
}

func fieldOr[T any](f *fields, i int, absent T) T {
	if v, ok := field[T](f, i); ok {
		return v
	}
	return absent
}

// optional is field i as a pointer, nil when absent.
func optional[T any](f *fields, i int) *T {
	if v, ok := field[T](f, i); ok {
		return &v
	}
	return nil
}

func (f *fields) required(i int) {
	if f.at(i) == nil && f.err == nil {
		f.err = malformed("%s lacks field %d", f.of, i)
	}
}

// symbolsAt reads a "multiple" field of symbols: absent, one, or an array.
func (f *fields) symbolsAt(i int) symbols {
	switch v := f.at(i).(type) {
	case symbol:
		return symbols{v}
	case array:
		var all symbols
		for _, e := range v {
			if s, ok := e.(symbol); ok {
				all = append(all, s)
			}
		}
		return all
	}
	return nil
}

// Cause is an AMQP error: a condition such as "amqp:resource-limit-exceeded" and a description for a person.
// The zero Cause is no error.
type Cause struct {
	Condition   string
	Description string
}

func (c Cause) encode() any {
	if c == (Cause{}) {
		return nil
	}
	var description any
	if c.Description != "" {
		description = c.Description
	}
	return described{uint64(codeError), []any{symbol(c.Condition), description}}
}

type open struct {
	containerID  string
	hostname     string
	maxFrameSize uint32
	channelMax   uint16
	idleTimeout  uint32 // milliseconds; 0 = none
}

func decodeOpen(v any) (open, error) {
	f := fieldsOf("open", v)
	f.required(0)
	o := open{
		containerID:  fieldOr(f, 0, ""),
		hostname:     fieldOr(f, 1, ""),
		maxFrameSize: fieldOr(f, 2, uint32(1<<32-1)),
		channelMax:   fieldOr(f, 3, uint16(1<<16-1)),
		idleTimeout:  fieldOr(f, 4, uint32(0)),
	}
	return o, f.err
}

type begin struct {
	nextOutgoingID uint32
	incomingWindow uint32
	outgoingWindow uint32
	handleMax      uint32
}

func decodeBegin(v any) (begin, error) {
	f := fieldsOf("begin", v)
	for i := 1; i <= 3; i++ {
		f.required(i)
	}
	b := begin{
		nextOutgoingID: fieldOr(f, 1, uint32(0)),
		incomingWindow: fieldOr(f, 2, uint32(0)),
		outgoingWindow: fieldOr(f, 3, uint32(0)),
		handleMax:      fieldOr(f, 4, uint32(1<<32-1)),
	}
	return b, f.err
}

// terminus is a source or a target: only what the broker looks at.
type terminus struct {
	address      *string
	durable      uint32
	expiry       symbol
	dynamic      bool
	capabilities symbols
	raw          described // as the peer sent it, echoed in the answer
}

func decodeTerminus(v any) (*terminus, error) {
	if v == nil {
		return nil, nil
	}
	d, ok := v.(described)
	if !ok || (d.code() != codeSource && d.code() != codeTarget) {
		return nil, malformed("terminus is a %T", v)
	}
	f := fieldsOf("terminus", d.value)
	t := &terminus{
		address: optional[string](f, 0),
		durable: fieldOr(f, 1, uint32(0)),
		expiry:  fieldOr(f, 2, symbol("")),
		dynamic: fieldOr(f, 4, false),
		raw:     d,
	}
	capabilities := 6
	if d.code() == codeSource {
		capabilities = 10
	}
	t.capabilities = f.symbolsAt(capabilities)
	return t, f.err
}

type attach struct {
	name                 string
	handle               uint32
	receiver             bool // the peer's role
	sndSettleMode        uint8
	rcvSettleMode        uint8
	source, target       *terminus
	initialDeliveryCount uint32
	maxMessageSize       uint64
}

func decodeAttach(v any) (attach, error) {
	f := fieldsOf("attach", v)
	for i := range 3 {
		f.required(i)
	}
	a := attach{
		name:                 fieldOr(f, 0, ""),
		handle:               fieldOr(f, 1, uint32(0)),
		receiver:             fieldOr(f, 2, false),
		sndSettleMode:        fieldOr(f, 3, uint8(2)),
		rcvSettleMode:        fieldOr(f, 4, uint8(0)),
		initialDeliveryCount: fieldOr(f, 9, uint32(0)),
		maxMessageSize:       fieldOr(f, 10, uint64(0)),
	}
	if f.err != nil {
		return a, f.err
	}
	var err error
	if a.source, err = decodeTerminus(f.at(5)); err != nil {
		return a, err
	}
	a.target, err = decodeTerminus(f.at(6))
	return a, err
}

type flow struct {
	nextIncomingID *uint32
	incomingWindow uint32
	handle         *uint32
	deliveryCount  *uint32
	linkCredit     *uint32
	drain, echo    bool
}

func decodeFlow(v any) (flow, error) {
	f := fieldsOf("flow", v)
	fl := flow{
		nextIncomingID: optional[uint32](f, 0),
		incomingWindow: fieldOr(f, 1, uint32(0)),
		handle:         optional[uint32](f, 4),
		deliveryCount:  optional[uint32](f, 5),
		linkCredit:     optional[uint32](f, 6),
		drain:          fieldOr(f, 8, false),
		echo:           fieldOr(f, 9, false),
	}
	return fl, f.err
}

type transfer struct {
	handle     uint32
	deliveryID *uint32
	tag        []byte
	settled    bool
	more       bool
	aborted    bool
	payload    []byte
}

func decodeTransfer(v any, payload []byte) (transfer, error) {
	f := fieldsOf("transfer", v)
	f.required(0)
	t := transfer{
		handle:     fieldOr(f, 0, uint32(0)),
		deliveryID: optional[uint32](f, 1),
		tag:        fieldOr(f, 2, []byte(nil)),
		settled:    fieldOr(f, 4, false),
		more:       fieldOr(f, 5, false),
		aborted:    fieldOr(f, 9, false),
		payload:    payload,
	}
	return t, f.err
}

type disposition struct {
	receiver    bool // the peer's role
	first, last uint32
	settled     bool
	state       uint64 // descriptor of the delivery state, 0 = none
}

func decodeDisposition(v any) (disposition, error) {
	f := fieldsOf("disposition", v)
	f.required(0)
	f.required(1)
	d := disposition{
		receiver: fieldOr(f, 0, false),
		first:    fieldOr(f, 1, uint32(0)),
		settled:  fieldOr(f, 3, false),
	}
	d.last = fieldOr(f, 2, d.first)
	if state, ok := field[described](f, 4); ok {
		d.state = state.code()
	}
	return d, f.err
}

type detach struct {
	handle uint32
	closed bool
}

func decodeDetach(v any) (detach, error) {
	f := fieldsOf("detach", v)
	f.required(0)
	return detach{handle: fieldOr(f, 0, uint32(0)), closed: fieldOr(f, 1, false)}, f.err
}
