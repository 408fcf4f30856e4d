"""How much each space counts in the fused one, fitted where later events look back at earlier ones.

Always true
  - The fused distance is the weighted sum of the percentiles of the spaces (Calibration.percentile), and events are
    ranked as a reader ranks them: the nearest candidates of each space, each candidate by all spaces.
  - The weights add up to 1. What is mixed is each space in units of how far its neighbours are: a percentile of 5 is
    near in a space of coarse texts and far in another. Of the mixes on a grid whose share of same-family neighbours is
    within one standard error of the best mix's, it is the most even: a space loses weight only for a reason that was
    measured. Each keeps some: held-out events of the training data are more like it than those to come.
  - The events of a family between one pair of hosts are one observation, however many they are: they are much alike,
    and counted one by one they would make any difference look certain.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.embed.base import F32, SPACES, Calibration

STEPS = 10  # of a weight, from 0 to 1
CANDIDATES = 64  # of each space, as in a query (engine/search/query.py)
TOP_K = 10
REACH_MIN = 0.1  # a percentile: the step between two stored quantiles
EVEN = dict.fromkeys(SPACES, 1.0 / len(SPACES))
_ROWS = 64  # later events at a time

F64 = NDArray[np.float64]
Families = NDArray[np.int64]
Rows = NDArray[np.int64]
Nearest = Callable[[F32, F32, int], tuple[Rows, F64]]


class View(NamedTuple):
    """One space. asked, earlier: float32 [n, dim], NaN as in Embedder.asked, and [m, dim], in a map that was fitted on
    the earlier events alone; calibration: of that map."""

    asked: F32
    earlier: F32
    calibration: Calibration


class Fusion(NamedTuple):
    """weights: of each space, adding up to 1. shares: of same-family neighbours at TOP_K, families counted alike, with
    these weights ("fused") and with each space alone; empty, and the weights even, where nothing could be measured."""

    weights: dict[str, float]
    shares: dict[str, float]


def fitted(
    views: Mapping[str, View], asked: Families, earlier: Families, pairs: NDArray[np.int64], nearest: Nearest
) -> Fusion:
    """asked, earlier: families of the events, all known. pairs: int64 [n], the pair of hosts of each asked."""
    if len(np.unique(asked)) < 2 or len(earlier) <= TOP_K:
        return Fusion(EVEN, {})
    percentiles, same, far = _candidates(views, asked, earlier, nearest)
    (family, _), of = np.unique(np.stack((asked, pairs)), axis=1, return_inverse=True)
    observed, of_family = of.reshape(-1), np.unique(family, return_inverse=True)[1]
    reach = np.maximum(np.median(_means(far, observed), axis=0), REACH_MIN)
    steps = itertools.product(range(1, STEPS), repeat=len(SPACES))
    mixes = np.array([mix for mix in steps if sum(mix) == STEPS]) / STEPS
    weighed = mixes / reach
    weighed /= weighed.sum(axis=1, keepdims=True)
    every = np.vstack((np.eye(len(SPACES)), weighed))  # what each space is worth alone is only told
    shares = np.stack([_shares(percentiles, mix, same) for mix in every], axis=1)  # [asked, every]
    shares = _means(shares, observed)  # [observations, every]
    alone, macro = np.split(_means(shares, of_family).mean(axis=0), [len(SPACES)])
    shares = shares[:, len(SPACES) :]
    good = np.flatnonzero(macro.max() - macro <= _error(shares[:, [macro.argmax()]] - shares, of_family))
    best = good[np.lexsort((-macro[good], np.square(mixes[good]).sum(axis=1)))[0]]
    weights = dict(zip(SPACES, weighed[best].tolist(), strict=True))
    return Fusion(weights, {"fused": float(macro[best]), **dict(zip(SPACES, alone.tolist(), strict=True))})


def _candidates(
    views: Mapping[str, View], asked: Families, earlier: Families, nearest: Nearest
) -> tuple[F64, NDArray[np.bool_], F64]:
    """Percentiles [asked, candidates, spaces], of a candidate that is there twice once inf; whether each is of the
    family that is asked about; and the percentile of the TOP_K-th neighbour in each space, [asked, spaces]."""
    found, far = [], []
    for space in SPACES:
        near, distances = nearest(views[space].asked, views[space].earlier, CANDIDATES)
        found.append(near)
        far.append(views[space].calibration.percentile(distances[:, TOP_K - 1]))
    rows = np.hstack(found)
    rows = np.sort(rows, axis=1)[:, ::-1]  # of equally near ones the later event comes first
    percentiles = np.empty((*rows.shape, len(SPACES)))
    for at in range(0, len(rows), _ROWS):
        part = rows[at : at + _ROWS]
        for i, space in enumerate(SPACES):
            view = views[space]
            apart = np.nan_to_num(view.earlier[part].astype(np.float64) - view.asked[at : at + _ROWS, None])
            percentiles[at : at + _ROWS, :, i] = view.calibration.percentile(np.linalg.norm(apart, axis=2))
    percentiles[:, 1:][rows[:, 1:] == rows[:, :-1]] = np.inf
    return percentiles, earlier[rows] == asked[:, None], np.stack(far, axis=1)


def _shares(percentiles: F64, mix: F64, same: NDArray[np.bool_]) -> F64:
    """float64 [asked]: of the TOP_K nearest, how many are of the family."""
    counts = mix > 0  # 0 x inf is no distance
    distances = percentiles[:, :, counts] @ mix[counts]
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :TOP_K]
    return np.asarray(np.take_along_axis(same, nearest, axis=1).mean(axis=1))


def _means(values: F64, of: Rows) -> F64:
    """Of the rows of each group: float64 [groups, columns]."""
    sums = np.zeros((int(of.max()) + 1, values.shape[1]))
    np.add.at(sums, of, values)
    return sums / np.bincount(of)[:, None]


def _error(values: F64, of: Rows) -> F64:
    """Standard error of the mean over groups of the groups' means, float64 [columns]: one variance within groups is
    taken for all of them; inf where no group has two observations."""
    counts = np.bincount(of)
    freedom = len(values) - len(counts)
    if not freedom:
        return np.full(values.shape[1], np.inf)
    variance = np.square(values - _means(values, of)[of]).sum(axis=0) / freedom
    return np.asarray(np.sqrt(variance * (1.0 / counts).sum()) / len(counts))
