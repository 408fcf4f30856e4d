"""Events as poorer sources would tell them."""

from __future__ import annotations

import numpy as np

from engine.embed.base import F32
from engine.features import CONTEXT_INDEXES, FEATURES


def thinned(features: F32, rng: np.random.Generator) -> F32:
    """The events as poorer sources would tell them: without some groups of features, often without context."""
    groups = [f.scope if f.column in CONTEXT_INDEXES else f.group for f in FEATURES]
    number = {group: i for i, group in enumerate(sorted(set(groups)))}
    n = len(features)
    gone = rng.random((n, len(number))) < rng.random((n, 1))
    without = gone[:, [number[group] for group in groups]] | (rng.random(features.shape) < 0.3 * rng.random((n, 1)))
    without[:, CONTEXT_INDEXES] |= rng.random((n, 1)) < 0.3
    return np.where(without, np.float32(np.nan), features)
