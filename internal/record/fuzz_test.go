package record

import (
	"encoding/json"
	"log/slog"
	"os"
	"reflect"
	"testing"

	"github.com/sandnet/sandnet/internal/plan"
)

// FuzzLoad reads records as a full disk, an editor or a bad memory may leave
// them: in error, or as a plan that can be saved and read again.
func FuzzLoad(f *testing.F) {
	good, err := json.Marshal(plan.Plan{Owner: "sandbox/web", Meta: json.RawMessage(`{"pid":1}`), Objects: []plan.Object{plan.Netns{Path: "/run/netns/web"}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, data := range [][]byte{good, good[:len(good)/2], {}, []byte("null"), []byte(`{"owner":"../x","objects":[null]}`), []byte(`{"objects":[{"kind":"warp"}]}`)} {
		f.Add(data)
	}
	s := New(f.TempDir(), slog.New(slog.DiscardHandler))
	if err := s.Save(plan.Plan{Owner: "x"}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(s.path("x"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := s.Load("x")
		if err != nil {
			return
		}
		p.Owner = "x"
		if err := s.Save(p); err != nil {
			t.Fatalf("%q was read and cannot be saved: %v", data, err)
		}
		again, err := s.Load("x")
		if err != nil || again.Sum() != p.Sum() || !reflect.DeepEqual(again.Objects, p.Objects) {
			t.Errorf("%q: saved %+v, read %+v, %v", data, p, again, err)
		}
		if !s.Same(p) {
			t.Errorf("%q: not the same as itself", data)
		}
	})
}
