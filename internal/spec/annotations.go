package spec

import (
	"slices"
	"strings"
)

// annotationPrefix is what the names of sandnet's OCI annotations begin with.
const annotationPrefix = "io.sandnet."

// The annotations, in the order of docs and messages. Lists are separated by
// commas.
const (
	AnnotationNetwork = annotationPrefix + "network"
	AnnotationPublish = annotationPrefix + "publish"
	AnnotationIP      = annotationPrefix + "ip"
	AnnotationIP6     = annotationPrefix + "ip6"
	AnnotationMAC     = annotationPrefix + "mac"
	AnnotationName    = annotationPrefix + "name"
	AnnotationAliases = annotationPrefix + "aliases"
	AnnotationLabels  = annotationPrefix + "labels"
)

// Annotations are the options that a container's OCI annotations spell. asked
// is false without any: such a container is not sandnet's. unknown are those
// that look like sandnet's and are not.
func Annotations(all map[string]string) (o SandboxOptions, asked bool, unknown []string) {
	for key, value := range all {
		if !strings.HasPrefix(key, annotationPrefix) {
			continue
		}
		asked = true
		switch key {
		case AnnotationNetwork:
			o.Net = list(value)
		case AnnotationPublish:
			o.Publish = list(value)
		case AnnotationIP:
			o.IP = value
		case AnnotationIP6:
			o.IP6 = value
		case AnnotationMAC:
			o.MAC = value
		case AnnotationName:
			o.Name = value
		case AnnotationAliases:
			o.NetworkAlias = list(value)
		case AnnotationLabels:
			o.Labels = list(value)
		default:
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	return o, asked, unknown
}

// list takes a comma-separated list apart; of an empty text, it is empty.
func list(s string) []string {
	if strings.TrimSpace(s) == "" {
		return nil
	}
	parts := strings.Split(s, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

// ToAnnotations is the opposite of Annotations.
func (o SandboxOptions) ToAnnotations() map[string]string {
	out := map[string]string{AnnotationNetwork: DefaultNetwork}
	for key, value := range map[string]string{
		AnnotationNetwork: strings.Join(o.Net, ","), AnnotationPublish: strings.Join(o.Publish, ","),
		AnnotationIP: o.IP, AnnotationIP6: o.IP6, AnnotationMAC: o.MAC, AnnotationName: o.Name,
		AnnotationAliases: strings.Join(o.NetworkAlias, ","), AnnotationLabels: strings.Join(o.Labels, ","),
	} {
		if value != "" {
			out[key] = value
		}
	}
	return out
}
