// SPDX-License-Identifier: Apache-2.0

package dispatch

import "github.com/bauxite-mesh/bauxite/dispatch/internal/store"

// Errors of the database that Serve returns at the start.
var (
	// ErrDiskFull is returned where there is no space for the database.
	ErrDiskFull = store.ErrDiskFull
	// ErrReadOnly is returned where the data directory cannot be written.
	ErrReadOnly = store.ErrReadOnly
	// ErrCorrupt is returned where the database is damaged. Nothing was changed.
	ErrCorrupt = store.ErrCorrupt
	// ErrForeign is returned where the file is a database of something else.
	// Nothing was changed.
	ErrForeign = store.ErrForeign
	// ErrNewerSchema is returned where a newer program has been at work. The
	// message names both schema versions, and the backup made before the migration.
	ErrNewerSchema = store.ErrNewerSchema
	// ErrStorageIO is returned where the disk or its file system failed.
	ErrStorageIO = store.ErrStorageIO
)
