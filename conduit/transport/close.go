// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"net"
)

// closeOnce makes a second Close no error.
func closeOnce(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
