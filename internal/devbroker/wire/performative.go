package wire

// Descriptors (AMQP 1.0, parts 2, 3 and 5).
const (
	CodeOpen           = 0x10
	CodeBegin          = 0x11
	CodeAttach         = 0x12
	CodeFlow           = 0x13
	CodeTransfer       = 0x14
	CodeDisposition    = 0x15
	CodeDetach         = 0x16
	CodeEnd            = 0x17
	CodeClose          = 0x18
	CodeError          = 0x1d
	CodeReceived       = 0x23
	CodeAccepted       = 0x24
	CodeRejected       = 0x25
	CodeReleased       = 0x26
	CodeModified       = 0x27
	CodeSource         = 0x28
	CodeTarget         = 0x29
	CodeSASLMechanisms = 0x40
	CodeSASLInit       = 0x41
	CodeSASLOutcome    = 0x44
	codeProperties     = 0x73
)

// descriptorCodes maps the symbolic descriptors, which a peer may use instead of the numbers.
var descriptorCodes = map[Symbol]uint64{
	"amqp:open:list":                  CodeOpen,
	"amqp:begin:list":                 CodeBegin,
	"amqp:attach:list":                CodeAttach,
	"amqp:flow:list":                  CodeFlow,
	"amqp:transfer:list":              CodeTransfer,
	"amqp:disposition:list":           CodeDisposition,
	"amqp:detach:list":                CodeDetach,
	"amqp:end:list":                   CodeEnd,
	"amqp:close:list":                 CodeClose,
	"amqp:error:list":                 CodeError,
	"amqp:received:list":              CodeReceived,
	"amqp:accepted:list":              CodeAccepted,
	"amqp:rejected:list":              CodeRejected,
	"amqp:released:list":              CodeReleased,
	"amqp:modified:list":              CodeModified,
	"amqp:source:list":                CodeSource,
	"amqp:target:list":                CodeTarget,
	"amqp:sasl-mechanisms:list":       CodeSASLMechanisms,
	"amqp:sasl-init:list":             CodeSASLInit,
	"amqp:sasl-outcome:list":          CodeSASLOutcome,
	"amqp:header:list":                0x70,
	"amqp:delivery-annotations:map":   0x71,
	"amqp:message-annotations:map":    0x72,
	"amqp:properties:list":            codeProperties,
	"amqp:application-properties:map": 0x74,
}

func canonicalDescriptor(d any) any {
	if s, ok := d.(Symbol); ok {
		if code, known := descriptorCodes[s]; known {
			return code
		}
	}
	return d
}

// Code is v's numeric descriptor, or 0 when it has none that this package knows.
func (v Described) Code() uint64 {
	code, _ := v.Descriptor.(uint64)
	return code
}

// Fields reads the positional fields of a described list. The first field of a wrong type is remembered
// in err, and everything read after it is to be thrown away.
type Fields struct {
	of   string
	list []any
	Err  error
}

// FieldsOf gives the fields of v, which must be a list; of names it in errors.
func FieldsOf(of string, v any) *Fields {
	list, ok := v.([]any)
	f := &Fields{of: of, list: list}
	if !ok {
		f.Err = Malformed("%s is no list", of)
	}
	return f
}

func (f *Fields) at(i int) any {
	if i >= len(f.list) {
		return nil
	}
	return f.list[i]
}

// field reads field i as a T. ok is false when it is absent.
func field[T any](f *Fields, i int) (v T, ok bool) {
	raw := f.at(i)
	if raw == nil {
		return v, false
	}
	v, ok = raw.(T)
	if !ok && f.Err == nil {
		f.Err = Malformed("%s field %d is a %T", f.of, i, raw)
	}
	return v, ok
}

// FieldOr reads field i as a T, or gives what its absence means.
func FieldOr[T any](f *Fields, i int, absent T) T {
	if v, ok := field[T](f, i); ok {
		return v
	}
	return absent
}

// optional is field i as a pointer, nil when absent.
func optional[T any](f *Fields, i int) *T {
	if v, ok := field[T](f, i); ok {
		return &v
	}
	return nil
}

func (f *Fields) required(i int) {
	if f.at(i) == nil && f.Err == nil {
		f.Err = Malformed("%s lacks field %d", f.of, i)
	}
}

// symbolsAt reads a "multiple" field of symbols: absent, one, or an array.
func (f *Fields) symbolsAt(i int) Symbols {
	switch v := f.at(i).(type) {
	case Symbol:
		return Symbols{v}
	case array:
		var all Symbols
		for _, e := range v {
			if s, ok := e.(Symbol); ok {
				all = append(all, s)
			}
		}
		return all
	}
	return nil
}

// Open is what the broker looks at of an open.
type Open struct {
	ContainerID  string
	Hostname     string
	MaxFrameSize uint32
	IdleTimeout  uint32 // milliseconds; 0 = none
}

// DecodeOpen reads the list of an open. As with all Decode functions, its error is an *Error.
func DecodeOpen(v any) (Open, error) {
	f := FieldsOf("open", v)
	f.required(0)
	o := Open{
		ContainerID:  FieldOr(f, 0, ""),
		Hostname:     FieldOr(f, 1, ""),
		MaxFrameSize: FieldOr(f, 2, uint32(1<<32-1)),
		IdleTimeout:  FieldOr(f, 4, uint32(0)),
	}
	return o, f.Err
}

// Begin is what the broker looks at of a begin.
type Begin struct {
	NextOutgoingID uint32
	IncomingWindow uint32
}

// DecodeBegin reads the list of a begin.
func DecodeBegin(v any) (Begin, error) {
	f := FieldsOf("begin", v)
	for i := 1; i <= 3; i++ {
		f.required(i)
	}
	b := Begin{
		NextOutgoingID: FieldOr(f, 1, uint32(0)),
		IncomingWindow: FieldOr(f, 2, uint32(0)),
	}
	return b, f.Err
}

// Terminus is a source or a target: only what the broker looks at.
type Terminus struct {
	Address      *string
	Durable      uint32
	Expiry       Symbol
	Dynamic      bool
	Capabilities Symbols
}

func decodeTerminus(v any) (*Terminus, error) {
	if v == nil {
		return nil, nil
	}
	d, ok := v.(Described)
	if !ok || (d.Code() != CodeSource && d.Code() != CodeTarget) {
		return nil, Malformed("terminus is a %T", v)
	}
	f := FieldsOf("terminus", d.Value)
	t := &Terminus{
		Address: optional[string](f, 0),
		Durable: FieldOr(f, 1, uint32(0)),
		Expiry:  FieldOr(f, 2, Symbol("")),
		Dynamic: FieldOr(f, 4, false),
	}
	capabilities := 6
	if d.Code() == CodeSource {
		capabilities = 10
	}
	t.Capabilities = f.symbolsAt(capabilities)
	return t, f.Err
}

// Encode gives the terminus as the broker understood it; filters and the like, which it does not support, are
// left out, which tells the peer so.
func (t *Terminus) Encode(code uint64) any {
	if t == nil {
		return nil
	}
	var addr, expiry, capabilities any
	if t.Address != nil {
		addr = *t.Address
	}
	if t.Expiry != "" {
		expiry = t.Expiry
	}
	if len(t.Capabilities) > 0 {
		capabilities = t.Capabilities
	}
	list := []any{addr, t.Durable, expiry, nil, t.Dynamic}
	if code == CodeSource {
		return Described{code, append(list, nil, nil, nil, nil, nil, capabilities)}
	}
	return Described{code, append(list, nil, capabilities)}
}

// Attach is what the broker looks at of an attach.
type Attach struct {
	Name                 string
	Handle               uint32
	Receiver             bool // the peer's role
	SndSettleMode        uint8
	RcvSettleMode        uint8
	Source, Target       *Terminus
	InitialDeliveryCount uint32
}

// DecodeAttach reads the list of an attach, with its source and target.
func DecodeAttach(v any) (Attach, error) {
	f := FieldsOf("attach", v)
	for i := range 3 {
		f.required(i)
	}
	a := Attach{
		Name:                 FieldOr(f, 0, ""),
		Handle:               FieldOr(f, 1, uint32(0)),
		Receiver:             FieldOr(f, 2, false),
		SndSettleMode:        FieldOr(f, 3, uint8(2)),
		RcvSettleMode:        FieldOr(f, 4, uint8(0)),
		InitialDeliveryCount: FieldOr(f, 9, uint32(0)),
	}
	if f.Err != nil {
		return a, f.Err
	}
	var err error
	if a.Source, err = decodeTerminus(f.at(5)); err != nil {
		return a, err
	}
	a.Target, err = decodeTerminus(f.at(6))
	return a, err
}

// Flow is what the broker looks at of a flow.
type Flow struct {
	NextIncomingID *uint32
	IncomingWindow uint32
	Handle         *uint32
	DeliveryCount  *uint32
	LinkCredit     *uint32
	Drain, Echo    bool
}

// DecodeFlow reads the list of a flow.
func DecodeFlow(v any) (Flow, error) {
	f := FieldsOf("flow", v)
	fl := Flow{
		NextIncomingID: optional[uint32](f, 0),
		IncomingWindow: FieldOr(f, 1, uint32(0)),
		Handle:         optional[uint32](f, 4),
		DeliveryCount:  optional[uint32](f, 5),
		LinkCredit:     optional[uint32](f, 6),
		Drain:          FieldOr(f, 8, false),
		Echo:           FieldOr(f, 9, false),
	}
	return fl, f.Err
}

// Transfer is one frame of a message.
type Transfer struct {
	Handle     uint32
	DeliveryID *uint32
	Settled    bool
	More       bool
	Aborted    bool
	Payload    []byte
}

// DecodeTransfer reads the list of a transfer. It keeps the payload, and does not copy it.
func DecodeTransfer(v any, payload []byte) (Transfer, error) {
	f := FieldsOf("transfer", v)
	f.required(0)
	t := Transfer{
		Handle:     FieldOr(f, 0, uint32(0)),
		DeliveryID: optional[uint32](f, 1),
		Settled:    FieldOr(f, 4, false),
		More:       FieldOr(f, 5, false),
		Aborted:    FieldOr(f, 9, false),
		Payload:    payload,
	}
	return t, f.Err
}

// Disposition is what the broker looks at of a disposition.
type Disposition struct {
	Receiver    bool // the peer's role
	First, Last uint32
	Settled     bool
	State       uint64 // descriptor of the delivery state, 0 = none
}

// DecodeDisposition reads the list of a disposition.
func DecodeDisposition(v any) (Disposition, error) {
	f := FieldsOf("disposition", v)
	f.required(0)
	f.required(1)
	d := Disposition{
		Receiver: FieldOr(f, 0, false),
		First:    FieldOr(f, 1, uint32(0)),
		Settled:  FieldOr(f, 3, false),
	}
	d.Last = FieldOr(f, 2, d.First)
	if state, ok := field[Described](f, 4); ok {
		d.State = state.Code()
	}
	return d, f.Err
}

// Detach is what the broker looks at of a detach.
type Detach struct {
	Handle uint32
	Closed bool
}

// DecodeDetach reads the list of a detach.
func DecodeDetach(v any) (Detach, error) {
	f := FieldsOf("detach", v)
	f.required(0)
	return Detach{Handle: FieldOr(f, 0, uint32(0)), Closed: FieldOr(f, 1, false)}, f.Err
}
