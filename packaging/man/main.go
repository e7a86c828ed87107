// Command man writes sandnet's manual pages: sandnet(1) and one for each
// command. What commands and options there are it reads from standard input,
// as `sandnet __tree` prints it; the sections that are not about those, it has
// in text/, one file for each page that has any. It knows no command by name.
package main

import (
	"embed"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

//go:embed text
var text embed.FS

// command and option are `sandnet __tree`'s.
type command struct {
	Name, Category, Arguments, Usage, Description string
	Aliases, Examples                             []string
	Options                                       []option
	Commands                                      []command
}

type option struct {
	Names                 []string
	Value, Usage, Default string
	Env                   []string
	Repeatable            bool
}

func main() {
	dir := flag.String("o", "bin/man", "`directory` to write to")
	version := flag.String("version", "dev", "version of sandnet")
	date := flag.String("date", "", "date of the pages, as 2006-01-02")
	flag.Parse()
	if err := write(os.Stdin, *dir, *version, *date); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

func write(tree io.Reader, dir, version, date string) error {
	var root command
	if err := json.NewDecoder(tree).Decode(&root); err != nil {
		return fmt.Errorf("command tree: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	written, err := fs.ReadDir(text, "text")
	if err != nil {
		return err
	}
	unused := map[string]bool{}
	for _, f := range written {
		unused[f.Name()] = true
	}
	var visit func(cmd command, above []command) error
	visit = func(cmd command, above []command) error {
		p := page{path: append(slices.Clone(above), cmd), version: version, date: date}
		sections, err := p.sections()
		if err != nil {
			return err
		}
		delete(unused, p.name()+".1")
		if err := os.WriteFile(filepath.Join(dir, p.name()+".1"), []byte(p.roff(sections)), 0o644); err != nil {
			return err
		}
		for _, sub := range cmd.Commands {
			if err := visit(sub, p.path); err != nil {
				return err
			}
		}
		return nil
	}
	if err := visit(root, nil); err != nil {
		return err
	}
	for name := range unused {
		return fmt.Errorf("text/%s is about no command", name)
	}
	return nil
}
