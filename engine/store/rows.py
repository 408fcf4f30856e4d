"""Row files: the vectors, features and columns of a fixed number of events, in one preallocated file of regions.

Always true
  - An event's row never moves: file = seq // rows a file has, row = seq % rows.
  - Rows are written with pwrite, never through a mapping, and synced before the commit that makes them count. What lies
    past the committed count is garbage by definition, and is overwritten, never truncated.
  - A row carries a checksum of each space's vector, and one of features and columns together; readers check the rows
    they return. Everything here can be rebuilt from the catalog's records (engine/store/rebuild.py).

A file: one header page, then for each region `rows` cells: chronos, sbert, attack, features, columns, sums.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from engine.embed.base import DIMS, SPACES
from engine.errors import CorruptionError
from engine.features import F32
from engine.features import empty as empty_features
from engine.files import write_new
from engine.store.columns import COLUMNS, GONE, Columns
from engine.store.columns import empty as empty_columns
from ipc.event import FEATURE_COUNT

HEADER_BYTES = 4096
MAGIC = b"flowkin rows 1\n"

REGION_BYTES = {**{s: DIMS[s] * 4 for s in SPACES}, "features": FEATURE_COUNT * 4, "columns": COLUMNS.itemsize}
REGIONS = tuple(REGION_BYTES)
SUM_COLUMNS = (*SPACES, "features")  # what the four checksums of a row cover; the last: features, then columns
SUMS_BYTES = 4 * len(SUM_COLUMNS)
_xxh = xxhash.xxh3_64_intdigest


class Rows(NamedTuple):
    """Some events' rows, or a view of them. vectors: float32 [n, dim] by space; features: float32 [n, 105];
    columns: COLUMNS [n]."""

    vectors: dict[str, F32]
    features: F32
    columns: Columns


def file_bytes(rows: int) -> int:
    return HEADER_BYTES + rows * (sum(REGION_BYTES.values()) + SUMS_BYTES)


def _header(rows: int) -> bytes:
    return (MAGIC + f"rows {rows}\n".encode()).ljust(HEADER_BYTES, b"\0")


def _offsets(rows: int) -> dict[str, int]:
    offsets, at = {}, HEADER_BYTES
    for region in REGIONS:
        offsets[region] = at
        at += rows * REGION_BYTES[region]
    offsets["sums"] = at
    return offsets


def _sums32(cells: NDArray[np.uint8], first_seq: int) -> NDArray[np.uint32]:
    """Of each row of uint8 [n, bytes]."""
    data, size = cells.reshape(-1).data, cells.shape[1]
    sums = [_xxh(data[at : at + size], seq) for seq, at in enumerate(range(0, len(data), size), first_seq)]
    return np.array(sums, np.uint64).astype(np.uint32)  # the low 32 bits


def row_sums(rows: Rows, first_seq: int) -> NDArray[np.uint32]:
    """uint32 [n, 4]: for each row, seeded by its seq, of each space's vector and of features + columns."""
    out = np.empty((len(rows.columns), len(SUM_COLUMNS)), "<u4")
    for j, space in enumerate(SPACES):
        out[:, j] = _sums32(_cells(rows, space), first_seq)
    out[:, 3] = _sums32(np.hstack((_cells(rows, "features"), _cells(rows, "columns"))), first_seq)
    return out


def _cells(rows: Rows, region: str) -> NDArray[np.uint8]:
    """uint8 [n, bytes of a cell], not copied where the rows lie one behind the other."""
    found = rows.vectors[region] if region in SPACES else getattr(rows, region)
    return np.ascontiguousarray(found).view(np.uint8).reshape(-1, REGION_BYTES[region])


def empty_rows(n: int) -> Rows:
    """Of events that are gone."""
    return Rows({s: np.zeros((n, DIMS[s]), np.float32) for s in SPACES}, empty_features(n), empty_columns(n))


def create(path: Path, rows: int) -> None:
    """A new row file, full of zeros so that later writes allocate nothing; durable on return. Raises OSError."""

    def chunks() -> Iterator[bytes]:
        yield _header(rows)
        left = file_bytes(rows) - HEADER_BYTES
        zeros = bytes(1 << 20)
        while left:
            yield zeros[: min(left, len(zeros))]
            left -= min(left, len(zeros))

    write_new(path, chunks())


class RowWriter:
    """The row file being appended to. Used by the ingest worker only."""

    def __init__(self, path: Path, number: int, rows: int) -> None:
        """Opens (or creates) row file `number`. Raises OSError, CorruptionError where it has another shape."""
        if not path.exists():
            create(path, rows)
        self.path, self.number, self.rows = path, number, rows
        self.offsets = _offsets(rows)
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        if os.fstat(self.fd).st_size != file_bytes(rows):
            self.close()
            raise CorruptionError(str(path), f"has not the {file_bytes(rows)} bytes of a row file of {rows} rows")

    def write(self, row: int, rows: Rows) -> tuple[int, ...]:
        """pwrite rows from `row` on; not yet durable. Returns xxh3_64 of each region's bytes. Raises OSError."""
        n = len(rows.columns)
        assert 0 <= row <= self.rows - n
        first_seq = self.number * self.rows + row
        sums = []
        for region in REGIONS:
            data = _cells(rows, region).reshape(-1).data
            assert len(data) == n * REGION_BYTES[region]
            _pwrite_all(self.fd, data, self.offsets[region] + row * REGION_BYTES[region])
            sums.append(xxhash.xxh3_64_intdigest(data))
        _pwrite_all(self.fd, memoryview(row_sums(rows, first_seq).tobytes()), self.offsets["sums"] + row * SUMS_BYTES)
        return tuple(sums)

    def sync(self) -> None:
        os.fdatasync(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _pwrite_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def emptied(
    source: Path, target: Path, number: int, rows: int, seqs: NDArray[np.int64], sealed: bytes | None = None
) -> bytes | None:
    """Row file `number` written anew as `target`, without what these seqs hold; durable on return. sealed: the checksum
    of `source` as a whole; where it agrees, that of `target` is returned. Raises OSError, CorruptionError: there is no
    `target`."""
    old = RowMap(source, number, rows)
    whole = sealed is not None and old.checksum() == sealed
    data, offsets, at = bytearray(old.data), _offsets(rows), seqs - old.first_seq
    nothing = empty_rows(1)
    sums = np.concatenate([row_sums(nothing, seq) for seq in seqs.tolist()])
    for region in REGIONS:
        cells = np.frombuffer(data, np.uint8, rows * REGION_BYTES[region], offsets[region])
        cells.reshape(rows, -1)[at] = _cells(nothing, region)
    np.frombuffer(data, "<u4", rows * len(SUM_COLUMNS), offsets["sums"]).reshape(rows, -1)[at] = sums
    write_new(target, [memoryview(data)])
    return xxhash.xxh3_128_digest(data) if whole else None


class RowMap:
    """A row file mapped for reading. Views stay valid as long as this object lives; keep it with them.

    Never closed by hand: numpy views may still point into the map; it goes with its last reference.
    """

    def __init__(self, path: Path, number: int, rows: int) -> None:
        """Raises OSError, CorruptionError where the file has another shape."""
        self.path, self.number, self.rows, self.first_seq = path, number, rows, number * rows
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.fstat(fd).st_size != file_bytes(rows):
                raise CorruptionError(str(path), f"has not the {file_bytes(rows)} bytes of a row file of {rows} rows")
            self._map = mmap.mmap(fd, file_bytes(rows), mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
        offsets = _offsets(rows)

        def region(name: str, dtype: Any, width: int) -> NDArray[Any]:
            return np.frombuffer(self._map, dtype, rows * width, offsets[name]).reshape(rows, width)

        self.vectors: dict[str, F32] = {s: region(s, "<f4", DIMS[s]) for s in SPACES}
        self.features: F32 = region("features", "<f4", FEATURE_COUNT)
        self.columns: Columns = region("columns", COLUMNS, 1)[:, 0]
        self.column: dict[str, NDArray[Any]] = {name: self.columns[name] for name in COLUMNS.names or ()}
        self.families = self.column["family"]
        self.sums: NDArray[np.uint32] = region("sums", "<u4", len(SUM_COLUMNS))
        # the same bytes for single rows, of which numpy would make an array each
        self._bytes = memoryview(self._map)
        self._vectors = {space: (place, offsets[space], DIMS[space] * 4) for place, space in enumerate(SPACES)}
        self._features, self._columns = ((offsets[name], REGION_BYTES[name]) for name in ("features", "columns"))
        self._sums = self._bytes[offsets["sums"] : offsets["sums"] + rows * SUMS_BYTES].cast("I")

    def wrong(self, row: int, spaces: Iterable[str], *, features: bool = True) -> str:
        """Which of the vectors of `spaces`, and of features with columns, disagrees with its checksum; "" if none."""
        seq, data, sums, at = self.first_seq + row, self._bytes, self._sums, row * len(SUM_COLUMNS)
        for space in spaces:
            place, offset, size = self._vectors[space]
            lo = offset + row * size
            if _xxh(data[lo : lo + size], seq) & 0xFFFFFFFF != sums[at + place]:
                return f"the {space} vector"
        if features:
            offset, size = self._features
            lo = offset + row * size
            other, width = self._columns
            at_other = other + row * width
            both = b"".join((data[lo : lo + size], data[at_other : at_other + width]))
            if _xxh(both, seq) & 0xFFFFFFFF != sums[at + len(SPACES)]:
                return "features or columns"
        return ""

    @property
    def data(self) -> memoryview:
        return self._bytes

    @cached_property
    def gone(self) -> NDArray[np.int64]:
        """Seqs of rows without an event, as of the revision: none comes to be in it."""
        return np.flatnonzero(self.column["kind"] == GONE) + self.first_seq

    def bad_rows(self, count: int) -> list[int]:
        """Rows below `count` that disagree with a checksum."""
        part = Rows({s: v[:count] for s, v in self.vectors.items()}, self.features[:count], self.columns[:count])
        return [int(i) for i in np.flatnonzero((row_sums(part, self.first_seq) != self.sums[:count]).any(1))]

    def damage(self, count: int) -> str:
        """What is wrong with the header or with a row below `count`; "" where nothing is."""
        if bytes(self._bytes[:HEADER_BYTES]) != _header(self.rows):
            return "its header is not that of a row file"
        bad = self.bad_rows(count)
        return f"{len(bad)} rows disagree with their checksums, the first is {bad[0]}" if bad else ""

    def checksum(self) -> bytes:
        """xxh3_128 of the whole file."""
        return xxhash.xxh3_128_digest(self._map)


class AbsentRows(RowMap):
    """In the place of a row file that is damaged or gone, until it is built again: rows of which each is refused."""

    def __init__(self, path: Path, number: int, rows: int, gone: Sequence[int] = ()) -> None:
        """gone: seqs without an event, ascending."""
        self.path, self.number, self.rows, self.first_seq = path, number, rows, number * rows
        self.gone = np.array(gone, np.int64)
        missing = np.float32(np.nan)
        self.vectors = {s: np.broadcast_to(missing, (rows, DIMS[s])) for s in SPACES}
        self.features = np.broadcast_to(missing, (rows, FEATURE_COUNT))
        self.columns = np.zeros(rows, COLUMNS)
        self.column = {name: self.columns[name] for name in COLUMNS.names or ()}
        self.families = self.column["family"]

    def wrong(self, row: int, spaces: Iterable[str], *, features: bool = True) -> str:
        return "all"

    def bad_rows(self, count: int) -> list[int]:
        return list(range(count))
