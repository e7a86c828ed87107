// Package bench measures what sandnet costs against what it could cost at
// least, everything in one run and interleaved, so that the ratios hold
// whatever machine it is. It reports and never fails on a figure. It contains
// nothing but benchmarks: `make bench`.
package bench

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

var (
	markdown = flag.String("markdown", "", "also write the table to this file")
	rounds   = flag.Int("rounds", 60, "how often each time is measured")
)

func TestMain(m *testing.M) { lab.Main(m, lab.Plain) }

// row is a line of the table.
type row struct{ figure, measured, ratio, reach, met string }

func verdict(ok bool) string {
	if ok {
		return "yes"
	}
	return "**no**"
}

func BenchmarkReach(b *testing.B) {
	l := lab.New(b)
	h := l.Host("host")
	times := measure(b, h)
	rows := timeRows(times)
	rows = append(rows, sizeRow(b, h.Program))
	rows = append(rows, throughput(b, l, h)...)
	rows = append(rows, peers(b, lab.New(b))...)
	rows = append(rows, containers(b, lab.New(b))...)
	rows = append(rows, scale(b, lab.New(b))...)
	table := render(rows)
	fmt.Printf("\n%s\n", table)
	if *markdown != "" {
		if err := os.WriteFile(*markdown, []byte(table), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(0, "ns/op") // the table is the result
}

// series are the measurements of one figure.
type series map[string][]time.Duration

func (s series) median(name string) time.Duration {
	v := slices.Sorted(slices.Values(s[name]))
	return v[len(v)/2]
}

// ratio is how many times one figure is another, measured in the same rounds:
// the machine drifts, two measurements next to each other do less.
func (s series) ratio(name, to string) float64 {
	ratios := make([]float64, len(s[name]))
	for i, d := range s[name] {
		ratios[i] = float64(d) / float64(s[to][i])
	}
	return median(ratios)
}

// measure runs everything in turn, on a thread that stays on the host.
func measure(b *testing.B, h *lab.Host) series {
	b.Helper()
	s := series{}
	dir := b.TempDir()
	h.OK("create", "--name", "warmup", "-p", "80")
	h.OK("rm", "warmup")
	var err error
	h.Do(func() {
		var f *floor
		if f, err = newFloor(dir); err != nil {
			return
		}
		for range *rounds {
			if err = round(h, f, s); err != nil {
				return
			}
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// floorKind is one of the ways of making the floor.
type floorKind struct {
	figure  string
	batched bool
}

// round measures each figure once. What is measured comes right after the same
// kind of work, not measured: a processor that has to wake up first is no
// property of sandnet.
func round(h *lab.Host, f *floor, s series) error {
	floors := []floorKind{{"", false}, {"floor", false}, {"floor, batched", true}}
	if f.count%2 == 1 { // three a round: every other time the other way round
		floors[1], floors[2] = floors[2], floors[1]
	}
	for _, step := range floors {
		took, err := f.once(step.batched)
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		s[step.figure] = append(s[step.figure], took)
	}
	hundred := []string{"create", "--name", "x", "-p", "20000-20099:20000-20099"}
	for _, step := range []struct {
		figure string
		args   []string
	}{
		{"version", []string{"version"}},
		{"create", []string{"create", "--name", "x", "--net", "bridge"}},
		{"rm", []string{"rm", "x"}},
		{"create -p", []string{"create", "--name", "x", "-p", "8080:80"}},
		{"rm -p", []string{"rm", "x"}},
		{"hundred", hundred},
		{"rm hundred", []string{"rm", "x"}},
		{"run", []string{"run", "--", "true"}},
	} {
		if _, err := timed(h, "version"); err != nil {
			return err
		}
		took, err := timed(h, step.args...)
		if err != nil {
			return err
		}
		s[step.figure] = append(s[step.figure], took)
		if strings.HasPrefix(step.figure, "r") {
			if err := gone("sv"); err != nil {
				return err
			}
		}
	}
	return nil
}

// timed runs sandnet from the calling thread; what is measured is the whole
// process, from fork to its end.
func timed(h *lab.Host, args ...string) (time.Duration, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	start := time.Now()
	p, err := os.StartProcess(h.Program, append([]string{"sandnet"}, args...), &os.ProcAttr{
		Env: []string{"SANDNET_ROOT=" + h.Root, "PATH=" + os.Getenv("PATH")}, Files: []*os.File{null, null, os.Stderr},
	})
	if err != nil {
		return 0, err
	}
	state, err := p.Wait()
	took := time.Since(start)
	if err == nil && !state.Success() {
		err = fmt.Errorf("sandnet %s: %s", strings.Join(args, " "), state)
	}
	return took, err
}

func timeRows(s series) []row {
	floor, batched, start := s.median("floor"), s.median("floor, batched"), s.median("version")
	ratio := func(name string, to time.Duration) float64 { return float64(s.median(name)) / float64(to) }
	against := func(name, figure string, most float64) row {
		r := ratio(name, floor)
		return row{figure, ms(s.median(name)), fmt.Sprintf("%.2f × floor (%.2f × batched)", r, ratio(name, batched)), fmt.Sprintf("≤ %.1f × floor", most), verdict(r <= most)}
	}
	return []row{
		{"floor: one sandbox, in process, single calls", ms(floor), "1", "", ""},
		{"floor, batched", ms(batched), fmt.Sprintf("%.2f × floor", float64(batched)/float64(floor)), "", ""},
		{"`sandnet version`, whole process", ms(start), "", "≤ 3 ms", verdict(start <= 3*time.Millisecond)},
		against("create", "`sandnet create --net bridge`, whole process", 3.5),
		against("create -p", "`sandnet create -p 8080:80`", 4),
		{"`sandnet create` with 100 ports", ms(s.median("hundred")), "", "≤ 12 ms", verdict(s.median("hundred") <= 12*time.Millisecond)},
		{"`sandnet rm`", ms(s.median("rm")), fmt.Sprintf("%.2f × process start", ratio("rm", start)), "≤ 3 × process start", verdict(ratio("rm", start) <= 3)},
		{"`sandnet rm` of one with a port", ms(s.median("rm -p")), fmt.Sprintf("%.2f × process start", ratio("rm -p", start)), "≤ 3 × process start", verdict(ratio("rm -p", start) <= 3)},
		{"`sandnet rm` of one with 100 ports", ms(s.median("rm hundred")), fmt.Sprintf("%.2f × process start", ratio("rm hundred", start)), "", ""},
		{"`sandnet run -- true`", ms(s.median("run")), "", "", ""},
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

func sizeRow(b *testing.B, program string) row {
	b.Helper()
	info, err := os.Stat(program)
	if err != nil {
		b.Fatal(err)
	}
	return row{"binary, stripped and static", fmt.Sprintf("%.1f MB", float64(info.Size())/1e6), "", "≤ 10 MB", verdict(info.Size() <= 10e6)}
}

func render(rows []row) string {
	var out strings.Builder
	out.WriteString("| figure | measured | ratio | reach | met |\n|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&out, "| %s | %s | %s | %s | %s |\n", r.figure, r.measured, r.ratio, r.reach, r.met)
	}
	return out.String()
}
