"""Windows of 30 s: the flows of one host, and exact sums over them.

Always true
  - Counts, bytes, entropies and durations are integers (fixed point): adding and removing cancel exactly.
  - An answer depends on the entries alone, never on where the sums stood before.
  - A late event's window is exact as long as it lies within STEPS_MAX flows of the host's newest window. Beyond that
    (jitter under a flood) it is the newest window where the two overlap, else none.
  - A window holds at most FLOWS_MAX flows; beyond it the oldest leave before their 30 s are over.
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
from engine.context.layers import Counts
from engine.limits import CONTEXT_WINDOW_S

S_NS = 1_000_000_000
WINDOW_NS = CONTEXT_WINDOW_S * S_NS
LONG_AGO = -(1 << 62)
FLOWS_MAX = 1 << 17  # of one window
STEPS_MAX = 64  # flows a window moves back for a late event

IS_TCP, IS_UDP, IS_INTERNAL, IS_FILE, IS_LATERAL, IS_STATED, IS_ANSWERED = (1 << i for i in range(7))

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

    def _count(self, entry: Any, step: int) -> None:
        """Add (step 1) or remove (step -1) an entry to or from the sums."""
        raise NotImplementedError

    def child(self) -> Self:
        twin = copy(self)
        twin.entries = self.entries.copy()
        twin.counts = Counts(self.counts)
        return twin

    def fold(self) -> None:
        """Become the parent's successor: its counters and these changes are one again."""
        self.counts = self.counts.folded()

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
            self._count(entry, 1)
            self.at = ts
            self.hi += 1
            lo, since = self.lo, ts - WINDOW_NS
            while entries[lo][0] <= since:
                self._count(entries[lo], -1)
                lo += 1
            self.lo = lo
        self._trim(self.lo)
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
            self._count(entry, 1)
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
                self._count(entries[hi], 1)
                hi += 1
            while lo < hi and entries[lo][0] <= since:
                self._count(entries[lo], -1)
                lo += 1
        else:
            while lo > 0 and entries[lo - 1][0] > since:
                lo -= 1
                self._count(entries[lo], 1)
            while hi > lo and entries[hi - 1][0] > ts:
                hi -= 1
                self._count(entries[hi], -1)
        self.lo, self.hi, self.at = lo, hi, ts

    def _trim(self, newest: int) -> None:
        """Keep within bounds; entries[newest:] are the newest window."""
        n = len(self.entries) - newest
        if n > FLOWS_MAX:
            self._drop(newest + FLOWS_MAX // 8)
        elif newest > 2 * STEPS_MAX + n:
            self._drop(newest - STEPS_MAX)

    def _drop(self, n: int) -> None:
        while self.lo < min(n, self.hi):
            self._count(self.entries[self.lo], -1)
            self.lo += 1
        self.horizon = max(self.horizon, self.entries[n - 1][0])
        del self.entries[:n]
        self.lo = max(0, self.lo - n)
        self.hi = max(0, self.hi - n)
        if self.counts.parent is None:
            self.fold()  # a tracker without overlays never folds

    def clear(self) -> None:
        """Forget the flows, not the history."""
        if self.entries:
            self._move(max(self.at, self.entries[-1][0] + WINDOW_NS))
            self.entries.clear()
            self.lo, self.hi, self.at = 0, 0, LONG_AGO
            self.fold()

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
    port, from -1; class, from 1 << 20; and, for the largest count of a port, -2 - c: how many ports have count c.
    """

    port_plogp: int = 0
    port_top: int = 0
    pair_plogp: int = 0
    silent: int = 0
    stated: int = 0
    dst_squares: int = 0
    lateral: int = 0
    classes: int = 0
    tcp: int = 0
    udp: int = 0
    internal: int = 0
    file: int = 0
    file_bytes: int = 0
    bytes: int = 0
    bytes_stated: int = 0
    durations: int = 0
    duration_sum: int = 0
    duration_squares: int = 0
    history: History = msgspec.field(default_factory=lambda: History())

    def child(self) -> Self:
        twin = Window.child(self)
        twin.history = self.history.child()
        return twin

    def _count(self, entry: Any, step: int) -> None:
        _, dst, pair, port, service, kind, nbytes, duration = entry
        counts = self.counts
        before = counts[port]
        counts[port] = after = before + step
        self.port_plogp += PLOGP[after] - PLOGP[before]
        had = 0
        if before:
            counts[-2 - before] = had = counts[-2 - before] - 1
        if after:
            counts[-2 - after] += 1
        if after > self.port_top or (not had and before == self.port_top):
            self.port_top = after

        step_pair = step
        if kind & IS_STATED:
            step_pair += step << 40
            if kind & IS_ANSWERED:
                step_pair += step << 20
        was = counts[pair]
        counts[pair] = now = was + step_pair
        before = was & 0xFFFFF
        self.pair_plogp += PLOGP[before + step] - PLOGP[before]
        if kind & IS_STATED:
            self.stated += step
            self.silent += (now >= 1 << 40 and not now & 0xFFFFF00000) - (was >= 1 << 40 and not was & 0xFFFFF00000)

        before = counts[dst]
        if kind & IS_LATERAL:
            counts[dst] = before + (step << 20) + step
            was = before >> 20
            self.lateral += (was + step > 0) - (was > 0)
            before &= 0xFFFFF
        else:
            counts[dst] = before + step
            before &= 0xFFFFF
        self.dst_squares += 2 * step * before + 1

        before = counts[service]
        counts[service] = before + step
        self.classes += (before + step > 0) - (before > 0)

        if kind & IS_TCP:
            self.tcp += step
        elif kind & IS_UDP:
            self.udp += step
        if kind & IS_INTERNAL:
            self.internal += step
        if nbytes >= 0:
            self.bytes += step * nbytes
            self.bytes_stated += step
        if kind & IS_FILE:
            self.file += step
            if nbytes >= 0:
                self.file_bytes += step * nbytes
        if duration >= 0:
            self.durations += step
            self.duration_sum += step * duration
            self.duration_squares += step * duration * duration


class Target(Window, gc=False):
    """A destination: entry = (ts, source, prefix of the source, forward packets or -1).

    Keys of counts: address of a source; prefix (an int).
    """

    sources: int = 0
    source_plogp: int = 0
    prefix_squares: int = 0
    packets: int = 0
    packets_stated: int = 0

    def _count(self, entry: Any, step: int) -> None:
        _, source, prefix, packets = entry
        counts = self.counts
        before = counts[source]
        counts[source] = after = before + step
        self.source_plogp += PLOGP[after] - PLOGP[before]
        self.sources += (after > 0) - (before > 0)
        before = counts[prefix]
        counts[prefix] = before + step
        self.prefix_squares += 2 * step * before + 1
        if packets >= 0:
            self.packets += step * packets
            self.packets_stated += step
