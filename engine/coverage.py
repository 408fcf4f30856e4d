"""How much of the 105 features each source fills: counted with every commit, exact.

Always true
  - What is stored for a source (meta, "coverage" NUL source) is committed with the events that it counts, and is what a
    recount of the row files gives: only sums and extremes are kept, so order and cut of the batches change nothing.
  - A value that is missing or damaged costs a recount at the next start, and nothing else.
  - A feature is constant where at least two events bear it, all with one value; one that is never there is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.catalog import Batch, Catalog, Counters, Names, View, counted_as
from engine.errors import CorruptionError
from engine.features import F32, FEATURES
from engine.layout import Layout
from engine.manifest import Manifest
from engine.rows import RowMap
from ipc.event import FEATURE_COUNT

log = logging.getLogger(__name__)

U64 = NDArray[np.uint64]
_COUNTS_BYTES = FEATURE_COUNT * 8
VALUE_BYTES = 2 * _COUNTS_BYTES + 2 * FEATURE_COUNT * 4
GROUPS = tuple(dict.fromkeys(f.group for f in FEATURES))


class Coverage(NamedTuple):
    """Of one source's events, for each of the 105. present, zeros: in how many events it is there, and is 0;
    low, high: the smallest and largest value, NaN where there is none."""

    present: U64
    zeros: U64
    low: F32
    high: F32

    def merged(self, other: Coverage) -> Coverage:
        return Coverage(
            self.present + other.present, self.zeros + other.zeros,
            np.fmin(self.low, other.low), np.fmax(self.high, other.high),
        )  # fmt: skip

    def same(self, other: Coverage) -> bool:
        """-0.0 and 0.0 are one value, NaN is NaN."""
        counts = np.array_equal(self.present, other.present) and np.array_equal(self.zeros, other.zeros)
        values = np.array_equal(self.low, other.low, equal_nan=True)
        return counts and values and np.array_equal(self.high, other.high, equal_nan=True)

    @property
    def filled(self) -> NDArray[np.bool_]:
        return np.greater(self.present, 0)

    @property
    def constant(self) -> NDArray[np.bool_]:
        return np.greater(self.present, 1) & np.equal(self.low, self.high)


def of(features: F32) -> Coverage:
    """The coverage of float32 [n, 105], n at least 1. What is not finite is missing."""
    present = np.isfinite(features)
    zeros = features == 0
    values = features if present.all() else np.where(present, features, np.float32(np.nan))
    if len(features) == 1:
        return Coverage(present[0].astype(np.uint64), zeros[0].astype(np.uint64), values[0], values[0])
    return Coverage(
        present.sum(0, dtype=np.uint64), zeros.sum(0, dtype=np.uint64), np.fmin.reduce(values), np.fmax.reduce(values)
    )


def by_source(features: F32, numbers: NDArray[np.uint16]) -> dict[int, Coverage]:
    """The coverage of each source in float32 [n, 105]; numbers: the source of each row."""
    if not len(numbers):
        return {}
    if (numbers == numbers[0]).all():
        return {int(numbers[0]): of(features)}
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order])) + 1
    return {int(numbers[rows[0]]): of(features[rows]) for rows in np.split(order, starts)}


# ---- in the catalog -----------------------------------------------------------------------------------------------
def _key(source: str) -> bytes:
    return f"coverage\0{source}".encode()


def put(batch: Batch, source: str, coverage: Coverage) -> None:
    parts = (a.astype("<u8" if a.dtype.kind == "u" else "<f4").tobytes() for a in coverage)
    batch.put("meta", _key(source), b"".join(parts))


def load(view: View, counters: Counters) -> dict[str, Coverage]:
    """By source; without those that have none, or a damaged one."""
    found = {}
    for source in counters.sources:
        try:
            blob = view.get("meta", _key(source))
        except CorruptionError as e:
            log.error("%s", e)
            continue
        if blob is not None and len(blob) == VALUE_BYTES:
            counts = np.frombuffer(blob, "<u8", 2 * FEATURE_COUNT).astype(np.uint64).reshape(2, -1)
            values = np.frombuffer(blob, "<f4", offset=2 * _COUNTS_BYTES).astype(np.float32).reshape(2, -1)
            found[source] = Coverage(counts[0], counts[1], values[0], values[1])
    return found


def uncounted(found: Mapping[str, Coverage], counters: Counters) -> list[str]:
    """Sources with events whose coverage is not known: of a directory that is older than the counting, or damaged."""
    return [source for source, c in counters.sources.items() if c.events and source not in found]


def recount(
    layout: Layout, manifest: Manifest, names: Names, counters: Counters, alive: Callable[[], None] = lambda: None
) -> dict[str, Coverage]:
    """The coverage of every source from the row files. Raises OSError, CorruptionError: a row file is not to be had."""
    found: dict[str, Coverage] = {}
    for number in range(manifest.row_files):
        rows = RowMap(layout.row_file(*manifest.row_file(number)), number, manifest.row_file_rows)
        stored = min(rows.rows, manifest.count - rows.first_seq)
        found |= grown(found, by_source(rows.features[:stored], rows.columns["source"][:stored]), names, counters)
        alive()
    return found


def grown(
    known: Mapping[str, Coverage], new: Mapping[int, Coverage], names: Names, counters: Counters
) -> dict[str, Coverage]:
    """What is known of the sources in `new` (by number) with that added, by name."""
    out: dict[str, Coverage] = {}
    for number, coverage in new.items():
        source = counted_as(counters, names.sources[number][0])
        before = out.get(source) or known.get(source)
        out[source] = before.merged(coverage) if before else coverage
    return out


def fill_in(layout: Layout, catalog: Catalog, alive: Callable[[], None] = lambda: None) -> dict[str, Coverage]:
    """Count and store what is not counted; the writer calls it before it publishes. What was counted, by source. Raises
    OSError, CorruptionError."""
    with catalog.read() as view:
        manifest, names, counters = view.manifest(), view.names(), view.counters()
        missing = uncounted(load(view, counters), counters)
    if not missing or manifest is None:
        return {}
    log.info("the coverage of %d sources is counted from the row files", len(missing))
    found = recount(layout, manifest, names, counters, alive)
    with catalog.write() as batch:
        for source, coverage in found.items():
            put(batch, source, coverage)
    return found


# ---- as facts -----------------------------------------------------------------------------------------------------
def facts(coverage: Coverage | None, events: int) -> dict[str, Any]:
    """Of one source: how many of the 105 are ever filled, by group too, and which shares are missing and constant.

    missing_share: of all cells, events x 105. constant_share: of the features filled. None where nothing is known."""
    if coverage is None or not events:
        return dict.fromkeys(
            ("coverage_mean", "features_filled", "features_constant", "missing_share", "constant_share", "groups")
        ) | {"coverage_of": FEATURE_COUNT}
    filled, constant = coverage.filled, coverage.constant
    cells, n_filled, n_constant = int(coverage.present.sum()), int(filled.sum()), int(constant.sum())
    groups = {group: [0, 0] for group in GROUPS}
    for f in FEATURES:
        groups[f.group][0] += bool(filled[f.column])
        groups[f.group][1] += 1
    return {
        "coverage_mean": round(cells / events, 2),
        "coverage_of": FEATURE_COUNT,
        "features_filled": n_filled,
        "features_constant": n_constant,
        "missing_share": round(1 - cells / (events * FEATURE_COUNT), 6),
        "constant_share": round(n_constant / n_filled, 6) if n_filled else None,
        "groups": groups,
    }


def columns(coverage: Coverage) -> dict[str, list[Any]]:
    """One source in full, each a list of 105: present, zeros, min, max; None where there is no value."""
    low, high = ([None if v != v else v for v in column.tolist()] for column in (coverage.low, coverage.high))
    return {"present": coverage.present.tolist(), "zeros": coverage.zeros.tolist(), "min": low, "max": high}
