package admin

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"koji-relay/internal/inspect"
)

//go:embed page/search.html
var searchHTML string

var searchTemplate = template.Must(template.New("search").Parse(searchHTML))

const (
	// foundOnPage bounds one answer.
	foundOnPage = 50
	// searchTimeout and maxSearches bound what a page can cost the store.
	searchTimeout = 5 * time.Second
	maxSearches   = 4
)

// searchSpans are the times that the page offers; the first is what it begins with.
var searchSpans = []string{"a day", "an hour", "a week", "ever"}

var spanOf = map[string]time.Duration{"an hour": time.Hour, "a day": 24 * time.Hour,
	"a week": 7 * 24 * time.Hour}

// searchView is what the template shows.
type searchView struct {
	Style template.CSS
	Query inspect.HistoryQuery
	Since string
	Fates []inspect.StepKind
	Spans []string
	Asked bool
	Found []foundView
	More  bool
	Gaps  []string
	Error string
}

// Caption says how many messages were found.
func (v *searchView) Caption() string {
	if v.More {
		return inspect.Count(len(v.Found), "message") + " and more"
	}
	return inspect.Count(len(v.Found), "message")
}

type foundView struct {
	Handed, Topic, Props, MessageID, Why string
	Fate                                 inspect.StepKind
}

// search answers with the form and, where something is asked, with what was found. It needs no script.
func (s *Server) search(w http.ResponseWriter, r *http.Request) {
	v := searchView{Style: template.CSS(pageCSS), Fates: inspect.Fates, Spans: searchSpans,
		Since: searchSpans[0]}
	values := r.URL.Query()
	v.Asked = len(values) > 0
	code := http.StatusOK
	if err := v.read(values); err != nil {
		v.Error, v.Asked, code = err.Error(), false, http.StatusBadRequest
	}
	if v.Asked {
		if err := s.find(r.Context(), &v); err != nil {
			e := asError(err)
			v.Error, code = e.Text, e.status()
		}
	}
	var out bytes.Buffer
	if err := searchTemplate.Execute(&out, &v); err != nil {
		s.opts.Logger.Error("the search page cannot be shown", "error", err)
		refuse(w, &Error{Code: CodeFailed, Text: "the page could not be made; see the log"})
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", pagePolicy)
	w.WriteHeader(code)
	_, _ = out.WriteTo(w) // an error here is the reader having gone away
}

// read takes the question from a form.
func (v *searchView) read(values url.Values) error {
	text := func(name string) string { return strings.TrimSpace(values.Get(name)) }
	v.Query = inspect.HistoryQuery{Build: text("build"), Tag: text("tag"), User: text("user"),
		Address: text("address"),
		ID:      text("id"), Fate: inspect.StepKind(text("fate")), Limit: foundOnPage + 1, Content: true}
	v.Since = cmp.Or(text("since"), v.Since)
	if span := spanOf[v.Since]; span > 0 {
		v.Query.Since = time.Now().Add(-span)
	}
	if task := text("task"); task != "" {
		n, err := strconv.ParseInt(task, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not the number of a task", task)
		}
		v.Query.Task = n
	}
	return nil
}

func (s *Server) find(ctx context.Context, v *searchView) error {
	select {
	case s.searches <- struct{}{}:
		defer func() { <-s.searches }()
	default:
		return &Error{Code: CodeUnavailable, Text: "others are searching at the moment; try again"}
	}
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	err := s.opts.Control.History(ctx, v.Query, func(m *inspect.HistoryMessage) error {
		if v.More = len(v.Found) == foundOnPage; !v.More {
			why := strings.TrimSpace(m.Broker + " " + m.Reason)
			v.Found = append(v.Found, foundView{inspect.Time(m.Time), cmp.Or(m.Address, "("+m.Callback+")"),
				string(m.Props),
				m.MessageID, why, m.Fate})
		}
		return nil
	})
	if err != nil {
		return err
	}
	gaps, err := s.opts.Control.HistoryGaps(ctx, v.Query.Since, time.Time{})
	for i, g := range gaps {
		if i == 5 {
			break
		}
		v.Gaps = append(v.Gaps, fmt.Sprintf("from %s to %s: %s", inspect.Time(g.Began),
			inspect.Time(g.Ended), g.Reason))
	}
	return err
}
