// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/pion/logging"
)

// levelTrace is where pion's traces go: below Debug.
const levelTrace = slog.LevelDebug - 4

// NewLoggerFactory returns a pion logger factory that writes to log (nil =
// discard). What pion calls a warning is mostly the ordinary noise of
// connectivity checks, some of it caused by whoever sends to us, so Info and Warn
// become Debug, and Error becomes Warn.
func NewLoggerFactory(log *slog.Logger) logging.LoggerFactory {
	return loggerFactory{orDiscard(log)}
}

func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}

type loggerFactory struct{ log *slog.Logger }

func (f loggerFactory) NewLogger(scope string) logging.LeveledLogger {
	return leveled{f.log.With("scope", scope)}
}

type leveled struct{ log *slog.Logger }

func (l leveled) logf(level slog.Level, format string, args []any) {
	// Formatting pion's arguments is dear (addresses, candidates): only if wanted.
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, fmt.Sprintf(format, args...))
	}
}

func (l leveled) text(level slog.Level, msg string) { l.log.Log(context.Background(), level, msg) }

func (l leveled) Trace(msg string)                  { l.text(levelTrace, msg) }
func (l leveled) Tracef(format string, args ...any) { l.logf(levelTrace, format, args) }
func (l leveled) Debug(msg string)                  { l.text(slog.LevelDebug, msg) }
func (l leveled) Debugf(format string, args ...any) { l.logf(slog.LevelDebug, format, args) }
func (l leveled) Info(msg string)                   { l.text(slog.LevelDebug, msg) }
func (l leveled) Infof(format string, args ...any)  { l.logf(slog.LevelDebug, format, args) }
func (l leveled) Warn(msg string)                   { l.text(slog.LevelDebug, msg) }
func (l leveled) Warnf(format string, args ...any)  { l.logf(slog.LevelDebug, format, args) }
func (l leveled) Error(msg string)                  { l.text(slog.LevelWarn, msg) }
func (l leveled) Errorf(format string, args ...any) { l.logf(slog.LevelWarn, format, args) }
