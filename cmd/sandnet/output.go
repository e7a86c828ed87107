package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
)

// formatFlag is --format with its choices, the first of them the default.
func formatFlag(choices ...string) cli.Flag {
	return &cli.StringFlag{Name: "format", Value: choices[0], Usage: "`FORMAT` " + strings.Join(choices, " or ")}
}

// format checks --format.
func format(c *cli.Context, choices ...string) (string, error) {
	f := c.String("format")
	for _, choice := range choices {
		if f == choice {
			return f, nil
		}
	}
	return "", &spec.InputError{What: "--format", Value: f, Why: "it must be " + strings.Join(choices, " or ")}
}

func (p *program) println(s string) error {
	_, err := fmt.Fprintln(screen{p, p.stdout}, s)
	return err
}

// printJSON prints v as docker's inspect does, for people and programs.
func (p *program) printJSON(v any) error {
	enc := json.NewEncoder(screen{p, p.stdout})
	enc.SetIndent("", "    ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printTable prints rows of cells in docker's layout, the header first. On a
// terminal the widest cells are cut so that a row is a line.
func (p *program) printTable(rows [][]string) error {
	return p.printTableTo(columns(p.stdout), rows)
}

// printTableTo is printTable for a width, or without one for 0.
func (p *program) printTableTo(width int, rows [][]string) error {
	const gap, least = 3, 10
	last := len(rows[0]) - 1
	widths := slices.Repeat([]int{least - gap}, last+1)
	widths[last] = 0
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], cells(cell))
		}
	}
	if width > 0 {
		narrow(widths, width-gap*last)
	}
	status := slices.Index(rows[0], "STATUS")
	paint := painter(p.stdout)
	var b strings.Builder
	for n, row := range rows {
		for i, cell := range row {
			cell = cut(cell, widths[i])
			pad := widths[i] + gap - cells(cell)
			if i == status && n > 0 {
				cell = paint(statusStyle(cell), cell)
			}
			b.WriteString(cell)
			if i < last {
				b.WriteString(strings.Repeat(" ", pad))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(screen{p, p.stdout}, b.String())
	return err
}

// narrow takes from the widest columns until all fit into total, as far as
// that leaves something to read.
func narrow(widths []int, total int) {
	const readable = 12 // a short ID
	sum := 0
	for _, w := range widths {
		sum += w
	}
	for ; sum > total; sum-- {
		widest := slices.Index(widths, slices.Max(widths))
		if widths[widest] <= readable {
			return
		}
		widths[widest]--
	}
}

// shortID is how tables show an ID, and enough to find it again.
func shortID(id string) string { return id[:min(12, len(id))] }

// ago is a time span as docker words it.
func ago(d time.Duration) string {
	count := func(n int, unit string) string {
		if n == 1 {
			return "1 " + unit + " ago"
		}
		return fmt.Sprintf("%d %ss ago", n, unit)
	}
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return "Less than a second ago"
	case d < time.Minute:
		return count(int(d/time.Second), "second")
	case d < 2*time.Minute:
		return "About a minute ago"
	case d < time.Hour:
		return count(int(d/time.Minute), "minute")
	case d < 2*time.Hour:
		return "About an hour ago"
	case d < 2*day:
		return count(int(d/time.Hour), "hour")
	case d < 14*day:
		return count(int(d/day), "day")
	case d < 60*day:
		return count(int(d/(7*day)), "week")
	case d < 730*day:
		return count(int(d/(30*day)), "month")
	}
	return count(int(d/(365*day)), "year")
}
