// SPDX-License-Identifier: Apache-2.0

// Package conduittest makes meshes inside one process: a certificate authority, a
// hub in memory, and nodes that meet over loopback with pipes for devices. It
// needs no root, no TUN and no network, and serves tests and first experiments:
//
//	mesh := conduittest.NewMesh(nil, 2)
//	defer mesh.Close()
//
// Nothing here is meant for production: the hub trusts everybody and the
// certificate authority forgets its keys with the process.
package conduittest
