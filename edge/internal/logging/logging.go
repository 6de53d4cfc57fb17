// SPDX-License-Identifier: Apache-2.0

// Package logging makes the daemon's logger: slog in front, zerolog behind.
package logging

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/rs/zerolog"
)

// New returns a logger to w. format is json or console; level is debug, info,
// warn or error. Where colour is false, console lines have none.
func New(w io.Writer, format, level string, colour bool) (*slog.Logger, error) {
	lvl, err := zerolog.ParseLevel(strings.ToLower(level))
	if err != nil || lvl < zerolog.DebugLevel || lvl > zerolog.ErrorLevel {
		return nil, fmt.Errorf("log level %q is not one of debug, info, warn, error", level)
	}
	switch format {
	case "json":
	case "console":
		w = zerolog.ConsoleWriter{Out: w, NoColor: !colour, TimeFormat: "15:04:05.000"}
	default:
		return nil, fmt.Errorf("log format %q is not one of console, json", format)
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	return slog.New(zerolog.NewSlogHandler(zerolog.New(zerolog.SyncWriter(w)).Level(lvl))), nil
}
