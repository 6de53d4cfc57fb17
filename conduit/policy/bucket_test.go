// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"math"
	"math/big"
	"math/rand/v2"
	"sync"
	"testing"
)

func TestBucket(t *testing.T) {
	b := NewBucket(Limit{PacketsPerSecond: 10})
	if got, want := b.Limit(), (Limit{PacketsPerSecond: 10, BurstPackets: 1}); got != want {
		t.Errorf("Limit = %+v, want %+v", got, want)
	}
	for _, s := range []struct {
		now  int64
		want Exceeded
	}{
		{5, Within},
		{5, TooManyPackets},
		{5 + second/10 - 1, TooManyPackets},
		{5 + second/10, Within},
		{0, TooManyPackets}, // a clock that goes back
		{5 + second/10 + 1, TooManyPackets},
		{100 * second, Within}, // idle time saves one burst, no more
		{100 * second, TooManyPackets},
	} {
		if got := b.Take(1500, s.now); got != s.want {
			t.Errorf("at %d: %v, want %v", s.now, got, s.want)
		}
	}
	bits := NewBucket(Limit{BitsPerSecond: 1_000_000, PacketsPerSecond: 1000, BurstPackets: 1000})
	if got := bits.Limit().BurstBits; got != 100_000 {
		t.Errorf("burst = %d, want 100 ms", got)
	}
	n := 0
	for bits.Take(1250, 0) == Within {
		n++
	}
	if n != 10 {
		t.Errorf("%d packets in the burst, want 10", n)
	}
	// What does not fit leaves the packets' share alone.
	for range 5000 {
		if got := bits.Take(1250, 1); got != TooManyBits {
			t.Fatalf("Take = %v", got)
		}
	}
	if bits.Take(0, 1) != Within {
		t.Error("an empty packet has no bits")
	}
	if NewBucket(Limit{}).Take(math.MaxInt, 0) != Within {
		t.Error("no limit limits")
	}
	if NewBucket(Limit{BitsPerSecond: MaxRate}).Take(math.MaxInt, math.MaxInt64) != Within || NewBucket(Limit{BitsPerSecond: 1}).Take(math.MaxInt, 0) != TooManyBits {
		t.Error("a huge packet")
	}
}

// Over any time never more passes than burst + rate * time, and a sender that
// always tries gets it all but for one packet.
func TestBucketExact(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 5))
		l := Limit{PacketsPerSecond: 1 + r.Uint64N(1<<r.UintN(40)), BitsPerSecond: 1 + r.Uint64N(MaxRate)}
		b := NewBucket(l)
		l = b.Limit()
		var packets, sum uint64
		now, size := int64(0), 1+r.IntN(1500)
		for range 2000 {
			if b.Take(size, now) == Within {
				packets++
				sum += uint64(size) * 8
			}
			now += r.Int64N(1 << r.UintN(34))
		}
		most := func(rate, burst uint64) *big.Int {
			x := new(big.Int).Mul(new(big.Int).SetUint64(rate), big.NewInt(now))
			return x.Add(x.Div(x, big.NewInt(nano)), new(big.Int).SetUint64(burst))
		}
		if new(big.Int).SetUint64(packets).Cmp(most(l.PacketsPerSecond, l.BurstPackets)) > 0 || new(big.Int).SetUint64(sum).Cmp(most(l.BitsPerSecond, l.BurstBits)) > 0 {
			t.Fatalf("seed %d: %d packets, %d bits in %d ns of %+v", seed, packets, sum, now, l)
		}
	}
	b := NewBucket(Limit{PacketsPerSecond: 333})
	n := 0
	for now := int64(0); now < 10*second; now += 1e5 {
		if b.Take(100, now) == Within {
			n++
		}
	}
	if n < 3330+33-2 || n > 3330+33 {
		t.Errorf("%d packets in 10 s, want 3330 and the burst of 33", n)
	}
}

func TestBucketConcurrent(t *testing.T) {
	b := NewBucket(Limit{PacketsPerSecond: 1, BurstPackets: 1000})
	var wg sync.WaitGroup
	var got [4]int
	for w := range got {
		wg.Go(func() {
			for range 1000 {
				if b.Take(100, 7) == Within {
					got[w]++
				}
			}
		})
	}
	wg.Wait()
	if n := got[0] + got[1] + got[2] + got[3]; n != 1000 {
		t.Errorf("%d packets of a burst of 1000", n)
	}
}

// What one measure saves up while the other refuses is bounded by its burst, also
// where the rate does not divide it.
func TestBucketSavesNoMore(t *testing.T) {
	b := NewBucket(Limit{PacketsPerSecond: 3, BurstPackets: 1, BitsPerSecond: 1, BurstBits: 16_000})
	if b.Take(2000, 0) != Within {
		t.Fatal("the burst is denied")
	}
	for _, now := range []int64{333_333_334, 333_333_335, 10 * second, 100 * second} {
		if got := b.Take(2000, now); got != TooManyBits {
			t.Errorf("at %d: %v", now, got)
		}
	}
	if b.Take(0, 100*second) != Within || b.Take(0, 100*second) != TooManyPackets {
		t.Error("more than the burst was saved")
	}
}
