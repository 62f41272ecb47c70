package callbacks

import "strings"

// cutExtra writes the object dict without its member `extra`, or with what of it the configuration keeps.
// What remains is the text that Python's json.dumps gives for the dict without the key.
func (r *Rules) cutExtra(out *strings.Builder, dict []byte) {
	copyMembers(out, dict, func(m member, raw []byte) []byte {
		if !keyIs(m.key, "extra") {
			return raw
		}
		if len(r.extraKeep) == 0 || raw[0] != '{' {
			return nil
		}
		var kept strings.Builder
		copyMembers(&kept, raw, func(m member, raw []byte) []byte {
			if name, ok := stringValue(m.key); ok && r.extraKeep[name] {
				return raw
			}
			return nil
		})
		if kept.Len() == len("{}") {
			return nil
		}
		return []byte(kept.String())
	})
}

// copyMembers writes an object with the members for which keep gives a value; the text between them stays as
// it is. The object has been passed over before, so that no error can occur.
func copyMembers(out *strings.Builder, object []byte, keep func(member, []byte) []byte) {
	c := cursor{data: object, room: maxDepth}
	_ = c.enter()
	indent, end, kept := []byte(nil), c.pos, false
	out.WriteByte('{')
	for first := true; ; first = false {
		m, more, err := c.nextMember(first)
		if err != nil || !more {
			break
		}
		between := object[end:m.start]
		if first {
			indent = between
		}
		colon := object[m.start:c.pos]
		raw, _ := c.value()
		end = c.pos
		value := keep(m, raw)
		if value == nil {
			continue
		}
		if !kept {
			between = indent // the separator belonged to a member that is gone
		}
		out.Write(between)
		out.Write(colon)
		out.Write(value)
		kept = true
	}
	if kept {
		out.Write(object[end:])
	} else {
		out.WriteByte('}')
	}
}
