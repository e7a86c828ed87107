package runtimes

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/tests/lab"
)

// containerd finds plugins and their configuration in fixed places only.
var cniDirs = []string{"/etc/cni/net.d", "/opt/cni/bin"}

func TestContainerd(t *testing.T) {
	l := lab.New(t)
	h := l.Host("host")
	before := used(t, h)
	dir := t.TempDir()
	for _, d := range cniDirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(d, unix.MNT_DETACH) })
	}
	if err := os.Symlink(h.Program, filepath.Join(cniDirs[1], "sandnet")); err != nil {
		t.Fatal(err)
	}
	conflist := `{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"sandnet"}]}`
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), filepath.Join(dir, "sock"))
	for path, text := range map[string]string{filepath.Join(cniDirs[0], "10-lab.conflist"): conflist, filepath.Join(dir, "config.toml"): config} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	daemon := h.Start([]string{"SANDNET_ROOT=" + h.Root}, "containerd", "--config", filepath.Join(dir, "config.toml"))
	ctr := func(args ...string) lab.Result {
		return h.RunEnv([]string{"SANDNET_ROOT=" + h.Root}, "ctr", append([]string{"--address", filepath.Join(dir, "sock")}, args...)...)
	}
	lab.Eventually(t, "containerd", func() error {
		if r := ctr("version"); r.Code != 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	image := filepath.Join(dir, "image.tar")
	writeImage(t, image, "lab/busybox:1")
	for _, args := range [][]string{
		{"images", "import", "--snapshotter", "native", image},
		{"run", "--cni", "--detach", "--snapshotter", "native", "lab/busybox:1", "web", "/bin/sh", "-c", "mkdir -p /tmp; " + serve},
	} {
		if r := ctr(args...); r.Code != 0 {
			t.Fatal(r)
		}
	}
	name := h.OK("ps", "-q")
	c := inspect(t, h, name)
	if c.Source != "cni" || !strings.Contains(c.Container, "web") {
		t.Errorf("inspect says %+v", c)
	}
	greets(t, h.NS, c.address()+":80")
	if r := ctr("tasks", "kill", "--signal", "KILL", "web"); r.Code != 0 {
		t.Fatal(r)
	}
	lab.Eventually(t, "end of the task", func() error {
		if r := ctr("tasks", "delete", "web"); r.Code != 0 && !strings.Contains(r.Stderr, "not found") {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	// ctr forgets to take the network of a detached container away.
	h.OK("gc")
	_ = ctr("containers", "delete", "web")
	_ = daemon.Process.Kill()
	if i, d := h.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}

// writeImage writes an OCI image (image-spec 1.0, image-layout.md) of one layer
// with busybox.
func writeImage(t *testing.T, path, name string) {
	t.Helper()
	var archive bytes.Buffer
	out := tar.NewWriter(&archive)
	put := func(name string, data []byte) {
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	blob := func(kind string, data []byte) descriptor {
		sum := sha256.Sum256(data)
		digest := hex.EncodeToString(sum[:])
		put("blobs/sha256/"+digest, data)
		return descriptor{MediaType: "application/vnd.oci.image." + kind, Digest: "sha256:" + digest, Size: len(data)}
	}
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	layer := blob("layer.v1.tar", tarOf(t, rootfs(t, t.TempDir())))
	config := blob("config.v1+json", encode(map[string]any{"architecture": "amd64", "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}}}))
	manifest := blob("manifest.v1+json", encode(map[string]any{"schemaVersion": 2, "config": config, "layers": []descriptor{layer}}))
	manifest.Annotations = map[string]string{"io.containerd.image.name": name}
	put("index.json", encode(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}}))
	put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, archive.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func tarOf(t *testing.T, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
