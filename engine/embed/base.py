"""What an embedder promises, and the three spaces.

Always true
  - An embedder is a pure function of (event, its 105 features): the same input gives the same bytes, in any batch.
  - `embed` returns float32 [n, dim], C-contiguous, finite, owned by the caller.
  - Distances in a space are L2 between its vectors (sbert's are unit vectors).
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
QUANTILES = 1_001  # of the distance between random pairs, in a calibration
PERCENTS = np.linspace(0.0, 100.0, QUANTILES)


class Calibration(NamedTuple):
    """pair_quantiles: float64 [1001], quantiles 0..1 of the distance between random pairs of training events.
    precedent_bound: distance to the nearest neighbour beyond which there is no close precedent, exceeded by
    `false_alarm` of held-out events that do have one."""

    pair_quantiles: NDArray[np.float64]
    precedent_bound: float
    false_alarm: float

    def percentile(self, distance: NDArray[np.float64]) -> NDArray[np.float64]:
        """0..100, how many of the random pairs are nearer; same shape."""
        percent = np.interp(distance, self.pair_quantiles, PERCENTS)
        return np.where(distance > self.pair_quantiles[0], percent, 0.0)  # interp takes the last of equal quantiles


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
