package guard

import "koji-relay/internal/amqpconn/frame"

// sorter has memory to work in. One goroutine at a time uses it.
type sorter struct {
	pairs   []pair
	ordered []byte
}

// pair is an entry of an encoded map.
type pair struct{ key, whole []byte }

// orderProperties puts the application-properties of a message into the given order of keys, in place. A map
// that does not stand in this first part of the message as a whole stays as it is.
func (s *sorter) orderProperties(message []byte, order []string) {
	const properties = 0x74
	for len(message) > 3 && message[0] == 0 && message[1] == 0x53 && message[2] <= properties {
		n, err := frame.Size(message)
		if err != nil {
			return
		}
		if message[2] == properties {
			s.orderMap(message[3:n], order)
			return
		}
		message = message[n:]
	}
}

// orderMap puts the pairs of an encoded map into the given order of keys, which must be all of them.
func (s *sorter) orderMap(encoded []byte, order []string) {
	content, count, ok := frame.Items(encoded)
	if !ok || count != 2*len(order) {
		return
	}
	s.pairs = s.pairs[:0]
	for rest := content; len(rest) > 0; {
		k, err := frame.Size(rest)
		if err != nil {
			return
		}
		v, err := frame.Size(rest[k:])
		if err != nil {
			return
		}
		key := rest[:k]
		switch key[0] {
		case 0xa1: // a string with a short length
			key = key[2:]
		case 0xb1:
			key = key[5:]
		}
		s.pairs = append(s.pairs, pair{key, rest[:k+v]})
		rest = rest[k+v:]
	}
	s.ordered = s.ordered[:0]
	for _, key := range order {
		for _, p := range s.pairs {
			if string(p.key) == key {
				s.ordered = append(s.ordered, p.whole...)
			}
		}
	}
	if len(s.ordered) == len(content) {
		copy(content, s.ordered)
	}
}
