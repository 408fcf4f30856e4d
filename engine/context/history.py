"""What hosts and pairs did before: decayed sums of one host, the last flows of one pair.

Always true
  - A decayed history is a sum of floats that belongs to one host and is touched in order of arrival only.
  - Of a host's (protocol, port)s the heaviest are kept (PORTS_MAX); a forgotten one has share 0.
  - A bucket of 30 s closes when a flow of a later one arrives; late flows do not reopen it. The last closed bucket is
    compared with those before it, and 5 of those are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from math import exp, exp2, log2, nan, sqrt
from typing import TypeAlias

from msgspec import Struct

from engine.context.layers import Lru

S_NS = 1_000_000_000
HALF_LIFE_NS = 3600 * S_NS
BUCKET_NS = 30 * S_NS
BUCKET_DECAY = exp2(-BUCKET_NS / HALF_LIFE_NS)
LOG2_3 = log2(3)
TCP, UDP = 6, 17
NO_PORT = -1
PORTS_MAX = 128  # (protocol, port)s in a host's history; pruned to half
PAIR_FLOWS = 8
PAIR_PORTS = 16  # whose starts a pair remembers

PairKey: TypeAlias = tuple[int, str, str]  # stream, S, D
Pair: TypeAlias = tuple[tuple[int, ...], tuple[tuple[int, tuple[int, ...]], ...]]  # durations, (port, starts) by use
NO_PAIR: Pair = ((), ())


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
        weight = self.weight
        if not weight:
            return nan
        if weight in self.proto_weights:
            return 1.0
        entropy = 0.0
        for w in self.proto_weights:
            share = w / weight
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

    def temporal_anomaly(self, bucket: int) -> float:
        """The same for all of one bucket, and for late ones."""
        if self.buckets < 5 and bucket - self.bucket + self.buckets < 5:
            return nan
        last, n, weight, total, squares = self._rolled(bucket)
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
        if self.flows or self.sized:
            f = exp2(-half_lives)
            self.weight *= f
            self.weights = {k: v * f for k, v in self.weights.items()}
            tcp, udp, other = self.proto_weights
            self.proto_weights = tcp * f, udp * f, other * f
            self.size_weight *= f
            self.size_sum *= f
            self.size_squares *= f
        return (ts - self.epoch) / HALF_LIFE_NS


def regularity(starts: Sequence[int]) -> float:
    """1/(1+CV) of the gaps between 3 starts or more; NaN when they all coincide."""
    ordered = sorted(starts)
    n, a = len(ordered) - 1, ordered[0]
    total = ordered[-1] - a
    if total == 0:
        return nan
    squares = 0
    for b in ordered:
        squares += (b - a) * (b - a)
        a = b
    variance = (n * squares - total * total) / (n * (n - 1))
    return 1.0 / (1.0 + sqrt(variance) * n / total)


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


def starts_of(pair: Pair, port: int) -> tuple[int, ...]:
    for known, starts in reversed(pair[1]):
        if known == port:
            return starts
    return ()


def with_flow(pair: Pair, port: int, starts: tuple[int, ...], duration: int) -> Pair:
    """A pair with one more flow, whose start is the last of `starts`; the newest port last."""
    durations, ports = pair
    if duration >= 0:
        durations = (*durations, duration) if len(durations) < PAIR_FLOWS else (*durations[1:], duration)
    if len(starts) == 1:
        ports = ports if len(ports) < PAIR_PORTS else ports[1:]
    elif ports[-1][0] == port:
        ports = ports[:-1]
    else:
        ports = tuple([p for p in ports if p[0] != port])
    return durations, (*ports, (port, starts))
