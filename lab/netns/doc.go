// SPDX-License-Identifier: Apache-2.0

// Package netns builds small internets out of Linux network namespaces: hosts,
// switches, a routed WAN and NAT boxes of three kinds, with uplinks that have
// a rate, loss and delay. Built binaries run inside it unchanged.
//
//	func TestMain(m *testing.M) { netns.Main(m) }
//
//	func TestTalk(t *testing.T) {
//		lab := netns.New(t)
//		wan := lab.WAN("wan")
//		hub := wan.Host("hub", netns.Link{})
//		home := lab.NAT("home", netns.NATConfig{Kind: netns.PortRestricted, Upstream: wan})
//		robot := home.Host("robot", netns.Link{Up: netns.Shape{Rate: 10e6}})
//		t.Log(lab.Draw())
//		…
//	}
//
// # Errors
//
// Methods that build or change the topology end the test when they cannot do
// so, as testing.T.Fatal does; they belong on the test's goroutine. Methods
// that use a host (Command, Run, Do, the dialers, Capture) return errors. A
// program that is not a test uses [Run] in place of New.
//
// # Privileges and cleaning up
//
// [Main] and [Reexec] run the program as a supervised child: as root directly,
// otherwise in a user namespace where the kernel allows one. The child closes
// its labs at the end of each test, on panic and on SIGINT; whatever way it
// dies, the supervisor removes the namespaces it left, and processes started
// in them die with it. Namespaces have names (prefix "bxl-", then process id
// and start time), so `ip netns exec` works while a test runs, and a later
// lab sweeps those whose process is gone.
package netns
