"""One set through all methods, and what the figures are held against.

Always true
  - Every method learns from the known side alone and answers the same queries; the figures that count are those without
    twins, and those with them stand beside.
  - `--other-episodes` keeps a query's own episode from answering; a classifier has learnt from it all the same.
  - Novelty: a family is left out of what is learnt and indexed, and the queries of that family should score higher than
    all others. A space scores by the distance to the nearest, a classifier by 1 - its largest probability.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from bench.quality.measure import Figure, Found, Mask, Scores, auroc_figure, judged, neighbours, possible, scores, vote
from bench.quality.methods import METHODS, Classifier, Fitted, Novelty, Space
from bench.quality.splits import Episodes, Side, Sides, capped
from engine.embed.base import F32
from engine.embed.linear import F64
from engine.families import NORMAL

ROWS_MAX = 20_000  # known events that methods learn from: boosting takes a minute for more
NOVEL_ROWS_MAX = 6_000  # and where each family is left out in turn
SHARE_MIN = 0.60  # of same-family neighbours, for each family judged, or as many as boosting recalls
BEHIND_MAX = 0.01  # of macro-F1, behind boosting

Without = Callable[[slice], Mask]


class Result(NamedTuple):
    """One method: with all queries, and without twins."""

    fit_s: float
    all: Scores
    without_twins: Scores


class Novel(NamedTuple):
    """AUROC of each family left out. attacks: without Normal."""

    families: dict[str, float]
    macro: Figure
    attacks: Figure


def thinned(side: Side, rows_max: int) -> Side:
    """At most about so many events; small families whole."""
    kept = capped(side.families, rows_max)
    return Side([side.events[i] for i in kept], side.features[kept], side.families[kept])


def compare(at: Sides, methods: Iterable[str], other_episodes: bool, seed: int) -> dict[str, Result]:
    """Each method that answers with a family, fitted and asked."""
    out = {}
    past, asked = thinned(at.past, ROWS_MAX), at.asked
    without = Episodes(past.events, asked.events).same if other_episodes else None
    for name in methods:
        start_s = time.monotonic()
        fitted = METHODS[name](past.features, past.families, seed)
        fit_s = time.monotonic() - start_s
        if isinstance(fitted, Space):
            vectors = fitted.embed(past.features), fitted.asked(fitted.embed(asked.features))
            found = neighbours(vectors[1], vectors[0], past.families, without=without)
            out[name] = result(at, found, without=without, past=past, fit_s=fit_s, seed=seed)
        elif isinstance(fitted, Classifier):
            proba = widened(fitted.predict_proba(asked.features), len(at.families))
            out[name] = result(at, proba, past=past, fit_s=fit_s, seed=seed)
    return out


def result(
    at: Sides, answer: Found | F64, *, past: Side, without: Without | None = None, fit_s: float = 0.0, seed: int = 1
) -> Result:
    """The figures of neighbours, or of probabilities."""
    found = answer if isinstance(answer, Found) else None
    proba = vote(answer, len(at.families)) if isinstance(answer, Found) else answer
    could = possible(past.families, at.asked.families, without=without) if found else None
    parts = []
    for rows in (np.arange(len(proba)), np.flatnonzero(~at.twins)):
        truth = at.asked.families[rows]
        part = Found(found.families[rows], found.distances[rows]) if found else None
        counts = judged(past.families, truth, len(at.families))
        ceiling = None if could is None else could[rows]
        parts.append(scores(proba[rows], past.families, truth, at.families, counts, part, ceiling, seed))
    return Result(fit_s, *parts)


def widened(proba: F64, families: int) -> F64:
    """Columns for families that were never learnt, too."""
    return np.hstack((proba, np.zeros((len(proba), families - proba.shape[1]))))


def novelty(at: Sides, methods: Iterable[str], seed: int) -> dict[str, Novel]:
    """Each family with enough events left out in turn; asked without twins."""
    past = thinned(at.past, NOVEL_ROWS_MAX)
    kept = np.flatnonzero(~at.twins)
    features, families = at.asked.features[kept], at.asked.families[kept]
    counts = np.flatnonzero(judged(at.past.families, families, len(at.families)))
    out = {}
    for name in methods:
        score = {}
        for f in counts.tolist() if len(counts) > 1 else []:
            rows = past.families != f
            fitted = METHODS[name](past.features[rows], past.families[rows], seed)
            score[f] = unlike(fitted, features, past.features[rows])
        values, macro = auroc_figure(score, families, seed)
        _, attacks = auroc_figure({f: s for f, s in score.items() if at.families[f] != NORMAL}, families, seed)
        out[name] = Novel({at.families[f]: value for f, value in values.items()}, macro, attacks)
    return out


def unlike(fitted: Fitted, asked: F32, known: F32) -> F64:
    """float64 [asked]: the score of novelty."""
    if isinstance(fitted, Novelty):
        return fitted.score(asked)
    if isinstance(fitted, Classifier):
        return np.asarray(1.0 - fitted.predict_proba(asked).max(axis=1))
    none = np.zeros(len(known), np.int64)
    return neighbours(fitted.asked(fitted.embed(asked)), fitted.embed(known), none, k=1).distances[:, 0]


def bars(results: dict[str, Result], name: str) -> list[tuple[str, bool]]:
    """What the space `name` is to reach, and whether it does, without twins. Needs boosting and log-z beside it."""
    ours, boosting, plain = (results[of].without_twins for of in (name, "boosting", "log-z"))
    f1, best = ours.macro["f1"].value, boosting.macro["f1"].value
    share, least = ours.macro["at_10"].value, plain.macro["at_10"].value
    recall = {row.family: row.recall for row in boosting.rows}
    poor = [r.family for r in ours.rows if r.judged and r.at_10 < min(SHARE_MIN, recall.get(r.family, 0.0))]
    return [
        (f"macro-F1 {f1:.3f} at least boosting's {best:.3f} - {BEHIND_MAX}", f1 >= best - BEHIND_MAX),
        (f"macro-F1 {f1:.3f} above boosting's {best:.3f}", f1 > best),
        (f"macro P@10 {share:.3f} above log-z's {least:.3f}", share > least),
        (f"P@10 of each family at least min({SHARE_MIN}, boosting's recall){': ' if poor else ''}{', '.join(poor)}",
         not poor),
    ]  # fmt: skip


def as_json(value: Any) -> Any:
    """Named tuples as objects, numbers to four places; NaN is null."""
    if isinstance(value, Figure):
        return [as_json(part) for part in value]
    if hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else round(float(value), 4)
    return value
