"""FAISS over a range of rows of one space: build, write, open mapped, search.

Always true
  - Position in an index = seq - lo. An index file never changes once it has its name.
  - A mapped index is never mutated (add and reset on one abort the process), and no numpy view into it is kept.
  - Distances that leave this module are squared L2 as FAISS ranks them; engine/snapshot.py takes the exact ones from
    the rows.

IVF-Flat with nlist 1.5 sqrt(n): security events are full of floods, and duplicates break HNSW for the other events
(DESIGN section 6). Type and parameters by measurement, merging and groups of duplicates belong to `choose` and to the
ranges that engine/build.py is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import xxhash
from numpy.typing import NDArray

from engine.errors import CorruptionError
from engine.features import F32
from engine.files import SYNC_EVERY_BYTES, write_new

TRAIN_ROWS = 16_384  # that lists are made from; of a larger index TRAIN_ROWS_PER_LIST for each list, if that is more
TRAIN_ROWS_PER_LIST = 64

faiss.omp_set_num_threads(1)
faiss.cvar.distance_compute_blas_threshold = 1024  # exact batches use BLAS, single queries do not

Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Choice(NamedTuple):
    """What to build for a range of n rows."""

    kind: str
    nlist: int
    nprobe: int


def choose(n: int) -> Choice:
    """The index for n rows; nprobe as measured for recall@10 of 0.998 and more in every space, floods or not."""
    return Choice("ivf_flat", max(1, round(1.5 * math.sqrt(n))), 8 if n <= 65_536 else 16)


def build(parts: Sequence[F32], choice: Choice) -> Any:
    """A trained index of vectors, float32 [n, dim] each, one part behind the other."""
    dim = parts[0].shape[1]
    quantizer = faiss.IndexFlatL2(dim)
    index = faiss.IndexIVFFlat(quantizer, dim, choice.nlist, faiss.METRIC_L2)
    index.cp.seed = 1
    index.cp.niter = 10
    index.cp.min_points_per_centroid = 1
    index.train(_sample(parts, max(TRAIN_ROWS, choice.nlist * TRAIN_ROWS_PER_LIST)))
    for part in parts:
        index.add(part)
    return index


def _sample(parts: Sequence[F32], most: int) -> F32:
    """About so many rows, as many of each part, evenly apart."""
    step = -(-sum(map(len, parts)) // most)
    return np.ascontiguousarray(np.concatenate([part[::step] for part in parts]))


def write(index: Any, path: Path) -> tuple[int, bytes]:
    """Write durably under `path`, read-only. Returns (size, xxh3_128 checksum). Raises OSError."""
    data = faiss.serialize_index(index).data  # not copied: it is as large as the index

    def chunks() -> Iterator[memoryview]:
        for i in range(0, len(data), SYNC_EVERY_BYTES):
            yield data[i : i + SYNC_EVERY_BYTES]

    write_new(path, chunks(), mode=0o400)
    return len(data), xxhash.xxh3_128_digest(data)


def checksum(path: Path) -> bytes:
    """xxh3_128 of a file. Raises OSError."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(SYNC_EVERY_BYTES):
            digest.update(chunk)
    return digest.digest()


class MappedIndex:
    """An index file opened for reading, shared with every other process that maps it."""

    def __init__(self, path: Path, size: int, lo: int, hi: int, nprobe: int) -> None:
        """Raises CorruptionError where the file is not what the manifest says, OSError where it is not there."""
        if path.stat().st_size != size:
            raise CorruptionError(str(path), f"has not the {size} bytes that the manifest says")
        self.path, self.lo, self.hi, self.nprobe = path, lo, hi, nprobe
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as e:
            raise CorruptionError(str(path), f"is not an index: {e}") from e
        if self._index.ntotal != hi - lo:
            raise CorruptionError(str(path), f"holds {self._index.ntotal} entries, not {hi - lo}")
        self._params = faiss.SearchParametersIVF(nprobe=nprobe)

    def touch(self) -> None:
        """Read all of it once, so that no query pays for a cold page. To be called in a thread."""
        params = faiss.SearchParametersIVF(nprobe=self._index.nlist)
        self._index.search(np.zeros((1, self._index.d), np.float32), 1, params=params)

    def scanned(self, matched: int) -> int:
        """About how many entries one query looks at."""
        return matched * self.nprobe // max(1, int(self._index.nlist))

    def search(self, queries: F32, k: int, allowed: Mask | None, matched: int) -> tuple[F32, Positions] | None:
        """Squared distances float32 [n, k] (+inf where nothing was found) and seqs int64 [n, k] (-1 there).

        allowed: bool over positions, `matched` of them True. None is returned where the index would give fewer than
        min(k, matched) or look at most of its lists: compare the rows instead.
        """
        params = self._params
        if allowed is not None:
            # as many allowed entries are looked at as without a filter
            nprobe = math.ceil(self.nprobe * (self.hi - self.lo) / matched)
            if nprobe > self._index.nlist // 2:
                return None
            bits = np.packbits(allowed, bitorder="little")
            params = faiss.SearchParametersIVF(nprobe=nprobe, sel=faiss.IDSelectorBitmap(bits))
        distances, positions = self._index.search(queries, k, params=params)
        found = (positions >= 0) & (positions < self.hi - self.lo)  # a damaged index may say anything
        if found.all():
            return distances, positions + self.lo
        if (found.sum(1) < min(k, matched)).any():
            return None
        return np.where(found, distances, np.float32(np.inf)), np.where(found, positions + self.lo, -1)


def search_rows(queries: F32, rows: F32, k: int) -> tuple[F32, Positions]:
    """Exact: squared distances and row numbers, [n, min(k, len(rows))] each, nearest first; +inf and -1 where a damaged
    row (NaN) leaves a place."""
    distances, positions = faiss.knn(queries, rows, min(k, len(rows)))
    return np.where(positions >= 0, distances, np.float32(np.inf)), positions
