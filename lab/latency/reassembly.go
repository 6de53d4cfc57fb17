// SPDX-License-Identifier: Apache-2.0

package latency

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/bauxite-mesh/bauxite/lab/netns"
)

// quickReassembly has a host give up datagrams in pieces after 2 s rather than
// 30, and gives it room for all pieces.
func quickReassembly(h *netns.Host) error {
	return h.Do(func() error {
		for _, kv := range [][2]string{{"ipfrag_time", "2"}, {"ipfrag_high_thresh", "67108864"}} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+kv[0], []byte(kv[1]), 0); err != nil {
				return fmt.Errorf("set %s: %w", kv[0], err)
			}
		}
		return nil
	})
}

// reassembled reads how many datagrams a host has put together, and how many it
// gave up as pieces lacked.
func reassembled(h *netns.Host) (whole, partial int, err error) {
	var b []byte
	if err := h.Do(func() (err error) { b, err = os.ReadFile("/proc/thread-self/net/snmp"); return err }); err != nil {
		return 0, 0, fmt.Errorf("read counters of %s: %w", h.Name(), err)
	}
	return parseReassembled(string(b))
}

// parseReassembled reads the two lines of Ip in /proc/net/snmp.
func parseReassembled(text string) (whole, partial int, err error) {
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "Ip:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		values := map[string]int{}
		for i := 1; i < min(len(f), len(names)); i++ {
			values[names[i]], _ = strconv.Atoi(f[i])
		}
		return values["ReasmOKs"], values["ReasmFails"], nil
	}
	return 0, 0, fmt.Errorf("read counters: no Ip in %d bytes", len(text))
}
