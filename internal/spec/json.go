package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxJSON is the most that is read of a JSON text from a container runtime, in bytes.
const MaxJSON = 1 << 20

// ReadJSON reads one JSON object from r into v. What no honest runtime sends is
// refused with an *InputError: more than MaxJSON, several values, or a key
// twice in one object, of which every reader would believe another one. what
// names the text.
func ReadJSON(r io.Reader, what string, v any) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxJSON+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	fault := func(why string) error {
		return &InputError{What: what, Value: string(data[:min(len(data), 64)]), Why: why}
	}
	if len(data) > MaxJSON {
		return nil, fault(fmt.Sprintf("it is longer than %d bytes", MaxJSON))
	}
	if why := jsonFault(data); why != "" {
		return nil, fault(why)
	}
	if err := json.Unmarshal(data, v); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return nil, fault(fmt.Sprintf("%s should not be a %s", wrong.Field, wrong.Value))
		}
		return nil, fault(err.Error())
	}
	return data, nil
}

// jsonFault says why data is not one JSON object whose keys are unique.
func jsonFault(data []byte) string {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	type level struct {
		keys  map[string]bool // nil in an array
		isKey bool
	}
	var levels []level
	for {
		token, err := d.Token()
		switch {
		case errors.Is(err, io.EOF) && len(data) == 0:
			return "it is empty"
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return "it ends too early"
		case err != nil:
			return "it is not JSON: " + err.Error()
		}
		top := len(levels) - 1
		if top < 0 && token != json.Delim('{') {
			return "it is not an object"
		}
		if top >= 0 && levels[top].keys != nil && token != json.Delim('}') {
			key, _ := token.(string)
			if levels[top].isKey {
				if levels[top].keys[key] {
					return fmt.Sprintf("the key %s is there twice", quote(key, 64))
				}
				levels[top].keys[key] = true
			}
			levels[top].isKey = !levels[top].isKey
		}
		switch token {
		case json.Delim('{'):
			levels = append(levels, level{map[string]bool{}, true})
		case json.Delim('['):
			levels = append(levels, level{})
		case json.Delim('}'), json.Delim(']'):
			if levels = levels[:top]; len(levels) == 0 {
				if _, err := d.Token(); !errors.Is(err, io.EOF) {
					return "something follows the object"
				}
				return ""
			}
		}
	}
}
