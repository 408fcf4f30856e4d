"""A stream = (source, sensor): how far its time has come, and what its bytes are.

Always true
  - Hosts, windows and the running maximum belong to a stream: two detectors on one wire do not count a flow twice, and
    an old capture read beside live traffic is not late.
  - The bytes are kept in slices of 0.1 s; the edges of a window are rounded outwards, so a host's share is <= 1.
"""

from __future__ import annotations

from copy import copy

import msgspec
from msgspec import Struct

from engine.context.layers import Counts
from engine.limits import CONTEXT_LATE_MAX_S, CONTEXT_WINDOW_S

SLICE_NS = 100_000_000
SLICES = CONTEXT_WINDOW_S * 1_000_000_000 // SLICE_NS
SLICES_KEPT = CONTEXT_LATE_MAX_S * 1_000_000_000 // SLICE_NS + SLICES + 1


class Stream(Struct, gc=False):
    """What one sensor says through one source: how far its time has come, and its bytes in slices of 0.1 s.

    total: the bytes of the slices that touch the window ending in slice `head`.
    """

    id: int
    ts_max: int
    late_run: int = 0
    head: int = 0
    total: int = 0
    slices: Counts = msgspec.field(default_factory=Counts)

    def child(self) -> Stream:
        twin = copy(self)
        twin.slices = Counts(self.slices)
        return twin

    def fold(self) -> None:
        self.slices = self.slices.folded()

    def add(self, ts: int, nbytes: int) -> None:
        at = ts // SLICE_NS
        if at > self.head:
            self._advance(at)
        self.slices[at] += nbytes
        if at >= self.head - SLICES:
            self.total += nbytes

    def _advance(self, head: int) -> None:
        if head - self.head > SLICES_KEPT:
            self.slices, self.total = Counts(), 0
        else:
            slices = self.slices
            for i in range(self.head, head):
                self.total -= slices[i - SLICES]
                if slices[i - SLICES_KEPT]:
                    slices[i - SLICES_KEPT] = 0
        self.head = head

    def bytes_at(self, ts: int) -> int:
        at, head, slices = ts // SLICE_NS, self.head, self.slices
        if abs(head - at) > SLICES // 2:
            return sum(slices[i] for i in range(at - SLICES, min(at, head) + 1))
        total = self.total
        for i in range(at, head):
            total += slices[i - SLICES] - slices[i + 1]
        for i in range(head, at):
            total -= slices[i - SLICES]
        return total

    def restore(self, slices: dict[int, int]) -> Stream:
        """Slices as dumped; the total is made again from them."""
        for at, nbytes in slices.items():
            self.slices[at] = nbytes
        self.total = sum(n for at, n in slices.items() if at >= self.head - SLICES)
        return self
