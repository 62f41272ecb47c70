package callbacks

// Shape is what the table says of one callback's messages, for the tests that compare it with the documents.
type Shape struct {
	Type  string // the prop "type", which names the schema
	Topic string // the address, or its beginning
	Open  bool   // a value of the event completes the address
	Props []string
}

// Shapes has the table's callbacks and one that is not in it.
func Shapes() []Shape {
	shapes := []Shape{{Type: "other", Topic: "other.", Open: true, Props: []string{"type"}}}
	for _, b := range table {
		s := Shape{Type: b.kind, Topic: b.address, Open: b.suffixAt != none, Props: []string{"type"}}
		for _, from := range b.sources {
			s.Props = append(s.Props, from.key)
		}
		shapes = append(shapes, s)
	}
	return shapes
}
