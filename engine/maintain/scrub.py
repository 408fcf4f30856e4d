"""The scrub: everything in a data directory against its checksums, slowly, beside an engine that serves.

Always true
  - It only reads. What is damaged is named; upkeep.py has it mended (mend.py says what can be).
  - At most `bytes_per_s` are read, and what was not in the page cache does not stay there.
  - A read transaction lives for a piece of the catalog. Its structure (that pages, keys, counts and the list of free
    pages agree) is looked at in a copy, as a snapshot that is pinned for so long lets the file grow.
  - A file that was replaced meanwhile is not damaged: what is found is held against the newest manifest.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import xxhash
from msgspec import Struct

from engine.embed import models as embed_models
from engine.errors import CorruptionError, ModelError
from engine.files import free_bytes
from engine.layout import Layout
from engine.store import dead_letters
from engine.store.catalog import TABLES, Catalog, seq_key
from engine.store.manifest import IndexFile, Manifest
from engine.store.rows import RowMap, file_bytes
from engine.store.structure import check

BYTES_PER_S = 64 << 20  # of a scrub that nobody waits for
CHUNK_BYTES = 1 << 20
PIECE_VALUES, PIECE_BYTES = 4_096, 4 << 20  # of the catalog in one read transaction
BAD_VALUES_MAX = 10_000  # named one by one
AUDIT_FREE_BYTES = 1 << 30  # left on the disk beside a copy of the catalog


class Report(Struct):
    """What a scrub looked at and found. bad_indexes: names of files; bad_rows: (epoch, number, revision) of row files;
    bad_values: (table, key), the first BAD_VALUES_MAX of `bad_values_count`; bad_models: why, by version; bad_letters:
    lines of the dead letters; structure: of the catalog; unchecked: why that was not looked at."""

    begun_at: int = 0  # ns
    finished_at: int = 0
    seconds: float = 0.0
    generation: int = 0
    files: int = 0
    values: int = 0
    read_bytes: int = 0
    bad_indexes: list[str] = []
    bad_rows: list[tuple[int, int, int]] = []
    bad_values: list[tuple[str, bytes]] = []
    bad_values_count: int = 0
    bad_models: dict[str, str] = {}
    bad_letters: int = 0
    structure: list[str] = []
    unchecked: str = ""

    @property
    def damaged(self) -> int:
        files = len(self.bad_indexes) + len(self.bad_rows) + len(self.bad_models)
        return files + self.bad_values_count + self.bad_letters + len(self.structure)


class Pace:
    """Sleeps as long as it takes to stay below bytes_per_s; 0: it never does."""

    def __init__(self, bytes_per_s: int = 0) -> None:
        self.bytes_per_s, self.bytes, self._start_s = bytes_per_s, 0, time.monotonic()

    def read(self, size: int) -> None:
        self.bytes += size
        if self.bytes_per_s:
            ahead_s = self.bytes / self.bytes_per_s - (time.monotonic() - self._start_s)
            if ahead_s > 0.01:
                time.sleep(ahead_s)


def run(layout: Layout, catalog: Catalog, pace: Pace, *, files_only: bool = False) -> Report:
    """All of it; files_only: row files and indexes. Raises CorruptionError where the manifest itself cannot be read."""
    report, begun_s = Report(begun_at=time.time_ns()), time.monotonic()
    manifest = _manifest(catalog)
    report.generation = manifest.generation
    _files(layout, catalog, manifest, pace, report)
    if not files_only:
        for version in sorted({manifest.model, *embed_models.versions(layout.models)}):
            report.files += 1
            if wrong := model_damage(layout, catalog, version):
                report.bad_models[version] = wrong
        report.bad_letters = letters_damage(layout, catalog)
        report.structure, report.unchecked = copy_checked(layout, catalog, pace)
        if not report.structure:  # else LMDB may crash on the way
            _values(catalog, pace, report)
    report.read_bytes, report.finished_at = pace.bytes, time.time_ns()
    report.seconds = round(time.monotonic() - begun_s, 3)
    return report


def _values(catalog: Catalog, pace: Pace, report: Report) -> None:
    for table in TABLES:
        try:
            for count, bad in values(catalog, table, pace):
                report.values += count
                report.bad_values_count += len(bad)
                report.bad_values += [(table, key) for key in bad[: BAD_VALUES_MAX - len(report.bad_values)]]
        except CorruptionError as e:
            report.structure.append(e.detail)


def _files(layout: Layout, catalog: Catalog, manifest: Manifest, pace: Pace, report: Report) -> None:
    report.files = len(manifest.indexes) + len(manifest.numbers)
    for file in manifest.indexes:
        if index_damage(layout, file, pace) and file in _manifest(catalog).indexes:
            report.bad_indexes.append(file.file)
    sealed = {s.number: s.checksum for s in manifest.sealed}
    for number in manifest.numbers:
        name = manifest.row_file(number)
        wrong = rows_damage(layout, manifest, number, sealed.get(number), pace)
        wrong = wrong or left_empty(layout, catalog, manifest, number)
        if wrong and _names_rows(_manifest(catalog), name):
            report.bad_rows.append(name)


def _names_rows(manifest: Manifest, of: tuple[int, int, int]) -> bool:
    """Is this row file still there?"""
    return of[1] in manifest.numbers and manifest.row_file(of[1]) == of


def _manifest(catalog: Catalog) -> Manifest:
    """The newest, also where the catalog was compacted meanwhile."""
    catalog.follow()
    with catalog.read() as view:
        manifest = view.manifest()
    if manifest is None:
        raise CorruptionError(f"catalog {catalog.path}", "holds no manifest; the first start did not finish")
    return manifest


# ---- files --------------------------------------------------------------------------------------------------------
def chunks(path: Path, pace: Pace) -> Iterator[bytes]:
    """The bytes of a file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        at, buffer = 0, bytearray(CHUNK_BYTES)
        while True:
            try:
                size, cached = os.preadv(fd, [buffer], at, os.RWF_NOWAIT), True
            except OSError:  # not in the page cache, or a file system that cannot say
                size, cached = os.preadv(fd, [buffer], at), False
            if not size:
                return
            yield bytes(buffer[:size])
            if not cached:
                os.posix_fadvise(fd, at, size, os.POSIX_FADV_DONTNEED)
            at += size
            pace.read(size)
    finally:
        os.close(fd)


def _checksum(path: Path, pace: Pace) -> bytes:
    digest = xxhash.xxh3_128()
    for chunk in chunks(path, pace):
        digest.update(chunk)
    return digest.digest()


def index_damage(layout: Layout, file: IndexFile, pace: Pace) -> str:
    """What is wrong with an index file; "" where nothing is."""
    try:
        return "" if _checksum(layout.index_file(file.file), pace) == file.checksum else "disagrees with its checksum"
    except FileNotFoundError:
        return "is gone"
    except OSError as e:
        return f"cannot be read: {e.strerror}"


def rows_damage(layout: Layout, manifest: Manifest, number: int, sealed: bytes | None, pace: Pace) -> str:
    """What is wrong with a row file; "" where nothing is. sealed: its checksum, where it has one as a whole."""
    path = layout.row_file(*manifest.row_file(number))
    try:
        if sealed is not None:
            return "" if _checksum(path, pace) == sealed else "disagrees with its checksum"
        rows = RowMap(path, number, manifest.row_file_rows)
        pace.read(file_bytes(manifest.row_file_rows))
        return rows.damage(min(manifest.row_file_rows, manifest.count - number * manifest.row_file_rows))
    except FileNotFoundError:
        return "is gone"
    except CorruptionError as e:
        return e.detail
    except OSError as e:
        return f"cannot be read: {e.strerror}"


def left_empty(layout: Layout, catalog: Catalog, manifest: Manifest, number: int) -> str:
    """Which row of a sound row file is empty though its record is whole: that was damaged when the row was built, and
    came again. "" where none is."""
    try:
        rows = RowMap(layout.row_file(*manifest.row_file(number)), number, manifest.row_file_rows)
    except FileNotFoundError:  # it left this moment
        return ""
    with catalog.read() as view:
        for seq in rows.gone.tolist():
            value = view.txn.get(seq_key(seq), None, catalog.tables["records"])
            with contextlib.suppress(CorruptionError):
                if value is not None:
                    catalog.unseal("records", seq_key(seq), value)
                    return f"row {seq - rows.first_seq} is empty, its record is not"
    return ""


def model_damage(layout: Layout, catalog: Catalog, version: str) -> str:
    """What is wrong with the files of a model version; "" where nothing is."""
    try:
        found = embed_models.load(layout.model(version))
        with catalog.read() as view:
            known = view.card(version)
        embed_models.check_card(found, known)
    except (ModelError, CorruptionError) as e:
        return str(e)
    return ""


def letters_damage(layout: Layout, catalog: Catalog) -> int:
    """How many of the dead letters that commits count are damaged."""
    try:
        with catalog.read() as view:
            counters = view.counters()
        return dead_letters.damaged(layout.dead_letters, counters.letter_bytes)
    except (OSError, CorruptionError):  # no letters; or a damaged value, which is found as such
        return 0


# ---- the catalog --------------------------------------------------------------------------------------------------
def values(catalog: Catalog, table: str, pace: Pace) -> Iterator[tuple[int, list[bytes]]]:
    """Every value of a table against its checksum, piece by piece: how many, and the keys of those that disagree, or
    that cannot be found by their key. Raises CorruptionError where LMDB cannot go on."""
    start: bytes | None = b""
    while start is not None:
        count, size, bad = 0, 0, []
        with _whole(catalog), catalog.read() as view, view.txn.cursor(catalog.tables[table]) as cursor:
            there = cursor.set_range(start) if start else cursor.first()
            start = None
            for key, value in cursor.iternext() if there else ():
                at = bytes(key)
                if count == PIECE_VALUES or size > PIECE_BYTES:
                    start = at
                    break
                count, size = count + 1, size + len(value) + len(at)
                try:
                    catalog.unseal(table, at, value)
                except CorruptionError:
                    bad.append(at)
                    continue
                if view.txn.get(at, None, catalog.tables[table]) != value:
                    bad.append(at)
        pace.read(size)
        yield count, bad


@contextlib.contextmanager
def _whole(catalog: Catalog) -> Iterator[None]:
    try:
        yield
    except lmdb.Error as e:
        raise catalog.broken(e) from e


def copy_checked(layout: Layout, catalog: Catalog, pace: Pace) -> tuple[list[str], str]:
    """What is wrong with the catalog's structure, and why it was not looked at, if so."""
    info, page = catalog.env.info(), catalog.env.stat()["psize"]
    size = (info["last_pgno"] + 1) * page
    for left in layout.run.glob("structure.*"):  # by a process that was killed
        if not os.path.exists(f"/proc/{left.suffix[1:]}"):  # noqa: PTH110 (a process, not a file)
            left.unlink(missing_ok=True)
    free = free_bytes(layout.data_dir)
    if free < size + AUDIT_FREE_BYTES:
        return [], f"a copy of the catalog takes {size} bytes and has to leave {AUDIT_FREE_BYTES}, {free} are free"
    copy = layout.run / f"structure.{os.getpid()}"
    try:
        copy.unlink(missing_ok=True)
        catalog.env.copy(str(copy))
        pace.read(2 * size)
        return check(copy), ""
    except OSError as e:
        return [], f"no copy of the catalog could be made: {e}"
    finally:
        copy.unlink(missing_ok=True)
