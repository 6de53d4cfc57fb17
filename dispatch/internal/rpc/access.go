// SPDX-License-Identifier: Apache-2.0

package rpc

import "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"

type accessService struct {
	*API
	dispatchv1connect.UnimplementedAccessServiceHandler
}
