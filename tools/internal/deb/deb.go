// SPDX-License-Identifier: Apache-2.0

// Package deb writes Debian binary packages (deb(5)): an ar archive that holds
// two tars, one of control files and one of what is installed. Equal input gives
// equal bytes, on any machine with the same Go release, whoever runs it.
package deb

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// File is one file of a package. The folders above it are made as needed, with
// mode 0755. Everything belongs to root.
type File struct {
	Path string      // absolute, like "/usr/bin/x"
	Mode fs.FileMode // permission bits
	Data []byte
	// Conffile files keep what the administrator made of them.
	Conffile bool
}

// Package is what Write writes.
type Package struct {
	// Control holds the fields of the control file, a line each; Write adds
	// Installed-Size.
	Control string
	// Scripts are the maintainer scripts by name, as "postinst".
	Scripts map[string][]byte
	Files   []File
	// Time is the modification time of every file, in whole seconds.
	Time time.Time
}

// Write writes p to w.
func Write(w io.Writer, p Package) error {
	files := slices.SortedFunc(slices.Values(p.Files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	for i, f := range files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
			return fmt.Errorf("write package: %q is not a clean absolute path", f.Path)
		}
		if i > 0 && files[i-1].Path == f.Path {
			return fmt.Errorf("write package: %s is there twice", f.Path)
		}
		if f.Mode&^fs.ModePerm != 0 {
			return fmt.Errorf("write package: %s has mode %v, want permission bits only", f.Path, f.Mode)
		}
	}
	data, err := archive(p.Time, files)
	if err != nil {
		return fmt.Errorf("write data: %w", err)
	}
	meta, err := control(p, files)
	if err != nil {
		return err
	}
	control, err := archive(p.Time, meta)
	if err != nil {
		return fmt.Errorf("write control: %w", err)
	}
	var ar bytes.Buffer
	ar.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", control}, {"data.tar.gz", data}} {
		fmt.Fprintf(&ar, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, p.Time.Unix(), 0, 0, "100644", len(m.data))
		ar.Write(m.data)
		if len(m.data)%2 != 0 {
			ar.WriteByte('\n')
		}
	}
	_, err = w.Write(ar.Bytes())
	return err
}

// control returns the files of the control archive.
func control(p Package, files []File) ([]File, error) {
	fields := strings.TrimSpace(p.Control)
	for _, want := range []string{"Package", "Version", "Architecture", "Maintainer", "Description"} {
		if !strings.Contains("\n"+fields, "\n"+want+": ") {
			return nil, fmt.Errorf("write control: field %s is missing", want)
		}
	}
	if strings.Contains(fields, "\n\n") {
		return nil, errors.New("write control: a blank line would end the fields")
	}
	var sums, conffiles bytes.Buffer
	size := 0
	for _, f := range files {
		size += (len(f.Data) + 1023) / 1024
		fmt.Fprintf(&sums, "%x  %s\n", md5.Sum(f.Data), f.Path[1:])
		if f.Conffile {
			conffiles.WriteString(f.Path + "\n")
		}
	}
	fields = strings.Replace(fields, "\nMaintainer: ", fmt.Sprintf("\nInstalled-Size: %d\nMaintainer: ", size), 1)
	meta := []File{
		{Path: "/control", Mode: 0o644, Data: []byte(fields + "\n")},
		{Path: "/md5sums", Mode: 0o644, Data: sums.Bytes()},
	}
	if conffiles.Len() > 0 {
		meta = append(meta, File{Path: "/conffiles", Mode: 0o644, Data: conffiles.Bytes()})
	}
	for name, text := range p.Scripts {
		meta = append(meta, File{Path: "/" + name, Mode: 0o755, Data: text})
	}
	slices.SortFunc(meta, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return meta, nil
}

// archive makes a compressed tar of sorted files and the folders above them.
func archive(mtime time.Time, files []File) ([]byte, error) {
	var buf bytes.Buffer
	zw, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(zw)
	seen := map[string]bool{}
	put := func(h tar.Header, data []byte) error {
		h.Size, h.ModTime = int64(len(data)), mtime.Truncate(time.Second)
		h.Uname, h.Gname, h.Format = "root", "root", tar.FormatGNU
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
		_, err := tw.Write(data)
		return err
	}
	var folder func(dir string) error
	folder = func(dir string) error {
		if seen[dir] {
			return nil
		}
		seen[dir] = true
		if dir != "/" {
			if err := folder(path.Dir(dir)); err != nil {
				return err
			}
		}
		return put(tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimSuffix("."+dir, "/") + "/", Mode: 0o755}, nil)
	}
	for _, f := range files {
		if err := folder(path.Dir(f.Path)); err != nil {
			return nil, err
		}
		if err := put(tar.Header{Typeflag: tar.TypeReg, Name: "." + f.Path, Mode: int64(f.Mode.Perm())}, f.Data); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// Gzip compresses data as Debian wants it: as small as it gets, without a name
// and a time.
func Gzip(data []byte) ([]byte, error) {
	var buf bytes.Buffer
	zw, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := zw.Write(data); err != nil {
		return nil, err
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
