"""How often is a vote right? Measured where later events look back at earlier ones.

Always true
  - The later part of each family looks back at all that came before it, block after block, never the other way; the map
    that it is seen with was fitted on the earlier part alone.
  - What is measured is the vote of an answer: the same places, weights and doubt (engine/embed/vote.py), but that
    places are looked for among FETCH neighbours, where an answer goes on until it has them. Asked events that nearly
    coincide count once, as places do.
  - A larger share of a vote never means a smaller probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.embed.base import F32
from engine.embed.vote import VOTERS, places, vote

BLOCKS = 5  # of each family, in order of time; all but the first look back
KNOTS = 12
PRIOR = 1.0  # events at each knot, beside those measured, that were right as often as their share says
FETCH = 32  # neighbours of one event among which its places are found

F64 = NDArray[np.float64]
Families = NDArray[np.int64]
Rows = NDArray[np.int64]
Nearest = Callable[[F32, F32, int], tuple[Rows, F64]]


class Seen(NamedTuple):
    """The same events as they are stored and as they are asked about: float32 [n, dim], NaN as in Embedder.asked."""

    stored: F32
    asked: F32


Embed = Callable[[Rows], Seen]


class Votes(NamedTuple):
    """share: of the family that leads, float64 [n]; right: whether it is the event's own, bool [n]; worth: how much an
    event counts, float64 [n], 1 over how many of the block nearly coincide with it."""

    share: F64
    right: NDArray[np.bool_]
    worth: F64


def looks_back(families: Families) -> Iterator[tuple[Rows, Rows]]:
    """(earlier, later) rows, in order of time; later ones are of a known family."""
    block = np.zeros(len(families), np.int64)
    for family in np.unique(families):
        rows = np.flatnonzero(families == family)
        block[rows] = np.arange(len(rows)) * BLOCKS // len(rows)
    for number in range(1, BLOCKS):
        yield np.flatnonzero(block < number), np.flatnonzero((block == number) & (families >= 0))


def votes(
    later: Seen, asked: Families, earlier: F32, families: Families, near: float, bound: float, nearest: Nearest
) -> Votes:
    """What the earlier events say of each later one. near, bound: as in `vote`."""
    known = families >= 0
    earlier, families = earlier[known], families[known]
    n = len(later.asked)
    share, right, worth = np.zeros(n), np.zeros(n, np.bool_), np.ones(n)
    if not len(earlier) or not n:
        return Votes(share, right, worth)
    rows, distances = nearest(later.asked, earlier, FETCH)
    for i in range(n):
        found = places([(earlier[rows[i]], near)], VOTERS)
        parts = [parts_of(families[rows[i][place]].tolist()) for place in found]
        ballot = vote([float(distances[i][place[0]]) for place in found], parts, near, bound)
        family, share[i] = next(iter(ballot.shares.items()))
        right[i] = family == asked[i]
        difference = later.stored - later.stored[i]
        worth[i] = 1.0 / np.count_nonzero(np.einsum("ij,ij->i", difference, difference) <= near * near)
    return Votes(share, right, worth)


def parts_of(families: list[int]) -> dict[int, float]:
    """How a place divides its vote: each of its events alike."""
    return {family: families.count(family) / len(families) for family in set(families)}


def certainty(measured: list[Votes]) -> F64:
    """float64 [m, 2]: a share of a vote, and how often so large a share was right; both ascend, m <= KNOTS + 1. Empty
    where nothing was measured."""
    share = np.round(np.concatenate([v.share for v in measured] or [np.empty(0)]), 4)  # so that no two knots meet
    said = share > 0
    if not said.any():
        return np.empty((0, 2))
    share = share[said]
    right = np.concatenate([v.right for v in measured]).astype(np.float64)[said]
    worth = np.concatenate([v.worth for v in measured])[said]
    edges = np.unique(np.quantile(share, np.linspace(0, 1, KNOTS + 1)[1:-1]))
    knots: list[tuple[float, float, float]] = []  # share, right, worth
    for group in range(len(edges) + 1):
        here = np.searchsorted(edges, share, side="right") == group
        n = float(worth[here].sum())
        if n:
            at = float(worth[here] @ share[here]) / n
            knots.append((at, (float(worth[here] @ right[here]) + PRIOR * at) / (n + PRIOR), n + PRIOR))
    return np.asarray(np.minimum([(0.0, 0.0), *ascending(knots)], 1.0))  # a mean of ones may be more by a rounding


def ascending(knots: list[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """The nearest values that never fall (pooled adjacent violators), at the same places."""
    pools: list[list[tuple[float, float, float]]] = []

    def mean(pool: list[tuple[float, float, float]]) -> float:
        return sum(right * n for _, right, n in pool) / sum(n for _, _, n in pool)

    for knot in sorted(knots):
        pools.append([knot])
        while len(pools) > 1 and mean(pools[-2]) >= mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return [(share, mean(pool)) for pool in pools for share, _, _ in pool]
