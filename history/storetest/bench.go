package storetest

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"koji-relay/history"
	"koji-relay/internal/golden"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// The site of the search benchmark: what a build system announces in a week.
const (
	siteDays     = 7
	sitePackages = 20_000
	siteTags     = 1_500
	siteUsers    = 500
	siteBatch    = 20_000
	listed       = 50 // messages, as 'koji-relay history' lists
)

// SiteSize is the number of messages of the search benchmark: KOJI_RELAY_HISTORY_ROWS, or few.
func SiteSize() int {
	if n, err := strconv.Atoi(os.Getenv("KOJI_RELAY_HISTORY_ROWS")); err == nil {
		return n
	}
	return 20_000
}

// siteID is the message-id of the nth message: as good as random, and the same in every run.
func siteID(n int) string {
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:8], uint64(n)*0x9E3779B97F4A7C15)
	binary.BigEndian.PutUint64(id[8:], (uint64(n)^0xABCDEF)*0xC2B2AE3D27D4EB4F)
	id[6], id[8] = id[6]&0x0f|0x50, id[8]&0x3f|0x80
	return id.String()
}

// uneven spreads n over 0 until most, the low numbers far more often: few packages are built all the time.
func uneven(n, most int) int {
	x := float64(uint64(n)*0x9E3779B97F4A7C15>>11) / (1 << 53)
	return min(most-1, int(x*x*x*float64(most)))
}

func sitePackage(i int) string { return fmt.Sprintf("package-%d", i) }
func siteTag(i int) string     { return fmt.Sprintf("f%d-tag-%d", 38+i%5, i) }
func siteUser(i int) string    { return fmt.Sprintf("user-%d", i) }

// Fill stores the n messages of a site through add, oldest first. Of a hundred one is queued first; of
// those most are accepted a minute later, and some are dead, expired, dropped or still queued. One in ten
// is an event that nobody asked for. In the third hour of the fifth day no broker was up, and all were
// queued.
func Fill(tb testing.TB, n int, add func(*history.Batch) error) {
	tb.Helper()
	templates := golden.Messages(tb, "extra500")
	packed := make([][]byte, len(templates))
	for i := range templates {
		var err error
		packed[i], err = history.Pack(&templates[i])
		must(tb, err)
	}
	start := time.Now().Add(-siteDays * 24 * time.Hour)
	for from := 0; from < n; from += siteBatch {
		b := &history.Batch{Writer: "bench"}
		for i := from; i < min(n, from+siteBatch); i++ {
			after := time.Duration(float64(i) / float64(n) * float64(siteDays*24*time.Hour))
			at := start.Add(after).Truncate(time.Microsecond)
			outage := after > 4*24*time.Hour+2*time.Hour && after < 4*24*time.Hour+3*time.Hour
			siteMessage(b, &templates[i%len(templates)], packed[i%len(templates)], i, at, outage)
		}
		must(tb, add(b))
	}
}

func siteMessage(b *history.Batch, m *message.Message, packed []byte, i int, at time.Time, outage bool) {
	row := history.Row{Handed: at, ID: siteID(i), Commit: siteID(i &^ 3), Event: i & 3, Callback: m.Callback,
		Address: m.Address, Via: inspect.ViaOutbox, Keys: history.KeysOf(m), Size: len(m.Body), Content: packed,
		First: inspect.Step{Time: at.Add(3 * time.Millisecond), Kind: inspect.Accepted,
			Broker: "broker1.example.com:5671"}}
	if row.Keys.Package != "" {
		row.Keys.Package = sitePackage(uneven(i, sitePackages))
	}
	if row.Keys.Build != "" {
		row.Keys.Build = fmt.Sprintf("%s-1.0-%d.fc40", row.Keys.Package, i/50)
	}
	if row.Keys.Tag != "" {
		row.Keys.Tag = siteTag(uneven(i+1, siteTags))
	}
	if row.Keys.User != "" {
		row.Keys.User = siteUser(uneven(i+2, siteUsers))
	}
	if row.Keys.Task != 0 {
		row.Keys.Task = int64(i)
	}
	switch {
	case outage || i%100 == 0:
		row.First = inspect.Step{Time: at, Kind: inspect.Queued, Reason: "not sent: no broker is usable"}
		kind := inspect.Accepted
		switch i % 100_000 {
		case 0:
			kind = inspect.Dead
		case 20_000:
			kind = inspect.Expired
		case 40_000:
			kind = inspect.Dropped
		case 60_000, 80_000:
			kind = "" // it waits
		}
		if kind != "" {
			b.Steps = append(b.Steps, history.Step{ID: row.ID, Handed: at,
				Step: inspect.Step{Time: at.Add(time.Minute), Kind: kind, Reason: "why"}})
		}
	case i%10 == 1:
		row.Content = nil
		row.First = inspect.Step{Time: at, Kind: inspect.Skipped, Reason: "[message] events does not ask for it"}
	case i%10_000 == 3:
		row.First = inspect.Step{Time: at, Kind: inspect.Refused, Reason: "the store is down"}
	}
	b.Rows = append(b.Rows, row)
}

// questions are an administrator's, a new one for each i.
func questions(n int, now time.Time) []question {
	ask := func(name string, q func(i int) inspect.HistoryQuery) question { return question{name, q} }
	// Numbers from all over the week.
	some := func(i int) int { return (i*7919 + 13) * 104_729 % n }
	fate := func(k inspect.StepKind) question {
		return ask("--fate "+string(k), func(int) inspect.HistoryQuery { return inspect.HistoryQuery{Fate: k} })
	}
	all := []question{
		ask("newest", func(int) inspect.HistoryQuery { return inspect.HistoryQuery{} }),
		ask("--build NVR", func(i int) inspect.HistoryQuery {
			k := some(i)
			return inspect.HistoryQuery{Build: fmt.Sprintf("%s-1.0-%d.fc40", sitePackage(uneven(k, sitePackages)),
				k/50)}
		}),
		ask("--build NVR that is not there", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Build: fmt.Sprintf("%s-9.9-%d.fc40", sitePackage(i), i)}
		}),
		ask("--build NAME", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Build: sitePackage(uneven(some(i), sitePackages))}
		}),
		ask("--tag NAME", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Tag: siteTag(uneven(some(i), siteTags))}
		}),
		ask("--tag f40-tag-1*", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Tag: fmt.Sprintf("f4[01]-tag-%d*", i%9+1)}
		}),
		ask("--tag f40-*", func(int) inspect.HistoryQuery { return inspect.HistoryQuery{Tag: "f40-*"} }),
		ask("--tag *", func(i int) inspect.HistoryQuery { return inspect.HistoryQuery{Tag: "f*"} }),
		ask("--task", func(i int) inspect.HistoryQuery { return inspect.HistoryQuery{Task: int64(some(i))} }),
		ask("--user", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{User: siteUser(uneven(some(i), siteUsers))}
		}),
		ask("--user nobody", func(i int) inspect.HistoryQuery { return inspect.HistoryQuery{User: "nobody"} }),
		ask("--address build.tag",
			func(int) inspect.HistoryQuery { return inspect.HistoryQuery{Address: "build.tag"} }),
		ask("--address build.*",
			func(int) inspect.HistoryQuery { return inspect.HistoryQuery{Address: "build.*"} }),
		ask("--id", func(i int) inspect.HistoryQuery { return inspect.HistoryQuery{ID: siteID(some(i))} }),
		ask("--since 2h", func(int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Since: now.Add(-2 * time.Hour)}
		}),
		ask("--since of a past day --until", func(i int) inspect.HistoryQuery {
			since := now.Add(-time.Duration(i%6+1) * 24 * time.Hour)
			return inspect.HistoryQuery{Since: since, Until: since.Add(time.Hour)}
		}),
		ask("--tag --user", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Tag: siteTag(uneven(some(i), siteTags)), User: siteUser(i * 11 % siteUsers)}
		}),
		ask("--tag --user of many", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Tag: siteTag(i % 3), User: siteUser(i % 5)}
		}),
		ask("--tag --address", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Tag: siteTag(uneven(some(i), siteTags)), Address: "build.untag"}
		}),
		ask("--tag --since", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Tag: siteTag(uneven(some(i), siteTags)), Since: now.Add(-24 * time.Hour)}
		}),
		ask("--user --since", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{User: siteUser(uneven(some(i), siteUsers)), Since: now.Add(-24 * time.Hour)}
		}),
		ask("--build NAME --tag", func(i int) inspect.HistoryQuery {
			k := some(i) // together in one message
			return inspect.HistoryQuery{Build: sitePackage(uneven(k, sitePackages)),
				Tag: siteTag(uneven(k+1, siteTags))}
		}),
		ask("--build NAME --tag that it is seldom in", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Build: sitePackage(i % 5), Tag: siteTag(i * 7 % siteTags)}
		}),
		ask("--build NAME --tag f40-tag-1*", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Build: sitePackage(i % 5), Tag: fmt.Sprintf("f4[01]-tag-%d*", i%9+1)}
		}),
		ask("--build NAME --address", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Build: sitePackage(uneven(some(i), sitePackages)), Address: "build.untag"}
		}),
		ask("--build NAME --since --until", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Build: sitePackage(uneven(some(i), sitePackages)),
				Since: now.Add(-96 * time.Hour), Until: now.Add(-72 * time.Hour)}
		}),
		ask("--fate dead --tag f4*", func(int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Dead, Tag: "f4*"}
		}),
		ask("--fate queued --user", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Queued, User: siteUser(i)}
		}),
		ask("--fate dead --user nobody", func(int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Dead, User: "nobody"}
		}),
		ask("--fate dead --build NAME", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Dead, Build: sitePackage(i)}
		}),
		ask("--fate skipped --build NAME", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Skipped, Build: sitePackage(i)}
		}),
		ask("--fate skipped --build of many", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Skipped, Build: sitePackage(i % 5)}
		}),
		ask("--fate refused --build of many", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Refused, Build: sitePackage(i % 5)}
		}),
		ask("--fate queued --build of many", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Queued, Build: sitePackage(i % 5)}
		}),
		ask("--fate accepted --build NAME", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Accepted, Build: sitePackage(uneven(some(i), sitePackages))}
		}),
		ask("--fate refused --tag f4*", func(int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Refused, Tag: "f4*"}
		}),
		ask("--fate skipped --user nobody", func(int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Skipped, User: "nobody"}
		}),
		ask("--fate accepted --tag", func(i int) inspect.HistoryQuery {
			return inspect.HistoryQuery{Fate: inspect.Accepted, Tag: siteTag(uneven(some(i), siteTags))}
		}),
	}
	for _, k := range inspect.Fates {
		all = append(all, fate(k))
	}
	return all
}

type question struct {
	name string
	ask  func(i int) inspect.HistoryQuery
}

// Search measures how long answers take. first-ms is the first one of each question: after a restart of
// the server and without its files in memory, that is the time of a cold search.
func Search(b *testing.B, s history.Store, n int) {
	now := time.Now()
	for _, q := range questions(n, now) {
		b.Run(q.name, func(b *testing.B) {
			var took []time.Duration
			found := 0
			for i := 0; b.Loop(); i++ {
				asked := q.ask(i)
				asked.Limit = listed
				began := time.Now()
				err := history.Search(b.Context(), s, asked, func(*inspect.HistoryMessage) error {
					found++
					return nil
				})
				took = append(took, time.Since(began))
				must(b, err)
			}
			ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
			b.ReportMetric(ms(took[0]), "first-ms")
			slices.Sort(took)
			b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
			b.ReportMetric(ms(took[len(took)-1]), "worst-ms")
			b.ReportMetric(float64(found)/float64(len(took)), "found")
		})
	}
}
