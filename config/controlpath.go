package config

import "strings"

// ControlPath gives [relay] control of the file at path, as far as the file can be understood: its default
// where that key is absent or wrong. A file that cannot be read gives Load's error. It is for the commands
// that steer a running relay, which mistakes in the file must not keep from it.
func ControlPath(path string) (string, error) {
	doc, err := readDocument(path)
	if err != nil {
		return "", err
	}
	c := &Config{}
	take := func(name string) bool {
		e := doc.lookup("relay", name)
		if e == nil {
			return false
		}
		value, err := doc.expand("relay", e)
		return err == nil && findKey("relay", name).set(c, value) == nil
	}
	switch {
	case take("control"):
		return c.Relay.Control, nil
	case take("name") && c.Relay.Name != "":
		return strings.ReplaceAll(namedDefault("relay", "control"), "NAME", c.Relay.Name), nil
	}
	return findKey("relay", "control").def, nil
}
