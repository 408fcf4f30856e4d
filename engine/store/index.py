"""FAISS over a range of rows of one space: build, write, open mapped, search.

Always true
  - Position in an index = seq - lo, but where rows are grouped: then an entry is a vector that no other entry has, and
    the rows that have it stand behind the FAISS index in the same file. An index file never changes once it has a name.
  - FAISS is shown no file that disagrees with its checksum: of a damaged one it may make anything, a crash included.
  - A mapped index is never mutated (add and reset on one abort the process), and no numpy view into it is kept.
  - Distances that leave this module are squared L2 as FAISS ranks them; engine/search/snapshot.py takes the exact ones
    from the rows.

Inverted lists: security events are full of floods, and duplicates break HNSW for the other events (DESIGN section 6).
Of how many lists are probed each index is asked itself, once it is built. An index holds vectors as 16-bit floats: half
of the bytes, and memory is what a search waits for. Rows nearer to each other than such floats tell apart may be found
in the wrong order, so more are found than were asked for, and who ranks them by their rows knows by `rounding` how far
to look. Where rows are grouped vectors are whole: an entry in a wrong place would bring all of its rows with it.
bench/index_choice.py is the measurement; which ranges are indexed together is engine/store/tiers.py's.

A file with groups: FAISS index | starts int32 [entries + 1] | rows int32 [n], of each entry the newest first | footer
"""

from __future__ import annotations

import math
import os
import struct
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
LISTS_PER_ROOT = 3.0  # of the entries: with more, the lists are compared for longer than their entries
HALF_MAX = 60_000.0  # a 16-bit float ends at 65,504
HALF_ROUNDING = 2.0**-11  # of a number that is not tiny, at most; of a vector's length, too
HALF_MORE = 8  # candidates found beyond those asked for, at least: with them recall is that of whole vectors
GROUPED_SHARE_MAX = 0.9  # entries for each row; with more, groups cost more than they save
FILTERED_MORE = 4  # a filter by time: recall@10 0.975 to 1.000 without, 0.9975 to 1.000 with (docs/DECISIONS.md)
FLAT_ENTRIES_MAX = 4_096  # so few are compared one by one
NPROBES = (4, 6, 8, 12, 16, 24, 32, 64)
TUNED_QUERIES = 512  # of an index's own entries, evenly apart; with 128, what has 0.997 is not told from 0.995
TUNED_LISTS_MAX = 256  # are searched for what is to be found
TUNED_TOP = 11  # the ten nearest, and itself
TUNED_RECALL = 0.995

faiss.omp_set_num_threads(1)
faiss.cvar.distance_compute_blas_threshold = 1024  # exact batches use BLAS, single queries do not

Positions = NDArray[np.int64]
I32 = NDArray[np.int32]
Mask = NDArray[np.bool_]
_FOOTER = struct.Struct("<8sQQ")  # GROUPS, bytes of the FAISS index, entries
GROUPS = b"groups 1"


class Groups(NamedTuple):
    """Rows by entry. starts: int32 [entries + 1]; rows: int32 [n], those of entry e at starts[e]:starts[e + 1], the
    newest first."""

    starts: I32
    rows: I32


class Made(NamedTuple):
    """An index in memory. kind: ivf_half (ivf_flat where 16 bits hold less), ivf_flat_grouped or flat_grouped."""

    index: Any
    kind: str
    nprobe: int
    groups: Groups | None


def lists(n: int) -> int:
    """How many lists n entries have."""
    return max(1, round(LISTS_PER_ROOT * math.sqrt(n)))


def half_candidates(k: int) -> int:
    """How many are found among rounded vectors so that the k nearest are among them."""
    return k + max(HALF_MORE, k // 2)


def build(parts: Sequence[F32]) -> Made:
    """Index vectors, float32 [n, dim] each, one part behind the other. Where many are equal, entries are grouped."""
    groups = grouped(parts)
    if groups is not None:
        parts = [entry_vectors(parts, groups)]
    entries = sum(map(len, parts))
    if groups is not None and entries <= FLAT_ENTRIES_MAX:
        flat = faiss.IndexFlatL2(parts[0].shape[1])
        flat.add(parts[0])
        return Made(flat, "flat_grouped", 0, groups)
    half = groups is None and all(float(np.abs(part).max(initial=0.0)) <= HALF_MAX for part in parts)
    index = inverted(parts, lists(entries), half=half)
    kind = "ivf_half" if half else "ivf_flat" if groups is None else "ivf_flat_grouped"
    return Made(index, kind, tuned(index, parts), groups)


def inverted(parts: Sequence[F32], nlist: int, *, half: bool) -> Any:
    """Inverted lists of vectors, float32 or, `half`, rounded to 16 bits: the same index from the same vectors."""
    dim = parts[0].shape[1]
    quantizer = faiss.IndexFlatL2(dim)
    if half:
        code = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, nlist, code, faiss.METRIC_L2, False)
    else:
        index = faiss.IndexIVFFlat(quantizer, dim, nlist, faiss.METRIC_L2)
    index.cp.seed = 1
    index.cp.niter = 10
    index.cp.min_points_per_centroid = 1
    index.train(_sample(parts, max(TRAIN_ROWS, nlist * TRAIN_ROWS_PER_LIST)))
    for part in parts:
        index.add(part)
    return index


def grouped(parts: Sequence[F32]) -> Groups | None:
    """Rows with equal vectors, entries in order of their oldest rows; None where few are equal."""
    hashes = np.array([h for part in parts for h in _hashes(part)], np.uint64)
    _, oldest, entry, sizes = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    if len(oldest) > GROUPED_SHARE_MAX * len(hashes):
        return None
    order = np.argsort(oldest)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    entry = rank[entry]
    rows = np.lexsort((-np.arange(len(entry)), entry)).astype(np.int32)
    groups = Groups(np.concatenate(([0], np.cumsum(sizes[order]))).astype(np.int32), rows)
    vectors, at = entry_vectors(parts, groups).view(np.uint32), 0
    for part in parts:
        for lo in range(0, len(part), TRAIN_ROWS):
            some = part[lo : lo + TRAIN_ROWS]
            if (some.view(np.uint32) != vectors[entry[at : at + len(some)]]).any():
                return None  # two vectors of one hash: made to be, or once in a million stores
            at += len(some)
    return groups


def _hashes(part: F32) -> Iterator[int]:
    data, size = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, part.shape[1] * part.itemsize
    return (xxhash.xxh3_64_intdigest(data[at : at + size]) for at in range(0, len(data), size))


def entry_vectors(parts: Sequence[F32], groups: Groups) -> F32:
    """The vector of each entry, float32 [entries, dim], copied."""
    oldest, begin = groups.rows[groups.starts[1:] - 1], 0
    found = []
    for part in parts:
        found.append(part[oldest[(begin <= oldest) & (oldest < begin + len(part))] - begin])
        begin += len(part)
    return np.concatenate(found)


def _sample(parts: Sequence[F32], most: int) -> F32:
    """About so many rows, as many of each part, evenly apart."""
    step = -(-sum(map(len, parts)) // most)
    return np.ascontiguousarray(np.concatenate([part[::step] for part in parts]))


def tuned(index: Any, parts: Sequence[F32]) -> int:
    """The fewest lists to probe that find TUNED_RECALL of what all lists have (in a large index: TUNED_LISTS_MAX of
    them, the nearest), for entries of its own."""
    queries = _sample(parts, TUNED_QUERIES)

    def farthest(nprobe: int) -> F32:
        distances: F32 = index.search(queries, TUNED_TOP, params=faiss.SearchParametersIVF(nprobe=nprobe))[0]
        return distances

    bound = farthest(min(index.nlist, TUNED_LISTS_MAX))[:, -1:]
    for nprobe in NPROBES:
        if nprobe >= index.nlist or (farthest(nprobe) <= bound).mean() >= TUNED_RECALL:
            break
    return min(nprobe, int(index.nlist))


def write(made: Made, path: Path) -> tuple[int, bytes]:
    """Write durably under `path`, read-only. Returns (size, xxh3_128 checksum). Raises OSError."""
    data = faiss.serialize_index(made.index).data  # not copied: it is as large as the index
    parts: list[memoryview | bytes] = [data]
    if made.groups is not None:
        footer = _FOOTER.pack(GROUPS, len(data), made.index.ntotal)
        parts.append(made.groups.starts.tobytes() + made.groups.rows.tobytes() + footer)
    digest, size = xxhash.xxh3_128(), 0

    def chunks() -> Iterator[bytes | memoryview]:
        nonlocal size
        for part in parts:
            for i in range(0, len(part), SYNC_EVERY_BYTES):
                chunk = part[i : i + SYNC_EVERY_BYTES]
                digest.update(chunk)
                size += len(chunk)
                yield chunk

    write_new(path, chunks(), mode=0o400)
    return size, digest.digest()


def checksum(path: Path) -> bytes:
    """xxh3_128 of a file. Raises OSError."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(SYNC_EVERY_BYTES):
            digest.update(chunk)
    return digest.digest()


class MappedIndex:
    """An index file opened for reading, shared with every other process that maps it."""

    def __init__(self, path: Path, size: int, sum128: bytes, lo: int, hi: int, nprobe: int) -> None:
        """Reads all of it, to compare: to be called in a thread. sum128: its checksum; nprobe: 0 where all entries are
        compared. Raises CorruptionError where the file is not what the manifest says, OSError where it is not there."""
        if path.stat().st_size != size:
            raise CorruptionError(str(path), f"has not the {size} bytes that the manifest says")
        if checksum(path) != sum128:
            raise CorruptionError(str(path), "disagrees with its checksum")
        self.path, self.lo, self.hi, self.nprobe = path, lo, hi, nprobe
        self._groups = _groups(path, size, hi - lo)
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as e:
            raise CorruptionError(str(path), f"is not an index: {e}") from e
        self.entries = hi - lo if self._groups is None else len(self._groups.starts) - 1
        if self._index.ntotal != self.entries:
            raise CorruptionError(str(path), f"holds {self._index.ntotal} entries, not {self.entries}")
        if nprobe and not hasattr(self._index, "nlist"):
            raise CorruptionError(str(path), "has no lists to probe")
        self._params = faiss.SearchParametersIVF(nprobe=nprobe) if nprobe else None
        self.rounding = HALF_ROUNDING if isinstance(self._index, faiss.IndexIVFScalarQuantizer) else 0.0

    @property
    def exact(self) -> bool:
        """Does it compare every entry?"""
        return not self.nprobe

    def touch(self) -> None:
        """Read all of it once, so that no query pays for a cold page. To be called in a thread."""
        params = faiss.SearchParametersIVF(nprobe=self._index.nlist) if self.nprobe else None
        self._index.search(np.zeros((1, self._index.d), np.float32), 1, params=params)

    def scanned(self, matched: int) -> int:
        """About how many entries one query looks at, where so many rows match."""
        entries = matched * self.entries // (self.hi - self.lo)
        return entries * min(self._lists(entries), lists := int(self._index.nlist)) // lists if self.nprobe else entries

    def _lists(self, allowed: int) -> int:
        """How many lists are probed where so many entries are allowed: as many of them are looked at as without a
        filter, and FILTERED_MORE times as many where they are few, as they may all lie in lists that are not near."""
        share = self.entries / max(1, allowed)
        return math.ceil(self.nprobe * share * min(share, FILTERED_MORE))

    def search(self, queries: F32, k: int, allowed: Mask | None, matched: int) -> tuple[F32, Positions] | None:
        """Squared distances float32 [n, m] (+inf where nothing was found) and seqs int64 [n, m] (-1 there); m is k, or
        more where vectors are rounded: a row is there with its length times `rounding` at most from where it is.

        allowed: bool over positions, `matched` of them True. None is returned where the index would give fewer than
        min(k, matched) or look at most of its lists: compare the rows instead.
        """
        params, groups, most = self._params, self._groups, half_candidates(k) if self.rounding else k
        if allowed is not None:
            entries = allowed if groups is None else np.logical_or.reduceat(allowed[groups.rows], groups.starts[:-1])
            selected = faiss.IDSelectorBitmap(np.packbits(entries, bitorder="little"))
            if self.nprobe:
                nprobe = self._lists(int(entries.sum()))
                if nprobe > self._index.nlist // 2:
                    return None
                params = faiss.SearchParametersIVF(nprobe=nprobe, sel=selected)
            else:
                params = faiss.SearchParameters(sel=selected)
        distances, positions = self._index.search(
            queries, most if groups is None else min(k, self.entries), params=params
        )
        if groups is not None:
            distances, positions = _rows_of(groups, distances, positions, k, allowed)
        found = (positions >= 0) & (positions < self.hi - self.lo)  # a damaged index may say anything
        if found.all():
            return distances, positions + self.lo
        if (found.sum(1) < min(k, matched)).any():
            return None
        return np.where(found, distances, np.float32(np.inf)), np.where(found, positions + self.lo, -1)


def _groups(path: Path, size: int, n: int) -> Groups | None:
    """Of an index file over n rows, mapped; None where it has none. Raises CorruptionError, OSError."""
    with path.open("rb") as file:
        if size >= _FOOTER.size:
            file.seek(-_FOOTER.size, os.SEEK_END)
            magic, at, entries = _FOOTER.unpack(file.read(_FOOTER.size))
    if size < _FOOTER.size or magic != GROUPS:
        return None
    if at + 4 * (entries + 1 + n) + _FOOTER.size != size:
        raise CorruptionError(str(path), f"groups of {entries} entries over {n} rows do not fit into it")
    numbers = np.memmap(path, np.uint8, "r", at, 4 * (entries + 1 + n)).view("<i4")
    starts, rows = numbers[: entries + 1], numbers[entries + 1 :]
    if starts[0] != 0 or starts[-1] != n or (np.diff(starts) < 1).any() or rows.min() < 0 or rows.max() >= n:
        raise CorruptionError(str(path), "its groups disagree with themselves")
    return Groups(starts, rows)


def _rows_of(groups: Groups, distances: F32, entries: Positions, k: int, allowed: Mask | None) -> tuple[F32, Positions]:
    """The first k rows of the entries found, [queries, k]: +inf and -1 where there are fewer."""
    most = len(groups.starts) - 1
    out = np.full((len(entries), k), np.float32(np.inf)), np.full((len(entries), k), -1)
    for i, (near, of) in enumerate(zip(distances.tolist(), entries.tolist(), strict=True)):
        at = 0
        for distance, entry in zip(near, of, strict=True):
            if not 0 <= entry < most:
                continue
            rows = groups.rows[groups.starts[entry] : groups.starts[entry + 1]]
            if allowed is not None:
                rows = rows[allowed[rows]]
            end = min(k, at + len(rows))
            out[0][i, at:end], out[1][i, at:end] = distance, rows[: end - at]
            at = end
            if at == k:
                break
    return out


def search_rows(queries: F32, rows: F32, k: int) -> tuple[F32, Positions]:
    """Exact: squared distances and row numbers, [n, min(k, len(rows))] each, nearest first; +inf and -1 where a damaged
    row (NaN) leaves a place."""
    distances, positions = faiss.knn(queries, rows, min(k, len(rows)))
    return np.where(positions >= 0, distances, np.float32(np.inf)), positions
