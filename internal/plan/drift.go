package plan

// Drift is one way in which the kernel differs from an object that is on
// record as made: it is missing, or a property of it is another one.
type Drift struct {
	Object Object
	// Property is what differs, Want and Have are its values; all empty if the
	// object is missing.
	Property, Want, Have string
}

// Missing says that the object is not there at all.
func (d Drift) Missing() bool { return d.Property == "" }

// String says what is wrong in a few words.
func (d Drift) String() string {
	if d.Missing() {
		return "missing"
	}
	return d.Property + ": want " + orNone(d.Want) + ", have " + orNone(d.Have)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
