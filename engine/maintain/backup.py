"""What a backup is: one generation, whole, in a directory of its own. Looking at it, the way back, its end.

Always true
  - A backup has the shape of a data directory, and backup.json, which names every file with size and checksum. It is
    there whole or not at all (engine/maintain/take.py), and never changes again.
  - It may come from anywhere. Its paths are those that are written here, or it is refused; no link is followed, nothing
    is read but plain files. What LMDB makes of a catalog that was written to do harm is not known.
  - A restore copies and never links: the data directory is written to, the backup is not.
In this order, each step durable before the next
  restore: every file, compared as it is copied and read back; rename <- the data directory is there
  delete: rename <- the backup is gone; its files
A death before a rename, and after that of a delete, leaves a directory with the name of a scratch one; the next of its
kind removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import xxhash
from msgspec import Struct

from engine.embed import models
from engine.errors import (
    BadRequestError,
    CorruptionError,
    EngineError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
)
from engine.failpoint import failpoint
from engine.files import TMP_SUFFIX, free_bytes, make_directory, sync_directory, write_new
from engine.layout import Layout
from engine.limits import FEATURES_VERSION, FORMAT_VERSION
from engine.maintain import doctor
from engine.maintain.doctor import Finding
from engine.store import gc
from engine.store.catalog import CURRENT, Catalog
from engine.store.manifest import Embedded, Manifest
from engine.store.publish import say_if_full
from engine.store.rows import RowMap
from engine.version import VERSION

FORMAT = 1  # of backup.json and what it names
DESCRIPTION = "backup.json"
DESCRIPTION_BYTES_MAX = 64 << 20
CATALOG = "catalog/catalog.0"
BLOCK_BYTES = 1 << 20
LOCK = ".backup.lock"
SCRATCH_PREFIX = ".backup-"  # of a directory that is no backup yet, or no more

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PLAIN = {f"catalog/{CURRENT}", CATALOG, "dead_letters.ndjson", "flowkin.toml"}
CURRENT_BYTES = b"catalog.0"
DERIVED = ("rows/", "indexes/")


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """checksum: xxh3_128 of its bytes, hexadecimal."""

    path: str
    size: int
    checksum: str


class Backup(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """backup.json. created_at: ISO 8601, UTC. linked_bytes: of files that earlier backups had. left_out: what was
    damaged or gone, and is built again where it is DERIVED. damaged: values of the catalog. checksum: xxh3_128 of all
    the rest."""

    format: int = FORMAT
    version: str = VERSION
    created_at: str
    format_version: int
    features_version: int
    generation: int
    events: int
    model: str
    copied_bytes: int
    linked_bytes: int
    left_out: list[str]
    damaged: list[str]
    files: list[File]
    checksum: str = ""

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def lost(self) -> list[str]:
        """What no start builds again."""
        return [path for path in self.left_out if not path.startswith(DERIVED)]


class Wanted(NamedTuple):
    """A file that a manifest names, by its path in the data directory. checksum: "" where rows may still be added;
    number, stored: of a row file, and how many of its first rows are committed."""

    path: str
    checksum: str
    number: int = -1
    stored: int = 0


def wanted(layout: Layout, manifest: Manifest) -> Iterator[Wanted]:
    """Of the version in use, the one that is kept for a rollback, and one that is being switched to; of each what
    retention has left."""
    rows, first = manifest.row_file_rows, manifest.first
    parts: list[tuple[Manifest | Embedded, set[int]]] = [(manifest, set(manifest.numbers))]
    if (kept := manifest.kept) is not None:
        parts.append((kept, set(range(first, -(-kept.count // rows)))))
    if (switch := manifest.switch) is not None:
        since = range(max(first, switch.since // rows), manifest.row_files)
        parts.append((switch.to, {*range(first, -(-switch.to.count // rows)), *since}))
    for of, numbers in parts:
        sealed = {s.number: s.checksum.hex() for s in of.sealed}
        for number in sorted(numbers):
            path = layout.row_file(*of.row_file(number)).relative_to(layout.data_dir).as_posix()
            yield Wanted(path, sealed.get(number, ""), number, min(max(of.count - number * rows, 0), rows))
        for index in of.indexes:
            path = layout.index_file(index.file).relative_to(layout.data_dir).as_posix()
            yield Wanted(path, index.checksum.hex())


def wrong_rows(root: Path, one: Wanted, rows: int) -> str:
    """Of a row file that has no checksum as a whole: what is wrong with its committed rows, "" if nothing."""
    try:
        bad = RowMap(root / one.path, one.number, rows).bad_rows(one.stored)
    except CorruptionError as e:
        return str(e)
    return f"{len(bad)} rows disagree with their checksums, the first is {bad[0]}" if bad else ""


# ---- files ----------------------------------------------------------------------------------------------------------
def open_plain(root: Path, path: str) -> int:
    """A plain file below `root`, to be read; no link on the way is followed. Raises FileNotFoundError, OSError,
    CorruptionError where it is something else."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    *folders, name = path.split("/")
    at = os.open(root, flags & ~os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        for folder in folders:
            outer, at = at, os.open(folder, flags | os.O_DIRECTORY, dir_fd=at)
            os.close(outer)
        fd = os.open(name, flags | os.O_NONBLOCK, dir_fd=at)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise CorruptionError(str(root / path), "is not a plain file, or a link leads there; it is not read") from e
        e.filename = str(root / path)
        raise
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CorruptionError(str(root / path), "is not a plain file; it is not read")
    return fd


def _blocks(fd: int, path: str, size_max: int = 1 << 62) -> Iterator[bytes]:
    """At most so many bytes of an open file. Raises CorruptionError where the disk has lost them."""
    while size_max:
        try:
            block = os.read(fd, min(size_max, BLOCK_BYTES))
        except OSError as e:
            raise CorruptionError(path, f"cannot be read: {e.strerror}") from e
        if not block:
            return
        yield block
        size_max -= len(block)


def described(fd: int, path: str) -> File:
    """What an open file is. Read from the disk, not from what memory still holds of it."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    digest, size = xxhash.xxh3_128(), 0
    for block in _blocks(fd, path):
        digest.update(block)
        size += len(block)
    return File(path, size, digest.hexdigest())


def file_of(root: Path, path: str) -> File:
    """What a file below `root` is. Raises OSError, CorruptionError."""
    fd = open_plain(root, path)
    try:
        return described(fd, path)
    finally:
        os.close(fd)


def write(root: Path, path: str, blocks: Iterable[bytes], *, mode: int) -> File:
    """A new file below `root`, durable, and read back. Raises OSError, and what `blocks` raises."""
    digest, size = xxhash.xxh3_128(), 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for block in blocks:
            digest.update(block)
            size += len(block)
            yield block

    for folder in reversed(Path(path).parents):
        (root / folder).mkdir(mode=0o700, exist_ok=True)
    write_new(root / path, counted(), mode=mode)
    written = File(path, size, digest.hexdigest())
    with suppress(CorruptionError):
        if file_of(root, path) == written:
            return written
    raise OSError(errno.EIO, "what was written does not read back; check that disk", str(root / path))


def copied(source: Path, target: Path, path: str, *, mode: int, size_max: int = 1 << 62) -> File:
    """A copy of the file `path` below another root. Raises FileNotFoundError where it is not there, OSError,
    CorruptionError."""
    fd = open_plain(source, path)
    try:
        return copied_from(fd, target, path, mode=mode, size_max=size_max)
    finally:
        os.close(fd)


def copied_from(fd: int, target: Path, path: str, *, mode: int, size_max: int = 1 << 62) -> File:
    """A copy of an open file. Raises OSError, CorruptionError."""
    return write(target, path, _blocks(fd, path, size_max), mode=mode)


def room(folder: Path, needed: int, what: str) -> None:
    """Raises NoSpaceError where `folder` has fewer free bytes than `what` needs."""
    if (free := free_bytes(folder)) < needed:
        raise NoSpaceError(
            f"{what} needs {needed} bytes in {folder}, {free} are free; nothing was written; free some space"
        )


def sync_tree(folder: Path) -> None:
    """Every directory of a tree, the innermost first."""
    for path, _, _ in os.walk(folder, topdown=False):
        sync_directory(Path(path))


@contextmanager
def scratch_directory(path: Path, what: str) -> Iterator[Path]:
    """A new directory, which goes if anything fails. what: cannot be stored where the disk is full."""
    path.mkdir(mode=0o700)
    try:
        yield path
    except BaseException as e:
        shutil.rmtree(path, ignore_errors=True)
        if isinstance(e, OSError):
            say_if_full(e, what)
        raise


def scratch_path(home: Path) -> Path:
    return home / f"{SCRATCH_PREFIX}{secrets.token_hex(8)}{TMP_SUFFIX}"


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """One process at a time changes a directory of backups; what a dead one left half made is removed. Raises
    OverloadedError, OSError."""
    fd = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OverloadedError(f"another process changes the backups in {home}; nothing was changed") from None
        for path in home.glob(f"{SCRATCH_PREFIX}*{TMP_SUFFIX}"):
            shutil.rmtree(path)
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # a child that is just being started may have a copy of it
        os.close(fd)


# ---- what a backup says of itself -----------------------------------------------------------------------------------
def encode(backup: Backup) -> bytes:
    sealed = msgspec.structs.replace(backup, checksum="")
    checksum = xxhash.xxh3_128_hexdigest(msgspec.json.encode(sealed))
    return (
        msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(sealed, checksum=checksum)), indent=1) + b"\n"
    )


class _Formats(Struct):
    format: int
    format_version: int = 0
    features_version: int = 0


def read(path: Path) -> Backup:
    """What the backup in directory `path` says it is. Raises NotFoundError where there is none, FormatError where a
    newer flowkin wrote it, CorruptionError where it is damaged or names what no backup has."""
    try:
        fd = open_plain(path, DESCRIPTION)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"{path} is no backup: it has no {DESCRIPTION}; `flowkin backup list DIR` lists some"
        ) from None
    try:
        blob = b"".join(_blocks(fd, DESCRIPTION, DESCRIPTION_BYTES_MAX))
    finally:
        os.close(fd)
    what = str(path / DESCRIPTION)
    try:
        formats = msgspec.json.decode(blob, type=_Formats)
        if formats.format > FORMAT:
            raise FormatError(
                f"backup {path} has format {formats.format}, this flowkin reads up to {FORMAT}; nothing was changed; "
                "use the flowkin that wrote it"
            )
        if formats.format_version > FORMAT_VERSION or formats.features_version > FEATURES_VERSION:
            raise FormatError(
                f"backup {path} is of a data directory of format {formats.format_version} and features "
                f"{formats.features_version}, this flowkin reads up to {FORMAT_VERSION} and {FEATURES_VERSION}; "
                "nothing was changed; use the flowkin that wrote it"
            )
        backup = msgspec.json.decode(blob, type=Backup)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise CorruptionError(what, f"is damaged: {e}; use another backup") from e
    paths = [file.path for file in backup.files]
    if foreign := [p for p in paths if not _ours(p)]:
        raise CorruptionError(what, f"names {foreign[0][:200]!r}, which no backup has; nothing of it is used")
    if encode(backup) != blob:
        raise CorruptionError(what, "disagrees with its checksum; use another backup")
    if len(set(paths)) != len(paths) or not {f"catalog/{CURRENT}", CATALOG} <= set(paths):
        raise CorruptionError(what, "names a file twice, or no catalog; use another backup")
    current = next(file for file in backup.files if file.path == f"catalog/{CURRENT}")
    if (current.size, current.checksum) != (len(CURRENT_BYTES), xxhash.xxh3_128_hexdigest(CURRENT_BYTES)):
        raise CorruptionError(what, f"names a {CURRENT} that no backup has; use another backup")
    return backup


def _ours(path: str) -> bool:
    folder, _, name = path.partition("/")
    if folder in ("rows", "indexes"):
        return gc.OURS.fullmatch(name) is not None
    if folder == "models":
        version, _, name = name.partition("/")
        return models.valid_version(version) and name in models.KNOWN
    return path in PLAIN


def found(home: Path) -> dict[str, Backup | EngineError]:
    """The backups in a directory by name, the oldest first; instead of one that cannot be read, why. Raises OSError."""
    out: dict[str, Backup | EngineError] = {}
    for path in sorted(home.iterdir()):
        if NAME.fullmatch(path.name) and not path.is_symlink() and path.is_dir():
            try:
                out[path.name] = read(path)
            except NotFoundError:
                continue
            except EngineError as e:
                out[path.name] = e
    return dict(sorted(out.items(), key=lambda one: one[1].created_at if isinstance(one[1], Backup) else ""))


# ---- verify ---------------------------------------------------------------------------------------------------------
def verify(path: Path, advance: Callable[[int], None] = lambda n: None) -> list[Finding]:
    """Every byte of the backup in directory `path`. Raises NotFoundError, FormatError."""
    try:
        backup = read(path)
    except CorruptionError as e:
        return [Finding("problem", e.what, str(e).removeprefix(f"{e.what}: "))]
    out = []
    for file in backup.files:
        try:
            wrong = "" if file_of(path, file.path) == file else "disagrees with its checksum"
        except FileNotFoundError:
            wrong = "is gone"
        except (OSError, CorruptionError) as e:
            wrong = str(e)
        if wrong:
            out.append(Finding("problem", str(path / file.path), f"{wrong}; use another backup"))
        advance(1)
    if not out:  # LMDB is shown nothing that is known to be damaged
        out += contents(path, backup)
    out += [
        Finding(
            "note",
            item,
            "could not be read when this was taken, and is not in it; an older backup may have it"
            if item in backup.lost
            else "was damaged or gone when this was taken; a start builds it again",
        )
        for item in backup.left_out
    ]
    known = {*(file.path for file in backup.files), DESCRIPTION}
    there = {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()}
    out += [
        Finding("note", str(path / p), "is no file of this backup; a restore leaves it") for p in sorted(there - known)
    ]
    if not any(f.severity == "problem" for f in out):
        detail = f"generation {backup.generation}, {backup.events} events; all {len(backup.files)} files are whole"
        out.append(Finding("ok", str(path), detail))
    return out


def of_copy(root: Path) -> tuple[Manifest, int]:
    """The manifest of a copied catalog, and how many bytes of dead letters belong to it. Raises EngineError."""
    catalog = Catalog(root / "catalog", write=False, map_size=doctor.MAP_BYTES, lock=False)
    try:
        with catalog.read() as view:
            manifest, counters = view.manifest(), view.counters()
    finally:
        catalog.close()
    if manifest is None:
        raise NotReadyError("the data directory is not born yet; nothing was written; start the engine once")
    return manifest, counters.letter_bytes


def contents(path: Path, backup: Backup) -> Iterator[Finding]:
    """What files that agree with their checksums say of each other, and every value of the catalog."""
    root = Layout(path)
    try:
        manifest, _ = of_copy(path)
    except EngineError as e:
        yield Finding("problem", str(root.catalog), str(e))
        return
    if (manifest.generation, manifest.events, manifest.model) != (backup.generation, backup.events, backup.model):
        yield Finding("problem", str(path), f"{DESCRIPTION} tells another generation than the catalog")
    files = {file.path: file for file in backup.files}
    for one in wanted(root, manifest):
        file = files.get(one.path)
        if file is None:
            if one.path not in backup.left_out:
                yield Finding("problem", one.path, f"{DESCRIPTION} does not name it")
        elif one.checksum and file.checksum != one.checksum:
            yield Finding("problem", one.path, "is not the file that the manifest names")
        elif not one.checksum and (wrong := wrong_rows(path, one, manifest.row_file_rows)):
            yield Finding("problem", one.path, wrong)
    if f"models/{manifest.model}/{models.CARD}" not in files:
        yield Finding("problem", f"model {manifest.model}", "is not in it")
    catalog = Catalog(root.catalog, write=False, map_size=doctor.MAP_BYTES, lock=False)
    try:
        yield from doctor.values(catalog)
    finally:
        catalog.close()


# ---- restore, delete ------------------------------------------------------------------------------------------------
def restore(path: Path, data_dir: Path, advance: Callable[[int], None] = lambda n: None) -> Backup:
    """Copy the backup in directory `path` to `data_dir`, which is absent or empty. Raises NotFoundError, FormatError,
    CorruptionError, BadRequestError, NoSpaceError, OSError: then nothing is there."""
    backup = read(path)
    data_dir = data_dir.absolute()
    if data_dir.resolve().is_relative_to(path.resolve()):
        raise BadRequestError(f"{data_dir} lies in the backup; nothing was changed; name another directory")
    if data_dir.is_mount():
        raise BadRequestError(f"{data_dir} is a mount point; nothing was changed; name a directory below it")
    if data_dir.is_symlink() or (data_dir.exists() and (not data_dir.is_dir() or any(data_dir.iterdir()))):
        raise BadRequestError(
            f"{data_dir} is there and is not an empty directory; nothing was changed; name another, or move it away"
        )
    make_directory(data_dir.parent)
    beside = f".{data_dir.name}.restore."
    for left in data_dir.parent.glob(f"{beside}*{TMP_SUFFIX}"):
        shutil.rmtree(left)
    room(data_dir.parent, backup.bytes, "the restore")
    with scratch_directory(data_dir.parent / f"{beside}{secrets.token_hex(4)}{TMP_SUFFIX}", "restore") as scratch:
        Layout(scratch).make()
        for file in backup.files:
            mode = 0o400 if file.path.startswith("indexes/") else 0o600
            try:
                wrong = "" if copied(path, scratch, file.path, mode=mode) == file else "disagrees with its checksum"
            except FileNotFoundError:
                wrong = "is gone"
            if wrong:
                raise CorruptionError(str(path / file.path), f"{wrong}; nothing was restored; use another backup")
            advance(1)
            failpoint("restore.file")
        sync_tree(scratch)
        scratch.rename(data_dir)
    failpoint("restore.renamed")
    sync_directory(data_dir.parent)
    return backup


def delete(path: Path) -> None:
    """Remove the backup in directory `path`, whole or damaged. Raises NotFoundError, OverloadedError, OSError."""
    path = path.absolute()
    if path.is_symlink() or not os.path.lexists(path / DESCRIPTION):
        raise NotFoundError(f"{path} is no backup: it has no {DESCRIPTION}; nothing was removed")
    with alone(path.parent):
        remove(path)


def prune(home: Path, keep: int) -> list[str]:
    """Remove all but the `keep` newest backups, of those that can be read; where all of them hold damaged records, the
    newest that holds none stays, too. The names of those removed. Raises OverloadedError, OSError."""
    with alone(home):
        whole = [(name, b) for name, b in found(home).items() if isinstance(b, Backup)]
        old, kept = whole[:-keep], whole[-keep:]
        if not any(not b.damaged for _, b in kept) and (sound := [name for name, b in old if not b.damaged]):
            old = [(name, b) for name, b in old if name != sound[-1]]
        for name, _ in old:
            remove(home / name)
    return [name for name, _ in old]


def remove(path: Path) -> None:
    """The caller has the directory around it alone."""
    doomed = scratch_path(path.parent)
    path.rename(doomed)
    sync_directory(path.parent)
    failpoint("backup.doomed")
    shutil.rmtree(doomed)
