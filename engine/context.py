"""The context tracker: the 26 features of an event that look at the flows before it.

Always true
  - The answer for an event depends on the events before it in order of arrival, never on how the stream was cut into
    batches, on overlays and merges, or on a dump and load in between. One event is taken at a time; counts, bytes,
    entropies and durations are integers (fixed point), so nothing drifts and adding and removing cancel exactly. Only
    the decayed histories are float sums, and each belongs to one host and is touched in order of arrival only.
  - Only kind == "flow" changes state. An alert or notice gets context from the flows and counts as none; where no flow
    is in its window it gets NaN, not 0.
  - A sum runs over the flows of the window that state the value; where none does the feature is NaN, never 0. A flow
    of TCP, UDP or SCTP without a port gets NaN where a port is needed; other protocols have "no port" as their port.
  - A tracker without a parent owns its state. An overlay reads through to its parent and changes nothing in it; it is
    good until the parent changes.
  - Cost per event is amortised O(log n), memory is bounded: sources and destinations are two LRUs of
    CONTEXT_HOSTS_MAX, pairs two of PAIRS_MAX, a window holds at most FLOWS_MAX flows, and the windows of hosts that
    fell silent are dropped (`_sweep`), which no later answer can notice.

What features.tsv leaves open
  - Hosts, windows and the running maximum belong to a stream = (source, sensor): two detectors on one wire do not count
    a flow twice, and an old capture read beside live traffic is not late.
  - A flow more than CONTEXT_LATE_MAX_S behind its stream's maximum gets NaN, is counted and changes nothing.
    LATE_RUN_MAX of them in a row mean that the stream went back (an older file, one wrong clock): it begins anew.
  - A late event's window is exact as long as it lies within STEPS_MAX flows of the host's newest window. Beyond that
    (jitter under a flood) it is the newest window where the two overlap, else NaN and counted as `unplaced`.
  - resource_usage: the sensor's bytes are kept in slices of 0.1 s, the edges rounded outwards, so a share is <= 1.
  - temporal_anomaly_score: a bucket closes when a flow of a later one arrives; late flows do not reopen it. The last
    closed bucket is compared with those before it, and 5 of those are needed.
  - process_anomaly: of the (protocol, port)s of a host the heaviest are kept (PORTS_MAX); a forgotten one has share 0.
  - service_discovery_patterns: a (D, port) is silent when none of its flows in the window had a packet back.

Recovery: `load` a dump and `observe` the stored events after it, in order of seq; the state is the same bit for bit.
"""

from __future__ import annotations

import socket
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import lru_cache
from ipaddress import ip_network
from itertools import islice, pairwise
from math import exp, exp2, inf, log1p, log2, log10, nan, sqrt
from typing import Any, Generic, Literal, Self, TypeAlias, TypeVar, cast

import msgspec
import numpy as np
import xxhash
from msgspec import Struct

from engine.errors import CorruptionError
from engine.features import CONTEXT_INDEXES, F32, INDEX
from engine.limits import CONTEXT_HOSTS_MAX, CONTEXT_LATE_MAX_S, CONTEXT_WINDOW_S, SOURCES_MAX
from ipc.event import FEATURE_COUNT, Event

DUMP_VERSION: Literal[1] = 1
S_NS = 1_000_000_000
WINDOW_NS = CONTEXT_WINDOW_S * S_NS
LATE_NS = CONTEXT_LATE_MAX_S * S_NS
HALF_LIFE_NS = 3600 * S_NS
BUCKET_NS = 30 * S_NS
BUCKET_DECAY = exp2(-BUCKET_NS / HALF_LIFE_NS)
SLICE_NS = S_NS // 10
LONG_AGO = -(1 << 62)
SLICES = WINDOW_NS // SLICE_NS
SLICES_KEPT = LATE_NS // SLICE_NS + SLICES + 1
PAIR_FLOWS = 8
PAIR_PORTS = 16  # whose starts a pair remembers

FLOWS_MAX = 1 << 17  # of one window; beyond it the oldest leave before their 30 s are over
STEPS_MAX = 64  # flows a window moves back for a late event
LATE_RUN_MAX = 32  # too late flows in a row before a stream begins anew
PAIRS_MAX = 1 << 17  # source-destination pairs seen again, and half as many seen once
PORTS_MAX = 128  # (protocol, port)s in a host's history; pruned to half

FILE_PORTS = frozenset({20, 21, 111, 137, 138, 139, 445, 548, 873, 2049, 3260})
LATERAL_PORTS = frozenset({22, 23, 135, 139, 445, 3389, 5985, 5986})
TCP, UDP = 6, 17
PORT_PROTOCOLS = frozenset({TCP, UDP, 33, 132, 136})  # and DCCP, SCTP, UDP-Lite
NO_PORT, NO_PROTO = -1, -1
BYTES_MAX = float(1 << 44)  # of one flow; more is a source's mistake and counts as not stated
IS_TCP, IS_UDP, IS_INTERNAL, IS_FILE, IS_LATERAL, IS_STATED, IS_ANSWERED = (1 << i for i in range(7))

INPUTS = [INDEX[name] for name in (
    "flow_duration", "total_forward_packets", "total_backward_packets", "total_forward_bytes", "total_backward_bytes",
    "average_packet_size",
)]  # fmt: skip
HISTORY_OUTPUTS = (
    "process_anomaly", "temporal_pattern", "behavior_consistency", "protocol_regularity", "connection_duration_std",
    "temporal_anomaly_score",
)  # fmt: skip
SOURCE_OUTPUTS = (
    "io_intensity", "resource_usage", "file_operations", "access_frequency", "connection_rate", "tcp_udp_ratio",
    "port_entropy", "flow_duration_std", "dst_ip_concentration", "protocol_variety", "internal_connection_rate",
    "service_port_consistency", "lateral_movement_score", "service_discovery_patterns", "access_pattern_entropy",
)  # fmt: skip
TARGET_OUTPUTS = (
    "source_ip_dispersion", "geographical_concentration", "traffic_escalation_rate", "resource_saturation_score",
    "src_ip_entropy",
)  # fmt: skip
OUTPUTS = [INDEX[name] for name in HISTORY_OUTPUTS + SOURCE_OUTPUTS + TARGET_OUTPUTS]
assert sorted(OUTPUTS) == sorted(CONTEXT_INDEXES)
Row: TypeAlias = tuple[float, ...]
NO_HISTORY, NO_SOURCE, NO_TARGET = ((nan,) * len(names) for names in (HISTORY_OUTPUTS, SOURCE_OUTPUTS, TARGET_OUTPUTS))

Key: TypeAlias = int | str | tuple[str, int]
HostKey: TypeAlias = tuple[int, str]  # stream, address
PairKey: TypeAlias = tuple[int, str, str]  # stream, S, D
Pair: TypeAlias = tuple[tuple[int, ...], tuple[tuple[int, tuple[int, ...]], ...]]  # durations, (port, starts) by use
NO_PAIR: Pair = ((), ())
K = TypeVar("K")
V = TypeVar("V")


# --- arithmetic -------------------------------------------------------------------------------------------------------

LOG2_3 = log2(3)
FIX = 1 << 24  # fixed point of log1p(duration)
PLOGP_FIX = 1 << 32
_COUNTS = np.arange(FLOWS_MAX + 2 * STEPS_MAX + 2, dtype=np.float64)  # a late event's window holds a few more
PLOGP: list[int] = np.rint(_COUNTS * np.log2(np.maximum(_COUNTS, 1)) * PLOGP_FIX).astype(np.int64).tolist()  # c log2 c


def _entropy(plogp: int, n: int) -> float:
    """Shannon entropy over log2(max(2, n)) of n flows whose counts' c log2 c add up to `plogp`."""
    return max(0.0, 1.0 - plogp / PLOGP_FIX / (n * log2(n))) if n > 1 else 0.0


def _spread(n: int, total: int, squares: int) -> float:
    """Sample standard deviation, fixed point to float: NaN for none, 0 for one."""
    if n < 2:
        return 0.0 if n else nan
    return sqrt((n * squares - total * total) / (n * (n - 1))) / FIX


def _regularity(starts: Sequence[int]) -> float:
    """1/(1+CV) of the gaps between the starts; 0 below 3, NaN when they all coincide."""
    if len(starts) < 3:
        return 0.0
    gaps = [b - a for a, b in pairwise(sorted(starts))]
    n, total = len(gaps), sum(gaps)
    if total == 0:
        return nan
    variance = (n * sum(g * g for g in gaps) - total * total) / (n * (n - 1))
    return 1.0 / (1.0 + sqrt(variance) * n / total)


# --- state that can be layered ----------------------------------------------------------------------------------------


class Counts(dict[Key, int]):
    """Counters that read through to a parent; an absent one is 0. Zeros are left behind and dropped by `folded`."""

    __slots__ = ("parent",)

    def __init__(self, parent: Counts | None = None) -> None:
        self.parent = parent

    def __missing__(self, key: Key) -> int:
        layer = self.parent
        while layer is not None:
            count = layer.get(key)
            if count is not None:
                return count
            layer = layer.parent
        return 0

    def folded(self) -> Counts:
        """The parent with these changes in it; where there is none, itself."""
        base = self.parent
        if base is None:
            base = self
        elif base.parent is not None:
            base.update(self)
            return base
        else:
            base.update(self)
        for key in [key for key, count in self.items() if not count]:
            del base[key]
        return base


class Lru(Generic[K, V]):
    """At most `size_max` values, the least recently put leaves first, exactly so in a layer over a parent as well.

    A layer's `own` holds what was put there, in order; `gone` are keys of the parent that left. The parent must not
    change while a layer over it is in use.
    """

    __slots__ = ("_victims", "gone", "own", "parent", "size", "size_max")

    def __init__(self, size_max: int, parent: Lru[K, V] | None = None) -> None:
        self.own: OrderedDict[K, V] = OrderedDict()
        self.gone: set[K] = set()
        self.parent = parent
        self.size: int = 0 if parent is None else parent.size
        self.size_max = size_max
        self._victims: Iterator[K] | None = None

    def __len__(self) -> int:
        return self.size

    def get(self, key: K) -> V | None:
        layer = self
        while True:
            value = layer.own.get(key)
            if value is not None or layer.parent is None or key in layer.gone:
                return value
            layer = layer.parent

    def put(self, key: K, value: V) -> None:
        """Set and make the newest."""
        self.set(key, value, key in self.own or self._in_parent(key))

    def set(self, key: K, value: V, present: bool) -> None:
        """`put` by one who knows whether the key is there."""
        own = self.own
        own[key] = value
        if present:
            own.move_to_end(key)
            return
        self.size += 1
        if self.size > self.size_max:
            self._evict()

    def pop(self, key: K) -> None:
        """Remove a key that is there."""
        if self._in_parent(key):
            self.gone.add(key)
        self.own.pop(key, None)
        self.size -= 1

    def keys(self) -> Iterator[K]:
        """Oldest first."""
        if self.parent is not None:
            yield from (k for k in self.parent.keys() if k not in self.own and k not in self.gone)  # noqa: SIM118
        yield from self.own

    def layer(self) -> Lru[K, V]:
        return Lru(self.size_max, self)

    def merge(self, layer: Lru[K, V]) -> None:
        for key in layer.gone:
            if self._in_parent(key):
                self.gone.add(key)
            self.own.pop(key, None)
        for key, value in layer.own.items():
            known = len(self.own)
            self.own[key] = value
            if len(self.own) == known:
                self.own.move_to_end(key)
        self.size = layer.size
        self._victims = None

    def _in_parent(self, key: K) -> bool:
        return self.parent is not None and key not in self.gone and self.parent.get(key) is not None

    def _evict(self) -> None:
        if self.parent is not None:
            if self._victims is None:
                self._victims = self.parent.keys()
            for key in self._victims:
                if key not in self.own and key not in self.gone:
                    self.gone.add(key)
                    self.size -= 1
                    return
        self.pop(next(iter(self.own)))


class Window(Struct, gc=False):
    """Flows of one host in order of ts, and the sums over those in (at - 30 s, at], entries[lo:hi].

    `anchor` is the newest flow's ts. The sums' position never changes an answer: `place` looks at the entries alone.
    A few entries before the newest window are kept for late events; up to `horizon` some were dropped.
    """

    entries: list[Any] = []
    lo: int = 0
    hi: int = 0
    at: int = LONG_AGO
    horizon: int = LONG_AGO
    counts: Counts = msgspec.field(default_factory=Counts)

    def _count(self, entry: Any, step: int) -> None:
        """Add (step 1) or remove (step -1) an entry to or from the sums."""
        raise NotImplementedError

    def child(self) -> Self:
        twin = copy(self)
        twin.entries = self.entries.copy()
        twin.counts = Counts(self.counts)
        return twin

    def fold(self) -> None:
        """Become the parent's successor: its counters and these changes are one again."""
        self.counts = self.counts.folded()

    def add(self, entry: Any) -> None:
        """Take a flow in; entry[0] is its ts. One in order becomes the anchor, and the sums move there."""
        ts, entries = entry[0], self.entries
        if not entries or ts >= entries[-1][0]:
            if entries and self.at > entries[-1][0]:
                self._move(entries[-1][0])  # an alert looked ahead
            entries.append(entry)
            if self.hi == len(entries) - 1:
                self.at = ts
                self.hi += 1
                self._count(entry, 1)
                since = ts - WINDOW_NS
                while entries[self.lo][0] <= since:
                    self._count(entries[self.lo], -1)
                    self.lo += 1
            else:
                self._move(ts)
            self._trim(self.lo)
        elif ts > self.horizon:
            entries.insert(bisect_left(entries, (ts + 1,)), entry)
            if ts <= self.at - WINDOW_NS:
                self.lo += 1
                self.hi += 1
            elif ts <= self.at:
                self._count(entry, 1)
                self.hi += 1
            if len(entries) > FLOWS_MAX:
                self._trim(bisect_left(entries, (entries[-1][0] - WINDOW_NS + 1,)))

    def place(self, ts: int) -> bool:
        """Move the sums to the window that ends at ts, or to the newest one. False: it is not held, or is empty."""
        entries = self.entries
        if not entries:
            return False
        anchor: int = entries[-1][0]
        if ts != anchor:
            lo, hi, newest = (bisect_left(entries, (t + 1,)) for t in (ts - WINDOW_NS, ts, anchor - WINDOW_NS))
            held = ts > anchor or self.horizon <= ts - WINDOW_NS
            if not held or abs(lo - newest) + len(entries) - hi > STEPS_MAX:
                if abs(anchor - ts) >= WINDOW_NS:
                    return False
                ts = anchor
        if ts != self.at:
            self._move(ts)
        return self.lo < self.hi

    def _move(self, ts: int) -> None:
        entries, lo, hi = self.entries, self.lo, self.hi
        since = ts - WINDOW_NS
        if ts >= self.at:  # forward, the ordinary way: each entry comes in once and goes out once
            while hi < len(entries) and entries[hi][0] <= ts:
                self._count(entries[hi], 1)
                hi += 1
            while lo < hi and entries[lo][0] <= since:
                self._count(entries[lo], -1)
                lo += 1
        else:
            while lo > 0 and entries[lo - 1][0] > since:
                lo -= 1
                self._count(entries[lo], 1)
            while hi > lo and entries[hi - 1][0] > ts:
                hi -= 1
                self._count(entries[hi], -1)
        self.lo, self.hi, self.at = lo, hi, ts

    def _trim(self, newest: int) -> None:
        """Keep within bounds; entries[newest:] are the newest window."""
        n = len(self.entries) - newest
        if n > FLOWS_MAX:
            self._drop(newest + FLOWS_MAX // 8)
        elif newest > 2 * STEPS_MAX + n:
            self._drop(newest - STEPS_MAX)

    def _drop(self, n: int) -> None:
        while self.lo < min(n, self.hi):
            self._count(self.entries[self.lo], -1)
            self.lo += 1
        self.horizon = max(self.horizon, self.entries[n - 1][0])
        del self.entries[:n]
        self.lo = max(0, self.lo - n)
        self.hi = max(0, self.hi - n)
        if self.counts.parent is None:
            self.fold()  # a tracker without overlays never folds

    def clear(self) -> None:
        """Forget the flows, not the history."""
        if self.entries:
            self._move(max(self.at, self.entries[-1][0] + WINDOW_NS))
            self.entries.clear()
            self.lo, self.hi, self.at = 0, 0, LONG_AGO
            self.fold()

    def restore(self, entries: list[Any], horizon: int) -> Self:
        """Entries in order of ts, as dumped; the sums are made again from them."""
        self.entries, self.horizon = entries, horizon
        if entries:
            self.at = entries[-1][0]
            self.lo = self.hi = bisect_left(entries, (self.at - WINDOW_NS + 1,))
            self._move(self.at)
        return self


class History(Struct, array_like=True, gc=False):
    """What an initiator did before, decayed: read first, then `remember` adds the flow itself.

    Weights are 2^((ts - epoch) / half-life): they grow, so that only the flow at hand need be weighed.
    """

    epoch: int = 0
    flows: int = 0  # that state a protocol and have a port
    weight: float = 0.0
    weights: dict[int, float] = {}  # protocol << 17 | port + 1
    proto_weights: tuple[float, float, float] = (0.0, 0.0, 0.0)  # TCP, UDP, other
    sized: int = 0  # flows that state their bytes
    size_weight: float = 0.0
    size_sum: float = 0.0
    size_squares: float = 0.0
    # flows per bucket: of the open one, of the last closed one (-1: none), decayed sums of those before
    bucket: int = 0
    bucket_open: int = 0
    bucket_last: int = -1
    buckets: int = 0
    bucket_weight: float = 0.0
    bucket_sum: float = 0.0
    bucket_squares: float = 0.0

    def child(self) -> History:
        twin = copy(self)
        twin.weights = self.weights.copy()
        return twin

    def process_anomaly(self, service: int) -> float:
        return 1.0 - self.weights.get(service, 0.0) / self.weight if self.flows >= 5 else nan

    def protocol_regularity(self) -> float:
        if not self.weight:
            return nan
        entropy = 0.0
        for w in self.proto_weights:
            share = w / self.weight
            if share > 0.0:  # one that faded for 45 days is too small to be a share
                entropy -= share * log2(share)
        return min(1.0, max(0.0, 1.0 - entropy / LOG2_3))

    def behavior_consistency(self, size: float) -> float:
        if self.sized < 5 or not self.size_weight:
            return nan
        mean = self.size_sum / self.size_weight
        deviation = sqrt(max(0.0, self.size_squares / self.size_weight - mean * mean))
        return exp(-abs(size - mean) / max(0.1, deviation))

    def _rolled(self, bucket: int) -> tuple[int, int, float, float, float]:
        """(last closed bucket, number, weight, sum, squares of those before it) as seen from `bucket`."""
        state = (self.bucket_last, self.buckets, self.bucket_weight, self.bucket_sum, self.bucket_squares)
        if bucket <= self.bucket or not self.bucket_open:
            return state
        last, n, weight, total, squares = state
        closing = [last, self.bucket_open] if bucket > self.bucket + 1 else [last]
        for c in closing:
            if c >= 0:
                n += 1
                weight = weight * BUCKET_DECAY + 1.0
                total = total * BUCKET_DECAY + c
                squares = squares * BUCKET_DECAY + c * c
        if bucket == self.bucket + 1:
            return self.bucket_open, n, weight, total, squares
        empty = bucket - self.bucket - 2
        decay = exp2(-empty * BUCKET_NS / HALF_LIFE_NS)
        weight = weight * decay + (1.0 - decay) / (1.0 - BUCKET_DECAY)
        return 0, n + empty, weight, total * decay, squares * decay

    def temporal_anomaly(self, ts: int) -> float:
        last, n, weight, total, squares = self._rolled(ts // BUCKET_NS)
        if n < 5:
            return nan
        mean = total / weight
        deviation = sqrt(max(0.0, squares / weight - mean * mean))
        return 1.0 - exp(-abs(last - mean) / max(1.0, deviation) / 3.0)

    def remember(self, ts: int, service: int, proto: int, size: float) -> None:
        """Add a flow to the history. service: NO_PORT where unknown; size: log1p(bytes), NaN where unknown."""
        age = (ts - self.epoch) / HALF_LIFE_NS
        if age > 32.0:
            age = self._rescale(ts)
        w = exp2(age)
        if service != NO_PORT:
            self.flows += 1
            self.weight += w
            self.weights[service] = self.weights.get(service, 0.0) + w
            if len(self.weights) > PORTS_MAX:
                heaviest = sorted(self.weights.items(), key=lambda kv: (-kv[1], kv[0]))
                self.weights = dict(heaviest[: PORTS_MAX // 2])
            tcp, udp, other = self.proto_weights
            if proto == TCP:
                self.proto_weights = tcp + w, udp, other
            elif proto == UDP:
                self.proto_weights = tcp, udp + w, other
            else:
                self.proto_weights = tcp, udp, other + w
        if size == size:
            self.sized += 1
            self.size_weight += w
            self.size_sum += w * size
            self.size_squares += w * size * size

        bucket = ts // BUCKET_NS
        if not self.bucket_open:
            self.bucket, self.bucket_open = bucket, 1
        elif bucket == self.bucket:
            self.bucket_open += 1
        elif bucket > self.bucket:
            last, n, weight, total, squares = self._rolled(bucket)
            self.bucket, self.bucket_open, self.bucket_last, self.buckets = bucket, 1, last, n
            self.bucket_weight, self.bucket_sum, self.bucket_squares = weight, total, squares

    def _rescale(self, ts: int) -> float:
        """Move the epoch by whole half-lives, exactly; the age of ts after it. Weights may fade to 0."""
        half_lives = (ts - self.epoch) // HALF_LIFE_NS
        self.epoch += half_lives * HALF_LIFE_NS
        f = exp2(-half_lives)
        self.weight *= f
        self.weights = {k: v * f for k, v in self.weights.items()}
        tcp, udp, other = self.proto_weights
        self.proto_weights = tcp * f, udp * f, other * f
        self.size_weight *= f
        self.size_sum *= f
        self.size_squares *= f
        return (ts - self.epoch) / HALF_LIFE_NS


class Source(Window, gc=False):
    """An initiator: entry = (ts, D, (D, port), port, class, kind, bytes or -1, log1p(duration ms) fixed point or -1).

    Keys of counts: D: flows + (lateral flows << 20); (D, port): flows + (answered << 20) + (stated << 40);
    port, from -1; class, from 1 << 20; and, for the largest count of a port, -2 - c: how many ports have count c.
    """

    port_plogp: int = 0
    port_top: int = 0
    pair_plogp: int = 0
    silent: int = 0
    stated: int = 0
    dst_squares: int = 0
    lateral: int = 0
    classes: int = 0
    tcp: int = 0
    udp: int = 0
    internal: int = 0
    file: int = 0
    file_bytes: int = 0
    bytes: int = 0
    bytes_stated: int = 0
    durations: int = 0
    duration_sum: int = 0
    duration_squares: int = 0
    history: History = msgspec.field(default_factory=lambda: History())

    def child(self) -> Self:
        twin = Window.child(self)
        twin.history = self.history.child()
        return twin

    def _count(self, entry: Any, step: int) -> None:
        _, dst, pair, port, service, kind, nbytes, duration = entry
        counts = self.counts
        before = counts[port]
        counts[port] = after = before + step
        self.port_plogp += PLOGP[after] - PLOGP[before]
        if before:
            counts[-2 - before] -= 1
        if after:
            counts[-2 - after] += 1
        if after > self.port_top or (before == self.port_top and not counts[-2 - before]):
            self.port_top = after

        step_pair = step
        if kind & IS_STATED:
            step_pair += step << 40
            if kind & IS_ANSWERED:
                step_pair += step << 20
        was = counts[pair]
        counts[pair] = now = was + step_pair
        before = was & 0xFFFFF
        self.pair_plogp += PLOGP[before + step] - PLOGP[before]
        if kind & IS_STATED:
            self.stated += step
            self.silent += (now >= 1 << 40 and not now & 0xFFFFF00000) - (was >= 1 << 40 and not was & 0xFFFFF00000)

        before = counts[dst]
        if kind & IS_LATERAL:
            counts[dst] = before + (step << 20) + step
            was = before >> 20
            self.lateral += (was + step > 0) - (was > 0)
            before &= 0xFFFFF
        else:
            counts[dst] = before + step
            before &= 0xFFFFF
        self.dst_squares += 2 * step * before + 1

        before = counts[service]
        counts[service] = before + step
        self.classes += (before + step > 0) - (before > 0)

        if kind & IS_TCP:
            self.tcp += step
        elif kind & IS_UDP:
            self.udp += step
        if kind & IS_INTERNAL:
            self.internal += step
        if nbytes >= 0:
            self.bytes += step * nbytes
            self.bytes_stated += step
        if kind & IS_FILE:
            self.file += step
            if nbytes >= 0:
                self.file_bytes += step * nbytes
        if duration >= 0:
            self.durations += step
            self.duration_sum += step * duration
            self.duration_squares += step * duration * duration


class Target(Window, gc=False):
    """A destination: entry = (ts, source, prefix of the source, forward packets or -1).

    Keys of counts: address of a source; prefix (an int).
    """

    sources: int = 0
    source_plogp: int = 0
    prefix_squares: int = 0
    packets: int = 0
    packets_stated: int = 0

    def _count(self, entry: Any, step: int) -> None:
        _, source, prefix, packets = entry
        counts = self.counts
        before = counts[source]
        counts[source] = after = before + step
        self.source_plogp += PLOGP[after] - PLOGP[before]
        self.sources += (after > 0) - (before > 0)
        before = counts[prefix]
        counts[prefix] = before + step
        self.prefix_squares += 2 * step * before + 1
        if packets >= 0:
            self.packets += step * packets
            self.packets_stated += step


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


_Layered = TypeVar("_Layered", bound=Window | Stream)


class Values(Lru[K, _Layered]):
    """An Lru of mutable values: a layer copies one before it changes it."""

    __slots__ = ()

    def mine(self, key: K, make: Callable[[], _Layered]) -> _Layered:
        """The value under key, to be changed, as the newest; made where there is none."""
        value = self.own.get(key)
        if value is not None:
            self.own.move_to_end(key)
            return value
        found = self.get(key)
        fresh: _Layered = make() if found is None else found.child()  # type: ignore[assignment]  # child() is Self
        self.set(key, fresh, found is not None)
        return fresh

    def look(self, key: K) -> _Layered | None:
        """The value under key, to be read; moving its sums is no change."""
        value = self.get(key)
        if value is None or key in self.own:
            return value
        return value.child()  # type: ignore[return-value]

    def layer(self) -> Values[K, _Layered]:
        return Values(self.size_max, self)

    def merge(self, layer: Lru[K, _Layered]) -> None:
        for value in layer.own.values():
            value.fold()
        super().merge(layer)


class Pairs:
    """The last flows of pairs. Those seen once live apart, so that a scan cannot push out the ones that come back."""

    __slots__ = ("again", "once")

    def __init__(self, once: Lru[PairKey, Pair], again: Lru[PairKey, Pair]) -> None:
        self.once, self.again = once, again

    def get(self, key: PairKey) -> Pair | None:
        return self.again.get(key) or self.once.get(key)

    def put(self, key: PairKey, old: Pair | None, new: Pair) -> None:
        """old: what `get` gave."""
        if old is None:
            self.once.set(key, new, False)
        elif len(old[1]) == 1 and len(old[1][0][1]) == 1:  # one flow until now
            self.once.pop(key)
            self.again.set(key, new, False)
        else:
            self.again.set(key, new, True)


def _starts(pair: Pair, port: int) -> tuple[int, ...]:
    for known, starts in pair[1]:
        if known == port:
            return starts
    return ()


def _with_flow(pair: Pair, port: int, starts: tuple[int, ...], duration: int) -> Pair:
    """A pair with one more flow, whose start is the last of `starts`; the newest port last."""
    durations, ports = pair
    if duration >= 0:
        durations = (*durations, duration)[-PAIR_FLOWS:]
    if len(starts) > 1:
        ports = tuple([p for p in ports if p[0] != port])
    return durations, (*ports, (port, starts))[-PAIR_PORTS:]


# --- addresses --------------------------------------------------------------------------------------------------------


def _classifier(internal: Sequence[str]) -> Callable[[str], tuple[bool, int]]:
    """address -> (is it internal, its /16 or, for IPv6, /32 prefix); remembers the latest ones."""
    nets = [ip_network(cidr, strict=False) for cidr in internal]
    rules = [(n.max_prefixlen, n.max_prefixlen - n.prefixlen, int(n.network_address)) for n in nets]

    @lru_cache(maxsize=CONTEXT_HOSTS_MAX)
    def classify(address: str) -> tuple[bool, int]:
        v6 = ":" in address
        try:
            packed = socket.inet_pton(socket.AF_INET6 if v6 else socket.AF_INET, address)
        except (OSError, ValueError):
            return False, -1
        bits, number = (128, int.from_bytes(packed)) if v6 else (32, int.from_bytes(packed))
        inside = any(bits == b and number >> shift == net >> shift for b, shift, net in rules)
        return inside, (1 << 32) + (number >> 96) if v6 else number >> 16

    return classify


# --- the tracker ------------------------------------------------------------------------------------------------------


class Tracker:
    """The state of all streams. late: flows too late for a context; unplaced: windows no longer held."""

    def __init__(self, internal: Sequence[str]) -> None:
        self.internal = tuple(internal)
        self.classify = _classifier(internal)
        self.parent: Tracker | None = None
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

    # observe

    def observe(self, events: Sequence[Event], features: F32) -> None:
        """Fill the missing context columns of features (float32 [n, 105], in place) and take the flows in, in order."""
        if features.shape != (len(events), FEATURE_COUNT):
            raise ValueError(f"features are {features.shape}, {(len(events), FEATURE_COUNT)} are needed")
        self.version += 1
        given = features[:, INPUTS].astype(np.float64).tolist()
        rows = [self._observe(e, *inputs) for e, inputs in zip(events, given, strict=True)]
        if rows:
            block = features[:, OUTPUTS]
            features[:, OUTPUTS] = np.where(np.isnan(block), np.array(rows, np.float32), block)
        if self.parent is None:
            self._sweep(2 * len(events))

    def _observe(
        self,
        e: Event,
        seconds: float,
        forward_packets: float,
        backward_packets: float,
        forward_bytes: float,
        backward_bytes: float,
        packet_size: float,
    ) -> Row:
        """The context features of one event, in order of OUTPUTS."""
        ts, src, dst, is_flow = e.ts, e.src_ip, e.dst_ip, e.kind == "flow"
        if not src and not dst:
            return NO_HISTORY + NO_SOURCE + NO_TARGET
        stream = self._stream((e.source, e.sensor), ts, is_flow)
        if stream is None:
            return NO_HISTORY + NO_SOURCE + NO_TARGET

        nbytes = int(b) if 0.0 <= (b := forward_bytes + backward_bytes) < BYTES_MAX else -1
        packets = forward_packets + backward_packets
        if not packet_size >= 0.0:
            packet_size = nbytes / packets if nbytes >= 0 and packets > 0.0 else nan
        if is_flow and nbytes > 0:
            stream.add(ts, nbytes)
        source = self._source(stream, e, seconds, nbytes, backward_packets) if src else NO_HISTORY + NO_SOURCE
        return source + (self._target(stream, e, forward_packets, packet_size) if dst else NO_TARGET)

    def _stream(self, key: tuple[str, str], ts: int, is_flow: bool) -> Stream | None:
        """The stream, its time moved on; None: the event is too late, or an alert of a stream without flows."""
        if not is_flow:
            found = self.streams.look(key)
            return None if found is None or ts < found.ts_max - LATE_NS else found
        stream = self.streams.mine(key, lambda: self._begin(ts))
        if ts >= stream.ts_max - LATE_NS:
            stream.late_run = 0
            stream.ts_max = max(stream.ts_max, ts)
            return stream
        stream.late_run += 1
        if stream.late_run <= LATE_RUN_MAX:
            self.late += 1
            return None
        stream = self._begin(ts)
        self.streams.put(key, stream)
        return stream

    def _begin(self, ts: int) -> Stream:
        self.next_id += 1
        return Stream(id=self.next_id, ts_max=ts, head=ts // SLICE_NS)

    def _target(self, stream: Stream, e: Event, packets: float, packet_size: float) -> Row:
        ts, key = e.ts, (stream.id, e.dst_ip)
        if e.kind == "flow":
            stated = int(packets) if 0.0 <= packets < BYTES_MAX else -1
            mine = self.targets.mine(key, Target)
            mine.add((ts, e.src_ip, self.classify(e.src_ip)[1] if e.src_ip else -1, stated))
            target: Target | None = mine
        else:
            target = self.targets.look(key)
        if target is None or not target.place(ts):
            self.unplaced += e.kind == "flow"
            return NO_TARGET
        n = target.hi - target.lo
        middle = bisect_left(target.entries, (target.at - WINDOW_NS // 2 + 1,), target.lo, target.hi)
        per_second = target.packets / CONTEXT_WINDOW_S if target.packets_stated else nan
        load = per_second if per_second != per_second else min(1.0, per_second / 10_000)
        return (
            target.sources / n,
            target.prefix_squares / (n * n),
            (target.hi - middle + 1) / (n + 2),  # r/(1+r) with r = (later + 1)/(earlier + 1)
            (exp(-packet_size / 100) + load) / 2,
            _entropy(target.source_plogp, n),
        )

    def _source(self, stream: Stream, e: Event, seconds: float, nbytes: int, backward_packets: float) -> Row:
        ts, src, dst, is_flow = e.ts, e.src_ip, e.dst_ip, e.kind == "flow"
        proto = NO_PROTO if e.proto is None else e.proto
        port = NO_PORT if e.dst_port is None else e.dst_port
        has_port = port != NO_PORT or (proto != NO_PROTO and proto not in PORT_PROTOCOLS)
        service = proto << 17 | port + 1 if has_port and proto != NO_PROTO else NO_PORT
        size = log1p(nbytes) if nbytes >= 0 else nan
        duration = round(log1p(seconds * 1000.0) * FIX) if 0.0 <= seconds < inf else -1
        key, pair = (stream.id, src), (dst, port)
        source = self.sources.mine(key, Source) if is_flow else self.sources.look(key)
        if source is None:
            return NO_HISTORY + NO_SOURCE

        past = source.history
        pair_key = (stream.id, src, dst)
        old = self.pairs.get(pair_key)
        together = old or NO_PAIR
        starts, durations = _starts(together, port), together[0]
        if is_flow:
            starts = (*starts, e.ts_start)[-PAIR_FLOWS:]
        history = (
            past.process_anomaly(service) if service != NO_PORT else nan,
            _regularity(starts) if dst and has_port else nan,
            past.behavior_consistency(size) if nbytes >= 0 else nan,
            past.protocol_regularity(),
            _spread(len(durations), sum(durations), sum([d * d for d in durations])) if dst else nan,
            past.temporal_anomaly(ts),
        )
        if is_flow:
            past.remember(ts, service, proto, size)
            self.pairs.put(pair_key, old, _with_flow(together, port, starts, duration))
            source.add((ts, dst, pair, port, *self._kind(proto, port, dst, backward_packets), nbytes, duration))

        if not source.place(ts):
            self.unplaced += is_flow
            return history + NO_SOURCE
        n = source.hi - source.lo
        sensor_bytes = stream.bytes_at(ts)
        bytes_known = source.bytes_stated > 0
        tcp_udp = source.tcp + source.udp
        lateral = source.lateral if self.classify(src)[0] else 0
        to_port = dst and has_port
        return (
            *history,
            min(1.0, log10(1.0 + source.file_bytes / CONTEXT_WINDOW_S) / 8) if bytes_known and has_port else nan,
            min(1.0, source.bytes / sensor_bytes) if bytes_known and sensor_bytes else nan,
            min(1.0, log2(1 + source.file) / 10) if has_port else nan,
            min(1.0, log2(1 + (source.counts[pair] & 0xFFFFF)) / 10) if to_port else nan,
            min(1.0, log2(1.0 + n / CONTEXT_WINDOW_S) / 10),
            nan if proto == NO_PROTO else source.tcp / tcp_udp if tcp_udp else 0.5,
            _entropy(source.port_plogp, n) if has_port else nan,
            _spread(source.durations, source.duration_sum, source.duration_squares),
            source.dst_squares / (n * n) if dst else nan,
            min(1.0, source.classes / 8) if service != NO_PORT else nan,
            min(1.0, log2(1.0 + source.internal / CONTEXT_WINDOW_S) / 10) if dst else nan,
            source.port_top / n if has_port else nan,
            min(1.0, log2(1 + lateral) / 6) if to_port else nan,
            source.silent / source.stated if to_port and source.stated else nan,
            _entropy(source.pair_plogp, n) if to_port else nan,
        )

    def _kind(self, proto: int, port: int, dst: str, backward_packets: float) -> tuple[int, int]:
        """(service class, kind) of an entry."""
        service = (1 << 20) + (proto + 1 << 11) + (min(port, 1024) + 1)
        kind = IS_TCP if proto == TCP else IS_UDP if proto == UDP else 0
        if dst and self.classify(dst)[0]:
            kind |= IS_INTERNAL | (IS_LATERAL if port in LATERAL_PORTS else 0)
        if port in FILE_PORTS:
            kind |= IS_FILE
        if backward_packets >= 0.0:
            kind |= IS_STATED | (IS_ANSWERED if backward_packets > 0.0 else 0)
        return service, kind

    # layers

    def overlay(self) -> Tracker:
        """A layer over this tracker: reads through, keeps its own changes, costs little. Good until this one changes:
        for events that are not stored, and for a batch whose commit may fail (then drop it)."""
        child = copy(self)
        child.parent, child.base_version = self, self.version
        child.streams, child.sources, child.targets = self.streams.layer(), self.sources.layer(), self.targets.layer()
        child.pairs = Pairs(self.pairs.once.layer(), self.pairs.again.layer())
        return child

    def merge(self, overlay: Tracker) -> None:
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
    def load(cls, blob: bytes, internal: Sequence[str]) -> Tracker:
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
            stream = Stream(id=id_, ts_max=ts_max, late_run=late_run, head=head)
            for at, nbytes in slices.items():
                stream.slices[at] = nbytes
            stream.total = sum(n for at, n in slices.items() if at >= head - SLICES)
            tracker.streams.put(name, stream)
        for key, horizon, flows, history in state.sources:
            entries = [(e[0], e[1], (e[1], e[2]), *e[2:]) for e in flows]
            tracker.sources.put(key, Source(history=history).restore(entries, horizon))
        for key, horizon, packets in state.targets:
            tracker.targets.put(key, Target().restore(packets, horizon))
        for pair_key, pair in state.once:
            tracker.pairs.once.put(pair_key, pair)
        for pair_key, pair in state.again:
            tracker.pairs.again.put(pair_key, pair)
        return tracker


class _Dump(Struct, array_like=True, kw_only=True):
    """What is kept: flows, not sums (they are made again); the order of every list is that of its LRU."""

    version: Literal[1]
    counters: tuple[int, int, int]
    streams: list[tuple[tuple[str, str], tuple[int, int, int, int], dict[int, int]]]
    sources: list[tuple[HostKey, int, list[tuple[int, str, int, int, int, int, int]], History]]
    targets: list[tuple[HostKey, int, list[tuple[int, str, int, int]]]]
    once: list[tuple[PairKey, Pair]]
    again: list[tuple[PairKey, Pair]]
