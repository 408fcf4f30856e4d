"""What else is stored of a connection: alerts and notices, or flows, between the same ends at the same time.

Always true
  - The ends are both addresses, both ports (or none on either side; of ICMP they are not looked at, as types are no
    ends) and, where both say it, the protocol; either way round. From start to end the two overlap, or are NEAR_NS
    apart: clocks of detectors differ.
  - Nothing is found of an event whose addresses or time are not known, and none is found of itself.
  - What is damaged is left out and reported, as a hit is.
  - All events of one call are looked up by one look at the columns of all that is stored, and each record found is read
    once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.errors import CorruptionError
from engine.search.filters import hosts, ports
from engine.search.snapshot import Seqs, Snapshot
from engine.store.catalog import View
from engine.store.columns import GONE, KINDS, Columns, address, empty
from engine.store.index import Mask
from ipc.event import Event
from ipc.messages import Alert, Flow

log = logging.getLogger(__name__)

NEAR_NS = 2_000_000_000
COUNTED_MAX = 64  # alerts of one connection, the first in time
ALERTS_MAX = 4  # that say different things of one connection
FLOWS_MAX = 4  # of one connection
TEXT_CHARS_MAX = 200
ICMP = (1, 58)
_FLOW = KINDS.index("flow")
_PORT_BITS = 0xFFFF  # a column has -1 for none, and anything where it is damaged

Kind = Callable[[NDArray[np.uint8]], Mask]  # of the column

_decode_event = msgspec.msgpack.Decoder(Event).decode


class Asked(NamedTuple):
    """An event, and its seq, -1 where it is not stored."""

    event: Event
    seq: int


def alerts(asked: Sequence[Asked], snapshot: Snapshot, view: View) -> list[list[Alert]]:
    """What was said of each one's connection, the first in time first."""
    found = _Found(asked, snapshot, view, lambda kinds: (kinds != _FLOW) & (kinds != GONE))
    return [found.alerts(one) for one in asked]


def flows(asked: Sequence[Asked], snapshot: Snapshot, view: View) -> list[list[Flow]]:
    """As which each one's connection is stored, those first of which most is known."""
    found = _Found(asked, snapshot, view, lambda kinds: kinds == _FLOW)
    return [found.flows(one) for one in asked]


class _Found:
    """Events of some kind that may be of these connections, and those of them that were read."""

    def __init__(self, asked: Sequence[Asked], snapshot: Snapshot, view: View, kind: Kind) -> None:
        self.snapshot, self.view = snapshot, view
        self._seqs, self._columns = _candidates([one.event for one in asked if _known(one.event)], snapshot, kind)
        self._read: dict[int, Event | None] = {}

    def _same(self, one: Asked) -> NDArray[np.intp]:
        """Places of the candidates of one event's connection."""
        if not len(self._seqs) or not _known(one.event):
            return np.empty(0, np.intp)
        return np.flatnonzero(_about(one.event, self._columns) & (self._seqs != one.seq))

    def flows(self, one: Asked) -> list[Flow]:
        here = self._same(one)
        c = self._columns[here]
        order = np.lexsort((c["ts"], -c["coverage"].astype(np.int64)))[:FLOWS_MAX]
        events = [(seq, self._event(seq)) for seq in self._seqs[here[order]].tolist()]
        return [
            Flow(seq, e.event_id, e.source, e.ts, e.classification, e.family, e.coverage)
            for seq, e in events if e is not None
        ]  # fmt: skip

    def alerts(self, one: Asked) -> list[Alert]:
        here = self._same(one)
        order = np.lexsort((self._seqs[here], self._columns["ts"][here]))[:COUNTED_MAX]
        out: dict[tuple[str, str], Alert] = {}
        for seq in self._seqs[here[order]].tolist():
            e = self._event(seq)
            if e is not None:
                words = e.text.partition(" | ")[0] or e.kind
                first = Alert(
                    seq, e.event_id, e.source, e.kind, e.ts, e.classification, e.family, words[:TEXT_CHARS_MAX], 0
                )
                out.setdefault((e.source, words), first).count += 1
        return list(out.values())[:ALERTS_MAX]

    def _event(self, seq: int) -> Event | None:
        """None where it is purged or damaged."""
        if seq not in self._read:
            self._read[seq] = None
            try:
                if self.snapshot.has(seq):
                    self.snapshot.check(seq, ())
                    self._read[seq] = _decode_event(self.view.stored(seq))
            except CorruptionError as e:
                log.error("left out of an answer: %s", e)
        return self._read[seq]


def _known(event: Event) -> bool:
    """Does it say between whom, and when?"""
    return bool(event.ts and event.src_ip and event.dst_ip)


def _start(event: Event) -> int:
    return event.ts_start or event.ts


def _port(port: int | None) -> int:
    """As a column has it."""
    return -1 if port is None else port


def _candidates(events: Sequence[Event], snapshot: Snapshot, kind: Kind) -> tuple[Seqs, Columns]:
    """Seqs and columns of what may be of these connections: few."""
    if not events:
        return np.empty(0, np.int64), empty(0)
    asked_ports = np.zeros(_PORT_BITS + 1, np.bool_)
    for event in events:
        asked_ports[[_port(event.src_port) & _PORT_BITS, _port(event.dst_port) & _PORT_BITS]] = True
    if any(event.proto in ICMP for event in events):
        asked_ports[:] = True
    halves = np.array([address(ip)[1] for event in events for ip in (event.src_ip, event.dst_ip)], np.uint64)
    earliest, latest = min(map(_start, events)) - NEAR_NS, max(event.ts for event in events) + NEAR_NS
    seqs, found = [np.empty(0, np.int64)], [empty(0)]
    for first, c in snapshot.columns():
        here = np.flatnonzero(kind(c["kind"]))
        here = here[(c["ts"][here] >= earliest) & (c["ts_start"][here] <= latest)]
        for end in ("src", "dst"):
            here = here[asked_ports[c[f"{end}_port"][here] & _PORT_BITS]]
            here = here[np.isin(c[f"{end}_lo"][here], halves)]
        seqs.append(here + first)
        found.append(c[here])
    return np.concatenate(seqs), np.concatenate(found)


def _about(event: Event, c: Columns) -> Mask:
    src, dst = address(event.src_ip), address(event.dst_ip)
    there, back = hosts(c, src, dst), hosts(c, dst, src)
    if event.proto not in ICMP:
        there &= ports(c, _port(event.src_port), _port(event.dst_port))
        back &= ports(c, _port(event.dst_port), _port(event.src_port))
    same = there | back
    if event.proto is not None:
        same &= (c["proto"] == event.proto) | (c["proto"] < 0)
    start = np.where(c["ts_start"] > 0, c["ts_start"], c["ts"])
    return same & (start <= event.ts + NEAR_NS) & (c["ts"] >= _start(event) - NEAR_NS)
