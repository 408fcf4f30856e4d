"""Windows of 30 s: the flows of one host, and exact sums over them.

Always true
  - Counts, bytes, entropies and durations are integers (fixed point): adding and removing cancel exactly.
  - An answer depends on the entries alone, never on where the sums stood before.
  - A late event's window is exact as long as it lies within STEPS_MAX flows of the host's newest window. Beyond that
    (jitter under a flood) it is the newest window where the two overlap, else none.
  - A window holds at most FLOWS_MAX flows; beyond it the oldest leave before their 30 s are over. All windows together
    are bounded by state.py, which has the largest give up their older half.
"""

from __future__ import annotations

from bisect import bisect_left
from copy import copy
from math import nan, sqrt
from typing import Any, Self

import msgspec
import numpy as np
from msgspec import Struct

from engine.context.history import History
from engine.context.layers import SHORT, Counts
from engine.limits import CONTEXT_WINDOW_S

S_NS = 1_000_000_000
WINDOW_NS = CONTEXT_WINDOW_S * S_NS
LONG_AGO = -(1 << 62)
FLOWS_MAX = 1 << 17  # of one window
STEPS_MAX = 64  # flows a window moves back for a late event

KEYS_MAX = 5  # of counts that a flow may need

IS_TCP, IS_UDP, IS_INTERNAL, IS_FILE, IS_LATERAL, IS_STATED, IS_ANSWERED = (1 << i for i in range(7))
KIND_BITS = 20
KIND_MAX = (1 << KIND_BITS) - 1
# what a flow of some kind adds to the numbers of flows of each kind, and to the counter of its (D, port)
KIND_STEP = [sum(1 << KIND_BITS * i for i in range(7) if kind >> i & 1) for kind in range(1 << 7)]
PAIR_STEP = [1 + (1 << 40 if k & IS_STATED else 0) + (1 << 20 if k & IS_ANSWERED else 0) for k in range(1 << 7)]

FIX = 1 << 24  # fixed point of log1p(duration)
PLOGP_FIX = 1 << 32
_COUNTS = np.arange(FLOWS_MAX + 2 * STEPS_MAX + 2, dtype=np.float64)  # a late event's window holds a few more
PLOGP: list[int] = np.rint(_COUNTS * np.log2(np.maximum(_COUNTS, 1)) * PLOGP_FIX).astype(np.int64).tolist()  # c log2 c


def entropy(plogp: int, whole: float) -> float:
    """Shannon entropy over log2(max(2, n)) of n flows whose counts' c log2 c add up to `plogp`; whole: n log2 n."""
    if not whole:
        return 0.0
    share = 1.0 - plogp / PLOGP_FIX / whole
    return share if share > 0.0 else 0.0


def spread(n: int, total: int, squares: int) -> float:
    """Sample standard deviation, fixed point to float: NaN for none, 0 for one."""
    if n < 2:
        return 0.0 if n else nan
    return sqrt((n * squares - total * total) / (n * (n - 1))) / FIX


class Window(Struct, gc=False):
    """Flows of one host in order of ts, and the sums over those in (at - 30 s, at], entries[lo:hi].

    `anchor` is the newest flow's ts. The sums' position never changes an answer: `place` looks at the entries alone.
    A few entries before the newest window are kept for late events; up to `horizon` some were dropped.
    """

    entries: list[Any] = []
    lo: int = 0
    hi: int = 0
    at: int = LONG_AGO
    horizon: int = LONG_AGO
    counts: Counts = msgspec.field(default_factory=Counts)

    def _enter(self, entry: Any) -> None:
        """Add an entry to the sums."""
        raise NotImplementedError

    def _leave(self, entry: Any) -> None:
        """Take an entry from the sums."""
        raise NotImplementedError

    def child(self) -> Self:
        twin = copy(self)
        twin.entries = self.entries.copy()
        twin.counts = self.counts.child()
        return twin

    def fold(self) -> None:
        """Become the parent's successor: its counters and these changes are one again. Zeros go where they are many."""
        counts = self.counts
        if counts.parent is not None or len(counts) > SHORT + KEYS_MAX * (self.hi - self.lo):
            self.counts = counts.folded()

    def add(self, entry: Any) -> bool:
        """Take a flow in; entry[0] is its ts. One in order becomes the anchor, and the sums move there: True."""
        ts, entries = entry[0], self.entries
        if entries:
            anchor = entries[-1][0]
            if ts < anchor:
                self._add_late(ts, entry)
                return False
            if self.at > anchor:
                self._move(anchor)  # an alert looked ahead
        entries.append(entry)
        if self.hi < len(entries) - 1:
            self._move(ts)
        else:
            self._enter(entry)
            self.at = ts
            self.hi += 1
            lo, since = self.lo, ts - WINDOW_NS
            if entries[lo][0] <= since:
                while entries[lo][0] <= since:
                    self._leave(entries[lo])
                    lo += 1
                self.lo = lo
        lo = self.lo
        n = len(entries) - lo
        if n > FLOWS_MAX or lo > 2 * STEPS_MAX + n:
            self._trim(lo)
        return True

    def _add_late(self, ts: int, entry: Any) -> None:
        if ts <= self.horizon:
            return
        entries = self.entries
        entries.insert(bisect_left(entries, (ts + 1,)), entry)
        if ts <= self.at - WINDOW_NS:
            self.lo += 1
            self.hi += 1
        elif ts <= self.at:
            self._enter(entry)
            self.hi += 1
        if len(entries) > FLOWS_MAX:
            self._trim(bisect_left(entries, (entries[-1][0] - WINDOW_NS + 1,)))

    def place(self, ts: int) -> bool:
        """Move the sums to the window that ends at ts, or to the newest one. False: it is not held, or is empty."""
        entries = self.entries
        if not entries:
            return False
        anchor: int = entries[-1][0]
        if ts != anchor:
            steps = len(entries) - bisect_left(entries, (ts + 1,))
            if steps <= STEPS_MAX:
                newest = bisect_left(entries, (anchor - WINDOW_NS + 1,))
                steps += abs(newest - bisect_left(entries, (ts - WINDOW_NS + 1,)))
            held = ts > anchor or self.horizon <= ts - WINDOW_NS
            if not held or steps > STEPS_MAX:
                if abs(anchor - ts) >= WINDOW_NS:
                    return False
                ts = anchor
        if ts != self.at:
            self._move(ts)
        return self.lo < self.hi

    def _move(self, ts: int) -> None:
        entries, lo, hi = self.entries, self.lo, self.hi
        since = ts - WINDOW_NS
        if ts >= self.at:  # forward, the ordinary way: each entry comes in once and goes out once
            while hi < len(entries) and entries[hi][0] <= ts:
                self._enter(entries[hi])
                hi += 1
            while lo < hi and entries[lo][0] <= since:
                self._leave(entries[lo])
                lo += 1
        else:
            while lo > 0 and entries[lo - 1][0] > since:
                lo -= 1
                self._enter(entries[lo])
            while hi > lo and entries[hi - 1][0] > ts:
                hi -= 1
                self._leave(entries[hi])
        self.lo, self.hi, self.at = lo, hi, ts

    def _trim(self, newest: int) -> None:
        """Keep within bounds; entries[newest:] are the newest window."""
        n = len(self.entries) - newest
        if n > FLOWS_MAX:
            self.drop(newest + FLOWS_MAX // 8)
        elif newest > 2 * STEPS_MAX + n:
            self.drop(newest - STEPS_MAX)

    def drop(self, n: int) -> None:
        """Forget the n oldest flows, at least one; later ones of their time are too late."""
        while self.lo < min(n, self.hi):
            self._leave(self.entries[self.lo])
            self.lo += 1
        self.horizon = max(self.horizon, self.entries[n - 1][0])
        del self.entries[:n]
        self.lo = max(0, self.lo - n)
        self.hi = max(0, self.hi - n)
        if self.counts.parent is None:
            self.fold()  # a tracker without overlays never folds

    def needed(self, end: float) -> int:
        """The first entry that an answer may still look at, where flows up to `end` are too old for any: of the newest
        window each, and of those before it STEPS_MAX. How many these are depends on the flows alone."""
        entries = self.entries
        if not entries or entries[-1][0] <= end:
            return len(entries)
        since = entries[-1][0] - WINDOW_NS
        newest = bisect_left(entries, (since + 1,))
        return max(newest - STEPS_MAX, bisect_left(entries, (min(end, since) + 1,))) if newest else 0

    def clear(self) -> None:
        """Forget the flows, not the history."""
        if self.entries:
            self._move(max(self.at, self.entries[-1][0] + WINDOW_NS))
            self.entries.clear()
            self.lo, self.hi, self.at = 0, 0, LONG_AGO
            self.counts = Counts()  # all 0

    def restore(self, entries: list[Any], horizon: int) -> Self:
        """Entries in order of ts, as dumped; the sums are made again from them."""
        self.entries, self.horizon = entries, horizon
        if entries:
            self.at = entries[-1][0]
            self.lo = self.hi = bisect_left(entries, (self.at - WINDOW_NS + 1,))
            self._move(self.at)
        return self


class Source(Window, gc=False):
    """An initiator: entry = (ts, D, (D, port), port, class, kind, bytes or -1, log1p(duration ms) fixed point or -1).

    Keys of counts: D: flows + (lateral flows << 20); (D, port): flows + (answered << 20) + (stated << 40);
    port, from -1; class, from 1 << 20; and, for the largest count of a port, -2 - c: how many ports have count c > 1.
    port_top of an empty window may be 1: nobody asks, and the next flow makes it so.
    """

    port_plogp: int = 0
    port_top: int = 0
    pair_plogp: int = 0
    silent: int = 0
    dst_squares: int = 0
    lateral: int = 0
    classes: int = 0
    kinds: int = 0  # how many flows have IS_TCP, IS_UDP, ...: KIND_BITS each, in that order
    file_bytes: int = 0
    bytes: int = 0
    bytes_stated: int = 0
    durations: int = 0
    duration_sum: int = 0
    duration_squares: int = 0
    history: History = msgspec.field(default_factory=History)
    anomaly: float = nan  # the history's temporal anomaly; it changes when a bucket opens

    def child(self) -> Self:
        twin = Window.child(self)
        twin.history = self.history.child()
        return twin

    # Two ways, written out without a step of +1 or -1: each runs once per flow.

    def _enter(self, entry: Any) -> None:
        _, dst, pair, port, service, kind, nbytes, duration = entry
        counts = self.counts
        count = counts.get if counts.parent is None else counts.reader()

        before = count(port, 0)
        counts[port] = after = before + 1
        if before:
            self.port_plogp += PLOGP[after] - PLOGP[before]
            if before > 1:
                counts[-2 - before] = count(-2 - before, 0) - 1
            counts[-2 - after] = count(-2 - after, 0) + 1
        if after > self.port_top:
            self.port_top = after

        was = count(pair, 0)
        counts[pair] = was + PAIR_STEP[kind]
        if before := was & 0xFFFFF:
            self.pair_plogp += PLOGP[before + 1] - PLOGP[before]
        if kind & IS_STATED:
            if was < 1 << 40:
                if not kind & IS_ANSWERED:
                    self.silent += 1
            elif kind & IS_ANSWERED and not was & 0xFFFFF00000:
                self.silent -= 1

        was = count(dst, 0)
        if kind & IS_LATERAL:
            counts[dst] = was + (1 << 20) + 1
            if was < 1 << 20:
                self.lateral += 1
        else:
            counts[dst] = was + 1
        self.dst_squares += 2 * (was & 0xFFFFF) + 1

        before = count(service, 0)
        counts[service] = before + 1
        if not before:
            self.classes += 1

        self.kinds += KIND_STEP[kind]
        if nbytes >= 0:
            self.bytes += nbytes
            self.bytes_stated += 1
            if kind & IS_FILE:
                self.file_bytes += nbytes
        if duration >= 0:
            self.durations += 1
            self.duration_sum += duration
            self.duration_squares += duration * duration

    def _leave(self, entry: Any) -> None:
        _, dst, pair, port, service, kind, nbytes, duration = entry
        counts = self.counts
        count = counts.get if counts.parent is None else counts.reader()

        before = count(port, 0)
        counts[port] = after = before - 1
        if after:
            self.port_plogp += PLOGP[after] - PLOGP[before]
            counts[-2 - before] = had = count(-2 - before, 0) - 1
            if after > 1:
                counts[-2 - after] = count(-2 - after, 0) + 1
            if not had and before == self.port_top:
                self.port_top = after

        was = count(pair, 0)
        counts[pair] = now = was - PAIR_STEP[kind]
        if after := now & 0xFFFFF:
            self.pair_plogp += PLOGP[after] - PLOGP[after + 1]
        if kind & IS_STATED:
            if now < 1 << 40:
                if not kind & IS_ANSWERED:
                    self.silent -= 1
            elif kind & IS_ANSWERED and not now & 0xFFFFF00000:
                self.silent += 1

        if kind & IS_LATERAL:
            counts[dst] = now = count(dst, 0) - (1 << 20) - 1
            if now < 1 << 20:
                self.lateral -= 1
        else:
            counts[dst] = now = count(dst, 0) - 1
        self.dst_squares -= 2 * (now & 0xFFFFF) + 1

        counts[service] = after = count(service, 0) - 1
        if not after:
            self.classes -= 1

        self.kinds -= KIND_STEP[kind]
        if nbytes >= 0:
            self.bytes -= nbytes
            self.bytes_stated -= 1
            if kind & IS_FILE:
                self.file_bytes -= nbytes
        if duration >= 0:
            self.durations -= 1
            self.duration_sum -= duration
            self.duration_squares -= duration * duration


class Target(Window, gc=False):
    """A destination: entry = (ts, source, prefix of the source, forward packets or -1).

    Keys of counts: address of a source; prefix (an int).
    """

    sources: int = 0
    source_plogp: int = 0
    prefix_squares: int = 0
    packets: int = 0
    packets_stated: int = 0

    def _enter(self, entry: Any) -> None:
        _, source, prefix, packets = entry
        counts = self.counts
        count = counts.get if counts.parent is None else counts.reader()
        before = count(source, 0)
        counts[source] = before + 1
        if before:
            self.source_plogp += PLOGP[before + 1] - PLOGP[before]
        else:
            self.sources += 1
        before = count(prefix, 0)
        counts[prefix] = before + 1
        self.prefix_squares += 2 * before + 1
        if packets >= 0:
            self.packets += packets
            self.packets_stated += 1

    def _leave(self, entry: Any) -> None:
        _, source, prefix, packets = entry
        counts = self.counts
        count = counts.get if counts.parent is None else counts.reader()
        counts[source] = after = count(source, 0) - 1
        if after:
            self.source_plogp += PLOGP[after] - PLOGP[after + 1]
        else:
            self.sources -= 1
        counts[prefix] = after = count(prefix, 0) - 1
        self.prefix_squares -= 2 * after + 1
        if packets >= 0:
            self.packets -= packets
            self.packets_stated -= 1
