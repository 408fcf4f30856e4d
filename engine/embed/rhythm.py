"""The rhythm of conversations, read from the starts of their flows: what teaches chronos; nobody has to name anything.

Always true
  - A conversation is what one source of data saw between two addresses to one port. Of FLOWS_MIN flows or more its
    rhythm is known: steady, with what period and whether its host goes round many others with the same one; or how far
    from steady. All of its starts count, later ones, too: the teacher knows more than any one event tells.
  - Its first flows teach nothing: when they came there was no rhythm yet.
  - The order in which events are given does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ipc.event import Event

FLOWS_MIN = 5
STEADY = 0.45  # quartile distance of the gaps over their median, at most: even gaps +-30 % make 0.3, chance makes 1.6
LOOSE = (1.0, 2.0)  # the same, where looser rhythms part
PERIODS_BASE = 3.0  # periods that differ by less are one
ROUND_MIN = 4  # conversations of one host with one period: it makes a round (monitoring), and calls nobody home

Conversation = tuple[str, str, str, int | None]


def rhythms(events: Sequence[Event]) -> NDArray[np.int64]:
    """The number of each event's rhythm, int64 [n]; -1 where it has none, or none yet."""
    flows: dict[Conversation, list[tuple[int, int]]] = {}
    for i, e in enumerate(events):
        if e.kind == "flow" and e.ts_start:
            flows.setdefault((e.source, e.src_ip, e.dst_ip, e.dst_port), []).append((e.ts_start, i))
    known: dict[Conversation, tuple[int, int]] = {}  # how loose, 0: steady; which period
    for conversation, starts in flows.items():
        starts.sort()
        gaps = np.diff([start for start, _ in starts]).astype(np.float64)
        if len(starts) < FLOWS_MIN or not (median := float(np.median(gaps))):
            continue
        low, high = np.quantile(gaps, [0.25, 0.75])
        loose = int(np.digitize((high - low) / median, (STEADY, *LOOSE)))
        known[conversation] = loose, 0 if loose else int(np.log(median) // np.log(PERIODS_BASE))
    alike = Counter((conversation[:2], rhythm) for conversation, rhythm in known.items())
    rhythm_of = {
        conversation: (*rhythm, not rhythm[0] and alike[conversation[:2], rhythm] >= ROUND_MIN)
        for conversation, rhythm in known.items()
    }
    number = {rhythm: i for i, rhythm in enumerate(sorted(set(rhythm_of.values())))}
    out = np.full(len(events), -1, np.int64)
    for conversation, rhythm in rhythm_of.items():
        out[[i for _, i in flows[conversation][FLOWS_MIN - 1 :]]] = number[rhythm]
    return out
