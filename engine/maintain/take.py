"""Take a backup (engine/maintain/backup.py says what that is), beside a running engine or without one.

Always true
  - Whoever writes waits for nothing. Manifest and catalog are of one read transaction; the files that the manifest
    names are open before the catalog is copied, so that what is merged away or built again meanwhile is still there.
  - A backup shares no file with the data directory: a bad write or a bad sector hits every name that a file has, and a
    link would take the backup along. A purge of the engine does not reach it (engine/maintain/purge_backups.py does).
    What an earlier backup beside it has of full row files and indexes is linked from there, after its bytes were
    compared with the checksum. All else is copied.
  - What is damaged is left out and named: a start builds it again, if it is derived; a damaged model that is not in
    use, dead letters or settings are then lost to this backup. A damaged record is kept and named.
In this order, each step durable before the next
  1. the files are opened; the catalog; then row files, indexes, models, dead letters, settings: each is read back
  2. every value of the copied catalog is looked at; backup.json
  3. rename <- the backup is there
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.embed import models
from engine.errors import BadRequestError, CorruptionError, ModelError, NotReadyError
from engine.failpoint import failpoint
from engine.files import make_directory, sync_directory, write_new
from engine.layout import Layout
from engine.maintain.backup import (
    CATALOG,
    CURRENT_BYTES,
    DESCRIPTION,
    NAME,
    Backup,
    File,
    Wanted,
    alone,
    contents,
    copied_from,
    described,
    encode,
    found,
    open_plain,
    room,
    scratch_directory,
    scratch_path,
    sync_tree,
    wanted,
    write,
    wrong_rows,
)
from engine.store.catalog import CURRENT, Catalog
from engine.store.manifest import Manifest

TRIES_MAX = 100  # how often files may be gone that the newest manifest just named


Earlier = Mapping[tuple[str, str], tuple[Path, File]]
"""Files of the backups that are there by path and checksum, and the directory of the backup."""


class Made(NamedTuple):
    path: Path
    backup: Backup
    linked: int  # files


class _Taking:
    """The files of a backup that is being made in `scratch`."""

    def __init__(self, layout: Layout, scratch: Path, earlier: Earlier, advance: Callable[[int], None]) -> None:
        self.layout, self.scratch, self.earlier, self.advance = layout, scratch, earlier, advance
        self.files: dict[str, File] = {}
        self.linked: set[str] = set()

    def write(self, path: str, blocks: Iterable[bytes]) -> None:
        self.files[path] = write(self.scratch, path, blocks, mode=0o400)

    def take(self, one: Wanted, fd: int, rows: int) -> None:
        """fd: the file of the data directory. Raises CorruptionError where it is not what it should be, OSError."""
        if not self._link(one):
            self.files[one.path] = copied_from(fd, self.scratch, one.path, mode=0o400)
        try:
            if one.checksum and self.files[one.path].checksum != one.checksum:
                raise CorruptionError(one.path, "disagrees with its checksum")
            if not one.checksum and (wrong := wrong_rows(self.scratch, one, rows)):
                raise CorruptionError(one.path, wrong)
        except CorruptionError:
            del self.files[one.path]
            self.linked.discard(one.path)
            (self.scratch / one.path).unlink()
            raise
        self.advance(1)
        failpoint("backup.file")

    def _link(self, one: Wanted) -> bool:
        """From an earlier backup, if its file is what it says, ours, and this disk can."""
        if (one.path, one.checksum) not in self.earlier:
            return False
        root, file = self.earlier[one.path, one.checksum]
        target = self.scratch / one.path
        with suppress(OSError, CorruptionError):
            fd = open_plain(root, one.path)
            try:
                if os.fstat(fd).st_uid != os.geteuid() or described(fd, one.path) != file:
                    return False
                target.parent.mkdir(mode=0o700, exist_ok=True)
                os.link(root / one.path, target, follow_symlinks=False)
                if os.path.samestat(os.fstat(fd), target.lstat()):  # what was just read
                    self.files[one.path] = file
                    self.linked.add(one.path)
                    return True
                target.unlink()
            finally:
                os.close(fd)
        return False

    def needed(self, of: Mapping[Wanted, int]) -> int:
        """Bytes of these open files that are to be copied."""
        return sum(os.fstat(fd).st_size for one, fd in of.items() if (one.path, one.checksum) not in self.earlier)


def create(
    layout: Layout, home: Path, name: str = "", *, map_size: int, advance: Callable[[int], None] = lambda n: None
) -> Made:
    """A backup in directory `home`, named by time and generation if not by `name`. map_size: of the catalog, bytes;
    advance: called with the number of files that are done. Raises BadRequestError, NoSpaceError, OverloadedError,
    CorruptionError, ModelError, OSError: then nothing was written."""
    if name and not NAME.fullmatch(name):
        raise BadRequestError(f"backup name {name[:200]!r}: letters, digits, '.', '_', '-', at most 128, no '.' first")
    if home.resolve().is_relative_to(layout.data_dir.resolve()):
        raise BadRequestError(f"{home} lies in the data directory and would go with it; name another directory")
    catalog = Catalog(layout.catalog, write=False, map_size=map_size)
    try:
        make_directory(home)
        with alone(home):
            return taken(layout, catalog, home, name, datetime.now(UTC), advance)
    finally:
        catalog.close()


def taken(
    layout: Layout, catalog: Catalog, home: Path, name: str, at: datetime, advance: Callable[[int], None]
) -> Made:
    """As create; the caller has `home` alone. at: when, as the backup says it."""
    if name:
        _refuse_taken(home / name)
    with scratch_directory(scratch_path(home), "backup") as scratch:
        taking = _Taking(layout, scratch, _earlier(home), advance)
        backup = _take(taking, catalog, at)
        write_new(scratch / DESCRIPTION, [encode(backup)], mode=0o400)
        sync_tree(scratch)
        failpoint("backup.described")
        path = home / (name or f"{at:%Y-%m-%dT%H-%M-%S}.{at.microsecond // 1000:03d}Z-g{backup.generation}")
        _refuse_taken(path)
        scratch.rename(path)
    failpoint("backup.renamed")
    sync_directory(home)
    return Made(path, backup, len(taking.linked))


def _refuse_taken(path: Path) -> None:
    if os.path.lexists(path):
        raise BadRequestError(f"{path} is there already; nothing was written; choose another --name")


def _earlier(home: Path) -> Earlier:
    """Of equal files the newest."""
    of_ours = ((name, b) for name, b in found(home).items() if (home / name).stat().st_uid == os.geteuid())
    return {(f.path, f.checksum): (home / name, f) for name, b in of_ours if isinstance(b, Backup) for f in b.files}


def _take(taking: _Taking, catalog: Catalog, at: datetime) -> Backup:
    """All files but backup.json, and what it is to say."""
    layout, scratch = taking.layout, taking.scratch
    taking.write(f"catalog/{CURRENT}", [CURRENT_BYTES])
    manifest, letter_bytes, left_out = _take_store(taking, catalog)
    for version in {*models.versions(layout.models), manifest.model}:
        try:
            blobs = models.read(layout.model(version))
            models.card_of(blobs)
        except ModelError:
            if version == manifest.model:
                raise
            left_out.append(f"models/{version}")
            continue
        for name, blob in blobs.items():
            taking.write(f"models/{version}/{name}", [blob])
    letters_max = letter_bytes if letter_bytes >= 0 else 1 << 62  # from a flowkin that did not count them
    for path, size_max in (("dead_letters.ndjson", letters_max), ("flowkin.toml", 1 << 62)):
        try:
            fd = open_plain(*_place(layout, path))
        except FileNotFoundError:
            continue
        except (CorruptionError, PermissionError):
            left_out.append(path)
            continue
        try:
            taking.files[path] = copied_from(fd, scratch, path, mode=0o400, size_max=size_max)
        except CorruptionError:
            left_out.append(path)
        finally:
            os.close(fd)
    files = sorted(taking.files.values(), key=lambda file: file.path)
    linked = sum(file.size for file in files if file.path in taking.linked)
    backup = Backup(
        created_at=at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        format_version=manifest.format_version, features_version=manifest.features_version,
        generation=manifest.generation, events=manifest.events, model=manifest.model, files=files,
        copied_bytes=sum(file.size for file in files) - linked, linked_bytes=linked, left_out=sorted(left_out),
        damaged=[],
    )  # fmt: skip
    wrong = [f"{f.object}: {f.detail}" for f in contents(scratch, backup) if f.severity == "problem"]
    return msgspec.structs.replace(backup, damaged=wrong)


def _place(layout: Layout, path: str) -> tuple[Path, str]:
    """Where a file is read from. Settings are read through a link, as the engine does, if root or we made it."""
    link = layout.data_dir / path
    if path == "flowkin.toml" and link.is_symlink() and link.lstat().st_uid in (0, os.geteuid()):
        with suppress(RuntimeError):  # a link to itself
            target = link.resolve()
            return target.parent, target.name
    return layout.data_dir, path


def _take_store(taking: _Taking, catalog: Catalog) -> tuple[Manifest, int, list[str]]:
    """The catalog and the files that its manifest names: the manifest, how many bytes of dead letters belong to it, and
    what is left out."""
    layout, missed = taking.layout, set[Wanted]()
    for _ in range(TRIES_MAX):
        catalog.follow()  # the newest manifest is in the one that CURRENT names
        with ExitStack() as held:
            with catalog.read() as view:
                manifest, letter_bytes = view.manifest(), view.counters().letter_bytes
                if manifest is None:
                    raise NotReadyError(
                        f"{layout.data_dir} is not born yet; nothing was written; start the engine once"
                    )
                names = list(wanted(layout, manifest))
                opened = _opened(layout, names, held)
                if lost := set(names) - opened.keys() - missed:
                    missed |= lost  # removed since the manifest was read, or not there at all: the newest one knows
                    continue
                room(taking.scratch, view.used_bytes() + taking.needed(opened), "the backup")
                taking.write(CATALOG, catalog.copied(view))
            failpoint("backup.catalog")
            left_out = [one.path for one in names if one not in opened]
            for one, fd in opened.items():
                try:
                    taking.take(one, fd, manifest.row_file_rows)
                except CorruptionError:
                    left_out.append(one.path)
            return manifest, letter_bytes, left_out
    raise NotReadyError(
        f"the files of {layout.data_dir} change faster than they can be opened; nothing was written; try again"
    )


def _opened(layout: Layout, names: Iterable[Wanted], held: ExitStack) -> dict[Wanted, int]:
    """The files that are there, open as long as `held`."""
    out = {}
    for one in names:
        with suppress(FileNotFoundError, CorruptionError):
            out[one] = open_plain(layout.data_dir, one.path)
            held.callback(os.close, out[one])
    return out
