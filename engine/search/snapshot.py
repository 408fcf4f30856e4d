"""One generation opened for reading: mapped files, no copy of anything.

Always true
  - A snapshot holds mapped row files and indexes of one generation and never changes; a new generation is a new one,
    which shares what stayed. Requests under way keep the old.
  - Counts are taken over inside a request; an index is opened and read through in a thread first, and swapped in by one
    reference. Until then its rows are searched exactly from the row files.
  - Distances that leave are exact: sqrt of the float64 sum of squared differences of the rows' vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.embed.base import DIMS, SPACES
from engine.errors import CorruptionError, NotReadyError
from engine.features import F32
from engine.layout import Layout
from engine.store.catalog import View
from engine.store.columns import COLUMNS, Columns
from engine.store.counters import Names
from engine.store.index import MappedIndex, Mask, search_rows
from engine.store.manifest import IndexFile, Manifest
from engine.store.manifest import decode as decode_manifest
from engine.store.rows import AbsentRows, RowMap

log = logging.getLogger(__name__)

Seqs = NDArray[np.int64]

_NONE = np.empty(0, np.int64)
EXACT_MATCHES_MAX = 4_096  # so few allowed rows are compared one by one; 8,000 take twice what an index does
GATHER_ROWS_FEW = 16
RANK_ROWS = 4_096  # candidates that are ranked at once
TINY = np.finfo(np.float32).tiny
CROWDED_MAX = 1_024  # candidates, where more rows than were found are as near as rounded vectors tell
# Of float64 at once: a block of 512 KiB and more is given back to the system each time (engine/run/supervisor.py), and
# its pages are fetched anew for the next one, which took longer than the arithmetic.
DISTANCE_NUMBERS = 32_768


class Candidates(NamedTuple):
    """distances: float64 [m] ascending, seqs: int64 [m]; ties: the newest first. scanned: rows or entries looked at."""

    distances: NDArray[np.float64]
    seqs: Seqs
    exact: bool
    scanned: int


class Snapshot:
    def __init__(
        self, manifest: Manifest, names: Names, files: list[RowMap], indexes: dict[IndexFile, MappedIndex],
        old: Snapshot | None = None,
    ) -> None:  # fmt: skip
        """old: the snapshot before; where it has the very same files and indexes, only the tail is looked at anew, so
        that taking over a generation costs the same however many events there are."""
        self.manifest, self.names, self.files, self.indexes = manifest, names, files, indexes
        self.generation, self.count, self.first_seq = manifest.generation, manifest.count, manifest.first_seq
        self._rows = manifest.row_file_rows
        self._plan: dict[str, list[tuple[int, int, MappedIndex | None]]] = {}
        if old is not None and old.files is files and old.indexes is indexes and old.span:
            for space, ranges in old._plan.items():  # the last of which is that of the tail, unless an index ends there
                tail = ranges[-1][0] if ranges[-1][2] is None else old.count
                self._plan[space] = [r for r in ranges if r[0] != tail] + [(tail, self.count, None)]
        else:
            for space in SPACES:
                self._plan[space] = list(self._cover(space))
        if old is not None and old.files is files:
            self.gone: Seqs = old.gone  # purged, ascending
        else:
            self.gone = np.concatenate([_NONE, *(f.gone for f in files if f.number in manifest.purged)])

    @property
    def events(self) -> int:
        """How many there are."""
        return self.span - len(self.gone)

    @property
    def span(self) -> int:
        """From first_seq to count; as long as a mask is."""
        return self.count - self.first_seq

    def has(self, seq: int) -> bool:
        if not self.first_seq <= seq < self.count:
            return False
        at = int(np.searchsorted(self.gone, seq)) if len(self.gone) else 0
        return at == len(self.gone) or int(self.gone[at]) != seq

    def alive(self, lo: int, hi: int) -> Mask | None:
        """Of seqs [lo, hi): which are there; None where all are."""
        first, end = np.searchsorted(self.gone, (lo, hi)) if len(self.gone) else (0, 0)
        if first == end:
            return None
        out = np.ones(hi - lo, np.bool_)
        out[self.gone[first:end] - lo] = False
        return out

    def everything(self) -> Mask:
        """The mask of all events."""
        alive = self.alive(self.first_seq, self.count)
        return np.ones(self.span, np.bool_) if alive is None else alive

    def some(self, lo: int, limit: int) -> list[int]:
        """The first seqs from `lo` on."""
        seqs = np.arange(max(lo, self.first_seq), min(lo + limit + len(self.gone), self.count))
        return np.setdiff1d(seqs, self.gone, assume_unique=True)[:limit].tolist() if len(self.gone) else seqs.tolist()

    def newest(self, limit: int) -> list[int]:
        """The last seqs, the newest first."""
        return self.some(self.count - limit - len(self.gone), limit + len(self.gone))[: -limit - 1 : -1]

    def at(self, seq: int) -> tuple[RowMap, int]:
        place, row = divmod(seq - self.first_seq, self._rows)
        return self.files[place], row

    def check(self, seq: int, spaces: Iterable[str]) -> None:
        """Does a row agree with its checksums, as far as an answer rests on it? Raises CorruptionError."""
        self.checked_family(seq, spaces)

    def checked_family(self, seq: int, spaces: Iterable[str]) -> int:
        """As check(), and the number of the row's family: both for each hit, so the row is found once."""
        place, row = divmod(seq - self.first_seq, self._rows)
        file = self.files[place]
        if wrong := file.wrong(row, spaces):
            raise CorruptionError(str(file.path), f"{wrong} of row {row} disagrees with its checksum")
        family: int = file.families.item(row)
        return family

    def vector(self, space: str, seq: int) -> F32:
        """float32 [dim], not checked; a view that needs this snapshot alive."""
        file, row = self.at(seq)
        vector: F32 = file.vectors[space][row]
        return vector

    def vectors(self, space: str, seqs: Seqs) -> F32:
        """float32 [n, dim], copied; n > 0."""
        return self._gather(seqs, lambda file: file.vectors[space])

    def features(self, seqs: Seqs) -> F32:
        """float32 [n, 105], copied."""
        return self._gather(seqs, lambda file: file.features)

    def column(self, name: str, seqs: Seqs) -> NDArray[Any]:
        """One column of some rows, [n], copied."""
        return self._gather(seqs, lambda file: file.column[name]) if len(seqs) else np.empty(0, COLUMNS[name])

    def cell(self, name: str, seq: int) -> Any:
        """One column of one row, as Python has it."""
        place, row = divmod(seq - self.first_seq, self._rows)
        return self.files[place].column[name].item(row)

    def _gather(self, seqs: Seqs, region: Callable[[RowMap], NDArray[Any]]) -> NDArray[Any]:
        places, rows = np.divmod(seqs - self.first_seq, self._rows)
        first = region(self.files[int(places[0])])
        out = np.empty((len(seqs), *first.shape[1:]), first.dtype)
        if len(seqs) <= GATHER_ROWS_FEW:  # row by row costs less than finding those of each file
            for i, (place, row) in enumerate(zip(places.tolist(), rows.tolist(), strict=True)):
                out[i] = region(self.files[place])[row]
            return out
        for place in np.flatnonzero(np.bincount(places)).tolist():
            here = np.flatnonzero(places == place)
            out[here] = region(self.files[place])[rows[here]]
        return out

    def columns(self) -> Iterator[tuple[int, Columns]]:
        """(first seq, columns) of each row file, committed rows only."""
        for file in self.files:
            yield file.first_seq, file.columns[: self.count - file.first_seq]

    def _cover(self, space: str) -> Iterator[tuple[int, int, MappedIndex | None]]:
        """Rows [lo, hi) and the index over them, or None; together they cover [first_seq, count), row files
        apart."""
        at = self.first_seq
        covered = sorted((m for f, m in self.indexes.items() if f.space == space), key=lambda m: m.lo)
        for index in [*covered, None]:
            begin = max(index.lo, self.first_seq) if index else self.count
            end = begin
            while at < end:
                hi = min(end, (at // self._rows + 1) * self._rows)
                yield at, hi, None
                at = hi
            if index and begin >= at and index.hi <= self.count:  # or else one that it replaces still serves
                yield begin, index.hi, index
                at = index.hi

    @cached_property
    def ways(self) -> dict[str, str]:
        """How each space is searched, in words."""
        return {space: f"{self.indexed(space)} indexes + {self.unindexed(space)} rows exact" for space in SPACES}

    def indexed(self, space: str) -> int:
        """Indexes of a space."""
        return sum(1 for file in self.indexes if file.space == space)

    def unindexed(self, space: str) -> int:
        """Rows that are searched exactly."""
        return sum(hi - lo for lo, hi, index in self._plan[space] if index is None)

    def search(self, space: str, queries: F32, k: int, allowed: Mask | None = None) -> list[Candidates]:
        """The k nearest rows for each query, float32 [n, dim], NaN as in Embedder.asked. allowed: bool, from
        first_seq to count; never fewer than min(k, rows allowed) are found."""
        if allowed is not None:
            matched = int(allowed.sum())
            if matched <= max(EXACT_MATCHES_MAX, k):
                return self._search_among(space, queries, k, np.flatnonzero(allowed) + self.first_seq)
        sought = _sought(queries)
        parts, exact, scanned, rounding = self._parts(space, sought, k, allowed)
        if not parts:
            return _nothing(queries, exact, scanned)
        rough, seqs = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        bound = _bound(sought, rough, k, rounding)
        out = self._ranked(space, queries, k, rough, seqs, bound, exact, scanned)
        if rounding and k < CROWDED_MAX:
            crowded = np.zeros(len(queries), np.bool_)
            for part, _ in parts:
                if part.shape[1] > k:
                    crowded |= part[:, -1] < bound[:, 0]
            if crowded.any():
                wider = self.search(space, queries[crowded], min(4 * k, CROWDED_MAX), allowed)
                for i, found in zip(np.flatnonzero(crowded).tolist(), wider, strict=True):
                    out[i] = found._replace(distances=found.distances[:k], seqs=found.seqs[:k])
        return out

    def _parts(
        self, space: str, sought: F32, k: int, allowed: Mask | None
    ) -> tuple[list[tuple[F32, Seqs]], bool, int, float]:
        """What each index, and each row file without one, has: squared distances [n, m] and seqs. Whether all of it is
        exact, how many were looked at, and the rounding, as MappedIndex has it, of what is rounded most."""
        parts: list[tuple[F32, Seqs]] = []
        exact, scanned, rounding = True, 0, 0.0
        for lo, hi, index in self._plan[space]:
            part_allowed = None if allowed is None else allowed[lo - self.first_seq : hi - self.first_seq]
            if part_allowed is None and len(self.gone):
                part_allowed = self.alive(lo, hi)
            matched = hi - lo if part_allowed is None else int(part_allowed.sum())
            if not matched:
                continue
            if index is not None:
                found = index.search(sought, k, self._left(index, part_allowed), matched)
                if found is not None:
                    parts.append(found)
                    exact, scanned = exact and index.exact, scanned + index.scanned(matched)
                    rounding = max(rounding, index.rounding)
                    continue
            for at in range(lo, hi, self._rows):
                file, row = self.at(at)
                rows = file.vectors[space][row : row + min(hi - at, file.rows - row)]
                if part_allowed is None:
                    distances, positions = search_rows(sought, rows, k)
                    parts.append((distances, positions + at))
                else:
                    picked = np.flatnonzero(part_allowed[at - lo : at - lo + len(rows)])
                    if len(picked):
                        distances, positions = search_rows(sought, rows[picked], k)
                        parts.append((distances, picked[positions] + at))
                scanned += len(rows)
        return parts, exact, scanned, rounding

    def _left(self, index: MappedIndex, allowed: Mask | None) -> Mask | None:
        """`allowed`, which begins at the first seq that is left, for an index that may reach below it."""
        below = self.first_seq - index.lo
        if below <= 0:
            return allowed
        out = np.zeros(index.hi - index.lo, np.bool_)
        out[below:] = True if allowed is None else allowed
        return out

    def _search_among(self, space: str, queries: F32, k: int, seqs: Seqs) -> list[Candidates]:
        if not len(seqs):
            return _nothing(queries, True, 0)
        sought = _sought(queries)
        rough, positions = search_rows(sought, self.vectors(space, seqs), k)
        bound = _bound(sought, rough, k, 0.0)
        return self._ranked(space, queries, k, rough, seqs[positions], bound, True, len(seqs))

    def _ranked(
        self, space: str, queries: F32, k: int, rough: F32, seqs: Seqs, bound: F32, exact: bool, scanned: int
    ) -> list[Candidates]:
        """For each query the k best of `seqs`, int64 [n, m], with exact distances. rough: their squared distances as an
        index has them, +inf where there is none; those below `bound`, [n, 1], are looked at."""
        keep = rough < bound
        out: list[Candidates] = []
        step = max(1, RANK_ROWS // k)
        for at in range(0, len(queries), step):
            some = slice(at, at + step)
            out += self._exactly(space, queries[some], k, keep[some], seqs[some], exact, scanned)
        return out

    def _exactly(
        self, space: str, queries: F32, k: int, keep: NDArray[np.bool_], rows: Seqs, exact: bool, scanned: int
    ) -> list[Candidates]:
        """keep: which of `rows`, int64 [n, m], are candidates of each query."""
        of, seqs = np.nonzero(keep)[0], rows[keep]
        distances = self.distances(space, queries[of], seqs)
        order = np.lexsort((-seqs, distances, of))
        of, seqs, distances = of[order], seqs[order], distances[order]
        once = np.ones(len(of), np.bool_)  # each once, whatever a damaged index says
        once[1:] = (seqs[1:] != seqs[:-1]) | (of[1:] != of[:-1])
        if not once.all():
            of, seqs, distances = of[once], seqs[once], distances[once]
        starts = np.searchsorted(of, np.arange(len(queries) + 1)).tolist()
        return [
            Candidates(distances[lo : min(hi, lo + k)], seqs[lo : min(hi, lo + k)], exact, scanned)
            for lo, hi in pairwise(starts)
        ]

    def distances(self, space: str, queries: F32, seqs: Seqs) -> NDArray[np.float64]:
        """L2 to rows, float64 [n], over what is not NaN. queries: float32 [n, dim], or [dim] to all of them."""
        partly = bool(np.isnan(queries[..., -1]).any())
        out = np.empty(len(seqs))
        step = DISTANCE_NUMBERS // DIMS[space]
        for at in range(0, len(seqs), step):
            some = slice(at, at + step)
            difference = self.vectors(space, seqs[some]).astype(np.float64)
            difference -= queries[some] if queries.ndim == 2 else queries
            if partly:
                np.nan_to_num(difference, copy=False)
            np.einsum("ij,ij->i", difference, difference, out=out[some])
        return np.sqrt(out, out=out)


def _nothing(queries: F32, exact: bool, scanned: int) -> list[Candidates]:
    return [Candidates(np.empty(0), np.empty(0, np.int64), exact, scanned)] * len(queries)


def _bound(queries: F32, rough: F32, k: int, rounding: float) -> F32:
    """[n, 1]: below which squared distance rows may be among the k nearest. Those as far as the k-th may be ties; where
    vectors are rounded, the k-th may be farther than it seems, and another nearer, each by its rounding."""
    if rough.shape[1] <= k:
        return np.full((len(rough), 1), np.inf, np.float32)
    bound: F32 = np.partition(rough, k - 1, axis=1)[:, k - 1 : k]
    if rounding:
        far = np.sqrt(bound)
        length = np.sqrt(np.einsum("ij,ij->i", queries, queries))[:, None]
        bound = np.square(far + np.float32(2 * rounding) * (length + far))
    return bound * np.float32(1 + 1e-5) + TINY  # 0 is below it, too


def _sought(queries: F32) -> F32:
    """What stands in an index where a query says nothing: 0, as far from one row as from another."""
    return np.nan_to_num(queries) if np.isnan(queries[:, -1]).any() else queries


class Snapshots:
    """The current snapshot of a reader, taken over when the generation moved. Used on the reader's loop only."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.current: Snapshot | None = None
        self._opener = ThreadPoolExecutor(1, "open-index")
        self._opening: dict[IndexFile, Future[MappedIndex]] = {}
        self._failed: set[IndexFile] = set()  # not tried again
        self._gone: set[Path] = set()  # row files, missed once
        self._names = Names(["Unknown"], [])
        self._blob = b""  # the manifest of `current`, as stored

    def refresh(self, view: View) -> Snapshot:
        """The snapshot of the generation that `view` sees. Raises NotReadyError before the first one."""
        blob = view.get("meta", b"manifest")
        if blob is None:
            raise NotReadyError("the data directory is not born yet; try again")
        old = self.current
        if old is not None and blob == self._blob and not self._arrived():
            return old
        manifest = decode_manifest(blob)
        if manifest.names_count != self._names.count:
            self._names = view.names()
        if old is not None and not self._opening and manifest.indexes == old.manifest.indexes:
            indexes = old.indexes
        else:
            indexes = self._indexes(manifest, old)
        self.current = Snapshot(manifest, self._names, self._files(view, manifest, old), indexes, old)
        self._blob = bytes(blob)
        return self.current

    def _arrived(self) -> bool:
        return any(f.done() for f in self._opening.values())

    def _files(self, view: View, manifest: Manifest, old: Snapshot | None) -> list[RowMap]:
        """Mapped row files; what the old snapshot has open already is shared."""
        if old is not None and (manifest.numbers, manifest.epoch, manifest.revisions) == (
            old.manifest.numbers, old.manifest.epoch, old.manifest.revisions,
        ):  # fmt: skip
            return old.files
        files: list[RowMap] = []
        for number in manifest.numbers:
            name = manifest.row_file(number)
            if old is not None and number in old.manifest.numbers and old.manifest.row_file(number) == name:
                files.append(old.files[number - old.manifest.first])
            else:
                files.append(self._map(name, view, manifest))
        return files

    def _map(self, name: tuple[int, int, int], view: View, manifest: Manifest) -> RowMap:
        """A row file; rows that are refused in the place of one that is damaged. Raises FileNotFoundError the first
        time one is gone: the newest manifest may name another."""
        path, number, rows = self.layout.row_file(*name), name[1], manifest.row_file_rows
        try:
            return RowMap(path, number, rows)
        except FileNotFoundError:
            if path not in self._gone:
                self._gone.add(path)
                raise
            damage = CorruptionError(str(path), "is gone")
        except (OSError, CorruptionError) as e:
            damage = e if isinstance(e, CorruptionError) else CorruptionError(str(path), str(e))
        log.error("%s; its events are left out of answers until it is built again", damage)
        lo, hi = number * rows, min((number + 1) * rows, manifest.count)
        return AbsentRows(path, number, rows, view.without_record(lo, hi) if number in manifest.purged else ())

    def _indexes(self, manifest: Manifest, old: Snapshot | None) -> dict[IndexFile, MappedIndex]:
        """Those that are open and touched; the others are being opened and are taken over later. Until they are, those
        that they replace go on serving their rows."""
        named = set(manifest.indexes)
        opened = {f: m for f, m in (old.indexes if old else {}).items() if f in named}
        for file in [f for f, future in self._opening.items() if future.done() or f not in named]:
            future = self._opening.pop(file)
            if file in named and future.done():
                error = future.exception()
                if error is None:
                    opened[file] = future.result()
                else:  # ingest checks the files it names and replaces a bad one under another name
                    self._failed.add(file)
                    log.warning("index %s cannot be opened: %s; its rows are searched exactly", file.file, error)
        for file in manifest.indexes:
            if file not in opened and file not in self._opening and file not in self._failed:
                self._opening[file] = self._opener.submit(self._open, file)
        if old is not None and (old.manifest.epoch, old.manifest.revisions) == (manifest.epoch, manifest.revisions):
            awaited = [file for file in manifest.indexes if file not in opened]
            opened |= {f: m for f, m in old.indexes.items() if any(file.overlaps(f) for file in awaited)}
        return opened

    def _open(self, file: IndexFile) -> MappedIndex:
        index = MappedIndex(self.layout.index_file(file.file), file.size, file.checksum, file.lo, file.hi, file.nprobe)
        index.touch()
        return index

    def opening(self) -> int:
        """Indexes on the way."""
        return len(self._opening)

    def close(self) -> None:
        self._opener.shutdown(wait=True, cancel_futures=True)
        self.current = None
