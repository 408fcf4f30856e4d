"""All that the tracker remembers, its layers, and its dump.

Always true
  - A state without a parent owns what it holds. An overlay reads through to its parent and changes nothing in it; it is
    good until the parent changes.
  - Memory is bounded: sources and destinations are two LRUs of CONTEXT_HOSTS_MAX, pairs two of PAIRS_MAX, and the
    windows of hosts that fell silent are dropped (`_sweep`), which no later answer can notice.
  - `load` of a dump gives the same further answers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import islice
from math import inf
from typing import Literal, Self, TypeAlias, cast

import msgspec
import xxhash
from msgspec import Struct

from engine.context.addresses import classifier
from engine.context.history import History, Pair, PairKey, Pairs
from engine.context.layers import Lru, Values
from engine.context.streams import Stream
from engine.context.windows import WINDOW_NS, Source, Target, Window
from engine.errors import CorruptionError
from engine.limits import CONTEXT_HOSTS_MAX, CONTEXT_LATE_MAX_S, SOURCES_MAX

DUMP_VERSION: Literal[1] = 1
LATE_NS = CONTEXT_LATE_MAX_S * 1_000_000_000
PAIRS_MAX = 1 << 17  # source-destination pairs seen again, and half as many seen once

HostKey: TypeAlias = tuple[int, str]  # stream, address


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
        self._to_sweep: Iterator[tuple[Window, int]] = iter(())

    # layers

    def overlay(self) -> Self:
        """A layer over this tracker: reads through, keeps its own changes, costs little. Good until this one changes:
        for events that are not stored, and for a batch whose commit may fail (then drop it)."""
        child = copy(self)
        child.parent, child.base_version = self, self.version
        child.streams, child.sources, child.targets = self.streams.layer(), self.sources.layer(), self.targets.layer()
        child.pairs = Pairs(self.pairs.once.layer(), self.pairs.again.layer())
        return child

    def merge(self, overlay: Self) -> None:
        """Take an overlay's changes over; the overlay must not be used any more."""
        assert overlay.parent is self, "not an overlay of this tracker"
        assert overlay.base_version == self.version, "the tracker changed under its overlay"
        changed = len(overlay.sources.own) + len(overlay.targets.own)
        self.version += 1
        self.next_id, self.late, self.unplaced = overlay.next_id, overlay.late, overlay.unplaced
        self.streams.merge(overlay.streams)
        self.sources.merge(overlay.sources)
        self.targets.merge(overlay.targets)
        self.pairs.once.merge(overlay.pairs.once)
        self.pairs.again.merge(overlay.pairs.again)
        if self.parent is None:
            self._sweep(2 * changed)

    def _sweep(self, n: int) -> None:
        """Look at the next n hosts and empty windows that not even the latest flow could see."""
        ends = {s.id: s.ts_max - LATE_NS - WINDOW_NS for s in self.streams.own.values()}
        for window, stream in islice(self._to_sweep, n):
            n -= 1
            if window.entries and window.entries[-1][0] <= ends.get(stream, inf):
                window.clear()
        if n:
            self._to_sweep = self._round()

    def _round(self) -> Iterator[tuple[Window, int]]:
        for store in (self.sources, self.targets):
            for key in list(store.own):
                if (window := store.own.get(key)) is not None:
                    yield window, key[0]

    # dump and load

    def dump(self) -> bytes:
        """The whole state; `load` gives a tracker with the same further answers, bit for bit."""
        assert self.parent is None, "an overlay is not dumped"
        body = msgspec.msgpack.encode(_Dump(
            version=DUMP_VERSION,
            counters=(self.next_id, self.late, self.unplaced),
            streams=[
                (key, (s.id, s.ts_max, s.late_run, s.head), cast("dict[int, int]", s.slices))
                for key, s in self.streams.own.items()
            ],
            sources=[
                (key, w.horizon, [(*e[:2], *e[3:]) for e in w.entries], w.history)
                for key, w in self.sources.own.items()
            ],
            targets=[(key, w.horizon, w.entries) for key, w in self.targets.own.items()],
            once=list(self.pairs.once.own.items()),
            again=list(self.pairs.again.own.items()),
        ))  # fmt: skip
        return xxhash.xxh3_64_digest(body) + body

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
            version=state.version, counters=state.counters, streams=state.streams,
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


class _Dump(Struct, array_like=True, kw_only=True):
    """What is kept: flows, not sums (they are made again); the order of every list is that of its LRU."""

    version: Literal[1]
    counters: tuple[int, int, int]
    streams: list[tuple[tuple[str, str], tuple[int, int, int, int], dict[int, int]]]
    sources: list[tuple[HostKey, int, list[tuple[int, str, int, int, int, int, int]], History]]
    targets: list[tuple[HostKey, int, list[tuple[int, str, int, int]]]]
    once: list[tuple[PairKey, Pair]]
    again: list[tuple[PairKey, Pair]]
