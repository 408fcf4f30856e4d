"""A vote of neighbours: which family, and how much of the vote it has. Pure functions, for answers and for fitting.

Always true
  - Rows that are nearly equal are one place, and a place has one vote: a flood of one event is one precedent.
  - A place weighs 1 / (distance + within)^2; doubt weighs what a place at the precedent bound would. The shares of the
    families and of doubt add up to 1: far neighbours leave more of the vote to nobody.
  - The unit of distance does not matter (distances, within and bound times c: the same), nor the order of places.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.embed.base import F32, Calibration

VOTERS = 5  # places that vote, unless told otherwise; what `certainty` is measured with
SAME_VECTOR = 0.01  # of the median distance between random pairs: nearer ones are one place
TINY = 1e-9  # a distance that is never divided by

F = TypeVar("F", bound=Hashable)


class Ballot(NamedTuple, Generic[F]):
    """shares: of each family that has votes, the largest first, equal ones by name. doubt: the share of nobody.
    weights: of each place, in the order given. All shares and doubt, as all weights and doubt, add up to 1."""

    shares: dict[F, float]
    doubt: float
    weights: list[float]


def within(calibration: Calibration) -> float:
    """So near, two vectors of a space are one place."""
    return SAME_VECTOR * float(np.median(calibration.pair_quantiles))


def places(
    vectors: Sequence[tuple[F32, float]], most: int, kinds: NDArray[np.int64] | None = None
) -> list[NDArray[np.int64]]:
    """The first `most` places of some rows, each as its rows; the first row of a place is what the others are like.

    vectors: for each space that counts, float32 [n, dim] in order of distance, and how near is the same. kinds: rows of
    different kinds are never in one place.
    """
    out: list[NDArray[np.int64]] = []
    spaces = sorted(vectors, key=lambda space: space[0].shape[1])  # what costs least to compare decides first
    bounds = [(of, near, np.sqrt(np.einsum("ij,ij->i", of, of, dtype=np.float64))) for of, near in spaces]
    left = np.arange(len(vectors[0][0]))  # in order of distance; each round takes the first and all that are like it
    taken = np.zeros(len(left), np.bool_)
    while len(left) and len(out) < most:
        first, like = left[0], left[1:]
        if kinds is not None:
            like = like[kinds[like] == kinds[first]]
        for _, near, length in bounds:  # vectors whose lengths are farther apart than that are, too; rounding apart
            like = like[np.abs(length[like] - length[first]) <= near * (1 + 1e-3) + length[first] * 1e-6]
        for of, near, _ in bounds:
            difference = of[like] - of[first]
            like = like[np.einsum("ij,ij->i", difference, difference) <= near * near]
        out.append(np.concatenate((left[:1], like)))
        taken[out[-1]] = True
        left = left[~taken[left]]
    return out


def vote(distances: Sequence[float], parts: Sequence[Mapping[F, float]], near: float, bound: float) -> Ballot[F]:
    """distances: of the places. parts: how each divides its vote among families, adding up to 1. near, bound: what is
    one place, and beyond what there is no close precedent."""
    weights = [max(distance + near, TINY) ** -2 for distance in distances]
    doubt = max(bound + near, TINY) ** -2
    total = sum(weights) + doubt
    shares: dict[F, float] = {}
    for weight, part in zip(weights, parts, strict=True):
        for family, share in part.items():
            shares[family] = shares.get(family, 0.0) + weight * share / total
    ranked = dict(sorted(shares.items(), key=lambda item: (-item[1], str(item[0]))))
    return Ballot(ranked, doubt / total, [weight / total for weight in weights])
