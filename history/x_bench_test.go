package history

import (
	"testing"

	"koji-relay/internal/golden"
)

// BenchmarkPack models what one recorded message costs besides the database: 2 KiB of Koji's JSON, extra
// cut at 500.
func BenchmarkPack(b *testing.B) {
	all := golden.Messages(b, "extra500")
	in, out := 0, 0
	for i := 0; b.Loop(); i++ {
		m := &all[i%len(all)]
		packed, err := Pack(m)
		if err != nil {
			b.Fatal(err)
		}
		in, out = in+len(m.Body), out+len(packed)
	}
	b.ReportMetric(float64(in)/float64(b.N), "body-B/msg")
	b.ReportMetric(float64(out)/float64(b.N), "packed-B/msg")
}
