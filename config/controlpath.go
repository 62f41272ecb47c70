package config

// ControlPath gives [relay] control of the file at path, as far as the file can be understood: its default
// where that key is absent or wrong. A file that cannot be read gives Load's error. It is for the commands
// that steer a running relay, which mistakes in the file must not keep from it.
func ControlPath(path string) (string, error) {
	doc, err := readDocument(path)
	if err != nil {
		return "", err
	}
	c := &Config{}
	i := 0
	for keys[i].section != "relay" || keys[i].name != "control" {
		i++
	}
	k := &keys[i]
	if e := doc.lookup(k.section, k.name); e != nil {
		if value, err := doc.expand(k.section, e); err == nil && k.set(c, value) == nil {
			return c.Relay.Control, nil
		}
	}
	return k.def, nil
}
