//go:build !crashpoints

// Package crash marks the instants at which tests kill sandnet: before each
// change of the kernel and of the records. In ordinary builds it does nothing.
package crash

// Point marks an instant between two changes; name says which comes next.
func Point(name string) {}

// Enabled says that the build has kill points; a batch of changes is then made
// one by one.
const Enabled = false
