"""What is known and what is asked: never at random, and no event on both sides.

Always true
  - time: the earlier 60 % of each family answer for the rest. episodes: the first for the second. captures: whole ones
    for whole others; only a family that one capture alone has is split in it, by time. groups, for sets without times:
    events whose own features nearly coincide fall on one side together, which side a hash with the seed decides.
  - Queries' context features come from an overlay of the tracker that saw the known side, as in query_event.
  - A twin is a query whose own features are those of a known event to the bit; figures are given without twins, and
    with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.quality.data import Labelled, numbered
from engine.context import Tracker
from engine.embed.base import F32
from engine.embed.fit import NOT_CALIBRATED, Families, attack_columns, scaler
from engine.embed.linear import LinearEmbedder
from engine.embed.ship import observed
from engine.features import unpack
from engine.limits import OTHER_EPISODE_S
from ipc.event import FEATURE_COUNT, Event, FeaturedEvent

EARLIER = 0.6
EVENTS_MIN = 50  # fewer of a family in a capture are no reason to know the capture
SHARED_MIN = 10  # so many of a family in another capture, and it can be asked about there
COARSE = 0.1  # robust deviations, of logs where heavy: one step of a group

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Split(NamedTuple):
    """Rows of Labelled.items, ascending: in order of time."""

    past: Rows
    asked: Rows


class Side(NamedTuple):
    """Labelled events of one side in order of time. features: float32 [n, 105] with context; families: numbers."""

    events: list[Event]
    features: F32
    families: Families


class Sides(NamedTuple):
    """families: the names by number; twins: which of the asked are known to the bit."""

    past: Side
    asked: Side
    families: list[str]
    twins: Mask


def split(data: Labelled, seed: int = 1) -> Split:
    """Both sides of a set, by the way that is its own."""
    families, _ = numbered([item.event for item in data.items])
    match data.split:
        case "time":
            known = earlier(families)
        case "episodes":
            return Split(np.flatnonzero(data.halves == 1), np.flatnonzero(data.halves == 2))
        case "captures":
            known = by_capture(families, data.captures)
        case "groups":
            known = by_group(unpack([item.features for item in data.items]), families, seed)
        case other:
            raise ValueError(f"no way to split called {other!r}")
    return Split(np.flatnonzero(known), np.flatnonzero(~known))


def sides(data: Labelled, at: Split) -> Sides:
    """The labelled events of both, with their features."""
    tracker = Tracker(data.internal)
    past, past_own = _side(data.items, at.past, tracker)
    asked, asked_own = _side(data.items, at.asked, tracker.overlay())
    families, names = numbered([*past[0], *asked[0]])
    ours, theirs = families[: len(past[0])], families[len(past[0]) :]
    a, b = np.flatnonzero(ours >= 0), np.flatnonzero(theirs >= 0)
    return Sides(
        Side([past[0][i] for i in a], past[1][a], ours[a]),
        Side([asked[0][i] for i in b], asked[1][b], theirs[b]),
        names,
        twins(past_own[a], asked_own[b]),
    )


def _side(items: Sequence[FeaturedEvent], rows: Rows, tracker: Tracker) -> tuple[tuple[list[Event], F32], F32]:
    """Events and features as the tracker sees them, and their own features, without context."""
    chosen = [items[i] for i in rows]
    return observed(chosen, tracker), unpack([item.features for item in chosen])


# ---- ways to split --------------------------------------------------------------------------------------------------


def earlier(families: Families) -> Mask:
    """The earlier 60 % of each family, of events in order of time; those without a label count as one family."""
    known = np.zeros(len(families), np.bool_)
    for f in np.unique(families):
        rows = np.flatnonzero(families == f)
        known[rows[: int(EARLIER * len(rows))]] = True
    return known


def by_capture(families: Families, captures: Sequence[str]) -> Mask:
    """Captures in order of time: one whose families are all known from earlier ones is asked about, one that brings a
    family which later ones have as well is known, and one that brings a family of its own is split in itself."""
    names = np.array(captures)
    order = list(dict.fromkeys(captures))
    counts = {name: np.bincount(families[(names == name) & (families >= 0)], minlength=len(families)) for name in order}
    known = np.zeros(len(families), np.bool_)
    seen: set[int] = set()
    for i, name in enumerate(order):
        here = np.flatnonzero(names == name)
        brought = set(np.flatnonzero(counts[name] >= EVENTS_MIN).tolist()) - seen
        own = {f for f in brought if not any(counts[later][f] >= SHARED_MIN for later in order[i + 1 :])}
        if own:
            known[here] = earlier(families[here])
        elif brought:
            known[here] = True
        seen |= brought
    return known


def by_group(own: F32, families: Families, seed: int) -> Mask:
    """Groups of near-duplicates in the order of their hash with the seed, each counted for the family that most of it
    is of: those before EARLIER of that family's events are known. own: float32 [n, 105] as the source gave them."""
    members: dict[bytes, list[int]] = {}
    for i, key in enumerate(groups(own)):
        members.setdefault(key, []).append(i)
    sizes = Counter(families.tolist())
    known = np.zeros(len(families), np.bool_)
    before: Counter[int] = Counter()
    for rows in (members[key] for key in sorted(members, key=lambda key: _hash(key, seed))):
        family = Counter(families[rows].tolist()).most_common(1)[0][0]
        known[rows] = before[family] + len(rows) / 2 < EARLIER * sizes[family]
        before[family] += len(rows)
    return known


def groups(own: F32) -> list[bytes]:
    """The group of each: the steps in which its robust deviations fall, missing features apart."""
    columns = attack_columns()
    blank = np.zeros((1, 2 * FEATURE_COUNT), np.float32)
    scaled = LinearEmbedder("attack", "groups", columns, *scaler(own, columns), blank, NOT_CALIBRATED).scaled(own)
    return [row.tobytes() for row in np.rint(scaled / COARSE).astype(np.int16)]


def _hash(key: bytes, seed: int) -> bytes:
    return sha256(seed.to_bytes(8) + key).digest()


# ---- what may not answer --------------------------------------------------------------------------------------------


def twins(past: F32, asked: F32) -> Mask:
    """Which of the asked have the same own features, float32 [n, 105], as one of the past."""
    known = {row.tobytes() for row in canonical(past)}
    return np.array([row.tobytes() in known for row in canonical(asked)], np.bool_)


def canonical(own: F32) -> F32:
    """One NaN and one zero, so that equal features are equal bytes."""
    return np.where(np.isnan(own), np.float32(np.nan), own + np.float32(0.0))


class Episodes:
    """`--other-episodes`, as engine/search/filters.py has it: not the same pair of hosts, either way round, and family
    within OTHER_EPISODE_S."""

    def __init__(self, past: Sequence[Event], asked: Sequence[Event]) -> None:
        number: dict[tuple[str, ...], int] = {}
        keys = [(*sorted((e.src_ip, e.dst_ip)), e.family) for e in (*past, *asked)]
        of = np.array([number.setdefault(key, len(number)) for key in keys], np.int64)
        ts = np.array([e.ts for e in (*past, *asked)], np.int64)
        n = len(past)
        self._past, self._asked, self._past_ts, self._asked_ts = of[:n], of[n:], ts[:n], ts[n:]

    def same(self, rows: slice) -> Mask:
        """bool [asked in rows, past]: which of the past are of the query's own episode."""
        near = np.abs(self._past_ts - self._asked_ts[rows, None]) <= OTHER_EPISODE_S * 1_000_000_000
        return np.asarray(near & (self._past == self._asked[rows, None]))


def capped(families: Families, rows_max: int) -> Rows:
    """At most about rows_max rows, ascending: small families whole, of the others as many each, evenly spaced."""
    sizes = np.unique(families, return_counts=True)[1]
    quota = int(sizes.max(initial=0))
    if sizes.sum() > rows_max:
        ascending, left = np.sort(sizes), rows_max
        for i, size in enumerate(ascending):
            quota = max(1, left // (len(ascending) - i))
            if size > quota:
                break
            left -= int(size)
    kept = []
    for f in np.unique(families):
        rows = np.flatnonzero(families == f)
        kept.append(rows[np.linspace(0, len(rows) - 1, min(len(rows), quota)).round().astype(np.int64)])
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)
