// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"fmt"
	"log/slog"

	"github.com/pion/logging"
)

// logs gives pion a logger. What it says per packet is not even formatted, and
// the rest is for debugging: strangers cause it.
type logs struct{ log *slog.Logger }

func (l logs) NewLogger(string) logging.LeveledLogger { return l }

func (logs) Trace(string)          {}
func (logs) Tracef(string, ...any) {}
func (logs) Debug(string)          {}
func (logs) Debugf(string, ...any) {}
func (logs) Info(string)           {}
func (logs) Infof(string, ...any)  {}

func (l logs) Warn(msg string)                  { l.log.Debug("turn: " + msg) }
func (l logs) Warnf(format string, args ...any) { l.log.Debug("turn: " + fmt.Sprintf(format, args...)) }
func (l logs) Error(msg string)                 { l.log.Debug("turn: " + msg) }
func (l logs) Errorf(format string, args ...any) {
	l.log.Debug("turn: " + fmt.Sprintf(format, args...))
}
