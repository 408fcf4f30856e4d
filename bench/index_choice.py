"""Which index, with which parameters: `python -m bench.index_choice [--events 65536] [--spaces chronos sbert attack]`.

Vectors are those that an engine stored: of synthetic events, of CIC-2017's flows (--data cic), or those of a data
directory that is there (--data-dir). Each kind is built over one entry for each different vector, as
engine/store/index.py does where enough are equal; rows_hnsw_32 is a graph over all rows, to see what floods do to it.
Asked are entries drawn at random, so that a flood is asked for once. Of each kind the cheapest setting with recall@10
of RECALL is kept, else the best: us_1 and us_16, CPU microseconds a query, one thread, alone and 16 at once; build_s,
CPU seconds; bytes of its file.

recall: of the ten nearest others in float64, ties by distance; codes are rescored: among more candidates (half: as
many as engine/store/index.py takes; sq8: RESCORED times as many) the nearest by their rows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from bench.harness import arguments, engine, fill, report, settle
from bench.peers.__main__ import events_of
from bench.recall import SAME, TOP, stored
from engine.embed.base import SPACES
from engine.features import F32
from engine.store import index as engine_index

RECALL = 0.995
QUERIES = 200
RESCORED = 4
ASKED = TOP + 1  # the ten nearest, and itself
TIMED_S = 0.3
NPROBES = (1, 2, 4, 8, 16, 32, 64, 128)
EFS = (16, 32, 64, 128, 256)
HNSW_ROWS_MAX = 131_072  # more take minutes to be built

Searches = Callable[[F32, int], Any]  # queries, candidates -> positions [n, candidates]


def kinds(vectors: F32) -> Iterator[tuple[str, float, int, list[tuple[str, int, Searches]]]]:
    """(kind, CPU seconds of its build, bytes, settings by effort: name, candidates, search)."""
    n, dim = vectors.shape

    def search(index: Any, params: Any) -> Searches:
        return lambda queries, k: index.search(queries, k, params=params)[1]

    def probing(index: Any, most: int) -> list[tuple[str, int, Searches]]:
        return [
            (f"nprobe {p}", most, search(index, faiss.SearchParametersIVF(nprobe=p)))
            for p in NPROBES
            if p <= index.nlist
        ]

    def size(index: Any) -> int:
        return len(faiss.serialize_index(index))

    flat = faiss.IndexFlatL2(dim)
    _, seconds = timed(lambda: flat.add(vectors))
    yield "flat", seconds, vectors.nbytes, [("exact", ASKED, search(flat, None))]
    for times in (1.5, 3.0, 6.0):
        lists = max(1, round(times * np.sqrt(n)))
        for half in (False, True):
            ivf, seconds = timed(partial(engine_index.inverted, [vectors], lists, half=half))
            most = engine_index.half_candidates(ASKED) if half else ASKED
            yield f"ivf_{'half' if half else 'flat'}_{lists}", seconds, size(ivf), probing(ivf, most)
    codes, seconds = timed(lambda: coded(vectors, engine_index.lists(n)))
    yield "ivf_sq8", seconds, size(codes), probing(codes, RESCORED * ASKED)
    if n <= HNSW_ROWS_MAX:
        yield ("hnsw_32", *graph(vectors, search))


def coded(vectors: F32, lists: int) -> Any:
    dim = vectors.shape[1]
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatL2(dim), dim, lists, faiss.ScalarQuantizer.QT_8bit)
    index.cp.min_points_per_centroid = 1
    index.train(vectors[:: max(1, len(vectors) // engine_index.TRAIN_ROWS)])
    index.add(vectors)
    return index


def graph(vectors: F32, search: Any) -> tuple[float, int, list[tuple[str, int, Searches]]]:
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32)
    index.hnsw.efConstruction = 100
    _, seconds = timed(lambda: index.add(vectors))
    settings = [(f"ef {ef}", ASKED, search(index, faiss.SearchParametersHNSW(efSearch=ef))) for ef in EFS]
    return seconds, len(faiss.serialize_index(index)), settings


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and its CPU seconds."""
    start_s = time.process_time()
    return work(), time.process_time() - start_s


def bounds(vectors: F32, queries: F32) -> Any:
    """Distance, float64, of each query's tenth neighbour; the query itself is one of `vectors`, with distance 0."""
    out = []
    for query in queries.astype(np.float64):
        distances = np.concatenate(
            [((vectors[at : at + 65_536] - query) ** 2).sum(1) for at in range(0, len(vectors), 65_536)]
        )
        k = min(TOP, len(distances) - 1)
        out.append(np.sqrt(np.partition(distances, k)[k]))
    return np.array(out)


def recall(search: Searches, vectors: F32, queries: F32, bound: Any, most: int) -> float:
    found, k = search(queries, most), min(ASKED, len(vectors))
    shares = []
    for query, positions, farthest in zip(queries.astype(np.float64), found, bound, strict=True):
        rows = vectors[np.unique(positions[positions >= 0])]
        distances = np.sort(np.sqrt(((rows - query) ** 2).sum(1)))[:k]
        shares.append((distances <= farthest * (1 + SAME) + 1e-9).sum() / k)
    return float(np.mean(shares))


def us(search: Searches, vectors: F32, queries: F32, batch: int, most: int) -> float:
    """CPU microseconds a query; candidates are held against their rows, as the engine does."""

    def one(at: int) -> None:
        some = queries[at : at + batch]
        difference = vectors[search(some, most)] - some[:, None, :]
        np.einsum("ijk,ijk->ij", difference, difference)

    done, start_s = 0, time.process_time()
    while time.process_time() - start_s < TIMED_S:
        one(done % (len(queries) - batch + 1))
        done += batch
    return (time.process_time() - start_s) / done * 1e6


def best(vectors: F32, queries: F32) -> dict[str, Any]:
    """Of each kind its figures at the cheapest setting with the recall."""
    bound, out = bounds(vectors, queries), {}
    for kind, seconds, size, settings in kinds(vectors):
        for name, most, search in settings:
            setting, recalled = name, recall(search, vectors, queries, bound, most)
            if recalled >= RECALL:
                break
        out[kind] = {
            "setting": setting, "recall_at_10": round(recalled, 4), "build_s": round(seconds, 2), "bytes": size,
            "us_1": round(us(search, vectors, queries, 1, most), 1),
            "us_16": round(us(search, vectors, queries, 16, most), 1),
        }  # fmt: skip
    return out


def choice(rows: list[F32], seed: int) -> dict[str, Any]:
    """Figures of one space: what its rows are, what the engine would build, and what each kind would do."""
    groups = engine_index.grouped(rows)
    n = sum(map(len, rows))
    entries = rows if groups is None else [engine_index.entry_vectors(rows, groups)]
    vectors = np.ascontiguousarray(np.concatenate(entries))
    chosen = np.random.default_rng(seed).choice(len(vectors), min(QUERIES, len(vectors)), replace=False)
    queries = np.ascontiguousarray(vectors[chosen])
    made, seconds = timed(lambda: engine_index.build(rows))
    figures: dict[str, Any] = {
        "rows": n, "entries": len(vectors), "largest_group": 1 if groups is None else int(np.diff(groups.starts).max()),
        "engine": {"kind": made.kind, "nlist": getattr(made.index, "nlist", 0), "nprobe": made.nprobe,
                   "build_s": round(seconds, 2)},
    }  # fmt: skip
    figures |= best(vectors, queries)
    if groups is not None and n <= HNSW_ROWS_MAX:  # the same questions to a graph over all rows
        whole = np.ascontiguousarray(np.concatenate(rows))
        _, _, settings = graph(whole, lambda index, params: lambda q, k: index.search(q, k, params=params)[1])
        name, most, search = settings[-1]
        found = recall(search, whole, queries, bounds(whole, queries), most)
        figures["rows_hnsw_32"] = {"setting": name, "recall_at_10": round(found, 4)}
    return figures


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, nargs="+", default=[65_536])
    parse.add_argument("--data", choices=("synthetic", "cic"), default="synthetic")
    parse.add_argument("--data-dir", help="a data directory that no engine uses now")
    parse.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
    parse.add_argument("--seed", type=int, default=1)
    args = parse.parse_args()
    if args.data_dir is not None:
        return report("index_choice", args, measured(Path(args.data_dir), args))
    with engine(1) as running:
        source_format, events = events_of(args.data, max(args.events), args.seed)
        fill(running, islice(events, max(args.events)), max(args.events), source_format)
        settle(running)
        return report("index_choice", args, measured(running.data_dir, args))


def measured(data_dir: Path, args: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for space in args.spaces:
        parts = stored([], space, data_dir)[1]
        for n in args.events:
            left, some = n, []
            for part in parts:
                some.append(part[:left])
                left -= len(some[-1])
                if not left:
                    break
            figures[f"{space}_{n}"] = choice(some, args.seed)
    return figures


if __name__ == "__main__":
    sys.exit(main())
