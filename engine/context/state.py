"""All that the tracker remembers, its layers, and its dump.

Always true
  - A state without a parent owns what it holds. An overlay reads through to its parent and changes nothing in it; it is
    good until the parent changes.
  - Memory is bounded: sources and destinations are two LRUs of CONTEXT_HOSTS_MAX, pairs two of PAIRS_MAX, and the
    windows of hosts that fell silent are dropped (`_sweep`), which no later answer can notice.
  - The flows in all windows of sources are CONTEXT_FLOWS_MAX at most, and so are those of targets, as far as an answer
    may look at them: event time is the source's to say, and all may lie within 30 s. `room` counts down with each flow;
    at 0 the windows are looked through, and where they are crowded the largest give up their older half (`make_room`).
    That goes by counts and order of flows alone, so it comes at the same flow however the stream is cut: in an overlay,
    too, which copies what it changes. What no answer looks at goes in the next rounds of `_sweep`.
  - `load` of a dump gives the same further answers, bit for bit. A dump is made at once, or in slices between which
    overlays are merged (`Dumping`): it is the state as it was when it was begun, to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from itertools import islice
from math import inf
from typing import Any, Literal, Self, TypeAlias

import msgspec
import xxhash
from msgspec import Struct

from engine.context.addresses import classifier
from engine.context.history import History, Pair, PairKey, Pairs
from engine.context.layers import Lru, Values
from engine.context.streams import Stream
from engine.context.windows import WINDOW_NS, Source, Target, Window
from engine.errors import CorruptionError
from engine.limits import CONTEXT_FLOWS_MAX, CONTEXT_HOSTS_MAX, CONTEXT_LATE_MAX_S, SOURCES_MAX

DUMP_VERSION: Literal[1] = 1
LATE_NS = CONTEXT_LATE_MAX_S * 1_000_000_000
DUMP_RUN = 16  # entries that are written down together
DUMP_ALL = 1 << 62
PAIRS_MAX = 1 << 17  # source-destination pairs seen again, and half as many seen once

HostKey: TypeAlias = tuple[int, str]  # stream, address
_encode = msgspec.msgpack.Encoder().encode


class State:
    """The state of all streams. late: flows too late for a context; unplaced: windows no longer held."""

    def __init__(self, internal: Sequence[str]) -> None:
        self.internal = tuple(internal)
        self.classify = classifier(internal)
        self.parent: Self | None = None
        self.version = 0  # changes with the state
        self.base_version = 0  # the parent's when this overlay was made
        self.next_id = 0
        self.late = 0
        self.unplaced = 0
        self.streams: Values[tuple[str, str], Stream] = Values(SOURCES_MAX)
        self.sources: Values[HostKey, Source] = Values(CONTEXT_HOSTS_MAX)
        self.targets: Values[HostKey, Target] = Values(CONTEXT_HOSTS_MAX)
        self.pairs = Pairs(Lru(PAIRS_MAX // 2), Lru(PAIRS_MAX))
        self.room = CONTEXT_FLOWS_MAX  # so many flows may come before the windows can be full
        self.trimming = 0  # rounds of _sweep in which windows that are in use are trimmed as well
        self._to_sweep: Iterator[tuple[Window, int]] = iter(())
        self.dumping: Dumping | None = None

    # layers

    def overlay(self) -> Self:
        """A layer over this tracker: reads through, keeps its own changes, costs little. Good until this one changes:
        for events that are not stored, and for a batch whose commit may fail (then drop it)."""
        child = copy(self)
        child.parent, child.base_version, child.dumping = self, self.version, None
        child.streams, child.sources, child.targets = self.streams.layer(), self.sources.layer(), self.targets.layer()
        child.pairs = Pairs(self.pairs.once.layer(), self.pairs.again.layer())
        return child

    def merge(self, overlay: Self) -> None:
        """Take an overlay's changes over; the overlay must not be used any more."""
        assert overlay.parent is self, "not an overlay of this tracker"
        assert overlay.base_version == self.version, "the tracker changed under its overlay"
        changed = len(overlay.sources.own) + len(overlay.targets.own)
        if self.dumping is not None:
            self.dumping.keep(overlay)
        self.version += 1
        self.next_id, self.late, self.unplaced = overlay.next_id, overlay.late, overlay.unplaced
        self.room, self.trimming = overlay.room, overlay.trimming
        self.streams.merge(overlay.streams)
        self.sources.merge(overlay.sources)
        self.targets.merge(overlay.targets)
        self.pairs.once.merge(overlay.pairs.once)
        self.pairs.again.merge(overlay.pairs.again)
        if self.parent is None and self.dumping is None:  # what would be swept is still to be written down
            self._sweep(2 * changed)

    def _sweep(self, n: int) -> None:
        """Look at the next n hosts and empty windows that not even the latest flow could see."""
        ends = {s.id: s.ts_max - LATE_NS - WINDOW_NS for s in self.streams.own.values()}
        for window, stream in islice(self._to_sweep, n):
            n -= 1
            end = ends.get(stream, inf)
            if window.entries and window.entries[-1][0] <= end:
                window.clear()
            elif self.trimming and (unneeded := window.needed(end)):
                window.drop(unneeded)
        if n:
            self._to_sweep, self.trimming = self._round(), max(0, self.trimming - 1)

    def _round(self) -> Iterator[tuple[Window, int]]:
        for store in (self.sources, self.targets):
            for key in list(store.own):
                if (window := store.own.get(key)) is not None:
                    yield window, key[0]

    # room

    def make_room(self) -> None:
        """Count the flows in the windows, which leaves room for a quarter of CONTEXT_FLOWS_MAX or more: where they take
        more than three, the largest windows give up their older half, until half is free or each gave."""
        streams = [stream for name in self.streams.keys() if (stream := self.streams.get(name)) is not None]  # noqa: SIM118
        ends = {s.id: s.ts_max - LATE_NS - WINDOW_NS for s in streams}
        self.room, self.trimming = CONTEXT_FLOWS_MAX, 2  # the rest of this round, and one more
        for store in (self.sources, self.targets):
            self.room = min(self.room, CONTEXT_FLOWS_MAX - _halved(store, ends))

    # dump and load

    def dump(self) -> bytes:
        """The whole state; `load` gives a tracker with the same further answers, bit for bit."""
        dumping = Dumping(self, 0)
        dumping.step(DUMP_ALL)
        return dumping.whole()

    def begin_dump(self, seq: int) -> Dumping:
        """One in slices; until the caller takes it away (`dumping`), merges keep what it has yet to write down."""
        self.dumping = Dumping(self, seq)
        return self.dumping

    @classmethod
    def load(cls, blob: bytes, internal: Sequence[str]) -> Self:
        """Raises CorruptionError where `blob` is not what dump gave."""
        if xxhash.xxh3_64_digest(blob[8:]) != blob[:8]:
            raise CorruptionError("tracker state", "its checksum is wrong; replay the stored events instead")
        try:
            state = msgspec.msgpack.decode(blob[8:], type=_Dump)
        except msgspec.DecodeError as e:
            raise CorruptionError("tracker state", f"it is not a dump of version {DUMP_VERSION} ({e})") from e
        tracker = cls(internal)
        tracker.next_id, tracker.late, tracker.unplaced = state.counters
        tracker.room = state.room
        for name, (id_, ts_max, late_run, head), slices in state.streams:
            stream = Stream(id=id_, ts_max=ts_max, late_run=late_run, head=head).restore(slices)
            tracker.streams.put(name, stream)
        for key, horizon, flows, history in state.sources:
            entries = [(e[0], e[1], (e[1], e[2]), *e[2:]) for e in flows]
            source = Source(history=history, anomaly=history.temporal_anomaly(history.bucket))
            tracker.sources.put(key, source.restore(entries, horizon))
        for key, horizon, packets in state.targets:
            tracker.targets.put(key, Target().restore(packets, horizon))
        for pair_key, pair in state.once:
            tracker.pairs.once.put(pair_key, pair)
        for pair_key, pair in state.again:
            tracker.pairs.again.put(pair_key, pair)
        return tracker

    # forgetting

    def without(self, named: Callable[[str], bool]) -> Self:
        """The same state but for these addresses: their windows and histories, the pairs they belong to, and their
        flows in the windows of others."""
        state = msgspec.msgpack.decode(self.dump()[8:], type=_Dump)
        left = _Dump(
            version=state.version, counters=state.counters, streams=state.streams, room=state.room,
            sources=[
                (key, horizon, [f for f in flows if not named(f[1])], history)
                for key, horizon, flows, history in state.sources if not named(key[1])
            ],
            targets=[
                (key, horizon, [p for p in packets if not named(p[1])])
                for key, horizon, packets in state.targets if not named(key[1])
            ],
            once=[(key, pair) for key, pair in state.once if not (named(key[1]) or named(key[2]))],
            again=[(key, pair) for key, pair in state.again if not (named(key[1]) or named(key[2]))],
        )  # fmt: skip
        body = msgspec.msgpack.encode(left)
        return self.load(xxhash.xxh3_64_digest(body) + body, self.internal)


def _halved(store: Values[HostKey, Any], ends: dict[int, int]) -> int:
    """The flows in all windows of a store, once the largest gave up their older half where all are too many."""
    needed: dict[HostKey, int] = {}
    sizes: dict[HostKey, int] = {}
    for key in store.keys():  # noqa: SIM118
        window = store.get(key)
        assert window is not None
        needed[key] = window.needed(ends.get(key[0], inf))
        sizes[key] = len(window.entries) - needed[key]
    total = sum(sizes.values())
    if total <= CONTEXT_FLOWS_MAX * 3 // 4:
        return total
    crowded = set()
    for key in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if total <= CONTEXT_FLOWS_MAX // 2 or sizes[key] < 2:
            break
        total -= sizes[key] // 2
        crowded.add(key)
    for key in sizes:  # as of old: the order in which hosts are forgotten stays
        if key in crowded and (window := store.mine(key)) is not None:
            window.drop(needed[key] + sizes[key] // 2)
    return total


class Dumping:
    """A dump of a tracker in slices. seq: the caller's, of the first event that is not in it."""

    def __init__(self, state: State, seq: int) -> None:
        assert state.parent is None, "an overlay is not dumped"
        self.seq = seq
        self._parts = (
            _Part(state.streams.own, lambda key, s: (key, (s.id, s.ts_max, s.late_run, s.head), s.slices)),
            _Part(state.sources.own, lambda k, w: (k, w.horizon, [(*e[:2], *e[3:]) for e in w.entries], w.history)),
            _Part(state.targets.own, lambda key, w: (key, w.horizon, w.entries)),
            _Part(state.pairs.once.own, lambda key, pair: (key, pair)),
            _Part(state.pairs.again.own, lambda key, pair: (key, pair)),
        )
        counters = (state.next_id, state.late, state.unplaced)
        self._last = _encode(state.room)
        self._pieces: list[bytes] = []
        self._digest = xxhash.xxh3_64()
        self._add(_array(3 + len(self._parts)) + _encode(DUMP_VERSION) + _encode(counters))

    def _add(self, piece: bytes) -> int:
        self._pieces.append(piece)
        self._digest.update(piece)
        return len(piece)

    def keep(self, overlay: State) -> None:
        """Write down now what taking this overlay over changes."""
        layers: tuple[Lru[Any, Any], ...] = (
            overlay.streams,
            overlay.sources,
            overlay.targets,
            overlay.pairs.once,
            overlay.pairs.again,
        )
        for part, layer in zip(self._parts, layers, strict=True):
            part.keep(layer.own)
            part.keep(layer.gone)

    def step(self, nbytes: int) -> bool:
        """Write down about so much more; is it whole now?"""
        for part in self._parts:
            while (piece := part.next()) is not None:
                nbytes -= self._add(piece)
                if nbytes <= 0:
                    return False
        if self._last:
            self._add(self._last)
            self._last = b""
        return True

    def whole(self) -> bytes:
        """As State.dump."""
        assert not self._last
        return b"".join((self._digest.digest(), *self._pieces))


class _Part:
    """One list of a dump: what is in `own`, in that order. entry: key and value as they are written down."""

    def __init__(self, own: dict[Any, Any], entry: Callable[[Any, Any], Any]) -> None:
        self._own, self._entry = own, entry
        self._keys = list(own)
        self._at = -1  # before the head of the list
        self._kept: dict[Any, bytes] = {}

    @property
    def left(self) -> bool:
        return self._at < len(self._keys)

    def keep(self, keys: Iterable[Any]) -> None:
        if self.left:
            for key in keys:
                if key in self._own and key not in self._kept:
                    self._kept[key] = _encode(self._entry(key, self._own[key]))

    def next(self) -> bytes | None:
        """The next few of it; None at its end."""
        if self._at < 0:
            self._at = 0
            return _array(len(self._keys))
        some = self._keys[self._at : self._at + DUMP_RUN]
        self._at += DUMP_RUN
        if not some:
            return None
        if self._kept.keys().isdisjoint(some):
            return _items([self._entry(key, self._own[key]) for key in some])
        return b"".join([self._kept.get(key) or _encode(self._entry(key, self._own[key])) for key in some])


def _array(n: int) -> bytes:
    """The head of a msgpack array of n."""
    if n < 16:
        return bytes((0x90 | n,))
    return b"\xdc" + n.to_bytes(2, "big") if n < 1 << 16 else b"\xdd" + n.to_bytes(4, "big")


def _items(values: list[Any]) -> bytes:
    """Them alone, without the head of their array."""
    return _encode(values)[len(_array(len(values))) :]


class _Dump(Struct, array_like=True, kw_only=True):
    """What is kept: flows, not sums (they are made again); the order of every list is that of its LRU."""

    version: Literal[1]
    counters: tuple[int, int, int]
    streams: list[tuple[tuple[str, str], tuple[int, int, int, int], dict[int, int]]]
    sources: list[tuple[HostKey, int, list[tuple[int, str, int, int, int, int, int]], History]]
    targets: list[tuple[HostKey, int, list[tuple[int, str, int, int]]]]
    once: list[tuple[PairKey, Pair]]
    again: list[tuple[PairKey, Pair]]
    room: int = 0  # an older dump has none: the windows are looked through at the next flow
