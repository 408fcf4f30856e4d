"""How far events have moved from what a model was trained on: population stability index and a two-sample test.

Always true
  - Both are of counts in the same bins (engine/embed/reference.py), over the values that are there: that a source knows
    fewer features is coverage, not drift.
  - The index measures how much has changed, whatever the number of events; the test says whether so much can be chance.
    With thousands of events nearly any change is not, so rules look at the index, and the test only keeps few events
    from crying.

PSI = sum over the bins of (p - q) ln(p / q), the symmetrised Kullback-Leibler divergence; below 0.1 is commonly called
no change and above 0.25 a major one (Siddiqi, Credit Risk Scorecards, 2006). Chance alone gives about
(bins - 1)(1/n + 1/m) (Yurdakul, Statistical Properties of Population Stability Index, 2018): 0.02 for 500 events.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from engine.embed.reference import BINS, Bins, Counts, binned
from engine.features import F32

MAJOR = 0.25
CHANCE = 0.001  # of the test, below which a change is not taken for chance
KNOWN_MIN = 200  # values on either side; of fewer nothing is said


class Shift(NamedTuple):
    """One column. psi: None where either side knows too few values. p: how probable so different counts are if nothing
    changed. n: values looked at."""

    psi: float | None
    p: float | None
    n: int

    @property
    def major(self) -> bool:
        return self.psi is not None and self.p is not None and self.psi > MAJOR and self.p < CHANCE


def shifts(values: F32, reference: Bins) -> list[Shift]:
    """Of each column of float32 [n, m] against the reference."""
    counts = binned(values, reference.edges)[:, :BINS]
    return [shift(now, then) for now, then in zip(counts, reference.counts[:, :BINS], strict=True)]


def shift(now: Counts, then: Counts) -> Shift:
    """Of counts in the same bins, int64 [bins] each."""
    n = int(now.sum())
    if n < KNOWN_MIN or then.sum() < KNOWN_MIN:
        return Shift(None, None, n)
    return Shift(psi(now, then), p_value(now, then), n)


def psi(now: Counts, then: Counts) -> float:
    """A bin that is empty on one side counts as half an event, so that its share is never 0; one that is empty on both
    is no bin."""
    used = now + then > 0
    p, q = ((c[used] + 0.5) / (c.sum() + 0.5 * used.sum()) for c in (now, then))
    return float(((p - q) * np.log(p / q)).sum())


def p_value(now: Counts, then: Counts) -> float:
    """Pearson's two-sample chi-square test (Numerical Recipes, 3rd ed., 14.3.3). It takes events for independent, which
    those of a flood are not: its p is then too small."""
    used = now + then > 0
    a, b = now[used].astype(np.float64), then[used].astype(np.float64)
    ratio = math.sqrt(b.sum() / a.sum())
    return chi_square_above(float(((a * ratio - b / ratio) ** 2 / (a + b)).sum()), int(used.sum()) - 1)


def chi_square_above(x: float, freedom: int) -> float:
    """P(X > x) of the chi-square distribution, exactly, for whole degrees of freedom (Abramowitz and Stegun, 26.4.4,
    26.4.5)."""
    if freedom < 1:
        return 1.0
    odd = freedom % 2
    total = math.erfc(math.sqrt(x / 2)) if odd else 0.0
    for i in range(freedom // 2):
        at = i + odd / 2
        total += math.exp(at * math.log(x / 2) - x / 2 - math.lgamma(at + 1)) if x > 0 else float(at == 0)
    return min(1.0, total)
