// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
)

// SignIntermediate signs the request of a hub for its next intermediate with the
// root's key, on the machine where that key is kept, and returns the certificate.
// Request and certificate are PEM.
func SignIntermediate(rootCrt, rootKey string, request []byte) ([]byte, error) {
	root, err := ca.ReadRoot(rootCrt)
	if err != nil {
		return nil, err
	}
	key, err := ca.ReadKey(rootKey)
	if err != nil {
		return nil, err
	}
	return ca.SignIntermediate(root, key, request, time.Now())
}
