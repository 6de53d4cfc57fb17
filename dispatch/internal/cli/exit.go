// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/audit"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// What a command can end with, besides the errors of other packages.
var (
	errUsage    = errors.New("usage")
	errNoHub    = errors.New("no hub reachable")
	errDenied   = errors.New("not permitted")
	errNotFound = errors.New("not found")
	errConflict = errors.New("conflict")
	errNotReady = errors.New("the hub is not ready")
	errTests    = errors.New("tests of the policy do not hold")
)

// exit is one way to end. The codes are promised to scripts: they never change
// their meaning.
type exit struct {
	code int
	errs []error
	mean string
	hint string
}

// exits is searched in order; the first whose error matches wins.
var exits = []exit{
	{exitUsage, []error{errUsage}, "the command line is wrong", "add --help to the command to see what it takes"},
	{3, []error{errNoHub}, "no hub reachable: it does not run, or the network, TLS or the pin is wrong", ""},
	{3, []error{errNotReady}, "", "see the hub's log"},
	{4, []error{identity.ErrExposed}, "", "make the file readable for you alone: chmod 600 FILE"},
	{4, []error{errDenied, authz.ErrKey}, "not permitted: the key is refused, or its role or scopes do not include this", ""},
	{5, []error{errNotFound}, "no such node, token, user, key, version", ""},
	{6, []error{errConflict}, "conflict: somebody else changed it, the name is taken, or the state forbids it", ""},
	{7, []error{audit.ErrBroken, audit.ErrTruncated, audit.ErrSignature}, "audit verify: the log was tampered with, or belongs to another hub", "keep a copy of the data directory and of the exported checkpoints before you change anything"},
	{8, []error{errTests}, "policy: tests do not hold", ""},
	{10, []error{dispatch.ErrInUse}, "serve: another hub uses the data directory", "stop it first, or choose another directory with --data"},
	{11, []error{syscall.EADDRINUSE}, "serve: a port is in use", "see who has it: ss -lntup; choose another with --listen, --admin-listen, --metrics-listen, --stun-listen"},
	{12, []error{store.ErrDiskFull, syscall.ENOSPC, syscall.EDQUOT}, "serve: the disk is full", "make room and start again: nothing that was acknowledged is lost"},
	{13, []error{store.ErrReadOnly, syscall.EROFS, fs.ErrPermission}, "serve: the data directory cannot be written", "run as the user who owns it, on a file system that is mounted for writing"},
	{14, []error{store.ErrCorrupt, store.ErrForeign, dispatch.ErrUnfinished}, "serve: the database is damaged", "keep a copy of the data directory, then restore the newest backup: bauxite-dispatch restore --help"},
	{17, []error{store.ErrStorageIO, syscall.EIO}, "serve: the disk failed", "see the kernel's log, and restore the newest backup on another disk"},
	{15, []error{store.ErrNewerSchema}, "serve: the data directory was written by a newer version", "install the newer version again, or restore the backup that it made before its migration"},
	{16, []error{dispatch.ErrFixed}, "serve: the mesh prefix differs from that of the first start", "leave --mesh-cidr and --mesh-cidr6 away"},
	{18, []error{dispatch.ErrBackup}, "restore: the archive is no usable backup", "take another one; the data directory is as it was"},
	{19, []error{dispatch.ErrMissing}, "serve: a file of the data directory is missing", "restore it from the newest backup: bauxite-dispatch restore --help"},
	{20, []error{dispatch.ErrClock}, "serve: the machine's clock is wrong", "set the clock, and let it follow a time server, then start again"},
	{21, []error{fips.ErrModule}, "this FIPS build does not run on the certified module in FIPS mode", "take fips140 out of GODEBUG; if it is not there, the program was built wrongly: GOFIPS140=" + fips.Module + " go build -tags bauxite_fips"},
	{130, []error{context.Canceled}, "interrupted", ""},
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error      { return e.error }
func (usageError) Is(target error) bool { return target == errUsage }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// failure is an error of a class of errors, with what to do next.
type failure struct {
	class error
	text  string
	hint  string
	cause error
}

func (f *failure) Error() string        { return f.text }
func (f *failure) Is(target error) bool { return target == f.class }
func (f *failure) Unwrap() error        { return f.cause }

func failf(class error, hint, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &failure{class, err.Error(), hint, errors.Unwrap(err)}
}

// verdict returns the exit code of err and a hint, which may be empty.
func verdict(err error) (code int, hint string) {
	code = exitError
find:
	for _, e := range exits {
		for _, target := range e.errs {
			if errors.Is(err, target) {
				code, hint = e.code, e.hint
				break find
			}
		}
	}
	// The nearest hint is the best one.
	if f := new(failure); errors.As(err, &f) && f.hint != "" {
		hint = f.hint
	}
	return code, hint
}

// exitTable is the help text about exit codes.
func exitTable() string {
	var b strings.Builder
	b.WriteString("  0  done\n  1  any other error\n")
	for _, e := range exits {
		if e.mean != "" {
			fmt.Fprintf(&b, "%3d  %s\n", e.code, e.mean)
		}
	}
	return b.String()
}
