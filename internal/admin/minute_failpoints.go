//go:build failpoints

package admin

import "time"

// ruleMinute is a thousandth of a minute in a build for tests, as in the tests of the alerts.
const ruleMinute = time.Minute / 1000
