"""What an embedder promises, and the three spaces.

Always true
  - An embedder is a pure function of (event, its 105 features): the same input gives the same bytes, in any batch.
  - `embed` returns float32 [n, dim], C-contiguous, finite, owned by the caller.
  - Distances in a space are L2 between its vectors (sbert's are unit vectors), over what is asked (`asked`).
  - A model version is a directory of safetensors and one card.json; nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ipc.event import Event
from ipc.messages import Contribution

F32 = NDArray[np.float32]

DIMS = {"chronos": 128, "sbert": 384, "attack": 64}
SPACES = tuple(DIMS)
FUSED = "fused"
BEHAVIOUR = ("chronos", "attack")  # spaces of features; of which none is known, nothing is said
QUANTILES = 1_001  # of the distance between random pairs, in a calibration
PERCENTS = np.linspace(0.0, 100.0, QUANTILES)
NEAREST_QUANTILES = 101  # of the distance to the nearest precedent


class Calibration(NamedTuple):
    """pair_quantiles: float64 [1001], quantiles 0..1 of the distance between random pairs of training events.
    precedent_bound: distance to the nearest neighbour beyond which there is no close precedent, exceeded by
    `false_alarm` of the later training events when they look back. nearest_quantiles: float64 [101], quantiles 0..1 of
    that distance for them. certainty: float64 [m, 2], how often the family with that share of a vote was right,
    ascending. Both are empty in versions that were made before they were measured."""

    pair_quantiles: NDArray[np.float64]
    precedent_bound: float
    false_alarm: float
    nearest_quantiles: NDArray[np.float64] = np.empty(0)
    certainty: NDArray[np.float64] = np.empty((0, 2))

    def percentile(self, distance: NDArray[np.float64]) -> NDArray[np.float64]:
        """0..100, how many of the random pairs are nearer; same shape."""
        percent = np.interp(distance, self.pair_quantiles, PERCENTS)
        return np.where(distance > self.pair_quantiles[0], percent, 0.0)  # interp takes the last of equal quantiles

    def novelty(self, distance: float) -> float:
        """0..1, the share of later training events that had a nearer one among the earlier; above 1 - false_alarm just
        where the distance is beyond the bound. Without quantiles: a line to the bound, and a curve from there to 1."""
        known, bound = 1.0 - self.false_alarm, self.precedent_bound
        if not len(self.nearest_quantiles):
            return known * distance / bound if distance < bound else 1.0 - self.false_alarm * bound / (distance or 1.0)
        shares = np.linspace(0.0, 1.0, len(self.nearest_quantiles))
        nearer = float(np.interp(distance, self.nearest_quantiles, shares, left=0.0))
        return nearer if distance > bound else min(nearer, known)

    def probability(self, share: float) -> float:
        """Of a family with that share of a vote; the share itself where that was never measured."""
        return float(np.interp(share, *self.certainty.T)) if len(self.certainty) else share


class Embedder(Protocol):
    """One space of one model version."""

    name: str  # the space
    version: str
    dim: int
    metric: str  # "l2"
    calibration: Calibration

    def embed(self, events: Sequence[Event], features: F32) -> F32:
        """float32 [n, dim] for n events and their features, float32 [n, 105] with NaN = missing."""
        ...

    def asked(self, vectors: F32) -> F32:
        """What to look for, float32 [n, dim] of stored vectors: NaN in the last dimensions where such an event tells
        nothing. Distances are over the others, and an index looks for 0 there."""
        ...

    def explain(self, query: Event, query_features: F32, hit: Event, hit_features: F32) -> list[Contribution]:
        """Contributions that add up to the distance, the largest absolute first; all 0 at distance 0. sbert: the
        matching words as features, `query` and `hit` None."""
        ...


class ModelSet(NamedTuple):
    """One model version: an embedder for each space, and how the spaces fuse (weights add up to 1)."""

    version: str
    embedders: dict[str, Embedder]
    fusion: dict[str, float]
    sha256: dict[str, str]  # file name -> hex digest
