"""The linear embedders: z = W s(x), where s scales each feature and says which are missing.

Always true
  - s(x) lies on a grid of 1/65,536 and within +-CLIP, W on a grid of its own (`on_grid`): every product and every
    partial sum of W s(x) is exact in float64. So no order of summation, batch shape, BLAS or number of threads changes
    a bit of a vector; it is rounded once, to float32.
  - distance(a, b) = |W (s(a) - s(b))|; `explain` divides exactly that among the features, summed by fact.
  - What does not differ contributes 0; a missing feature is its centre (0) plus 1 in its mask column.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.embed.base import F32, Calibration
from engine.features import FEATURES
from ipc.event import Event
from ipc.messages import Contribution

F64 = NDArray[np.float64]

CLIP = 10.0  # robust deviations
_STEP = 2.0**-16  # of s(x): |s(x)| / _STEP < 2^20
_WEIGHT_BITS = 24  # of W: a float32 holds it exactly
_INPUTS_BITS = 8  # at most 256 inputs: 20 + 24 + 8 bits < 53
_ROWS = 128  # scaled and multiplied at a time: arrays so small are taken from memory that the process has


def on_grid(weights: F64) -> F32:
    """The nearest W whose entries are whole multiples of one power of two, at most 24 bits each."""
    largest = float(np.abs(weights).max(initial=0.0))
    step = 2.0 ** (np.ceil(np.log2(largest)) - _WEIGHT_BITS) if largest else 1.0
    return (np.rint(weights / step) * step).astype(np.float32)


def transformed(values: F64, heavy: NDArray[np.bool_]) -> F64:
    """log1p of the magnitude, the sign kept, of the columns that span orders of magnitude."""
    return np.where(heavy, np.copysign(np.log1p(np.abs(values)), values), values)


class LinearEmbedder:
    """chronos and attack. columns: the features it looks at; center, scale: of those, after log1p where heavy; weights:
    float32 [dim, 2 x columns] on a grid, the second half for the mask."""

    metric = "l2"

    def __init__(
        self,
        name: str,
        version: str,
        columns: Sequence[int],
        center: F64,
        scale: F64,
        weights: F32,
        calibration: Calibration,
    ) -> None:
        if weights.ndim != 2 or weights.shape[1] != 2 * len(columns) or weights.shape[1] > 1 << _INPUTS_BITS:
            raise ValueError(f"{name}: weights of shape {weights.shape} do not fit {len(columns)} features")
        if len(center) != len(columns) or len(scale) != len(columns) or not (scale > 0).all():
            raise ValueError(f"{name}: the scaler does not fit {len(columns)} features")
        if not all(0 <= c < len(FEATURES) for c in columns):
            raise ValueError(f"{name}: unknown features")
        if not (np.isfinite(weights).all() and np.isfinite(center).all() and np.isfinite(scale).all()):
            raise ValueError(f"{name}: a parameter is not finite")
        self.name, self.version, self.dim, self.calibration = name, version, weights.shape[0], calibration
        self.columns = np.array(columns, np.int64)
        self.center, self.scale = center.astype(np.float64), scale.astype(np.float64)
        self.weights = on_grid(weights.astype(np.float64))
        self._heavy = np.array([FEATURES[c].heavy for c in columns])
        self._by_input = self.weights.T.astype(np.float64)  # [2 x columns, dim]

    def scaled(self, features: F32) -> F64:
        """s(x): float64 [n, 2 x columns] of features float32 [n, 105], robust deviations and then the mask."""
        values = features[:, self.columns].astype(np.float64)
        missing = ~np.isfinite(values)
        values[missing] = 0.0
        z = (transformed(values, self._heavy) - self.center) / self.scale
        z = np.rint(np.clip(z, -CLIP, CLIP) / _STEP) * _STEP
        z[missing] = 0.0
        return np.hstack((z, missing))

    def unusual(self, features: F32) -> dict[str, float]:
        """How far each fact known of one event, float32 [105], lies from the centre: robust deviations, absolute."""
        z = self.scaled(features.reshape(1, -1))[0]
        return {FEATURES[column].fact: abs(float(z[i])) for i, column in enumerate(self.columns)}

    def embed(self, events: Sequence[Event], features: F32) -> F32:
        """float32 [n, dim]; the events themselves are not looked at."""
        return self.embed_features(features)

    def embed_features(self, features: F32) -> F32:
        """float32 [n, dim] of features float32 [n, 105]."""
        out = np.empty((len(features), self.dim), np.float32)
        for at in range(0, len(features), _ROWS):
            out[at : at + _ROWS] = self.mapped(self.scaled(features[at : at + _ROWS]))
        return out

    def mapped(self, scaled: F64) -> F32:
        """float32 [n, dim] of scaled events, float64 [n, 2 x columns]."""
        return (scaled @ self._by_input).astype(np.float32)

    def asked(self, vectors: F32) -> F32:
        return vectors

    def explain(self, query: Event, query_features: F32, hit: Event, hit_features: F32) -> list[Contribution]:
        """One contribution for each fact, adding up to the distance, the largest absolute first."""
        pair = np.stack((query_features, hit_features)).reshape(2, -1)
        s = self.scaled(pair)
        d = s[0] - s[1]
        m = len(self.columns)
        parts = self.divided(s[0], s[1])
        parts = parts[:m] + parts[m:]
        facts: dict[str, list[int]] = {}
        for i, column in enumerate(self.columns):
            facts.setdefault(FEATURES[column].fact, []).append(i)
        out = []
        for fact, inputs in facts.items():
            spoken = next((i for i in inputs if FEATURES[self.columns[i]].name == fact), inputs[0])
            column = int(self.columns[spoken])
            a, b = float(pair[0, column]), float(pair[1, column])
            known = bool(np.isfinite(a)), bool(np.isfinite(b))
            out.append(
                Contribution(
                    feature=fact,
                    query=a if known[0] else None,
                    hit=b if known[1] else None,
                    z=float(d[spoken]) if all(known) else None,
                    contribution=float(parts[inputs].sum()),
                )
            )
        return sorted(out, key=lambda c: (-abs(c.contribution), c.feature))

    def divided(self, query: F64, hit: F64) -> F64:
        """The distance divided among the inputs, float64 [2 x columns], of two scaled events of that shape: exactly."""
        d = query - hit
        moved = d @ self._by_input
        distance = float(np.sqrt(moved @ moved))
        return np.asarray(d * (self._by_input @ moved) / (distance or 1.0))
