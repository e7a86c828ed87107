package main

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
)

// page is one manual page, in the language of man(7).
type page struct {
	path          []command // the program, then the command
	version, date string
}

func (p page) command() command { return p.path[len(p.path)-1] }

// words are the command as it is typed.
func (p page) words() string { return p.join(" ") }

// name is the page's.
func (p page) name() string { return p.join("-") }

func (p page) join(sep string) string {
	var names []string
	for _, c := range p.path {
		names = append(names, c.Name)
	}
	return strings.Join(names, sep)
}

type section struct{ title, body string }

// sections are those in text/: roff, each under its .SH.
func (p page) sections() ([]section, error) {
	data, err := text.ReadFile("text/" + p.name() + ".1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []section
	for part := range strings.SplitSeq("\n"+string(data), "\n.SH ") {
		title, body, _ := strings.Cut(part, "\n")
		if title = strings.Trim(title, `"`); title != "" {
			out = append(out, section{title, strings.TrimSuffix(body, "\n") + "\n"})
		}
	}
	return out, err
}

// roff is the page. Sections come in man-pages(7)'s order; others after the
// description. What text/ says of a section follows what the tree says.
func (p page) roff(written []section) string {
	cmd := p.command()
	parts := []section{
		{"NAME", fold(escape(p.name())+` \- `+escape(lower(cmd.Usage))) + "\n"},
		{"SYNOPSIS", p.synopsis()},
		{"DESCRIPTION", paragraphs(cmd.Description)},
		{"COMMANDS", p.commands()},
		{"OPTIONS", p.options()},
		{"EXIT STATUS", p.exitStatus(written)},
		{"ENVIRONMENT", p.environment()},
		{"FILES", ""},
		{"EXAMPLES", p.examples()},
		{"SEE ALSO", p.seeAlso()},
	}
	for _, w := range written {
		i := slices.IndexFunc(parts, func(s section) bool { return s.title == w.title })
		if i < 0 {
			i = slices.IndexFunc(parts, func(s section) bool { return s.title == "COMMANDS" })
			parts = slices.Insert(parts, i, section{title: w.title})
		}
		parts[i].body += w.body
	}
	var b strings.Builder
	fmt.Fprintf(&b, ".\\\" Written by packaging/man from the command tree and packaging/man/text.\n")
	fmt.Fprintf(&b, ".TH %s 1 %q %q %q\n", strings.ToUpper(escape(p.name())), p.date, "sandnet "+p.version, "sandnet manual")
	for _, s := range parts {
		if s.body != "" {
			fmt.Fprintf(&b, ".SH %s\n%s", s.title, s.body)
		}
	}
	return b.String()
}

func (p page) synopsis() string {
	cmd := p.command()
	line := ".B " + escape(p.words()) + "\n"
	// One line for each form, and for each name of the command.
	forms := strings.Split(cmd.Arguments, " | ")
	line += arguments(forms[0]) + "\n"
	add := func(words, form string) { line += ".br\n.B " + escape(words) + "\n" + arguments(form) + "\n" }
	for _, form := range forms[1:] {
		add(p.words(), form)
	}
	for _, alias := range cmd.Aliases {
		above := slices.Clone(p.path[:len(p.path)-1])
		for _, form := range forms {
			add(page{path: append(above, command{Name: alias})}.words(), form)
		}
	}
	return strings.ReplaceAll(line, "\n\n", "\n")
}

// commands lists the subcommands, by topic where they have one.
func (p page) commands() string {
	var b strings.Builder
	topic := ""
	for _, c := range p.command().Commands {
		if c.Category != topic {
			topic = c.Category
			fmt.Fprintf(&b, ".SS %s\n", escape(topic))
		}
		sub := page{path: append(slices.Clone(p.path), c)}
		fmt.Fprintf(&b, ".TP\n.BR %s (1)\n%s.\n", escape(sub.name()), prose(c.Usage))
	}
	return b.String()
}

func (p page) options() string {
	var b strings.Builder
	for _, o := range p.command().Options {
		var names []string
		for _, short := range []bool{true, false} {
			for _, n := range o.Names {
				switch {
				case (len(n) == 1) != short:
				case short:
					names = append(names, `\fB\-`+n+`\fR`)
				default:
					names = append(names, `\fB\-\-`+escape(n)+`\fR`)
				}
			}
		}
		tag := strings.Join(names, ", ")
		if o.Value != "" {
			tag += ` ` + arguments(o.Value)
		}
		usage := prose(upper(strings.TrimSuffix(o.Usage, " (repeatable)")) + ".")
		if o.Default != "" {
			usage += "\nThe default is \\fB" + escape(o.Default) + "\\fR."
		}
		if o.Repeatable {
			usage += "\nMay be given several times."
		}
		fmt.Fprintf(&b, ".TP\n%s\n%s\n", tag, usage)
	}
	if len(p.path) > 1 {
		b.WriteString(".PP\nThe global options of\n.BR " + escape(p.path[0].Name) + " (1)\nmay be given, too.\n")
	}
	return b.String()
}

// exitStatus is what most commands have in common.
func (p page) exitStatus(written []section) string {
	if slices.ContainsFunc(written, func(s section) bool { return s.title == "EXIT STATUS" }) {
		return ""
	}
	return "0 on success, 1 if the operation failed, 2 if the usage or a value was wrong\nand nothing was changed.\n"
}

// environment lists what stands in for options.
func (p page) environment() string {
	var b strings.Builder
	for _, o := range p.command().Options {
		for _, v := range o.Env {
			fmt.Fprintf(&b, ".TP\n.B %s\nStands in for\n.BR \\-\\-%s .\n", v, escape(o.Names[0]))
		}
	}
	return b.String()
}

func (p page) examples() string {
	var b strings.Builder
	for _, e := range p.command().Examples {
		fmt.Fprintf(&b, ".PP\n.EX\n# %s\n.EE\n", verbatim(e))
	}
	return strings.TrimPrefix(b.String(), ".PP\n")
}

// seeAlso names the pages above, below and beside.
func (p page) seeAlso() string {
	pages := []string{}
	add := func(path ...command) {
		if name := (page{path: path}).name(); name != p.name() && !slices.Contains(pages, name) {
			pages = append(pages, name)
		}
	}
	for i := range p.path {
		add(p.path[:i+1]...)
	}
	for _, c := range p.command().Commands {
		add(append(slices.Clone(p.path), c)...)
	}
	if n := len(p.path); n > 1 {
		for _, c := range p.path[n-2].Commands {
			if c.Category == p.command().Category {
				add(append(slices.Clone(p.path[:n-1]), c)...)
			}
		}
	}
	var b strings.Builder
	for i, name := range pages {
		end := ","
		if i == len(pages)-1 {
			end = ""
		}
		fmt.Fprintf(&b, ".BR %s (1)%s\n", escape(name), end)
	}
	return b.String()
}

// escape makes plain text of s: roff takes a backslash for its own, and a
// hyphen for one that may be typeset otherwise.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(s)
}

// verbatim is escape for what is to be typed as it stands.
func verbatim(s string) string {
	return strings.NewReplacer(`\`, `\e`, `-`, `\-`, `'`, `\(aq`, "`", `\(ga`, `^`, `\(ha`, `~`, `\(ti`).Replace(s)
}

// arguments sets the names of values apart from what is typed.
func arguments(s string) string {
	return regexp.MustCompile(`[A-Z][A-Za-z0-9]*`).ReplaceAllStringFunc(escape(s), func(name string) string { return `\fI` + name + `\fR` })
}

// prose is running text: 'commands in quotes', and options, are set in bold.
func prose(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "“", `\(lq`, "”", `\(rq`, "…", "...").Replace(s)
	s = regexp.MustCompile(`(^|[\s(])'[^']+'`).ReplaceAllStringFunc(s, func(q string) string {
		head, quoted, _ := strings.Cut(q, "'")
		return head + `\fB` + strings.ReplaceAll(strings.TrimSuffix(quoted, "'"), "-", `\-`) + `\fR`
	})
	s = regexp.MustCompile(`(^|[ (])(--?[a-z][a-z0-9-]*)`).ReplaceAllStringFunc(s, func(o string) string {
		head := strings.TrimRight(o[:1], "-")
		return head + `\fB` + strings.ReplaceAll(o[len(head):], "-", `\-`) + `\fR`
	})
	return fold(s)
}

// fold breaks paragraphs into lines, none of which roff takes for a request.
func fold(s string) string {
	const columns = 78
	var b strings.Builder
	for i, paragraph := range strings.Split(s, "\n\n") {
		if i > 0 {
			b.WriteString("\n\n")
		}
		n := 0
		for _, word := range strings.Fields(paragraph) {
			switch {
			case n == 0:
			case n+1+len(word) > columns:
				b.WriteByte('\n')
				n = 0
			default:
				b.WriteByte(' ')
				n++
			}
			if n == 0 && strings.ContainsAny(word[:1], ".'") {
				word = `\&` + word
			}
			b.WriteString(word)
			n += len(word)
		}
	}
	return b.String()
}

func paragraphs(s string) string {
	if s == "" {
		return ""
	}
	return strings.ReplaceAll(prose(s), "\n\n", "\n.PP\n") + "\n"
}

func lower(s string) string {
	if len(s) > 1 && s[1] >= 'a' && s[1] <= 'z' {
		return strings.ToLower(s[:1]) + s[1:]
	}
	return s
}

// upper begins a sentence, unless with what is typed as it stands: "text or json".
func upper(s string) string {
	if s == "" || regexp.MustCompile(`^\w+(,| or )`).MatchString(s) {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
