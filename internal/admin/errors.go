package admin

import (
	"errors"
	"net/http"
)

// Error is an answer that is not 2xx, on both handlers and in the client: a stable code and a sentence.
type Error struct {
	Code string `json:"code"`
	Text string `json:"error"`
}

// The codes of Error.
const (
	CodeBadRequest  = "BAD_REQUEST"        // the request makes no sense; nothing was done
	CodeNotFound    = "NOT_FOUND"          // no such path or message
	CodeMethod      = "METHOD_NOT_ALLOWED" // the read-only port does not change anything
	CodeForeignHost = "FOREIGN_HOST"       // the Host header names another host
	CodeRefused     = "REFUSED"            // not possible in the present state; the text gives the remedy
	CodeUnavailable = "UNAVAILABLE"        // the store cannot be used at the moment
	CodeFailed      = "FAILED"             // anything else
)

// Error gives the sentence.
func (e *Error) Error() string { return e.Text }

func (e *Error) status() int {
	switch e.Code {
	case CodeBadRequest:
		return http.StatusBadRequest
	case CodeNotFound:
		return http.StatusNotFound
	case CodeMethod:
		return http.StatusMethodNotAllowed
	case CodeForeignHost:
		return http.StatusMisdirectedRequest
	case CodeRefused:
		return http.StatusConflict
	case CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// asError gives err as an Error; one inside it keeps its code and gets err's text.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return &Error{Code: e.Code, Text: err.Error()}
	}
	return &Error{Code: CodeFailed, Text: err.Error()}
}
