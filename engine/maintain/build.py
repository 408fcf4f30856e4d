"""The child: builds indexes, row files again or for another model, scrubs, copies the catalog, measures quality.
It publishes nothing.

Always true
  - One job, given as one argument, answered with one JSON line on stdout; the ingest worker commits what it names.
  - It dies with its parent. Files that no manifest names are removed at the next start (engine/store/gc.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from engine.layout import Layout
from engine.maintain.gauges import Measured
from engine.maintain.scrub import Report
from engine.store.room import is_full


class Job(Struct, tag_field="job"):
    data_dir: str
    parent_pid: int
    map_size: int


class IndexJob(Job, tag="index"):
    """Index the rows of full row files, one behind the other, in every space: one index over all of them. part: over
    those seqs [lo, hi) only, of one row file that need not be full."""

    row_files: list[tuple[int, int, int]]  # epoch, number, revision
    rows: int
    part: tuple[int, int] | None = None
    mark: str = ""  # the end of its files' names, by which they can be told from those of others


class RowsJob(Job, tag="rows"):
    """Build row file `row_file` from the records for model `model`; `count` of its rows are stored."""

    row_file: tuple[int, int, int]
    rows: int
    count: int
    model: str
    internal: list[str]
    key_file: str


class FillJob(Job, tag="fill"):
    """Write rows [first, count) of row file `row_file`, of a version that is not in use, from the records. Where it is
    full then, index it."""

    row_file: tuple[int, int, int]
    rows: int
    first: int
    count: int
    model: str
    internal: list[str]
    key_file: str


class ScrubJob(Job, tag="scrub"):
    """Compare everything with its checksums, as engine/maintain/scrub.py says."""

    bytes_per_s: int
    files_only: bool = False  # row files and indexes


class CopyJob(Job, tag="copy"):
    """Copy the catalog as it is now to `path`, without its free pages; durable."""

    path: str


class QualityJob(Job, tag="quality"):
    """Measure the newest generation, as engine/maintain/quality.py says."""

    window: int
    sample: int
    seed: int


class Built(Struct):
    """indexes: arrays as in manifest.IndexFile. bad_rows: row files that no index can be built of."""

    indexes: list[tuple[str, int, int, str, int, bytes, str, int]] = []
    sealed: list[tuple[int, bytes]] = []
    bad_rows: list[tuple[int, int, int]] = []
    scrubbed: Report | None = None
    measured: Measured | None = None
    seconds: float = 0.0
    cpu_s: float = 0.0


def build_indexes(
    layout: Layout, row_files: Sequence[tuple[int, int, int]], rows: int, part: tuple[int, int] | None = None,
    mark: str = "",
) -> Built:
    import secrets

    from engine.embed.base import SPACES
    from engine.store import index
    from engine.store.rows import RowMap

    files = []
    for of in row_files:
        with contextlib.suppress(FileNotFoundError):
            files.append(RowMap(layout.row_file(*of), of[1], rows))
    if lost := [of for of in row_files if of[1] not in {file.number for file in files}]:
        return Built(bad_rows=lost)  # removed or purged since, which its manifest knows; or else it is built again
    (epoch, first, _), begin = row_files[0], files[0].first_seq
    assert [file.number for file in files] == list(range(first, first + len(files)))
    lo, hi = part or (begin, begin + len(files) * rows)
    if bad := [of for of, file in zip(row_files, files, strict=True) if file.bad_rows(min(rows, hi - file.first_seq))]:
        return Built(bad_rows=bad)
    built = Built(sealed=[] if part else [(file.number, file.checksum()) for file in files])
    mark = mark or secrets.token_hex(4)
    for space in SPACES:
        whole = [file.vectors[space] for file in files]
        made = index.build([whole[0][lo - begin : hi - begin]] if part else whole)
        name = f"{space}-{epoch:04d}-{lo:012d}-{hi:012d}-{mark}"
        size, checksum = index.write(made, layout.index_file(name))
        built.indexes.append((space, lo, hi, name, size, checksum, made.kind, made.nprobe))
    return built


def build_rows(layout: Layout, job: RowsJob) -> Built:
    from engine.store.catalog import Catalog
    from engine.store.cipher import cipher_of
    from engine.store.memo import load_models
    from engine.store.rebuild import rebuild
    from engine.store.rows import RowMap

    cipher = cipher_of(job.key_file, layout.data_dir)
    catalog = Catalog(layout.catalog, write=False, map_size=job.map_size, cipher=cipher)
    try:
        model = load_models(layout.model(job.model), catalog, job.internal)
        path, number = layout.row_file(*job.row_file), job.row_file[1]
        rebuild(catalog, model, path, number, job.rows, job.count)
        return Built(sealed=[(number, RowMap(path, number, job.rows).checksum())] if job.count == job.rows else [])
    finally:
        catalog.close()


def fill_rows(layout: Layout, job: FillJob) -> Built:
    from engine.store.catalog import Catalog
    from engine.store.cipher import cipher_of
    from engine.store.memo import load_models
    from engine.store.rebuild import fill
    from engine.store.rows import RowWriter

    cipher = cipher_of(job.key_file, layout.data_dir)
    catalog = Catalog(layout.catalog, write=False, map_size=job.map_size, cipher=cipher)
    try:
        model = load_models(layout.model(job.model), catalog, job.internal)
        writer = RowWriter(layout.row_file(*job.row_file), job.row_file[1], job.rows)
        try:
            fill(catalog, model, writer, job.first, job.count)
        finally:
            writer.close()
    finally:
        catalog.close()
    return build_indexes(layout, [job.row_file], job.rows) if job.count == job.rows else Built()


def scrub_all(layout: Layout, job: ScrubJob) -> Built:
    from engine.maintain import scrub
    from engine.store.catalog import Catalog

    catalog = Catalog(layout.catalog, write=False, map_size=job.map_size)
    try:
        return Built(scrubbed=scrub.run(layout, catalog, scrub.Pace(job.bytes_per_s), files_only=job.files_only))
    finally:
        catalog.close()


def copy(layout: Layout, job: CopyJob) -> Built:
    from engine.files import write_new
    from engine.store.catalog import Catalog

    catalog = Catalog(layout.catalog, write=False, map_size=job.map_size)
    try:
        with catalog.read() as view:
            write_new(Path(job.path), catalog.copied(view))
    finally:
        catalog.close()
    return Built()


def measure(layout: Layout, job: QualityJob) -> Built:
    from engine.maintain import quality
    from engine.store.catalog import Catalog

    catalog = Catalog(layout.catalog, write=False, map_size=job.map_size)
    try:
        return Built(measured=quality.measure(layout, catalog, window=job.window, sample=job.sample, seed=job.seed))
    finally:
        catalog.close()


def main() -> int:
    from engine.run.process import die_with_parent

    job = msgspec.json.decode(sys.argv[1], type=IndexJob | RowsJob | FillJob | ScrubJob | CopyJob | QualityJob)
    die_with_parent(job.parent_pid)
    os.umask(0o077)
    layout = Layout(Path(job.data_dir))
    match job:
        case IndexJob():
            built = build_indexes(layout, job.row_files, job.rows, job.part, job.mark)
        case RowsJob():
            built = build_rows(layout, job)
        case FillJob():
            built = fill_rows(layout, job)
        case ScrubJob():
            built = scrub_all(layout, job)
        case CopyJob():
            built = copy(layout, job)
        case QualityJob():
            built = measure(layout, job)
    built.cpu_s = time.process_time()
    sys.stdout.buffer.write(msgspec.json.encode(built) + b"\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as e:
        if not is_full(e):
            raise
        sys.exit(f"nothing was built: {e}")
