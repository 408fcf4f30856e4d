"""Firewall actions: what was done about an event, joined to it whichever of the two comes first.

Always true
  - An action belongs to an event where both have the same trace id, or the event's source is the action's and their
    times lie at most ACTION_NEAR_S apart.
  - Of several actions the latest is the event's firewall_action; the history keeps each (ACTION_HISTORY_MAX of them).
    An action that is known already changes nothing, so a file read twice is as if read once.
  - An action is held against every event that is stored, and waits for those to come, met or not: until a batch has
    only events more than ACTION_WAIT_S after it, or ACTIONS_WAITING_MAX younger ones wait. What then leaves without
    ever having met an event is counted and logged.
In this order, within engine/store/publish.py
  1. `plan` looks: at the columns of the committed rows, and at the events of the batch. Nothing is changed.
  2. `write` puts annotations and waiting actions into the transaction that stores the batch's events and the offsets of
     the file that the actions came from.
  3. `adopt` changes the state in memory, when that commit succeeded.
A death before the commit leaves everything as it was, and the file is read again from there; after it, `load` finds the
actions that wait.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from engine.errors import BadRecordError, CorruptionError
from engine.families import UNKNOWN, canonical, clean, trace_window_ms, trace_word
from engine.layout import Layout
from engine.limits import (
    ACTION_HISTORY_MAX,
    ACTION_JOINS_MAX,
    ACTION_NEAR_S,
    ACTION_WAIT_S,
    ACTIONS_WAITING_MAX,
)
from engine.normalize import address as shortest
from engine.store.catalog import Batch, View
from engine.store.columns import Columns, address
from engine.store.counters import Names
from engine.store.manifest import Manifest
from engine.store.rows import RowMap
from ipc.event import Annotation, Event, FirewallAction

log = logging.getLogger(__name__)

PREFIX = b"action\0"  # in the catalog's table meta; then a number, u64 big-endian, in order of arrival
FIELD = "firewall_action"
NEAR_NS = ACTION_NEAR_S * 1_000_000_000
WAIT_NS = ACTION_WAIT_S * 1_000_000_000

Address: TypeAlias = tuple[int, int]
Trace: TypeAlias = tuple[Address, Address, str, int]  # what a trace id is made of: equal where that is equal
Bools: TypeAlias = NDArray[np.bool_]

_encode = msgspec.msgpack.Encoder().encode


class Waiting(Struct):
    """An action that events are held against. by: the source that said it; met: an event was found."""

    number: int
    by: str
    action: FirewallAction
    met: bool = False

    @property
    def ts(self) -> int:
        return self.action.ts


_decode = msgspec.msgpack.Decoder(Waiting).decode
_ts = attrgetter("ts")


class Hit(NamedTuple):
    seq: int
    waiting: Waiting


class Plan(NamedTuple):
    """What one commit is to change. cut: events beyond ACTION_JOINS_MAX that were left out."""

    fresh: list[Waiting]  # in order of arrival
    hits: list[Hit]
    gone: list[Waiting]
    cut: int

    def __bool__(self) -> bool:
        return bool(self.fresh or self.hits or self.gone)


def completed(action: FirewallAction) -> FirewallAction:
    """With its addresses in their shortest form and its words on one line. Raises BadRecordError."""
    src, word = shortest(action.src_ip)[0], clean(action.action)
    if not src or not word:
        raise BadRecordError("a firewall action without a source address or without a word for it")
    dst = shortest(action.dst_ip)[0]
    return FirewallAction(action.ts, src, dst, clean(action.family), word, action.confidence)


def said(old: Annotation | None, actions: Iterable[Waiting]) -> tuple[Annotation, list[Waiting]]:
    """The annotation with these actions, and those that were new to it."""
    note = msgspec.structs.replace(old or Annotation())
    known = {(at, value) for at, _, field, value in note.history if field == FIELD}
    new: list[Waiting] = []
    for waiting in sorted(actions, key=_ts):
        key = (waiting.ts, waiting.action.action)
        latest = key > (note.firewall_ts, note.firewall_action)
        if key in known or (len(known) >= ACTION_HISTORY_MAX and not latest):
            continue
        if len(known) < ACTION_HISTORY_MAX:
            note.history = [*note.history, (waiting.ts, waiting.by, FIELD, waiting.action.action)]
            known.add(key)
        if latest:
            note.firewall_ts, note.firewall_action = key
        new.append(waiting)
    return note, new


class Actions:
    """The actions that wait, as of the last commit. Owned by the publisher."""

    def __init__(self, waiting: Iterable[Waiting] = ()) -> None:
        self.waiting: dict[int, Waiting] = {}  # by number, oldest arrival first
        self.unmet = 0
        self._numbers: dict[FirewallAction, int] = {}
        self._index = _Index()
        self._next = 0
        self._earliest = 0  # no action is older; 0: look
        self._spans: dict[tuple[int, int, int], tuple[int, int]] = {}  # of full row files: first and last ts
        for each in waiting:
            self._add(each)

    @classmethod
    def load(cls, view: View) -> Actions:
        return cls(_decode(blob) for _, blob in view.scan("meta", prefix=PREFIX))

    # ---- looking

    def plan(
        self, given: Sequence[tuple[str, FirewallAction]], events: Sequence[Event], first: int, layout: Layout,
        manifest: Manifest, names: Names,
    ) -> Plan:  # fmt: skip
        """given: (by, completed action), new ones and others; events: about to be stored, from seq `first` on."""
        fresh: dict[FirewallAction, Waiting] = {}
        for by, action in given:
            if action not in self._numbers and action not in fresh:
                fresh[action] = Waiting(self._next + len(fresh), by, action)
        new = list(fresh.values())
        if not new and not (self.waiting and events):
            return Plan([], [], [], 0)
        index = _Index()
        for waiting in new:
            index.add(waiting)
        hits = [Hit(first + i, w) for i, e in enumerate(events) for w in (*self._index.of(e), *index.of(e))]
        cut = 0
        for seqs, waiting in self._stored(new, layout, manifest, names):
            room = max(0, ACTION_JOINS_MAX - len(hits))
            cut += max(0, len(seqs) - room)
            hits += [Hit(seq, waiting) for seq in seqs[max(0, len(seqs) - room) :].tolist()]
        return Plan(new, hits, self._leaving(new, events), cut)

    def _leaving(self, fresh: list[Waiting], events: Sequence[Event]) -> list[Waiting]:
        """Those that the events of this batch leave behind, and those for whom there is no room."""
        gone: dict[int, Waiting] = {}
        if events:
            horizon = min(e.ts for e in events) - WAIT_NS
            if self.waiting and not self._earliest:
                self._earliest = min(w.ts for w in self.waiting.values())
            looked_at = [*self.waiting.values(), *fresh] if self._earliest < horizon else fresh
            gone = {w.number: w for w in looked_at if w.ts < horizon}
        over = len(self.waiting) + len(fresh) - len(gone) - ACTIONS_WAITING_MAX
        if over > 0:
            oldest = (w for w in (*self.waiting.values(), *fresh) if w.number not in gone)
            gone |= {w.number: w for w, _ in zip(oldest, range(over), strict=False)}
        return list(gone.values())

    def _stored(
        self, fresh: list[Waiting], layout: Layout, manifest: Manifest, names: Names
    ) -> Iterator[tuple[NDArray[np.int64], Waiting]]:
        """For each new action the seqs of the committed events that it belongs to, ascending."""
        if not fresh or not manifest.events:
            return
        spans = [_span(w.action) for w in fresh]
        first, last = min(lo for lo, _ in spans), max(hi for _, hi in spans)
        sources = np.unique(np.array([address(w.action.src_ip)[1] for w in fresh], np.uint64))
        parts: list[tuple[NDArray[np.int64], Columns]] = []
        for number in manifest.numbers:
            found = self._rows(layout, manifest, number, first, last, sources)
            if found is not None:
                parts.append(found)
        if not parts:
            return
        seqs, rows = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        order = np.lexsort((rows["ts"], rows["src_lo"]))
        seqs, rows = seqs[order], rows[order]
        words = [trace_word(family) for family in names.families]
        for waiting, (lo_ts, hi_ts) in zip(fresh, spans, strict=True):
            source = np.uint64(address(waiting.action.src_ip)[1])
            lo, hi = np.searchsorted(rows["src_lo"], source), np.searchsorted(rows["src_lo"], source, "right")
            lo, hi = lo + np.searchsorted(rows["ts"][lo:hi], (lo_ts, hi_ts + 1))
            if hi > lo:
                yield np.sort(seqs[lo:hi][_belongs(waiting.action, rows[lo:hi], words)]), waiting

    def _rows(
        self, layout: Layout, manifest: Manifest, number: int, first: int, last: int, sources: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], Columns] | None:
        """(seqs, columns) of the rows of a file between two times that come from one of the sources."""
        file = manifest.row_file(number)
        span = self._spans.get(file)
        if span is not None and (span[1] < first or last < span[0]):
            return None
        try:
            found = RowMap(layout.row_file(*file), number, manifest.row_file_rows)
        except (OSError, CorruptionError) as e:
            log.error("its events get no firewall action: %s", e)
            return None
        columns = found.columns[: manifest.count - found.first_seq]
        ts = np.ascontiguousarray(columns["ts"])
        if len(columns) == manifest.row_file_rows:
            self._spans[file] = (int(ts.min()), int(ts.max()))
        picked = np.flatnonzero((ts >= first) & (ts <= last))
        picked = picked[np.isin(columns["src_lo"][picked], sources)]
        return (picked + found.first_seq, columns[picked]) if len(picked) else None

    # ---- changing

    def write(self, plan: Plan, batch: Batch) -> list[Hit]:
        """Put the plan into a transaction; the hits that were new to their event."""
        by_seq: dict[int, list[Waiting]] = {}
        for hit in plan.hits:
            by_seq.setdefault(hit.seq, []).append(hit.waiting)
        joined: list[Hit] = []
        for seq, actions in sorted(by_seq.items()):
            try:
                old = batch.annotation(seq)
            except CorruptionError as e:  # of that event it cannot be said; all else is stored
                log.error("a firewall action is not joined: %s", e)
                continue
            note, new = said(old, actions)
            if new:
                batch.put_annotation(seq, old, note)
                joined += [Hit(seq, waiting) for waiting in new]
        gone = {w.number for w in plan.gone}
        met = {hit.waiting.number: hit.waiting for hit in plan.hits if not hit.waiting.met}
        for waiting in {w.number: w for w in (*plan.fresh, *met.values())}.values():
            if waiting.number not in gone:
                changed = msgspec.structs.replace(waiting, met=waiting.met or waiting.number in met)
                batch.put("meta", _key(waiting.number), _encode(changed))
        for number in gone & self.waiting.keys():
            batch.delete("meta", _key(number))
        return joined

    def adopt(self, plan: Plan) -> None:
        """The commit succeeded."""
        for waiting in plan.fresh:
            self._add(waiting)
        for hit in plan.hits:
            if not hit.waiting.met:
                hit.waiting.met = True
                self.unmet -= 1
        if plan.gone:
            self.drop(plan.gone)
        alone = [w.action for w in plan.gone if not w.met]
        if alone:
            log.warning("%d firewall actions met no event: %s from %s and others", len(alone), alone[0].action,
                        alone[0].src_ip)  # fmt: skip
        if plan.cut:
            log.warning("%d events got no firewall action: more than %d in one commit", plan.cut, ACTION_JOINS_MAX)

    def delete(self, gone: Sequence[Waiting], batch: Batch) -> None:
        """Put into a transaction that these wait no longer."""
        for waiting in gone:
            batch.delete("meta", _key(waiting.number))

    def drop(self, gone: Sequence[Waiting]) -> None:
        """That commit succeeded."""
        for waiting in gone:
            del self.waiting[waiting.number], self._numbers[waiting.action]
            self.unmet -= not waiting.met
        self._index.remove(gone)
        self._earliest = 0

    def left_alone(self, plan: Plan) -> int:
        """Actions that leave by this plan and have met no event."""
        met = {hit.waiting.number for hit in plan.hits}
        return sum(not w.met and w.number not in met for w in plan.gone)

    def unmet_after(self, plan: Plan) -> int:
        met = {hit.waiting.number for hit in plan.hits if not hit.waiting.met}
        return self.unmet + len(plan.fresh) - len(met) - self.left_alone(plan)

    def _add(self, waiting: Waiting) -> None:
        self.waiting[waiting.number] = waiting
        self._numbers[waiting.action] = waiting.number
        self._index.add(waiting)
        self._next = max(self._next, waiting.number + 1)
        self._earliest = min(self._earliest, waiting.ts)
        self.unmet += not waiting.met


class _Index:
    """Waiting actions by source and by trace, in order of time."""

    def __init__(self) -> None:
        self.by_source: dict[Address, list[Waiting]] = {}
        self.by_trace: dict[Trace, list[Waiting]] = {}

    def add(self, waiting: Waiting) -> None:
        insort(self.by_source.setdefault(address(waiting.action.src_ip), []), waiting, key=_ts)
        insort(self.by_trace.setdefault(_trace_of(waiting.action), []), waiting, key=_ts)

    def remove(self, gone: Sequence[Waiting]) -> None:
        numbers = {w.number for w in gone}
        index: tuple[tuple[dict[Any, list[Waiting]], set[Any]], ...] = (
            (self.by_source, {address(w.action.src_ip) for w in gone}),
            (self.by_trace, {_trace_of(w.action) for w in gone}),
        )
        for lists, keys in index:
            for key in keys:
                left = [w for w in lists[key] if w.number not in numbers]
                if left:
                    lists[key] = left
                else:
                    del lists[key]

    def of(self, event: Event) -> Iterable[Waiting]:
        """Those that belong to an event; of very many the latest, as its history holds no more."""
        if not self.by_source or not event.src_ip:
            return ()
        source = address(event.src_ip)
        near = self.by_source.get(source)
        if near is None:
            return ()  # the same trace would have the same source
        hi = bisect_right(near, event.ts + NEAR_NS, key=_ts)
        lo = max(bisect_left(near, event.ts - NEAR_NS, key=_ts), hi - ACTION_HISTORY_MAX)
        trace = self.by_trace.get(_trace(source, address(event.dst_ip), event.family, event.ts), ())
        found = {w.number: w for w in (*near[lo:hi], *trace[-ACTION_HISTORY_MAX:])}
        return found.values()


def _key(number: int) -> bytes:
    return PREFIX + number.to_bytes(8, "big")


def _trace(src: Address, dst: Address, family: str, ts: int) -> Trace:
    return src, dst, trace_word(family), ts // 1_000_000 // trace_window_ms(family)


def _trace_of(action: FirewallAction) -> Trace:
    return _trace(address(action.src_ip), address(action.dst_ip), _family(action), action.ts)


def _family(action: FirewallAction) -> str:
    return canonical(action.family) or UNKNOWN


def _window(action: FirewallAction) -> tuple[int, int]:
    """First and last ns of the action's window."""
    window_ns = trace_window_ms(_family(action)) * 1_000_000
    first = action.ts // window_ns * window_ns
    return first, first + window_ns - 1


def _span(action: FirewallAction) -> tuple[int, int]:
    """First and last ns of events that it may belong to."""
    first, last = _window(action)
    return min(first, action.ts - NEAR_NS), min(max(last, action.ts + NEAR_NS), (1 << 63) - 2)


def _belongs(action: FirewallAction, rows: Columns, words: list[str]) -> Bools:
    """bool [n]; words: how each family number is called in a trace id."""
    (src_hi, _), (dst_hi, dst_lo), (first, last) = address(action.src_ip), address(action.dst_ip), _window(action)
    word, ts = trace_word(_family(action)), rows["ts"]
    alike = [number for number, known in enumerate(words) if known == word]
    near = np.abs(ts - action.ts) <= NEAR_NS
    traced = (rows["dst_hi"] == np.uint64(dst_hi)) & (rows["dst_lo"] == np.uint64(dst_lo))
    traced &= (ts >= first) & (ts <= last) & np.isin(rows["family"], alike)
    return np.asarray((near | traced) & (rows["src_hi"] == np.uint64(src_hi)))
