package postgres

import (
	"koji-relay/internal/libpq"
	"koji-relay/queue"
)

// untranslatable is a character that the encoding of the database lacks (LATIN1, EUC_JP and others; all but
// UTF8). What is stored then is written in ASCII.
const untranslatable = "22P05"

// plainRow gives r in ASCII. Its properties and its body are JSON and mean the same; its message-id and its
// address stay.
func plainRow(r queue.Row) queue.Row {
	r.PropsText, r.Body = []byte(libpq.PlainJSON(string(r.PropsText))), libpq.PlainJSON(r.Body)
	r.Callback, r.LastError = libpq.PlainWords(r.Callback), libpq.PlainWords(r.LastError)
	return r
}

// plainDead writes the texts of dead letters in ASCII. Their bodies are bytes.
func plainDead(dead []queue.DeadRow) {
	for i := range dead {
		d := &dead[i]
		d.Callback, d.Reason = libpq.PlainWords(d.Callback), libpq.PlainWords(d.Reason)
		if d.Address != nil {
			address := libpq.PlainWords(*d.Address)
			d.Address = &address
		}
	}
}

// plainReasons gives settlements with reasons in ASCII.
func plainReasons(settlements []queue.Settlement) []queue.Settlement {
	plain := make([]queue.Settlement, len(settlements))
	for i, s := range settlements {
		s.Reason = libpq.PlainWords(s.Reason)
		plain[i] = s
	}
	return plain
}
