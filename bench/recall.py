"""recall@10 against float64 brute force over a live engine's own rows, ties by distance.

Whoever is as near as the tenth belongs there: of a flood of equal distances any ten are right. A hit counts once, by
the distance that its row really has, whatever distance the answer states.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config import Config
from engine.features import F32
from engine.layout import Layout
from engine.store.catalog import Catalog
from engine.store.recover import map_size
from engine.store.rows import RowMap
from ipc.client import Client
from ipc.messages import Options

TOP = 10
SAME = 1e-6  # relative: the engine ranks candidates in float32
SAME_COSINE = 4e-7  # absolute, of 1 - cosine: float32 tells no more apart near 1, whatever a peer's effort

F64 = NDArray[np.float64]


def recall(client: Client, names: list[str], space: str, data_dir: Path) -> float:
    """Mean over the events `names`; nothing may be ingested meanwhile."""
    seqs, parts = stored(names, space, data_dir)
    found = 0.0
    for name, seq in zip(names, seqs, strict=True):
        reply = client.query_similar(name, options=Options(space=space, collapse=False, top_k=TOP))
        found += share(parts, seq, {hit.seq for hit in reply.answers[0].hits})
    return found / len(names)


def stored(names: list[str], space: str, data_dir: Path) -> tuple[list[int], list[F32]]:
    """The seq of each name, and the vectors of all committed events in order of seq, mapped: float32 [n, dim] each."""
    seqs, count, maps = _rows(names, data_dir)
    return seqs, [m.vectors[space][: count - m.first_seq] for m in maps]


def columns(wanted: Iterable[str], data_dir: Path) -> list[NDArray[Any]]:
    """These columns of all committed events, in order of seq, copied."""
    _, count, maps = _rows([], data_dir)
    return [np.concatenate([m.column[name][: count - m.first_seq] for m in maps]) for name in wanted]


def _rows(names: list[str], data_dir: Path) -> tuple[list[int], int, list[RowMap]]:
    """The seq of each name, how many events are committed, and the row files."""
    layout = Layout(data_dir)
    catalog = Catalog(layout.catalog, write=False, map_size=map_size(Config()))
    with catalog.read() as view:
        manifest = view.manifest()
        found = [view.find(name) for name in names]
    catalog.close()
    assert manifest is not None
    seqs = [seq for seq in found if seq is not None]
    assert len(seqs) == len(names)
    rows = manifest.row_file_rows
    maps = [RowMap(layout.row_file(*manifest.row_file(n)), n, rows) for n in manifest.numbers]
    return seqs, manifest.count, maps


def share(parts: list[F32], seq: int, hits: Iterable[int], metric: str = "l2") -> float:
    """Of the ten (or all that there are) nearest to the event `seq`, itself apart, the share that `hits` has. parts:
    float32 [n, dim] each, together all vectors. metric: l2, or cosine."""
    first = np.cumsum([0] + [len(part) for part in parts])
    of = int(np.searchsorted(first, seq, "right")) - 1
    query = parts[of][seq - first[of]].astype(np.float64)
    distances = np.concatenate([_distances(part, query, metric) for part in parts])
    distances[seq] = np.inf  # an event is not its own neighbour
    k = min(TOP, len(distances) - 1)
    bound = np.partition(distances, k - 1)[k - 1] * (1 + SAME) + (SAME_COSINE if metric == "cosine" else 1e-9)
    return min(1.0, sum(bool(distances[hit] <= bound) for hit in set(hits)) / k)


def _distances(rows: F32, query: F64, metric: str) -> F64:
    if metric == "cosine":
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1) * np.linalg.norm(query)
        return np.asarray(1.0 - rows @ query / np.where(lengths, lengths, 1.0))
    difference = rows - query
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", difference, difference)))
