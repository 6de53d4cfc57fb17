// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// fail makes an error with an ErrorInfo.
func fail(code connect.Code, reason dispatchv1.ErrorReason, text, hint string) *connect.Error {
	err := connect.NewError(code, errors.New(text))
	info := &dispatchv1.ErrorInfo{
		Reason: reason, Hint: hint,
		Retryable: code == connect.CodeUnavailable || code == connect.CodeResourceExhausted,
	}
	if d, derr := connect.NewErrorDetail(info); derr == nil {
		err.AddDetail(d)
	}
	return err
}

// refused is what every join with a bad token is told, whatever the reason; the
// reason itself stands in the detail.
const refused = "join token refused"

const newToken = "ask for a new token: bauxite-dispatch token create"

// wireError turns an error of the store into one for the caller. What the caller
// cannot help is logged here and hidden from him.
func wireError(ctx context.Context, log *slog.Logger, what string, err error) error {
	denied := connect.CodePermissionDenied
	switch {
	case errors.Is(err, store.ErrTokenInvalid):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_TOKEN_INVALID, refused, newToken)
	case errors.Is(err, store.ErrTokenExpired):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED, refused, newToken)
	case errors.Is(err, store.ErrTokenUsedUp):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_TOKEN_USED_UP, refused, newToken)
	case errors.Is(err, store.ErrTokenRevoked):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED, refused, newToken)
	case errors.Is(err, store.ErrNodeRevoked):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED, "this node is revoked", "make new keys and join again")
	case errors.Is(err, store.ErrNodeLocked):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_CLONE_SUSPECTED, err.Error(),
			"make sure that there is one such machine, then: bauxite-dispatch node approve")
	case errors.Is(err, store.ErrRekey):
		return fail(connect.CodeFailedPrecondition, dispatchv1.ErrorReason_ERROR_REASON_REKEY_REQUIRED, err.Error(), "")
	case errors.Is(err, store.ErrNeedsPerson):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED, err.Error(), "an administrator gives it its tags: bauxite-dispatch node set")
	case errors.Is(err, store.ErrCSRRequired):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_CSR_REQUIRED, err.Error(), "let the node make its key")
	case errors.Is(err, store.ErrRecoveryExhausted):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_RECOVERY_EXHAUSTED, err.Error(), "an administrator allows more: bauxite-dispatch node approve")
	case errors.Is(err, store.ErrConflict):
		return fail(connect.CodeAborted, dispatchv1.ErrorReason_ERROR_REASON_CONFLICT, err.Error(), "read it again, then change it")
	case errors.Is(err, store.ErrNameTaken):
		return fail(connect.CodeAlreadyExists, dispatchv1.ErrorReason_ERROR_REASON_NAME_INVALID, err.Error(), "choose another name")
	case errors.Is(err, store.ErrAmbiguous):
		return connect.NewError(connect.CodeInvalidArgument, err)
	case errors.Is(err, store.ErrKeyInUse):
		return fail(connect.CodeAlreadyExists, dispatchv1.ErrorReason_ERROR_REASON_KEY_IN_USE, err.Error(), "make new keys and join again")
	case errors.Is(err, store.ErrKeyMismatch):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_CSR_INVALID, err.Error(), "a node renews with the key that it joined with")
	case errors.Is(err, store.ErrExhausted):
		return fail(connect.CodeResourceExhausted, dispatchv1.ErrorReason_ERROR_REASON_ADDRESSES_EXHAUSTED, err.Error(), "delete nodes that are no more")
	case errors.Is(err, store.ErrNotFound):
		return connect.NewError(connect.CodeNotFound, err)
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, context.Canceled)
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, context.DeadlineExceeded)
	case errors.Is(err, net.ErrClosed):
		return stopping()
	case errors.Is(err, ca.ErrClock):
		log.ErrorContext(ctx, what, "err", err)
		return fail(connect.CodeUnavailable, dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "the hub's clock is wrong", "set the clock of the hub's machine")
	case store.IsStorage(err):
		log.ErrorContext(ctx, what, "err", err)
		return fail(connect.CodeUnavailable, dispatchv1.ErrorReason_ERROR_REASON_STORAGE, "the hub cannot write", storageHint(err))
	}
	log.ErrorContext(ctx, what, "err", err)
	return connect.NewError(connect.CodeInternal, errors.New("internal error of the hub, see its log"))
}

// storageHint says what the hub's operator can do about its disk.
func storageHint(err error) string {
	switch {
	case errors.Is(err, store.ErrDiskFull):
		return "its disk is full: make room, the hub goes on by itself"
	case errors.Is(err, store.ErrReadOnly):
		return "its data directory is read-only: mount it for writing and restart the hub"
	}
	return "see the hub's log and check its disk"
}

// stopping is what open streams are told when the hub goes down.
func stopping() error {
	return fail(connect.CodeUnavailable, dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "the hub is stopping", "")
}

// ended is why a stream whose context is done ends.
func ended(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), errRevoked) {
		return fail(connect.CodePermissionDenied, dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED, "this node is revoked", "")
	}
	return stopping()
}
