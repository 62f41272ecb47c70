//go:build !failpoints

package admin

import "time"

// ruleMinute is a minute of the rules that no row's age can shorten for a test.
const ruleMinute = time.Minute
