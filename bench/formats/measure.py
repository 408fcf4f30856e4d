"""Among how many does a flow find itself, and what stands in its way.

Always true
  - The base is what is stored: all events of one format, and the same others beside them up to BASE_EVENTS.
  - A flow is found where fewer than NEARER_MAX others are strictly nearer to the asked vector than the stored one of
    the same flow; what is exactly as far ties. Distances are exact, in float64.
  - Of one capture at most PER_CAPTURE flows are asked about, so that no flood decides; intervals are by bootstrap over
    captures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.formats.corpus import LAB_NAME, Capture
from bench.quality import data as sets
from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.embed.base import F32
from engine.embed.ship import observed
from engine.features import CONTEXT_INDEXES, FEATURES, INDEX
from engine.sources.synthetic import generate

BASE_EVENTS = 100_000
NEARER_MAX = 10
PER_CAPTURE = 200
TIE = 1e-9  # relative, of a squared distance: what the order of a sum may change
OTHERS = (
    "cicids2017",
    "unsw_nb15",
    "unsw_nb15_stime",
    "iot23",
    "zeek_stratosphere",
    "nf_bot_iot_v2",
    "cse_cic_ids2018",
)
COUNTS = [INDEX["total_forward_packets"], INDEX["total_backward_packets"]]
_ROWS = 256  # asked about at a time
_BOOTSTRAPS = 1_000

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]
Maps = tuple[Callable[[F32], F32], Callable[[F32], F32]]  # features -> vectors as stored; those -> as asked


def others(events: int, seed: int) -> F32:
    """float32 [events, 105] of other networks: the labelled sets of the shared data, then synthetic events."""
    parts, left = [], events
    for name in OTHERS:
        found = sets.load(name)
        features = observed(found.items, Tracker(found.internal))[1][:left]
        parts.append(features)
        left -= len(features)
    parts.append(observed(generate(left, seed), Tracker(CIDRS_INTERNAL))[1] if left else parts[0][:0])
    return np.vstack(parts)


class Base:
    """Stored vectors, equal ones once. counts: how many events each is."""

    def __init__(self, vectors: F32) -> None:
        self.vectors, counts = np.unique(vectors, axis=0, return_counts=True)
        self.counts = counts.astype(np.float64)
        self._by_column = np.ascontiguousarray(self.vectors.T, np.float64)
        self._norms = np.einsum("ij,ij->j", self._by_column, self._by_column)

    def nearer(self, asked: F32, twins: F32) -> tuple[I64, I64]:
        """How many events, and how many distinct vectors, are strictly nearer to each asked vector, NaN as in
        Embedder.asked, than its twin."""
        events, distinct = np.zeros(len(asked), np.int64), np.zeros(len(asked), np.int64)
        told = self._by_column[~np.isnan(asked).any(axis=0)]
        of_told = np.einsum("ij,ij->j", told, told)
        for at in range(0, len(asked), _ROWS):
            q, t = asked[at : at + _ROWS].astype(np.float64), twins[at : at + _ROWS].astype(np.float64)
            partly, apart, q = np.isnan(q).any(axis=1, keepdims=True), np.nan_to_num(q - t), np.nan_to_num(q)
            norms = np.where(partly, of_told, self._norms)
            square = norms - 2.0 * (q @ self._by_column) + np.einsum("ij,ij->i", q, q)[:, None]
            bound = np.einsum("ij,ij->i", apart, apart)
            slack = TIE * (bound + np.einsum("ij,ij->i", q, q))
            closer = square < (bound - slack)[:, None]
            events[at : at + _ROWS] = closer @ self.counts
            distinct[at : at + _ROWS] = closer.sum(axis=1)
        return events, distinct


class Asked(NamedTuple):
    """Flows that are stored as one format tells them and asked about as another does: the number of each one's capture,
    and float32 [n, 105] as stored and as asked. alike: both count the same packets, either way round; where they do
    not, the two tools cut the conversation otherwise, and it is not quite the same flow."""

    capture: I64
    stored: F32
    asked: F32

    @property
    def alike(self) -> Mask:
        a, b = (np.sort(np.nan_to_num(side[:, COUNTS], nan=-1.0), axis=1) for side in (self.stored, self.asked))
        return np.asarray((a == b).all(axis=1))

    def of(self, rows: Mask) -> Asked:
        return Asked(self.capture[rows], self.stored[rows], self.asked[rows])


def pairs(captures: Sequence[Capture], stored: str, asked: str, seed: int) -> Asked:
    """At most PER_CAPTURE of each capture, at random."""
    rng = np.random.default_rng(seed)
    numbers: list[int] = []
    sides: tuple[list[F32], list[F32]] = [], []
    for number, capture in enumerate(captures):
        both = np.flatnonzero((capture.of[stored] >= 0) & (capture.of[asked] >= 0))
        both = np.sort(rng.permutation(both)[:PER_CAPTURE])
        numbers += [number] * len(both)
        for side, form in zip(sides, (stored, asked), strict=True):
            side.append(capture.told[form].features[capture.of[form][both]])
    return Asked(np.array(numbers, np.int64), *(np.vstack(side) for side in sides))


class Share(NamedTuple):
    """flows, and the share of them that was found, with its 95 % interval."""

    flows: int
    found: float
    low: float
    high: float


def share(found: Mask, capture: I64, seed: int = 0) -> Share | None:
    """By bootstrap over captures; None of no flow."""
    if not len(found):
        return None
    numbers = np.unique(capture)
    hits = np.array([found[capture == c].sum() for c in numbers], np.float64)
    sizes = np.array([(capture == c).sum() for c in numbers], np.float64)
    draws = np.random.default_rng(seed).integers(0, len(numbers), (_BOOTSTRAPS, len(numbers)))
    shares = hits[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.quantile(shares, (0.025, 0.975))
    return Share(len(found), *(round(float(v), 4) for v in (found.mean(), low, high)))


def strata(captures: Sequence[Capture], asked: str, of: Asked) -> dict[str, Mask]:
    """Which of the asked are of what sort."""
    proto, packets = of.stored[:, INDEX["protocol_number"]], of.stored[:, COUNTS].sum(axis=1)
    lab = np.array([captures[c].name == LAB_NAME for c in of.capture], np.bool_)
    real = np.array([captures[c].told[asked].real for c in of.capture], np.bool_)
    kinds = np.array([captures[c].kind for c in of.capture])
    out = {"lab": lab, "others": ~lab, "cut alike": ~lab & of.alike, "cut otherwise": ~lab & ~of.alike}
    by = {
        "tcp": proto == 6, "udp": proto == 17, "other protocols": (proto != 6) & (proto != 17),
        "1 packet": packets == 1, "2 to 9 packets": (packets > 1) & (packets < 10), "10 packets": packets >= 10,
        "the tool's own": real, "written": ~real,
        **{kind: kinds == kind for kind in sorted(set(kinds[~lab]))},
    }  # fmt: skip
    return out | {name: rows & ~lab & of.alike for name, rows in by.items()}


# ---- why not --------------------------------------------------------------------------------------------------------


def causes(a: F32, b: F32) -> dict[str, Mask]:
    """Cells [n, 105] of the asked that may be at fault, by cause. a: as stored, b: as asked."""
    context = np.zeros(len(FEATURES), np.bool_)
    context[list(CONTEXT_INDEXES)] = True
    known_a, known_b = np.isfinite(a), np.isfinite(b)
    differs = known_a & known_b & ~np.isclose(a, b, rtol=1e-3, atol=1e-6)
    out = {"all cells": (known_a != known_b) | differs}
    for what, cells in (("missing", known_a & ~known_b), ("more known", ~known_a & known_b), ("other value", differs)):
        out[what] = cells
        out[f"{what}, context"] = cells & context
        for group in dict.fromkeys(f.group for f in FEATURES):
            of = np.array([f.group == group for f in FEATURES]) & ~context
            out[f"{what}, {group}"] = cells & of
    return {name: cells for name, cells in out.items() if cells.any()}


def mended(maps: Maps, base: Base, missed: Asked) -> Iterator[tuple[str, int, int]]:
    """For each cause: in how many of the missed flows it is, and how many of them are found once the asked has those
    cells as they are stored."""
    embed, asked_as = maps
    for name, cells in causes(missed.stored, missed.asked).items():
        has = cells.any(axis=1)
        told = np.where(cells[has], missed.stored[has], missed.asked[has])
        nearer, _ = base.nearer(asked_as(embed(told)), embed(missed.stored[has]))
        yield name, int(has.sum()), int((nearer < NEARER_MAX).sum())
