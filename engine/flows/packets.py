"""Blocks of a capture to packets: headers, tunnels, fragments.

Always true
  - Packets come in the order of the capture, a block at a time. A block with a fragment whose first one it has not
    seen is held back until the next block was looked at: at most one is.
  - A packet that cannot be read is left out and named; frames that are no IP at all are only counted. Fragments that
    are not what they should be are named too, and count.
"""

from __future__ import annotations

import numpy as np

from engine.flows.capture import Block, Problem
from engine.flows.decode import GOOD, NOT_IP, REASONS, Packets, Work, read_headers, read_link
from engine.flows.fragments import Fragments
from engine.flows.tunnels import open_tunnels

SHOWN_BYTES = 64  # of a packet that could not be read


class Decoder:
    """tunnels: 'inner' or 'outer', what a packet in a tunnel counts for."""

    def __init__(self, tunnels: str = "inner") -> None:
        self.problems: list[Problem] = []
        self.not_ip = 0
        self._inner = tunnels == "inner"
        self._fragments = Fragments()
        self._held: Work | None = None

    def decode(self, block: Block, problems_max: int) -> list[Packets]:
        """At most problems_max of the packets that cannot be read are listed in `problems`."""
        frames = block.at + np.maximum(block.original, block.captured)
        work = Work(block, block.at.copy(), block.at + block.captured, frames)
        read_link(work)
        read_headers(work)
        if self._inner:
            open_tunnels(work)
        self._fragments.join(work)
        self._report(work, problems_max)
        ready = self.finish()
        if self._fragments.waiting:
            self._held = work
        else:
            ready.append(work.packets())
        return ready

    def finish(self) -> list[Packets]:
        """The block that is held back."""
        if self._held is None:
            return []
        self._fragments.forget(self._held)
        held, self._held = self._held.packets(), None
        return [held]

    def _report(self, w: Work, problems_max: int) -> None:
        self.not_ip += int(np.count_nonzero(w.bad == NOT_IP))
        named = np.flatnonzero((w.bad > NOT_IP) | (w.noted != GOOD))
        for i in named[:problems_max].tolist():
            at, size = int(w.block.at[i]), min(int(w.block.captured[i]), SHOWN_BYTES)
            said = f"a packet is left out: {REASONS[w.bad[i]]}" if w.bad[i] else f"a fragment: {REASONS[w.noted[i]]}"
            self.problems.append(Problem(w.block.offset + at, said, bytes(w.block.data[at : at + size])))
        if len(named) > problems_max >= 0:
            where = w.block.offset + int(w.block.at[named[problems_max]])
            self.problems.append(Problem(where, f"{len(named) - problems_max} more packets are like these"))
