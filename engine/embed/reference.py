"""What the training data of a model version looked like, so that later events can be compared with it.

Always true
  - Kept are counts, never values of an event: of each feature and of each dimension of each space, the events in bins
    whose edges are the deciles of the training data.
  - A bin is (edge before, edge]. A value that covers two deciles or more has a bin of its own, so that what is nearly
    always 0 is not one bin with all that is small.
  - The same training data give the same bytes. A version without a reference says nothing about drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as bytes_of

from engine.embed.base import DIMS, F32, Embedder
from engine.embed.linear import LinearEmbedder
from engine.errors import ModelError
from ipc.event import FEATURE_COUNT

FILE = "reference.safetensors"
EDGES = 9  # deciles
BINS = EDGES + 1
DTYPES = (np.dtype(np.float32), np.dtype(np.int64))  # of edges and counts

Counts = NDArray[np.int64]


class Bins(NamedTuple):
    """Of m columns. edges: float32 [m, 9] ascending, +inf where there are fewer; counts: int64 [m, 11], events in each
    bin and, last, those where the value is missing."""

    edges: F32
    counts: Counts


class Reference(NamedTuple):
    """features: of the 105; spaces: of the dimensions of each space, missing where an event tells nothing
    (Embedder.asked)."""

    features: Bins
    spaces: dict[str, Bins]


def reference_of(features: F32, embedders: Mapping[str, Embedder], *, sbert: F32) -> Reference:
    """The reference of training events, float32 [n, 105]; sbert: vectors of some of them, float32 [any, 384]."""
    maps = {space: e for space, e in embedders.items() if isinstance(e, LinearEmbedder)}
    vectors = {space: e.asked(e.embed_features(features)) for space, e in maps.items()}
    return Reference(bins(features), {space: bins(v) for space, v in {**vectors, "sbert": sbert}.items()})


def bins(values: F32) -> Bins:
    """Bins of the columns of float32 [n, m]; what is not finite is missing."""
    edges = np.full((values.shape[1], EDGES), np.inf, np.float32)
    for column, into in zip(values.T, edges, strict=True):
        known = column[np.isfinite(column)]
        if len(known):
            deciles = np.quantile(known, np.arange(1, BINS) / BINS, method="inverted_cdf").astype(np.float32)
            at, times = np.unique(deciles, return_counts=True)
            below = np.nextafter(at[times > 1], np.float32(-np.inf), dtype=np.float32)
            each = np.unique(np.concatenate((at, below)))
            into[: len(each)] = each
    return Bins(edges, binned(values, edges))


def binned(values: F32, edges: F32) -> Counts:
    """int64 [m, 11], as in Bins, of float32 [n, m]."""
    out = np.zeros((values.shape[1], BINS + 1), np.int64)
    for column, at, into in zip(values.T, edges, out, strict=True):
        known = np.isfinite(column)
        into[:BINS] = np.bincount(np.searchsorted(at, column[known]), minlength=BINS)
        into[BINS] = len(column) - known.sum()
    return out


def to_bytes(reference: Reference) -> bytes:
    parts = {"features": reference.features, **reference.spaces}
    blob: bytes = bytes_of({f"{name}.{field}": t for name, of in parts.items() for field, t in of._asdict().items()})
    return blob


def from_bytes(blob: bytes) -> Reference:
    """Raises ModelError."""
    try:
        tensors = tensors_of(blob)
        made = {name: Bins(tensors[f"{name}.edges"], tensors[f"{name}.counts"]) for name in ("features", *DIMS)}
    except (SafetensorError, KeyError) as e:
        raise ModelError(f"model file {FILE} is not a reference: {e}") from e
    for name, m in {"features": FEATURE_COUNT, **DIMS}.items():
        edges, counts = made[name]
        if (edges.shape, counts.shape) != ((m, EDGES), (m, BINS + 1)) or (edges.dtype, counts.dtype) != DTYPES:
            raise ModelError(f"model file {FILE}: {name} has another shape or type")
        if (counts < 0).any() or not counts.sum(1).all():
            raise ModelError(f"model file {FILE}: {name} has counts that cannot be")
        if np.isnan(edges).any() or (edges[:, 1:] < edges[:, :-1]).any():
            raise ModelError(f"model file {FILE}: the edges of {name} are not in order")
    return Reference(made.pop("features"), made)
