package admin

import (
	"context"
	"flag"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

var screenshots = flag.String("screenshots", "", "write screenshots of the status page into this folder")

// browser is a tab of a real Chromium that takes note of what it must not see.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	problems []string // console errors, exceptions, blocked content, requests to elsewhere; guarded by mu
	requests int      // guarded by mu
}

// newBrowser starts Chromium with a profile of its own, which may only ask the given server.
func newBrowser(t *testing.T, server string) *browser {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		if os.Getenv("KOJI_RELAY_REQUIRE_SERVERS") == "1" {
			t.Fatal("no Chromium here; install the package chromium")
		}
		t.Skip("no Chromium here; install the package chromium")
	}
	// the test's own ends before Chromium is stopped
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox,
		chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-default-apps", true),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.WindowSize(1280, 900),
		chromedp.WSURLReadTimeout(time.Minute))
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx}
	chromedp.ListenTarget(ctx, func(event any) { b.notice(event, server) })
	b.run(network.Enable(), log.Enable())
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Errorf("stop Chromium: %v", err)
		}
	})
	return b
}

func (b *browser) notice(event any, server string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		for _, a := range e.Args {
			b.problems = append(b.problems, fmt.Sprintf("console.%s: %s%s", e.Type, a.Value, a.Description))
		}
	case *runtime.EventExceptionThrown:
		b.problems = append(b.problems, "exception: "+e.ExceptionDetails.Error())
	case *log.EventEntryAdded:
		b.problems = append(b.problems, fmt.Sprintf("%s %s: %s %s", e.Entry.Source, e.Entry.Level, e.Entry.Text,
			e.Entry.URL))
	case *network.EventRequestWillBeSent:
		b.requests++
		if u := e.Request.URL; !strings.HasPrefix(u, server) && !strings.HasPrefix(u, "data:") {
			b.problems = append(b.problems, "request to elsewhere: "+u)
		}
	}
}

func (b *browser) run(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatalf("drive Chromium: %v", err)
	}
}

// eval gives the value of a JavaScript expression.
func eval[T any](b *browser, expression string) T {
	b.t.Helper()
	var v T
	b.run(chromedp.Evaluate(expression, &v))
	return v
}

// await polls until an expression is true, for as long as three refreshes of the page take.
func (b *browser) await(expression string) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, chromedp.Poll(expression, nil, chromedp.WithPollingTimeout(15*time.Second),
		chromedp.WithPollingInterval(50*time.Millisecond))); err != nil {
		b.t.Fatalf("%s: %v; the page shows:\n%s", expression, err, eval[string](b, "document.body.innerText"))
	}
}

// text gives what a reader sees of an element.
func (b *browser) text(id string) string {
	b.t.Helper()
	return eval[string](b, fmt.Sprintf("document.getElementById(%q).innerText", id))
}

func (b *browser) clean() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.problems {
		b.t.Error("Chromium reports ", p)
	}
	b.problems = nil
}

// view sets width, height and colours.
func (b *browser) view(width, height int64, scheme string) {
	b.t.Helper()
	b.run(chromedp.EmulateViewport(width, height), emulation.SetEmulatedMedia().WithFeatures(
		[]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}))
}

func (b *browser) screenshot(name string) {
	b.t.Helper()
	if *screenshots == "" {
		return
	}
	var png []byte
	b.run(chromedp.CaptureScreenshot(&png))
	if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// contrasts lists texts that stand out too little from their ground for WCAG 2 AA (4.5 to 1).
const contrasts = `(() => {
	const parse = c => (c.match(/[\d.]+/g) || []).map(Number);
	const luminance = c => { const f = c.slice(0, 3).map(v =>
		(v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
		return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
	const ground = e => {
		for (; e; e = e.parentElement) {
			const c = parse(getComputedStyle(e).backgroundColor);
			if (c.length < 4 || c[3] > 0) return c;
		}
		return [255, 255, 255];
	};
	const bad = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let n; n = walk.nextNode();) {
		const e = n.parentElement;
		if (!n.data.trim() || e.closest("script,noscript,.hidden") || !e.checkVisibility()) continue;
		const a = luminance(parse(getComputedStyle(e).color)), b = luminance(ground(e));
		const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
		if (ratio < 4.5) bad.push(ratio.toFixed(2) + " " + n.data.trim().slice(0, 40));
	}
	return bad;
})()`

func TestPageInChromium(t *testing.T) {
	t.Parallel()
	s, source := troubledServer(t)
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	b := newBrowser(t, server.URL)
	b.view(1280, 900, "light")
	b.run(chromedp.Navigate(server.URL + "/"))

	t.Run("shows everything an administrator looks for", func(t *testing.T) {
		for id, want := range map[string][]string{
			"about":   {"hub.example.com", "1.2.3", "up 26 h"},
			"state":   {"Ready, with problems", "RELOAD_FAILED", "cacert expires", "CERTIFICATE_EXPIRES"},
			"figures": {"1 of 2", "14\u202f238", "46\u00a0MiB", "oldest 41 min", "7"},
			"brokers": {"broker1.example.com:5671", "in use", "ActiveMQ Artemis 2.40.0",
				"broker2.example.com:5671", "down for 42 min", "SASL outcome auth", "SASL PLAIN",
				"its certificate ends 2031-05-06"},
			"rates": {"sent", "handed back to the hub 40"},
			"queue": {"store postgres", "build.tag", "9\u202f120", "41 min", "12 set aside",
				"reader (no name): 0 events to take", "reader new-bus is away, 812 events to take"},
			"recent": {"sent late", "task.closed", "handed back", "neither sent nor stored", "commit 7f3c9a5e-",
				"b04e1c2d-", "<b>address</b>"},
			"dead": {"2 rejected", "1 unencodable", "after 8 attempts", "postPackageListChange",
				"55c0de3a-9b1d-5a2f-b1aa-0e6cb8c4e7d2"},
			"config": {"/etc/koji-hub/plugins/protonmsg.conf", "password_file", "****", "batch_size",
				"protonmsg.conf:14", "is not a whole number", "4 keys have their default"},
		} {
			for text, part := b.text(id), 0; part < len(want); part++ {
				if !strings.Contains(text, want[part]) {
					t.Errorf("%s does not show %q:\n%s", id, want[part], text)
				}
			}
		}
		if n := eval[int](b, `document.querySelectorAll(".chart rect").length`); n < 59 {
			t.Errorf("the chart has %d bars", n)
		}
		b.clean()
	})
	t.Run("every part has an accessible name", func(t *testing.T) { checkNames(t, b) })
	t.Run("text stands out from its ground, light and dark", func(t *testing.T) {
		eval[any](b, `document.getElementById("defaults").open = true`)
		var grounds []string
		for _, scheme := range []string{"light", "dark"} {
			b.view(1280, 900, scheme)
			if bad := eval[[]string](b, contrasts); len(bad) > 0 {
				t.Errorf("%s: %q", scheme, bad)
			}
			grounds = append(grounds, eval[string](b, "getComputedStyle(document.body).backgroundColor"))
		}
		if grounds[0] == grounds[1] {
			t.Errorf("dark and light have the same ground %s", grounds[0])
		}
		eval[any](b, `document.getElementById("defaults").open = false`)
	})
	t.Run("fits a phone", func(t *testing.T) {
		b.view(375, 800, "light")
		if w := eval[int](b, "document.documentElement.scrollWidth"); w > 375 {
			t.Errorf("the page is %d pixels wide on a phone of 375", w)
		}
		if size := eval[float64](b,
			`Math.min(...[...document.querySelectorAll("main *")].filter(e => e.checkVisibility() && `+
				`e.innerText?.trim()).map(e => parseFloat(getComputedStyle(e).fontSize)))`); size < 11 {
			t.Errorf("the smallest text has %v pixels", size)
		}
	})
	for name, v := range map[string]struct {
		width, height int64
		scheme        string
	}{"status-light": {1280, 1620, "light"}, "status-dark": {1280, 1620, "dark"},
		"status-phone": {390, 1620, "dark"}} {
		b.view(v.width, v.height, v.scheme)
		b.screenshot(name)
	}
	b.view(1280, 900, "light")
	t.Run("follows a broker down and up by itself", func(t *testing.T) { followBroker(t, b, s, source) })
	t.Run("says when the relay no longer answers", func(t *testing.T) {
		b.clean()
		server.Config.Handler = nil // the default mux knows no path
		eval[any](b, `document.dispatchEvent(new Event("visibilitychange"))`)
		b.await(`document.title.startsWith("No answer") && document.querySelector("#state .bad ` +
			`.word").innerText == "No answer" && document.querySelector("#state .sentence").innerText` +
			`.startsWith("The relay has not answered since ")`)
		server.Config.Handler = s.Handler()
		eval[any](b, `document.dispatchEvent(new Event("visibilitychange"))`)
		b.await(`!document.title.startsWith("No answer")`)
		b.await(`document.querySelector("#state .word").innerText != "No answer"`)
	})
}

// followBroker changes what the daemon reports and waits for the page to show it without being loaded again.
func followBroker(t *testing.T, b *browser, s *Server, source *fakeSource) {
	eval[any](b, `document.getElementById("defaults").open = true; window.sameDocument = true`)
	source.change(func(s *Status) {
		s.Brokers[0].State, s.Brokers[0].Active = inspect.Down, false
		s.Brokers[0].Reason = "dial tcp 192.0.2.11:5671: connect: no route to host"
	})
	s.refresh(t.Context())
	// by the page's own timer
	b.await(`document.getElementById("brokers").innerText.includes("no route to host")`)
	if text := b.text("state"); !strings.Contains(text, "NO_BROKER") {
		t.Errorf("the state says %q", text)
	}
	if text := b.text("figures"); !strings.Contains(text, "0 of 2") {
		t.Errorf("the figures say %q", text)
	}
	source.change(func(s *Status) {
		for i := range s.Brokers {
			s.Brokers[i].State, s.Brokers[i].Reason = inspect.Up, ""
		}
		s.Brokers[0].Active = true
		s.Queue = Queue{Enabled: true, Store: "postgres", Usable: true, Known: true}
		s.Outbox, s.DeadLetters = Outbox{Known: true}, nil
		s.Config.Reload.OK, s.Certificates = true, nil
	})
	s.opts.Metrics.CommitTaken(inspect.ViaSocket, message.Commit{}, message.Receipt{}, 0)
	s.refresh(t.Context())
	eval[any](b, `document.dispatchEvent(new Event("visibilitychange"))`) // a tab that comes to the front
	b.await(`document.getElementById("state").innerText.includes("All is well")`)
	if title := eval[string](b, "document.title"); title != "All is well - koji-relay on hub.example.com" {
		t.Errorf("the title is %q", title)
	}
	if text := b.text("queue"); !strings.Contains(text, "Nothing waits") {
		t.Errorf("the queue says %q", text)
	}
	if !eval[bool](b, `window.sameDocument && document.getElementById("defaults").open`) {
		t.Error("the page was loaded again, or closed what the reader had opened")
	}
	b.clean()
}

// checkNames asks Chromium for what it would tell a screen reader.
func checkNames(t *testing.T, b *browser) {
	var nodes []*accessibility.Node
	b.run(chromedp.ActionFunc(func(ctx context.Context) (err error) {
		nodes, err = accessibility.GetFullAXTree().Do(ctx)
		return err
	}))
	word := func(v *accessibility.Value) string {
		if v == nil {
			return ""
		}
		return strings.Trim(string(v.Value), `"`)
	}
	seen := make(map[string]int)
	for _, n := range nodes {
		role := word(n.Role)
		seen[role]++
		switch role {
		case "link", "button", "heading", "table", "region", "image", "navigation", "columnheader", "rowheader",
			"DisclosureTriangle":
			if !n.Ignored && word(n.Name) == "" && !emptyCorner(seen, role) {
				t.Errorf("a %s has no name", role)
			}
		}
	}
	for role, least := range map[string]int{"main": 1, "banner": 1, "contentinfo": 1, "heading": 8, "region": 6,
		"table": 4, "image": 1, "status": 1, "row": 20, "cell": 20, "rowheader": 15, "columnheader": 10,
		"link": 3} {
		if seen[role] < least {
			t.Errorf("Chromium tells of %d parts with the role %s, want %d: %v", seen[role], role, least, seen)
		}
	}
}

// emptyCorner allows for the first cell of the table of rates, which heads the column of row names.
func emptyCorner(seen map[string]int, role string) bool {
	return role == "columnheader" && seen[role] == 1
}

func TestPageWithoutScriptsInChromium(t *testing.T) {
	t.Parallel()
	s, source := troubledServer(t)
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	b := newBrowser(t, server.URL)
	b.run(emulation.SetScriptExecutionDisabled(true), chromedp.Navigate(server.URL+"/"))
	if text := b.text("brokers"); !strings.Contains(text, "down for 42 min") {
		t.Errorf("the brokers are shown as %q", text)
	}
	if refresh := eval[string](b,
		`document.querySelector("meta[http-equiv=refresh]").content`); refresh != "15" {
		t.Errorf("the page asks to be loaded again after %q", refresh)
	}
	source.change(func(s *Status) { s.Brokers[0].Product = "another product" })
	s.refresh(t.Context())
	b.run(chromedp.Reload())
	if text := b.text("brokers"); !strings.Contains(text, "another product") {
		t.Errorf("after loading again: %q", text)
	}
	b.clean()
}

func TestPageIsSelfContained(t *testing.T) {
	t.Parallel()
	s, _ := troubledServer(t)
	_, text := get(t, s.Handler(), "/")
	for _, attribute := range []string{`src="`, `href="`, "url(", "@import"} {
		for _, rest := range strings.Split(text, attribute)[1:] {
			target, _, _ := strings.Cut(rest, `"`)
			u, err := url.Parse(target)
			if err != nil || u.Scheme != "data" && (u.Host != "" || !strings.HasPrefix(target, "/")) {
				t.Errorf("%s%s leads elsewhere", attribute, target)
			}
		}
	}
	if strings.Contains(text, "ZgotmplZ") || strings.Contains(text, "<b>address</b>") {
		t.Error("text was taken for markup")
	}
	if !strings.Contains(text, pageCSS) || !strings.Contains(text, pageJS) {
		t.Error("style or script is not verbatim in the page, so its digest does not fit")
	}
}
