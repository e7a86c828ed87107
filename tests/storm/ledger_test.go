package storm

import (
	"fmt"
	"slices"
	"sync"
)

// ledger is who is sure to hold what. A sandbox is in it from the moment its
// making was seen to succeed until a command that may remove it starts: what
// two sandboxes in it hold must differ.
type ledger struct {
	mu sync.Mutex
	// All guarded by mu. holders are by claim, claims and ids by name; removing
	// counts the commands under way that may remove a name, touched those that
	// ever were.
	holders  map[string]string
	claims   map[string][]string
	ids      map[string]string
	removing map[string]int
	touched  map[string]int
	faults   []string
	checked  int
}

func newLedger() *ledger {
	return &ledger{holders: map[string]string{}, claims: map[string][]string{}, ids: map[string]string{},
		removing: map[string]int{}, touched: map[string]int{}}
}

// begin is called before a command starts.
func (l *ledger) begin(c call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range c.removes {
		l.removing[name]++
		l.touched[name]++
		l.forget(name)
	}
}

func (l *ledger) forget(name string) {
	for _, claim := range l.claims[name] {
		delete(l.holders, claim)
	}
	delete(l.claims, name)
	delete(l.ids, name)
}

// end is called after a command has ended.
func (l *ledger) end(c call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range c.removes {
		l.removing[name]--
	}
}

// stamp is a moment in the life of a name; see made.
func (l *ledger) stamp(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.removing[name] > 0 {
		return -1
	}
	return l.touched[name]
}

// made enters a sandbox with what it holds, unless it may have been removed
// since the stamp was taken, which was after its making had ended.
func (l *ledger) made(stamp int, name, id string, claims []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if stamp < 0 || stamp != l.touched[name] {
		return
	}
	if other, ok := l.ids[name]; ok {
		l.faults = append(l.faults, fmt.Sprintf("sandbox %s was made twice: as %.12s and as %.12s", name, other, id))
		l.forget(name)
	}
	for _, claim := range claims {
		if other, ok := l.holders[claim]; ok {
			l.faults = append(l.faults, fmt.Sprintf("%s is held twice: by %s and by %s", claim, other, name))
		}
		l.holders[claim] = name
		l.checked++
	}
	l.claims[name], l.ids[name] = slices.Clone(claims), id
}

// sure are the sandboxes that must exist, by name, with their IDs.
func (l *ledger) sure() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]string{}
	for name, id := range l.ids {
		out[name] = id
	}
	return out
}
