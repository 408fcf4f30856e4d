"""What Get, List and Recent are answered: stored events, from one snapshot and one read transaction.

Always true
  - Heads and annotations go into a reply as they are stored; only raw records are unpacked, where they are asked for.
  - Of a page a damaged event is reported and left out; one that was asked for by its name is an error.
"""

from __future__ import annotations

import logging

import numpy as np
from msgspec import Raw

from engine.errors import CorruptionError
from engine.search import filters
from engine.search.snapshot import Snapshot
from engine.store.catalog import View
from engine.store.columns import Columns
from ipc.messages import Filter, Found, Get, List, Recent, Stored

log = logging.getLogger(__name__)


def found(request: Get, snapshot: Snapshot, view: View) -> Found:
    """By their names. Raises CorruptionError."""
    events: list[Stored] = []
    missing: list[str] = []
    for name in request.ids:
        seq = view.find(name)
        if seq is None or not snapshot.has(seq):
            missing.append(name)
        else:
            events.append(_stored(seq, view, request.features, request.raw))
    return Found(request.request_id, snapshot.generation, events, missing)


def listed(request: List, snapshot: Snapshot, view: View) -> Found:
    """In order of seq. Raises BadRequestError for a filter that cannot be."""
    if request.filter is None:
        seqs = snapshot.some(max(request.after_seq + 1, snapshot.first_seq), request.limit)
    else:
        matching = _matching(request.filter, snapshot, view)
        seqs = matching[matching > request.after_seq][: request.limit].tolist()
    by = None if request.filter is None else snapshot
    events = _readable(seqs, view, request.features, request.raw, by)
    more = len(seqs) == request.limit and seqs[-1] + 1 < snapshot.count
    return Found(request.request_id, snapshot.generation, events, [], seqs[-1] if more else -1)


def recent(request: Recent, snapshot: Snapshot, view: View) -> Found:
    """The newest first, by seq or by their own time. Raises BadRequestError for a filter that cannot be."""
    if request.by_event_time:
        matching = _matching(request.filter, snapshot, view)
        times = np.concatenate([_ts(c) for _, c in snapshot.columns()] or [np.empty(0, np.int64)])
        times = times[matching - snapshot.first_seq]
        seqs = matching[np.lexsort((-matching, -times))][: request.limit].tolist()
    elif request.filter is None:
        seqs = snapshot.newest(request.limit)
    else:
        seqs = _matching(request.filter, snapshot, view)[::-1][: request.limit].tolist()
    chosen = request.filter is not None or request.by_event_time
    events = _readable(seqs, view, False, False, snapshot if chosen else None)
    return Found(request.request_id, snapshot.generation, events)


def _matching(wanted: Filter | None, snapshot: Snapshot, view: View) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Seqs that pass a filter, ascending."""
    if wanted is None:
        return np.flatnonzero(snapshot.everything()) + snapshot.first_seq
    mask = filters.mask(snapshot, filters.tests(wanted, snapshot), filters.marks(wanted), view)
    return np.flatnonzero(mask) + snapshot.first_seq


def _stored(seq: int, view: View, features: bool, raw: bool) -> Stored:
    """An event for a reply. Raises CorruptionError."""
    record, note = view.record(seq) if features or raw else None, view.annotation_bytes(seq)
    annotation = None if note is None else Raw(note)
    if record is None:
        return Stored(seq, Raw(view.stored(seq)), annotation)
    return Stored(seq, Raw(record.head), annotation, record.features if features else b"", record.raw if raw else b"")


def _readable(seqs: list[int], view: View, features: bool, raw: bool, by: Snapshot | None = None) -> list[Stored]:
    """The events of a page; a damaged one is reported and left out. by: the snapshot whose columns chose them, so that
    these are checked, too."""
    events = []
    for seq in seqs:
        try:
            if by is not None:
                by.check(seq, ())
            events.append(_stored(seq, view, features, raw))
        except CorruptionError as e:
            log.error("left out of an answer: %s", e)
    return events


def _ts(columns: Columns) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.asarray(columns["ts"])
