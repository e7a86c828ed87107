package storm

import (
	"fmt"
	"slices"
	"sync"
)

// ledger is who is sure to hold what. A sandbox is in it from the moment its
// making was seen to succeed until a command that may remove it starts; what it
// holds is, except while a command may change that. What two sandboxes in it
// hold must differ.
type ledger struct {
	mu sync.Mutex
	// All guarded by mu. holders are by claim, claims and ids by name; working
	// counts the commands under way that may remove or change a name, touched
	// those that ever were.
	holders map[string]string
	claims  map[string][]string
	ids     map[string]string
	working map[string]int
	touched map[string]int
	faults  []string
	checked int
}

func newLedger() *ledger {
	return &ledger{holders: map[string]string{}, claims: map[string][]string{}, ids: map[string]string{},
		working: map[string]int{}, touched: map[string]int{}}
}

// begin is called before a command starts.
func (l *ledger) begin(c call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range c.touches() {
		l.working[name]++
		l.touched[name]++
		l.release(name)
	}
	for _, name := range c.removes {
		delete(l.ids, name)
	}
}

// release takes back what a sandbox holds.
func (l *ledger) release(name string) {
	for _, claim := range l.claims[name] {
		delete(l.holders, claim)
	}
	delete(l.claims, name)
}

// end is called after a command has ended.
func (l *ledger) end(c call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range c.touches() {
		l.working[name]--
	}
}

// stamp is a moment in the life of a name; see made and changed.
func (l *ledger) stamp(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.working[name] > 0 {
		return -1
	}
	return l.touched[name]
}

// made enters a sandbox with what it holds, unless it may have been removed or
// changed since the stamp was taken, which was after its making had ended.
func (l *ledger) made(stamp int, name, id string, claims []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if stamp < 0 || stamp != l.touched[name] {
		return
	}
	if other, ok := l.ids[name]; ok {
		l.faults = append(l.faults, fmt.Sprintf("sandbox %s was made twice: as %.12s and as %.12s", name, other, id))
	}
	l.ids[name] = id
	l.hold(name, claims)
}

// changed enters what a sandbox holds after a change, if it is the one that was
// made, and as for made.
func (l *ledger) changed(stamp int, name, id string, claims []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if stamp >= 0 && stamp == l.touched[name] && l.ids[name] == id {
		l.hold(name, claims)
	}
}

func (l *ledger) hold(name string, claims []string) {
	l.release(name)
	for _, claim := range claims {
		if other, ok := l.holders[claim]; ok {
			l.faults = append(l.faults, fmt.Sprintf("%s is held twice: by %s and by %s", claim, other, name))
		}
		l.holders[claim] = name
		l.checked++
	}
	l.claims[name] = slices.Clone(claims)
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
