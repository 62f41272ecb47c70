package amqpconn

// orderProperties puts the application-properties of a message into the given order of keys, in place. A map that does
// not stand in this first part of the message as a whole stays as it is.
func orderProperties(message []byte, order []string) {
	const properties = 0x74
	for len(message) > 3 && message[0] == 0 && message[1] == 0x53 && message[2] <= properties {
		n, err := valueSize(message)
		if err != nil {
			return
		}
		if message[2] == properties {
			orderMap(message[3:n], order)
			return
		}
		message = message[n:]
	}
}

// orderMap puts the pairs of an encoded map into the given order of keys, which must be all of them.
func orderMap(encoded []byte, order []string) {
	content, count, ok := items(encoded)
	if !ok || count != 2*len(order) {
		return
	}
	type pair struct{ key, whole []byte }
	pairs := make([]pair, 0, len(order))
	for rest := content; len(rest) > 0; {
		k, err := valueSize(rest)
		if err != nil {
			return
		}
		v, err := valueSize(rest[k:])
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
		pairs = append(pairs, pair{key, rest[:k+v]})
		rest = rest[k+v:]
	}
	ordered := make([]byte, 0, len(content))
	for _, key := range order {
		for _, p := range pairs {
			if string(p.key) == key {
				ordered = append(ordered, p.whole...)
			}
		}
	}
	if len(ordered) == len(content) {
		copy(content, ordered)
	}
}
