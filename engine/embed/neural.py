"""The trained embedders: a linear map and a small network beside it, z = (W s(x), f(s(x))).

Always true
  - Both look at the same scaled features s(x) (engine/embed/linear.py). The linear part keeps apart what no family
    taught; the network, of length `share`, brings together what its teacher says is alike.
  - distance^2 = |W d|^2 + |f(a) - f(b)|^2. `explain` divides the first exactly, the second by integrated gradients
    along the straight way from one event to the other (Sundararajan, Taly and Yan 2017).
"""

from __future__ import annotations

import numpy as np

from engine.embed.base import DIMS, F32
from engine.embed.linear import F64, LinearEmbedder
from engine.embed.network import Network

STEPS = (32, 128, 512)  # of an integral, until it is close enough
ERROR_MAX = 0.004  # of the distance


class NeuralEmbedder(LinearEmbedder):
    """chronos or attack with a network. weights: float32 [dim - network.width, 2 x columns]."""

    def __init__(self, flat: LinearEmbedder, network: Network) -> None:
        """flat: the linear one, whose leading rows of weights stay. Raises ValueError where the two do not fit."""
        weights = flat.weights[: DIMS[flat.name] - network.width]
        super().__init__(
            flat.name, flat.version, flat.columns.tolist(), flat.center, flat.scale, weights, flat.calibration
        )
        if network.inputs != weights.shape[1]:
            raise ValueError(
                f"{self.name}: a network of {network.inputs} inputs does not fit {len(self.columns)} features"
            )
        self.network = network
        self.dim = len(weights) + network.width

    def mapped(self, scaled: F64) -> F32:
        out = np.empty((len(scaled), self.dim), np.float32)
        out[:, : len(self.weights)] = scaled @ self._by_input
        out[:, len(self.weights) :] = self.network.vectors(scaled)
        return out

    def divided(self, query: F64, hit: F64) -> F64:
        """The distance divided among the inputs, float64 [2 x columns], within ERROR_MAX of it where STEPS suffice."""
        d = query - hit
        moved = d @ self._by_input
        ours, theirs = self.network.vectors(np.stack((query, hit))).astype(np.float64)
        apart = ours - theirs
        square = float(moved @ moved + apart @ apart)
        if not square:
            return np.zeros(len(d))
        turned = np.zeros(len(d))
        for steps in STEPS:
            at = (np.arange(steps) + 0.5) / steps
            turned = d * self.network.pulled(hit + at[:, None] * d, apart).mean(axis=0, dtype=np.float64)
            if abs(turned.sum() - apart @ apart) <= ERROR_MAX * square:
                break
        return np.asarray((d * (self._by_input @ moved) + turned) / np.sqrt(square))
