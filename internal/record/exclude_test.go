package record

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Any number may be inside; who excludes waits for them, and others wait for
// him, also while he waits himself.
func TestExclude(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	brief := func() context.Context {
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		t.Cleanup(cancel)
		return short
	}
	one, err := s.Enter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	two, err := s.Enter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Exclude(brief()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("excluded with two inside: %v", err)
	}
	one()
	alone := make(chan func())
	go func() {
		release, err := s.Exclude(ctx)
		if err != nil {
			t.Error(err)
		}
		alone <- release
	}()
	// Nobody gets in past one who waits, or he would wait for ever.
	for {
		late, err := s.Enter(brief())
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		late()
	}
	two()
	release := <-alone
	if _, err := s.Enter(brief()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("entered beside one who is alone: %v", err)
	}
	release()
	three, err := s.Enter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	three()
}
