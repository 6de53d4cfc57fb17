// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"maps"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// TestClasses fails for a service that is in the API but in no list here.
func TestClasses(t *testing.T) {
	var files []protoreflect.FileDescriptor
	protoregistry.GlobalFiles.RangeFilesByPackage("bauxite.dispatch.v1", func(f protoreflect.FileDescriptor) bool {
		files = append(files, f)
		return true
	})
	checkClasses(classes, files...)
	known := 0
	for _, f := range files {
		for i := range f.Services().Len() {
			known += f.Services().Get(i).Methods().Len()
		}
	}
	if known != len(classes) {
		t.Errorf("%d procedures in the table, %d in the API", len(classes), known)
	}
	listed := 0
	for _, f := range apiFiles {
		for i := range f.Services().Len() {
			listed += f.Services().Get(i).Methods().Len()
		}
	}
	if listed != known {
		t.Errorf("apiFiles name %d procedures of %d", listed, known)
	}
}

func TestClassMissing(t *testing.T) {
	table := maps.Clone(classes)
	delete(table, "/bauxite.dispatch.v1.PolicyService/GetPolicy")
	defer func() {
		if p, _ := recover().(string); !strings.HasSuffix(p, "PolicyService/GetPolicy") {
			t.Errorf("panic = %q, want one that names the procedure", p)
		}
	}()
	checkClasses(table, apiFiles...)
	t.Error("no panic")
}

func TestChooseName(t *testing.T) {
	for host, want := range map[string]string{
		"": "node", "Robot.local": "robot", "arm_7": "arm-7", "--": "node", "ünit": "nit", "localhost": "node",
		strings.Repeat("a", 80): strings.Repeat("a", 63),
	} {
		if got := chooseName(host); got != want {
			t.Errorf("chooseName(%q) = %q, want %q", host, got, want)
		}
	}
	if got := fact("a\x1b[31mb\n" + strings.Repeat("é", 100)); strings.ContainsAny(got, "\x1b\n") || len(got) > maxFact {
		t.Errorf("fact = %q", got)
	}
}

func FuzzPublicKey(f *testing.F) {
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := publicKey(b); err == nil && len(k) != 32 {
			t.Errorf("key of %d bytes", len(k))
		}
	})
}
