"""What else is stored of a connection: alerts and notices, or flows, between the same ends at the same time.

Always true
  - The ends are both addresses, both ports (or none on either side) and, where both say it, the protocol; either way
    round. From start to end the two overlap, or are NEAR_NS apart: clocks of detectors differ.
  - Nothing is found of an event whose addresses or time are not known, and none is found of itself.
  - What is damaged is left out and reported, as a hit is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from msgspec import Raw

from engine.errors import CorruptionError
from engine.search.filters import Test, hosts, ports
from engine.search.snapshot import Seqs, Snapshot
from engine.store.catalog import View
from engine.store.columns import GONE, KINDS, Columns, address, empty
from engine.store.index import Mask
from ipc.event import Event
from ipc.messages import Alert, Stored

log = logging.getLogger(__name__)

NEAR_NS = 2_000_000_000
COUNTED_MAX = 64  # of one connection, the first in time
ALERTS_MAX = 8  # that say different things of one connection
FLOWS_MAX = 8
_FLOW = KINDS.index("flow")
_PORT_BITS = 0xFFFF

_decode_event = msgspec.msgpack.Decoder(Event).decode


def alerts(events: Sequence[Event], seqs: Sequence[int], snapshot: Snapshot, view: View) -> list[list[Alert]]:
    """Of each event what was said, the first in time first. seqs: of these events, -1 where one is not stored."""
    found = _same_connection(events, seqs, snapshot, lambda c: (c["kind"] != _FLOW) & (c["kind"] != GONE))
    return [_by_words(of[:COUNTED_MAX], snapshot, view) for of in found]


def flows(event: Event, seq: int, snapshot: Snapshot, view: View) -> list[Stored]:
    """As detectors told it, the first in time first. seq: of this event, -1 where it is not stored."""
    (found,) = _same_connection([event], [seq], snapshot, lambda c: c["kind"] == _FLOW)
    return [Stored(seq, Raw(head)) for seq, head in _heads(found[:FLOWS_MAX], snapshot, view)]


def _same_connection(events: Sequence[Event], seqs: Sequence[int], snapshot: Snapshot, kind: Test) -> list[list[int]]:
    """Seqs of each one's connection, by time. One look at the columns of all events, however many are asked about."""
    found, columns = _candidates([event for event in events if _known(event)], snapshot, kind)
    out: list[list[int]] = []
    for event, own in zip(events, seqs, strict=True):
        if not len(found) or not _known(event):
            out.append([])
            continue
        about = np.flatnonzero(_about(event, columns) & (found != own))
        out.append(found[about[np.lexsort((found[about], columns["ts"][about]))]].tolist())
    return out


def _known(event: Event) -> bool:
    """Does it say between whom, and when?"""
    return bool(event.ts and event.src_ip and event.dst_ip)


def _candidates(events: Sequence[Event], snapshot: Snapshot, kind: Test) -> tuple[Seqs, Columns]:
    """Seqs and columns of those of a kind that have ports of these events."""
    asked = np.zeros(_PORT_BITS + 1, np.bool_)
    for event in events:
        asked[[_port(event.src_port) & _PORT_BITS, _port(event.dst_port) & _PORT_BITS]] = True
    seqs, found = [np.empty(0, np.int64)], [empty(0)]
    for first, c in snapshot.columns():
        here = np.flatnonzero(kind(c) & asked[c["src_port"] & _PORT_BITS] & asked[c["dst_port"] & _PORT_BITS])
        seqs.append(here + first)
        found.append(c[here])
    return np.concatenate(seqs), np.concatenate(found)


def _about(event: Event, c: Columns) -> Mask:
    ends = [(address(event.src_ip), _port(event.src_port)), (address(event.dst_ip), _port(event.dst_port))]
    (src, src_port), (dst, dst_port) = ends
    same = hosts(c, src, dst) & ports(c, src_port, dst_port)
    same |= hosts(c, dst, src) & ports(c, dst_port, src_port)
    if event.proto is not None:
        same &= (c["proto"] == event.proto) | (c["proto"] < 0)
    same &= (c["ts_start"] <= event.ts + NEAR_NS) & (c["ts"] >= (event.ts_start or event.ts) - NEAR_NS)
    return same


def _port(port: int | None) -> int:
    """As a column has it."""
    return -1 if port is None else port


def _heads(seqs: Sequence[int], snapshot: Snapshot, view: View) -> Iterator[tuple[int, bytes]]:
    """Each seq, and its event as stored."""
    for seq in seqs:
        try:
            if snapshot.has(seq):
                snapshot.check(seq, ())
                yield seq, view.stored(seq)
        except CorruptionError as e:
            log.error("left out of an answer: %s", e)


def _by_words(seqs: Sequence[int], snapshot: Snapshot, view: View) -> list[Alert]:
    out: dict[tuple[str, str], Alert] = {}
    for seq, head in _heads(seqs, snapshot, view):
        event = _decode_event(head)
        said = out.setdefault((event.source, event.text.partition(" | ")[0]), Alert(seq, Raw(head), 0))
        said.count += 1
    return list(out.values())[:ALERTS_MAX]
