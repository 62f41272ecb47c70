package libpq

import (
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// PlainJSON writes JSON in ASCII. Outside of its strings there is nothing else.
func PlainJSON(text string) string {
	return inASCII(text, func(b *strings.Builder, r rune) {
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(b, `\u%04x`, unit)
		}
	})
}

// PlainWords replaces what is not ASCII in a text for people.
func PlainWords(text string) string {
	return inASCII(text, func(b *strings.Builder, _ rune) { b.WriteByte('?') })
}

func inASCII(text string, write func(*strings.Builder, rune)) string {
	var b strings.Builder
	for _, r := range text {
		if r < utf8.RuneSelf {
			b.WriteRune(r)
		} else {
			write(&b, r)
		}
	}
	return b.String()
}
