// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/bauxite-mesh/bauxite/tools/internal/hubdeb"
	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// debs makes the Debian packages of the hub, into dist.
func (e *env) debs(ctx context.Context) {
	for _, arch := range hubdeb.Arches {
		e.do(ctx, "package: bauxite-dispatch "+arch, func(ctx context.Context, log *step.Log) error {
			file, err := hubdeb.Build(ctx, log, e.root, e.path("dist"), arch)
			if err != nil {
				return err
			}
			fi, err := os.Stat(file)
			if err != nil {
				return err
			}
			log.Note("dist/%s, %.1f MB", filepath.Base(file), float64(fi.Size())/1e6)
			return nil
		})
	}
}
