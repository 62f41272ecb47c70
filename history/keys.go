package history

import (
	"strings"

	"koji-relay/internal/message"
)

// Keys are what a message can be found by, besides its ids and its address.
type Keys struct {
	Package string // the name of a package
	Build   string // its NAME-VERSION-RELEASE, where the message is about a build
	Tag     string
	Task    int64
	User    string
}

// KeysOf reads the application-properties that the rules of package callbacks give.
func KeysOf(m *message.Message) Keys {
	var k Keys
	var version, release string
	for _, p := range m.Props {
		text, _ := p.Value.(string)
		switch p.Key {
		case "name", "package":
			k.Package = text
		case "version":
			version = text
		case "release":
			release = text
		case "tag":
			k.Tag = text
		case "user":
			k.User = text
		case "task_id":
			k.Task, _ = p.Value.(int64)
		case "id":
			if strings.HasSuffix(m.Callback, "TaskStateChange") {
				k.Task, _ = p.Value.(int64)
			}
		}
	}
	if k.Package != "" && version != "" && release != "" {
		k.Build = k.Package + "-" + version + "-" + release
	}
	return k
}

// packageOf gives the name in a NAME-VERSION-RELEASE; what has no two dashes is a name itself.
func packageOf(build string) string {
	release := strings.LastIndexByte(build, '-')
	if release < 0 {
		return build
	}
	version := strings.LastIndexByte(build[:release], '-')
	if version <= 0 {
		return build
	}
	return build[:version]
}
