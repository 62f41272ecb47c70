package inspect

// Setting is one key of the configuration with its effective value.
type Setting struct {
	Section string `json:"section"`
	Key     string `json:"key"`
	Value   string `json:"value"`  // masked; empty = none
	Source  string `json:"source"` // file:line, or "default"
	// Changed says that the value means something else than the default.
	Changed bool `json:"changed"`
}
