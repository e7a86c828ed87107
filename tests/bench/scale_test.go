package bench

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

const (
	atOnce = 8
	// few and many are how many sandboxes are made at once; full is what the
	// bridge has when another one is made: it takes 1,023.
	few, many, full = 50, 500, 999
	// fewRounds and fullRounds are how often what these cost is measured.
	fewRounds, fullRounds = 9, 25
)

// scale measures what many cost: made at once, beside many others, and with
// many published ports.
func scale(b *testing.B, l *lab.Lab) []row {
	b.Helper()
	return slices.Concat(together(b, l), crowded(b, l), published(b, l))
}

// together makes sandboxes one after another, and as many at once.
func together(b *testing.B, l *lab.Lab) []row {
	b.Helper()
	h := l.Host("together")
	h.OK("create", "--name", "warmup")
	h.OK("rm", "warmup")
	s := series{}
	measure := func(n, workers int, figure string) {
		took, err := fill(h, n, workers)
		if err != nil {
			b.Fatal(err)
		}
		s[figure] = append(s[figure], took/time.Duration(n))
		empty(b, h, n)
	}
	for range fewRounds {
		measure(few, 1, "few, serial")
		measure(few, atOnce, "few")
	}
	measure(many, 1, "many, serial")
	measure(many, atOnce, "many")
	line := func(n int, figure string) row {
		ratio := s.ratio(figure, figure+", serial")
		return row{fmt.Sprintf("%d × `create`, %d at once: for each", n, atOnce), ms(s.median(figure)),
			fmt.Sprintf("%.2f × one after another (%s)", ratio, ms(s.median(figure+", serial"))), "≤ 1 ×", verdict(ratio <= 1)}
	}
	return []row{line(few, "few"), line(many, "many")}
}

func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint("s", i)
	}
	return out
}

// fill makes n sandboxes, and says how long that took in all. One that fails
// fails it.
func fill(h *lab.Host, n, workers int) (time.Duration, error) {
	todo := make(chan string)
	errs := make([]error, workers)
	var all sync.WaitGroup
	start := time.Now()
	for w := range workers {
		all.Go(func() {
			h.Do(func() {
				for name := range todo {
					if err := run(h, "create", "--name", name); err != nil {
						errs[w] = err
					}
				}
			})
		})
	}
	for _, name := range names(n) {
		todo <- name
	}
	close(todo)
	all.Wait()
	took := time.Since(start)
	for _, err := range errs {
		if err != nil {
			return took, err
		}
	}
	return took, nil
}

// crowded makes one more sandbox where there are none and where there are
// nearly as many as the bridge takes; and so does the floor, which shows what
// of it is the kernel's.
func crowded(b *testing.B, l *lab.Lab) []row {
	b.Helper()
	s := series{}
	hosts := map[string]*lab.Host{"empty": l.Host("empty"), "full": l.Host("full")}
	for _, h := range hosts {
		h.OK("create", "--name", "warmup")
		h.OK("rm", "warmup")
	}
	if _, err := fill(hosts["full"], full, atOnce); err != nil {
		b.Fatal(err)
	}
	floors, floorHosts := map[string]*floor{}, map[string]*lab.Host{}
	var err error
	for name := range hosts {
		floorHosts[name] = l.Host("floor-" + name)
		floorHosts[name].Do(func() {
			if floors[name], err = newFloor(b.TempDir()); err == nil && name == "full" {
				b.Cleanup(floors[name].clear)
				err = floors[name].crowd(full)
			}
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	for range fullRounds {
		for name, h := range hosts {
			if err := oneMore(h, s, name, "create", "--name", "more"); err != nil {
				b.Fatal(err)
			}
			floorHosts[name].Do(func() {
				var took time.Duration
				took, err = floors[name].once(true)
				s["floor, "+name] = append(s["floor, "+name], took)
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	empty(b, hosts["full"], full)
	ratio, kernel := s.ratio("full", "empty"), s.ratio("floor, full", "floor, empty")
	return []row{{fmt.Sprintf("`create` beside %d others on the bridge", full), ms(s.median("full")),
		fmt.Sprintf("%.2f × the first (%s); the floor %.2f × its first (%s)", ratio, ms(s.median("empty")), kernel, ms(s.median("floor, empty"))),
		"≤ 2 ×, or what the floor grows", verdict(ratio <= max(2, kernel))}}
}

// oneMore measures a create, and removes what it made.
func oneMore(h *lab.Host, s series, figure string, args ...string) (err error) {
	h.Do(func() {
		var before, after int
		if before, err = links(); err != nil {
			return
		}
		if _, err = timed(h, "version"); err != nil {
			return
		}
		var took time.Duration
		if took, err = timed(h, args...); err != nil {
			return
		}
		s[figure] = append(s[figure], took)
		if err = run(h, "rm", "more"); err != nil {
			return
		}
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if after, err = links(); err != nil || after == before {
				return
			}
		}
		err = fmt.Errorf("%d links become %d, not %d", before+1, after, before)
	})
	return err
}

// links is how many links the calling thread's namespace has.
func links() (int, error) {
	data, err := os.ReadFile("/proc/thread-self/net/dev")
	return bytes.Count(data, []byte("\n")), err
}

// empty removes what fill made.
func empty(b *testing.B, h *lab.Host, n int) {
	b.Helper()
	for some := range slices.Chunk(names(n), 100) {
		h.OK(append([]string{"rm"}, some...)...)
	}
	var err error
	h.Do(func() { err = gone("sv") })
	if err != nil {
		b.Fatal(err)
	}
}

// published makes one more sandbox with a published port where there is none,
// and where there are a thousand.
func published(b *testing.B, l *lab.Lab) []row {
	b.Helper()
	const holders, each = 10, 100
	first, last := l.Host("no-ports"), l.Host("many-ports")
	for i, name := range names(holders) {
		from := 20000 + i*each
		first.OK("create", "--name", name)
		last.OK("create", "--name", name, "-p", fmt.Sprintf("%d-%d:1-%d", from, from+each-1, each))
	}
	s := series{}
	for range fullRounds {
		for figure, h := range map[string]*lab.Host{"first": first, "last": last} {
			if err := oneMore(h, s, figure, "create", "--name", "more", "-p", "8080:80"); err != nil {
				b.Fatal(err)
			}
		}
	}
	ratio := s.ratio("last", "first")
	return []row{{fmt.Sprintf("`create -p` beside %d published ports", holders*each), ms(s.median("last")),
		fmt.Sprintf("%.2f × the first (%s)", ratio, ms(s.median("first"))), "≤ 1.1 ×", verdict(ratio <= 1.1)}}
}
