"""Filters that few rows pass, and many, over indexes of the size that a full row file has: never fewer than there are,
and near enough to exact, or exact. bench/selectivity.py measures the same through a real engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.embed.base import DIMS, SPACES
from engine.features import F32
from engine.search.snapshot import Snapshot
from engine.store import index
from engine.store.columns import COLUMNS
from engine.store.counters import Names
from engine.store.index import MappedIndex
from engine.store.manifest import IndexFile, Manifest
from engine.store.rows import RowMap, Rows, RowWriter

N, TAIL, K, QUERIES = 16_384, 500, 10, 8
SPACE = "attack"
RECALL_MIN = 0.95


def clustered(rng: np.random.Generator, flood: float) -> F32:
    """Rows about 300 centres, of uneven sizes; a share of them as rows of a flood are, equal to the bit."""
    centres = rng.normal(0, 1, (300, DIMS[SPACE]))
    of = np.minimum(rng.zipf(1.4, N + TAIL) - 1, 299)
    out = (centres[of] + rng.normal(0, 0.2, (N + TAIL, DIMS[SPACE]))).astype(np.float32)
    flooded = rng.random(N + TAIL) < flood
    out[flooded] = centres[of[flooded] % 5]
    return out


def opened(folder: Path, vectors: F32) -> Snapshot:
    """A snapshot of one row file, all indexed but the last rows of it."""
    n = len(vectors)
    rows = Rows(
        {s: vectors if s == SPACE else np.zeros((n, DIMS[s]), np.float32) for s in SPACES},
        np.zeros((n, 105), np.float32), np.zeros(n, COLUMNS),
    )  # fmt: skip
    writer = RowWriter(folder / "rows", 0, n)
    writer.write(0, rows)
    writer.close()
    made = index.build([vectors[:N]])
    size, checksum = index.write(made, folder / "i")
    file = IndexFile(SPACE, 0, N, "i", size, checksum, made.kind, made.nprobe)
    mapped = MappedIndex(folder / "i", size, checksum, 0, N, made.nprobe)
    manifest = Manifest(count=n, row_file_rows=n, model="m", indexes=[file])
    return Snapshot(manifest, Names([], []), [RowMap(folder / "rows", 0, n)], {file: mapped})


def passing(rng: np.random.Generator, share: float, how: str, vectors: F32) -> NDArray[np.bool_]:
    """About `share` of the rows: anywhere, a stretch of time, or those on one side of the space."""
    n = len(vectors)
    wanted = max(1, round(share * n))
    out = np.zeros(n, np.bool_)
    if how == "scattered":
        out[rng.choice(n, wanted, replace=False)] = True
    elif how == "together":
        begin = int(rng.integers(0, n - wanted + 1))
        out[begin : begin + wanted] = True
    else:
        out[np.argsort(vectors @ rng.normal(0, 1, vectors.shape[1]))[:wanted]] = True
    return out


@pytest.mark.parametrize(("flood", "kind"), [(0.0, "ivf_half"), (0.6, "ivf_flat_grouped")])
@pytest.mark.parametrize("how", ["scattered", "together", "one side"])
def test_any_share_of_the_rows_gives_as_many_and_near_enough(tmp_path: Path, flood: float, kind: str, how: str) -> None:
    """Shares from one row to all. Asked are rows that pass and rows that do not."""
    rng = np.random.default_rng(11)
    vectors = clustered(rng, flood)
    snapshot = opened(tmp_path, vectors)
    assert snapshot.manifest.indexes[0].kind == kind
    recalls = list[float]()
    for share in (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.24, 0.26, 0.3, 0.5, 0.8, 0.99, 1.0):
        allowed = passing(rng, share, how, vectors)
        queries = vectors[rng.integers(0, len(vectors), QUERIES)]
        among = vectors[allowed].astype(np.float64)
        for query, found in zip(queries, snapshot.search(SPACE, queries, K, allowed), strict=True):
            best = np.sort(np.sqrt(((among - query) ** 2).sum(1)))[:K]
            assert len(found.seqs) == len(best) and allowed[found.seqs].all()
            assert (np.diff(found.distances) >= 0).all()
            recall = float((found.distances <= best[-1] * (1 + 1e-6) + 1e-9).mean())
            if found.exact:
                assert recall == 1, share
            else:
                recalls.append(recall)
    assert len(recalls) >= 2 * QUERIES  # some went through the index
    assert np.mean(recalls) >= RECALL_MIN
