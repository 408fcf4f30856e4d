"""What the machine can do with these vectors: FAISS in process, 2 threads, batches of 64, at recall@10 >= 0.99.

Flat, IVF-Flat and HNSW are built over all vectors; the cheapest setting of each that has the recall is timed, and the
best of the three is the limit. Nothing but the search is in it: no socket, no look-up, no metadata. Started by
bench/load.py and bench/peers as `python -m bench.limit --child`, so that its threads and its memory are its own.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from bench.harness import Child, ChildSide
from bench.recall import TOP, share
from engine.features import F32

RECALL = 0.99
RECALL_QUERIES = 200
BATCH = 64
THREADS = 2
SECONDS = 2.0  # of timing each
NPROBES = (1, 2, 4, 8, 16, 32, 64)
EFS = (11, 16, 32, 64, 128, 256, 512, 1024)

Searches = Callable[[F32], Any]


def limit(parts: list[F32], seqs: list[int]) -> dict[str, Any]:
    """limit_qps, and of each kind its queries a second and setting. parts: all vectors; seqs: the events asked for."""
    with tempfile.TemporaryDirectory(prefix="flowkin-bench-") as folder:
        path = Path(folder) / "vectors.npy"
        np.save(path, np.concatenate(parts))
        figures: dict[str, Any] = Child("bench.limit", {"vectors": str(path), "seqs": seqs}).result()
    return figures


def settings(vectors: F32) -> Iterable[tuple[str, str, Searches]]:
    """(kind, setting, search), of each kind the cheap ones first. A search asks for the event itself, too."""

    def search(index: Any, params: Any, queries: F32) -> Any:
        return index.search(queries, TOP + 1, params=params)[1]

    n, dim = vectors.shape
    flat = faiss.IndexFlatL2(dim)
    flat.add(vectors)
    yield "flat", "exact", partial(search, flat, None)
    for lists in (round(1.5 * math.sqrt(n)), round(4 * math.sqrt(n))):
        ivf = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, max(1, lists))
        ivf.cp.min_points_per_centroid = 1
        ivf.train(vectors)
        ivf.add(vectors)
        for nprobe in NPROBES:
            yield f"ivf_{lists}", f"nprobe {nprobe}", partial(search, ivf, faiss.SearchParametersIVF(nprobe=nprobe))
    hnsw = faiss.IndexHNSWFlat(dim, 16)
    hnsw.hnsw.efConstruction = 100
    hnsw.add(vectors)
    for ef in EFS:
        yield "hnsw_16", f"ef {ef}", partial(search, hnsw, faiss.SearchParametersHNSW(efSearch=ef))


def recall_of(search: Searches, vectors: F32, seqs: list[int]) -> float:
    hits = search(np.ascontiguousarray(vectors[seqs]))
    shares = [share([vectors], seq, set(of.tolist()) - {seq, -1}) for seq, of in zip(seqs, hits, strict=True)]
    return float(np.mean(shares))


def qps(search: Searches, queries: F32) -> float:
    """Batches in turn, each thread its own."""
    batches = [queries[at : at + BATCH] for at in range(0, max(1, len(queries) - BATCH + 1), BATCH)]

    def work(number: int) -> int:
        done, at, until_s = 0, number, time.perf_counter() + SECONDS
        while time.perf_counter() < until_s:
            batch = batches[at % len(batches)]
            search(batch)
            done, at = done + len(batch), at + 1
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        start_s = time.perf_counter()
        return sum(pool.map(work, range(THREADS))) / (time.perf_counter() - start_s)


def main() -> int:
    side = ChildSide()
    side.ready()
    vectors, seqs = np.load(side.job["vectors"]), side.job["seqs"]
    queries, found = np.ascontiguousarray(vectors[seqs]), dict[str, dict[str, Any]]()
    for kind, setting, search in settings(vectors):
        if kind in found:
            continue
        recalled = recall_of(search, vectors, seqs[:RECALL_QUERIES])
        if recalled >= RECALL:
            found[kind] = {
                "qps": round(qps(search, queries), 1),
                "setting": setting,
                "recall_at_10": round(recalled, 4),
            }
    best = max(found, key=lambda kind: float(found[kind]["qps"]))
    side.done({"limit_qps": found[best]["qps"], "limit_of": best, "limits": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
