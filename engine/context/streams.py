"""A stream = (source, sensor): how far its time has come, and what its bytes are.

Always true
  - Hosts, windows and the running maximum belong to a stream: two detectors on one wire do not count a flow twice, and
    an old capture read beside live traffic is not late.
  - The bytes are kept in slices of 0.1 s; the edges of a window are rounded outwards, so a host's share is <= 1.
  - `order` are the slices with bytes, those from `newest` on are touched by the newest window: time moves on at the
    cost of the slices that leave it. Older ones are kept for late events.
"""

from __future__ import annotations

from bisect import bisect_left
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
    order: list[int] = []
    newest: int = 0

    def child(self) -> Stream:
        twin = copy(self)
        twin.slices = Counts(self.slices)
        twin.order = self.order.copy()
        return twin

    def fold(self) -> None:
        self.slices = self.slices.folded()

    def add(self, ts: int, nbytes: int) -> None:
        """nbytes > 0."""
        at = ts // SLICE_NS
        if at > self.head:
            self._advance(at)
        slices = self.slices
        before = slices[at]
        slices[at] = before + nbytes
        if not before:
            order = self.order
            if not order or at > order[-1]:
                order.append(at)
            else:
                order.insert(bisect_left(order, at), at)
            self.newest += at < self.head - SLICES
        if at >= self.head - SLICES:
            self.total += nbytes

    def _advance(self, head: int) -> None:
        before, self.head = self.head, head
        if head - before > SLICES_KEPT:
            self.slices, self.total, self.order, self.newest = Counts(), 0, [], 0
            return
        slices, order, newest, since = self.slices, self.order, self.newest, head - SLICES
        while newest < len(order) and order[newest] < since:
            self.total -= slices[order[newest]]
            newest += 1
        if order and order[0] < head - SLICES_KEPT:
            gone = bisect_left(order, head - SLICES_KEPT)
            for at in order[:gone]:
                slices.drop(at)
            del order[:gone]
            newest -= gone
        self.newest = newest

    def _sum(self, begin: int, end: int) -> int:
        slices = self.slices
        return sum([slices[at] for at in slices.within(range(begin, end))])

    def bytes_at(self, ts: int) -> int:
        """The bytes of the slices that touch the window ending at ts."""
        at, head = ts // SLICE_NS, self.head
        if at == head:
            return self.total
        if abs(head - at) > SLICES // 2:
            return self._sum(at - SLICES, min(at, head) + 1)
        if at > head:
            return self.total - self._sum(head - SLICES, at - SLICES)
        return self.total + self._sum(at - SLICES, head - SLICES) - self._sum(at + 1, head + 1)

    def restore(self, slices: dict[int, int]) -> Stream:
        """Slices as dumped; the total is made again from them."""
        for at, nbytes in slices.items():
            self.slices[at] = nbytes
        self.order = sorted(slices)
        self.newest = bisect_left(self.order, self.head - SLICES)
        self.total = sum([slices[at] for at in self.order[self.newest :]])
        return self
