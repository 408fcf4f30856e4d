"""recall@10 of a live engine against float64 brute force over its own rows, ties by distance.

Whoever is as near as the tenth belongs there: of a flood of equal distances any ten are right. A hit counts once, by
the distance that its row really has, whatever distance the answer states.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.catalog import Catalog
from engine.config import Config
from engine.layout import Layout
from engine.recover import map_size
from engine.rows import RowMap
from ipc.client import Client
from ipc.messages import Options

TOP = 10
SAME = 1e-6  # relative: the engine ranks candidates in float32


def recall(client: Client, names: list[str], space: str, data_dir: Path) -> float:
    """Mean over the events `names`; nothing may be ingested meanwhile."""
    layout = Layout(data_dir)
    catalog = Catalog(layout.catalog, write=False, map_size=map_size(Config()))
    with catalog.read() as view:
        manifest = view.manifest()
        seqs = [view.find(name) for name in names]
    catalog.close()
    assert manifest is not None
    rows = manifest.row_file_rows
    maps = [RowMap(layout.row_file(*manifest.row_file(n)), n, rows) for n in range(manifest.row_files)]
    found = 0.0
    for name, seq in zip(names, seqs, strict=True):
        assert seq is not None
        query = maps[seq // rows].vectors[space][seq % rows].astype(np.float64)
        distances = np.concatenate([_distances(m.vectors[space], query) for m in maps])[: manifest.count]
        distances[seq] = np.inf  # an event is not its own neighbour
        k = min(TOP, manifest.count - 1)
        bound = np.partition(distances, k - 1)[k - 1] * (1 + SAME) + 1e-9
        reply = client.query_similar(name, options=Options(space=space, collapse=False, top_k=TOP))
        hits = {hit.seq for hit in reply.answers[0].hits}
        found += sum(bool(distances[hit] <= bound) for hit in hits) / k
    return found / len(names)


def _distances(rows: NDArray[np.float32], query: NDArray[np.float64]) -> NDArray[np.float64]:
    difference = rows - query
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", difference, difference)))
