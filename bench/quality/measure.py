"""What is counted: neighbours, their vote, how sure it is, novelty, and how far the figures are to be trusted.

Always true
  - Search is exact: what is measured is the space. A neighbour is right when it is of the query's family.
  - Macro figures are over families with enough events (`judged`); the others are shown, and count as wrong answers.
  - Intervals are percentile bootstraps over the queries, drawn within each family, by the seed: 95 %. They say nothing
    of other splits or trainings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.embed.base import F32
from engine.embed.fit import Families
from engine.embed.linear import F64

EVENTS_MIN = 50  # of a family on both sides together
SIDE_MIN = 10  # and on each
TOP_K = 10
VOTERS = 5
BINS = 15
DRAWS = 500
TIE = 1e-9  # of a distance: all who are so near are as near as can be
_ROWS = 512  # of a distance matrix at a time

Mask = NDArray[np.bool_]


class Figure(NamedTuple):
    """A macro figure and its interval."""

    value: float
    low: float
    high: float


class Found(NamedTuple):
    """Neighbours, nearest first: int64 and float64 [n, k]; family -1 and distance inf where there is none."""

    families: Families
    distances: F64


class Row(NamedTuple):
    """One family of one method. at_k: share of the k nearest that are of the family, NaN of a classifier; possible: of
    the 10 nearest that could be. precision, recall, f1: of the vote, or of the classifier."""

    family: str
    indexed: int
    queries: int
    judged: bool
    at_1: float
    at_5: float
    at_10: float
    possible: float
    precision: float
    recall: float
    f1: float


class Scores(NamedTuple):
    """One method on one set of queries. ece: expected calibration error of the answer's probability."""

    rows: list[Row]
    macro: dict[str, Figure]
    ece: float


# ---- neighbours and their vote --------------------------------------------------------------------------------------


def neighbours(
    queries: F32, index: F32, families: Families, k: int = TOP_K, without: Callable[[slice], Mask] | None = None
) -> Found:
    """The k nearest in `index`, of which `families` are, exact. NaN in a query: as in Embedder.asked,
    the same dimensions in each that has any. without: for a slice of queries, bool [m, n], which of
    the index may not answer."""
    k = min(k, len(index))
    center = index.mean(axis=0, dtype=np.float64)  # norms of what lies far from 0 would hide small distances
    base = index - center
    told = ~np.isnan(queries).any(axis=0)
    norms, of_told = (np.einsum("ij,ij->i", part, part) for part in (base, base[:, told]))
    found, distances = [], []
    for at in range(0, len(queries), _ROWS):
        q = queries[at : at + _ROWS] - center
        partly, known = np.isnan(q).any(axis=1, keepdims=True), np.nan_to_num(q)
        lengths = np.where(partly, of_told, norms) + np.einsum("ij,ij->i", known, known)[:, None]
        square = np.maximum(lengths - 2.0 * (known @ base.T), 0.0)
        if without is not None:
            square[without(slice(at, at + len(q)))] = np.inf
        best = np.argpartition(square, k - 1, axis=1)[:, :k]
        gone = np.isinf(np.take_along_axis(square, best, axis=1))
        apart = np.nan_to_num(q[:, None] - base[best])
        near = np.linalg.norm(apart, axis=2)  # not by norms: of equal vectors it must be 0
        near[gone] = np.inf
        order = np.lexsort((best, near), axis=1)
        near = np.take_along_axis(near, order, axis=1)
        found.append(np.where(np.isinf(near), -1, families[np.take_along_axis(best, order, axis=1)]))
        distances.append(near)
    return Found(np.vstack(found), np.vstack(distances))


def possible(
    families: Families, asked: Families, k: int = TOP_K, without: Callable[[slice], Mask] | None = None
) -> F64:
    """float64 [asked]: the share of k neighbours that could be of the query's family, so many are there."""
    count = np.bincount(families, minlength=int(asked.max(initial=-1)) + 1)[asked].astype(np.float64)
    if without is not None:
        for at in range(0, len(asked), _ROWS):
            rows = slice(at, at + _ROWS)
            count[rows] -= (without(rows) & (families == asked[rows, None])).sum(axis=1)
    return np.minimum(count, k) / k


def vote(found: Found, families: int, k: int = VOTERS) -> F64:
    """float64 [n, families]: the share of each among the k nearest, weighed by 1/distance; where some are at distance 0
    they alone count. All 0 where nothing was found."""
    voters, distances = found.families[:, :k], found.distances[:, :k]
    with np.errstate(divide="ignore"):
        weights = np.where(np.isinf(distances), 0.0, 1.0 / np.maximum(distances, TIE))
    weights = np.where((distances <= TIE).any(axis=1, keepdims=True), distances <= TIE, weights)
    out = np.zeros((len(voters), families))
    for column in range(voters.shape[1]):
        known = np.flatnonzero(voters[:, column] >= 0)
        out[known, voters[known, column]] += weights[known, column]
    total = out.sum(axis=1, keepdims=True)
    return out / np.where(total > 0.0, total, 1.0)


# ---- figures --------------------------------------------------------------------------------------------------------


def judged(ours: Families, asked: Families, families: int) -> Mask:
    """bool [families]: those with enough events in all, and on each side."""
    a, b = np.bincount(ours, minlength=families), np.bincount(asked, minlength=families)
    return np.asarray((a + b >= EVENTS_MIN) & (a >= SIDE_MIN) & (b >= SIDE_MIN))


def scores(
    proba: F64, ours: Families, asked: Families, names: list[str], counts: Mask, found: Found | None = None,
    could: F64 | None = None, seed: int = 1,
) -> Scores:  # fmt: skip
    """proba: float64 [asked, families]; counts: which families are judged; found and could: of a space."""
    rng = np.random.default_rng(seed)
    n = len(names)
    table = confusion(proba, asked, n)
    precision, recall, f1 = of_confusion(table)
    shares: dict[str, F64] = {}
    if found is not None:
        same = found.families == asked[:, None]
        shares = {f"at_{k}": same[:, :k].sum(axis=1) / k for k in (1, 5, TOP_K)}
        shares["possible"] = np.ones(len(asked)) if could is None else could
    rows = []
    for f in range(n):
        of = asked == f
        mean = {name: float(values[of].mean()) for name, values in shares.items() if of.any()}
        at_1, at_5, at_10, most = (mean.get(name, float("nan")) for name in ("at_1", "at_5", "at_10", "possible"))
        figures = (float(precision[f]), float(recall[f]), float(f1[f]))
        indexed, queries = int((ours == f).sum()), int(of.sum())
        rows.append(Row(names[f], indexed, queries, bool(counts[f]), at_1, at_5, at_10, most, *figures))
    macro = {"f1": f1_figure(table, counts, rng)}
    macro |= {name: share_figure(values, asked, counts, rng) for name, values in shares.items()}
    return Scores([row for row in rows if row.indexed or row.queries], macro, calibration_error(proba, asked))


def confusion(proba: F64, truth: Families, families: int) -> NDArray[np.int64]:
    """int64 [families, families + 1]: rows are true; the last column: no answer."""
    answer = np.where(proba.max(axis=1, initial=0.0) > 0.0, proba.argmax(axis=1), families)
    table = np.zeros((families, families + 1), np.int64)
    np.add.at(table, (truth, answer), 1)
    return table


def of_confusion(table: NDArray[np.int64]) -> tuple[F64, F64, F64]:
    """Precision, recall and F1 of each family, of tables [..., families, families + 1]; 0 where nothing is."""
    right = np.einsum("...ii->...i", table[..., :-1]).astype(np.float64)
    asked, answered = table.sum(axis=-1), table[..., :-1].sum(axis=-2)
    return (
        right / np.maximum(answered, 1),
        right / np.maximum(asked, 1),
        2.0 * right / np.maximum(answered + asked, 1),
    )


def f1_figure(table: NDArray[np.int64], counts: Mask, rng: np.random.Generator) -> Figure:
    """Macro-F1 over the families that count."""
    drawn = np.zeros((DRAWS, *table.shape), np.int64)
    for f, row in enumerate(table):
        if row.sum():
            drawn[:, f] = rng.multinomial(int(row.sum()), row / row.sum(), DRAWS)
    value = of_confusion(table)[2][counts]
    return _figure(value, of_confusion(drawn)[2][:, counts])


def share_figure(values: F64, asked: Families, counts: Mask, rng: np.random.Generator) -> Figure:
    """Macro mean of a value of each query."""
    means, drawn = [], []
    for f in np.flatnonzero(counts):
        different, often = np.unique(values[asked == f], return_counts=True)
        n = int(often.sum())
        means.append(different @ often / n)
        drawn.append(rng.multinomial(n, often / n, DRAWS) @ different / n)
    return _figure(np.array(means), np.array(drawn).T)


def _figure(values: F64, drawn: F64) -> Figure:
    """values: float64 [families]; drawn: float64 [draws, families]."""
    if not len(values):
        return Figure(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return Figure(float(values.mean()), float(low), float(high))


def calibration_error(proba: F64, truth: Families) -> float:
    """How far the probability of the answer is from how often it is right, over BINS bins of equal width, weighed by
    how many answers fall in each."""
    sure, right = proba.max(axis=1, initial=0.0), proba.argmax(axis=1) == truth
    at = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    gaps = [abs(sure[at == b].mean() - right[at == b].mean()) * (at == b).mean() for b in np.unique(at)]
    return float(sum(gaps))


# ---- novelty --------------------------------------------------------------------------------------------------------


def auroc(novelty: F64, new: Mask, weights: NDArray[np.int64] | None = None) -> float:
    """How often something new scores higher than something known; a tie counts half. weights: how often each counts."""
    weights = np.ones(len(novelty), np.int64) if weights is None else weights
    _, rank = np.unique(novelty, return_inverse=True)
    a = np.bincount(rank, weights * new)
    b = np.bincount(rank, weights * ~new, minlength=len(a))
    below = np.cumsum(b) - b
    pairs = a.sum() * b.sum()
    return float((a * (below + b / 2)).sum() / pairs) if pairs else float("nan")


def auroc_figure(novelty: dict[int, F64], asked: Families, seed: int = 1) -> tuple[dict[int, float], Figure]:
    """novelty: of all queries, where the family was left out. The AUROC of each family and their macro."""
    rng = np.random.default_rng(seed)
    values = {f: auroc(score, asked == f) for f, score in novelty.items()}
    drawn = np.empty((DRAWS, len(novelty)))
    for draw in range(DRAWS):
        weights = np.zeros(len(asked), np.int64)
        for f in np.unique(asked):
            rows = np.flatnonzero(asked == f)
            weights[rows] = rng.multinomial(len(rows), np.full(len(rows), 1.0 / len(rows)))
        drawn[draw] = [auroc(score, asked == f, weights) for f, score in novelty.items()]
    return values, _figure(np.array(list(values.values())), drawn)
