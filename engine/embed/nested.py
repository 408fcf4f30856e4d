"""attack in two levels: what every source tells of a flow, and beside it what only its packets tell.

Always true
  - A vector is (C s(x), D s(x)). C looks at the features in COMMON alone, which pcap, Zeek, EVE, NetFlow and
    CICFlowMeter all give. D looks at everything, of an event that is told in detail (`detailed`); of any other it is
    D 0.
  - |D| is the same for all events: a linear part bent onto a sphere, whose centre 0 is the pole, and a network of fixed
    length. So an event that has no detail can be looked up by C alone in an index of whole vectors: with zeros for D
    it is as far in D from one as from another. `asked` says so with NaN.
  - So a flow finds itself, whichever tool tells it; and where both sides know the packets, they count as before.

Distances between near events are what D's linear part makes them; beyond `radius` they level off.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.embed.base import F32
from engine.embed.linear import F64, LinearEmbedder
from engine.embed.network import Network
from engine.embed.neural import ERROR_MAX, STEPS, NeuralEmbedder
from engine.features import FEATURES, INDEX

COMMON = tuple(
    f.column
    for f in FEATURES
    if f.name in {
        "protocol_number", "flow_duration", "total_forward_packets", "total_backward_packets",
        "flow_packets_per_second", "forward_packets_per_second", "backward_packets_per_second",
        "download_upload_ratio", "packet_symmetry", "packet_rate", "temporal_pattern",
    }
    or (f.scope.endswith("window") and f.name not in {"resource_saturation_score", "io_intensity", "resource_usage"})
)  # fmt: skip
DETAILED_MIN = 0.88  # of what packets tell of such a flow: CICFlowMeter gives 0.89 and more, Zeek and EVE less

_TELLING = tuple(
    f.column
    for f in FEATURES
    if f.scope == "flow"
    and f.group in {"count", "rate", "length", "time", "flags", "header"}
    and f.name not in {"active_mean", "idle_mean"}
)
_SIDES = INDEX["total_forward_packets"], INDEX["total_backward_packets"]
_ENOUGH = 1.5  # packets: two, however a scaler rounds them
_OF_FORWARD, _OF_BACKWARD, _OF_BOTH = (
    np.array([FEATURES[c].name.startswith(f"{way}_inter_arrival") for c in _TELLING])
    for way in ("forward", "backward", "flow")
)


def detailed(features: F32) -> NDArray[np.bool_]:
    """Which events know nearly all that packets can tell of such a flow: gaps need two packets. features: float32
    [n, 105]; where packets are not counted, gaps are expected."""
    counts = np.nan_to_num(features[:, _SIDES], nan=2 * _ENOUGH)
    forward, backward = (counts > _ENOUGH).T
    can = np.ones((len(features), len(_TELLING)), np.bool_)
    can[:, _OF_FORWARD] = forward[:, None]
    can[:, _OF_BACKWARD] = backward[:, None]
    can[:, _OF_BOTH] = (counts.sum(axis=1) > _ENOUGH)[:, None]
    known = np.isfinite(features[:, _TELLING]) & can
    return np.asarray(known.sum(axis=1) >= DETAILED_MIN * can.sum(axis=1))


class NestedEmbedder(NeuralEmbedder):
    """weights: float32 [rows, 2 x columns], C first, `common` rows of it. radius: of the sphere."""

    def __init__(self, flat: LinearEmbedder, network: Network, common: int, radius: float) -> None:
        """flat: its weights are C and D's linear part. Raises ValueError where the parts do not fit."""
        super().__init__(flat, network)
        if not 0 < common < len(self.weights) or not radius > 0 or len(self.columns) != len(FEATURES):
            raise ValueError(f"{self.name}: two levels of {common} and {len(self.weights)} rows, radius {radius}")
        self.common, self.radius, self.dim = common, float(radius), len(self.weights) + 1 + network.width

    def asked(self, vectors: F32) -> F32:
        asked = vectors.copy()
        bent = vectors[:, self.common : len(self.weights)]
        asked[~bent.any(axis=1), self.common :] = np.nan
        return asked

    def mapped(self, scaled: F64) -> F32:
        out = np.empty((len(scaled), self.dim), np.float32)
        out[:, : self.common] = scaled @ self._by_input[:, : self.common]
        out[:, self.common :] = self._detail(np.where(self._detailed(scaled)[:, None], scaled, 0.0))
        return out

    def divided(self, query: F64, hit: F64) -> F64:
        """As in NeuralEmbedder. What a query without detail does not tell adds nothing; what a hit without detail does
        not tell is divided among the features that only the query has."""
        of_common = self._by_input[:, : self.common]
        moved = (query - hit) @ of_common
        parts = (query - hit) * (of_common @ moved)
        square = float(moved @ moved)
        told, known = self._detailed(np.stack((query, hit)))
        if told:
            turned, apart = self._turned(query, hit if known else np.zeros(len(hit)), square)
            parts = parts + (turned if known else self._on_missing(turned, query, hit))
            square += apart
        return np.asarray(parts / (np.sqrt(square) or 1.0))

    def _detailed(self, scaled: F64) -> NDArray[np.bool_]:
        m = len(self.columns)
        features = np.where(scaled[:, m:] > 0, np.nan, 0.0)
        counts = [int(np.flatnonzero(self.columns == side)[0]) for side in _SIDES]
        features[:, counts] += np.expm1(scaled[:, counts] * self.scale[counts] + self.center[counts])
        return detailed(features[:, np.argsort(self.columns)])

    def _detail(self, seen: F64) -> F32:
        """D: float32 [n, dim - common] of scaled events."""
        u = seen @ self._by_input[:, self.common :]
        bent = np.empty((len(seen), self.dim - self.common), np.float32)
        length = np.sqrt((u * u).sum(axis=1, keepdims=True))
        angle = np.minimum(length / self.radius, np.pi / 2)
        rows = u.shape[1]
        bent[:, :rows] = self.radius * np.sin(angle) / np.maximum(length, 1e-12) * u
        bent[:, rows : rows + 1] = self.radius * np.cos(angle)
        bent[:, rows + 1 :] = self.network.vectors(seen)
        return bent

    def _turned(self, query: F64, hit: F64, beside: float) -> tuple[F64, float]:
        """|D(query) - D(hit)|^2 divided among the inputs by integrated gradients, and that number. beside: of the
        squared distance, what the other level has."""
        ours, theirs = self._detail(np.stack((query, hit))).astype(np.float64)
        apart, d = ours - theirs, query - hit
        square = float(apart @ apart)
        turned = np.zeros(len(d))
        for steps in STEPS if square else ():
            at = hit + (np.arange(steps) + 0.5)[:, None] / steps * d
            turned = d * self._pulled(at, apart).mean(axis=0)
            if abs(turned.sum() - square) <= ERROR_MAX * (square + beside):
                break
        return turned, square

    def _pulled(self, scaled: F64, direction: F64) -> F64:
        """float64 [n, inputs]: how the inputs move D along `direction`, float64 [dim - common]."""
        by_input = self._by_input[:, self.common :]
        rows = by_input.shape[1]
        u = scaled @ by_input
        length = np.maximum(np.sqrt((u * u).sum(axis=1, keepdims=True)), 1e-12)
        unit, angle = u / length, length / self.radius
        level = angle < np.pi / 2
        angle = np.minimum(angle, np.pi / 2)
        side, pole = direction[:rows], direction[rows]
        along = unit @ side[:, None]
        outward = np.where(level, np.cos(angle) * along - np.sin(angle) * pole, 0.0)
        around = self.radius * np.sin(angle) / length * (side - unit * along)
        bent: F64 = (around + outward * unit) @ by_input.T
        return bent + self.network.pulled(scaled, direction[rows + 1 :])

    def _on_missing(self, turned: F64, query: F64, hit: F64) -> F64:
        m = len(self.columns)
        only = (hit[m:] > 0) & (query[m:] == 0)
        each = np.where(only, np.abs(turned[:m]), 0.0)
        if not (total := float(each.sum())):
            return turned
        return np.concatenate((each / total * turned.sum(), np.zeros(m)))
