// SPDX-License-Identifier: Apache-2.0

// Package citadel is the ROS 2 discovery extension of Bauxite: it will run and supervise one
// discovery server per node on the mesh address. This version reserves the
// module path and exports nothing yet.
package citadel
