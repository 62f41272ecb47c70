// Package inspect holds the types in which the parts of the relay let themselves be looked at: what
// commands print, what the control socket and the page carry. They have JSON tags and no behaviour, so that
// nothing is copied from one set of types into another on the way. Times and sizes are written for a person
// in one way only.
package inspect
