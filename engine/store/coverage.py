"""How much of the 105 features each source fills: exact at any generation, at no cost to a commit of single events.

Always true
  - Stored for each source (meta, "coverage" NUL source) is what the first `counted` events hold; the fewer than
    COUNT_EVENTS after them are counted from the row files by whoever asks. Together they are what a recount gives: only
    sums and extremes are kept, so order and cut of the batches change nothing.
  - It is of all that ever came: what is removed later stays counted. The events of all sources add up to `counted`, but
    for the `uncounted` that were removed before they were counted. Where they do not, or a value is damaged, nothing of
    it is believed and the next start counts again what is left.
  - A feature is constant where at least two events bear it, all with one value; one that is never there is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.errors import CorruptionError
from engine.features import F32, FEATURES
from engine.layout import Layout
from engine.store.catalog import Batch, View
from engine.store.columns import GONE
from engine.store.counters import Counters, Names, counted_as
from engine.store.manifest import Manifest
from engine.store.rows import RowMap
from ipc.event import FEATURE_COUNT

log = logging.getLogger(__name__)

U64 = NDArray[np.uint64]
COUNT_EVENTS = 256  # so many uncounted ones are counted and stored with the commit that makes them so many
GROUPS = tuple(dict.fromkeys(f.group for f in FEATURES))
_GROUP_OF = np.array([GROUPS.index(f.group) for f in FEATURES])
_GROUP_SIZES: list[int] = np.bincount(_GROUP_OF).tolist()
_VALUE = np.dtype([("events", "<u8"), *((n, "<u8", FEATURE_COUNT) for n in ("present", "zeros")),
                   *((n, "<f4", FEATURE_COUNT) for n in ("low", "high"))])  # fmt: skip


class Coverage(NamedTuple):
    """Of so many events of one source, for each of the 105. present, zeros: in how many of them it is there, and is 0;
    low, high: the smallest and largest value, NaN where there is none."""

    events: int
    present: U64
    zeros: U64
    low: F32
    high: F32

    def merged(self, other: Coverage) -> Coverage:
        return Coverage(
            self.events + other.events, self.present + other.present, self.zeros + other.zeros,
            np.fmin(self.low, other.low), np.fmax(self.high, other.high),
        )  # fmt: skip

    def same(self, other: Coverage) -> bool:
        """-0.0 and 0.0 are one value, NaN is NaN."""
        counts = np.array_equal(self.present, other.present) and np.array_equal(self.zeros, other.zeros)
        counts = counts and self.events == other.events
        values = np.array_equal(self.low, other.low, equal_nan=True)
        return counts and values and np.array_equal(self.high, other.high, equal_nan=True)

    @property
    def filled(self) -> NDArray[np.bool_]:
        return np.greater(self.present, 0)

    @property
    def constant(self) -> NDArray[np.bool_]:
        return np.greater(self.present, 1) & np.equal(self.low, self.high)


def of(features: F32) -> Coverage:
    """The coverage of float32 [n, 105], n at least 1, of one source. What is not finite is missing."""
    present = np.isfinite(features)
    values = np.where(present, features, np.float32(np.nan))
    return Coverage(
        len(features), present.sum(0, dtype=np.uint64), (values == 0).sum(0, dtype=np.uint64),
        np.fmin.reduce(values), np.fmax.reduce(values),
    )  # fmt: skip


def by_source(features: F32, numbers: NDArray[np.uint16]) -> dict[int, Coverage]:
    """The coverage of each source in float32 [n, 105], n at least 1; numbers: the source of each row."""
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order])) + 1
    return {int(numbers[rows[0]]): of(features[rows]) for rows in np.split(order, starts)}


def grown(
    layout: Layout, manifest: Manifest, names: Names, counters: Counters, known: Mapping[str, Coverage], first: int,
    alive: Callable[[], None] = lambda: None,
) -> dict[str, Coverage]:  # fmt: skip
    """Of the sources with events from seq `first` on, what is known of them and those events, from the row files.
    Raises OSError, CorruptionError: a row file is not to be had, or not to be believed."""
    out: dict[str, Coverage] = {}
    size = manifest.row_file_rows
    for file in range(max(first // size, manifest.first), manifest.row_files):
        rows = RowMap(layout.row_file(*manifest.row_file(file)), file, size)
        part = slice(max(0, first - rows.first_seq), min(size, manifest.count - rows.first_seq))
        if part.start == part.stop:
            continue
        features, sources = rows.features[part], rows.columns["source"][part]
        if file in manifest.purged:
            there = rows.columns["kind"][part] != GONE
            features, sources = features[there], sources[there]
        for number, new in (by_source(features, sources) if len(sources) else {}).items():
            if number >= len(names.sources):
                raise CorruptionError(str(rows.path), f"a row names source {number}, which there is not")
            source = counted_as(counters, names.sources[number][0])
            before = out.get(source) or known.get(source)
            out[source] = before.merged(new) if before else new
        alive()
    return out


# ---- in the catalog -----------------------------------------------------------------------------------------------
def put(batch: Batch, source: str, coverage: Coverage) -> None:
    batch.put("meta", f"coverage\0{source}".encode(), np.array([tuple(coverage)], _VALUE).tobytes())


def stored(view: View, counters: Counters) -> tuple[dict[str, Coverage], int]:
    """(by source, how many events that counts); ({}, 0) where it cannot be believed."""
    found = {}
    try:
        for source in counters.sources:
            blob = view.get("meta", f"coverage\0{source}".encode())
            if blob is not None and len(blob) == _VALUE.itemsize:
                (value,) = np.frombuffer(bytes(blob), _VALUE)
                found[source] = Coverage(int(value["events"]), *(value[name] for name in Coverage._fields[1:]))
    except CorruptionError as e:
        log.error("%s", e)
        return {}, 0
    events = sum(c.events for c in found.values())
    return (found, counters.counted) if events + counters.uncounted == counters.counted else ({}, 0)


def load(layout: Layout, view: View, counters: Counters) -> dict[str, Coverage]:
    """The coverage of every source that has events; of none where it is not known before the next start."""
    manifest = view.manifest()
    found, counted = stored(view, counters)
    if manifest is None or manifest.count - counted >= COUNT_EVENTS:
        return {}
    try:
        return found | grown(layout, manifest, view.names(), counters, found, counted)
    except (OSError, CorruptionError) as e:
        log.error("%s; what the sources fill is not known", e)
        return {}


# ---- as facts -----------------------------------------------------------------------------------------------------
def facts(coverage: Coverage | None) -> dict[str, Any]:
    """Of one source: how many of the 105 are ever filled, by group too, and which shares are missing and constant.

    missing_share: of all cells, events x 105. constant_share: of the features filled. None where nothing is known."""
    if coverage is None:
        return dict.fromkeys(
            ("coverage_mean", "features_filled", "features_constant", "missing_share", "constant_share", "groups")
        ) | {"coverage_of": FEATURE_COUNT}
    filled, constant = coverage.filled, coverage.constant
    cells, n_filled, n_constant = (int(column.sum()) for column in (coverage.present, filled, constant))
    of_group = np.bincount(_GROUP_OF[filled], minlength=len(GROUPS)).tolist()
    return {
        "coverage_mean": round(cells / coverage.events, 2),
        "coverage_of": FEATURE_COUNT,
        "features_filled": n_filled,
        "features_constant": n_constant,
        "missing_share": round(1 - cells / (coverage.events * FEATURE_COUNT), 6),
        "constant_share": round(n_constant / n_filled, 6) if n_filled else None,
        "groups": {group: [n, size] for group, n, size in zip(GROUPS, of_group, _GROUP_SIZES, strict=True)},
    }


def columns(coverage: Coverage) -> dict[str, list[Any]]:
    """One source in full, each a list of 105: present, zeros, min, max; None where there is no value."""
    low, high = ([None if v != v else v for v in column.tolist()] for column in (coverage.low, coverage.high))
    return {"present": coverage.present.tolist(), "zeros": coverage.zeros.tolist(), "min": low, "max": high}
