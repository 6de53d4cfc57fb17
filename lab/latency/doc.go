// SPDX-License-Identifier: Apache-2.0

// Package latency has the scenarios in which Critical must stay at its idle
// latency: behind a thin link that Bulk fills, beside foreign traffic and other
// robots, under bursts of large datagrams and floods, over lossy links, and where
// not the link but the processor is the limit; beside other tunnels.
//
// A bottleneck is the kernel's token bucket with a queue that drops its tail; the
// rest of the delay is a cable in user space (package delaybox) at the other end.
// Its share is counted in Ethernet frames on the interface of the bottleneck.
// Probes, flows and cables run in this process, the tunnels in their own; all of
// them share the machine's cores.
package latency
