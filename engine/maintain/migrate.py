"""Migration: a data directory, whose engine is stopped, from what it is to what the settings ask for.

Always true
  - The catalog and the dead letters are written anew beside what is there, by the steps of STEPS that are due. Row
    files, indexes and models hold nothing that a step changes, and are not touched; ids, generations and answers stay.
  - Until CURRENT names the new catalog nothing has changed, but for the directory migrating/, which is the copy so far.
    From then on the directory is the new one, whole; what the old one leaves is removed by whoever comes next: this
    command asked again, or a start.
  - The copy goes in commits of STEP_VALUES values. Tables and keys are copied in their order, so it says itself how far
    it is: one that was killed goes on behind its last key. `origin` in it says what it is a copy of, the last
    transaction of the catalog included, and what it is to become; one that is of anything else is thrown away.
In this order, each step durable before the next; before 5 every prefix opens as the old directory, from 5 as the new
  1. migrating/: an empty catalog, then `origin`
  2. the tables, commit by commit; the dead letters; in the last commit the counters and the manifest
  3. the catalog is read back from the disk: structure, counts, and every value against what it was made of
  4. it is moved to catalog/catalog.N, the letters to migrated_letters.N
  5. CURRENT names catalog.N  <- the migration
  6. the letters of catalog.N take the place of the others; the old catalog and migrating/ are removed, for good: both
     directories are synced, also where all was done before
A disk that is full or fails before 5: migrating/ is removed, nothing has changed. What is unlinked may be found on the
disk's blocks until they are written again, and on an SSD beyond that.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from engine.config import Config
from engine.errors import (
    BadRequestError,
    CorruptionError,
    EngineError,
    KeyFileError,
    NoSpaceError,
    NotReadyError,
)
from engine.failpoint import failpoint
from engine.files import as_owner, free_bytes, make_directory, sync_directory, write_new
from engine.layout import Layout
from engine.limits import FORMAT_BORN, FORMAT_ENCRYPTED, FORMAT_REMOVED
from engine.store import dead_letters, gc, lock
from engine.store.catalog import CURRENT, ENCRYPTED, TABLES, Catalog, named
from engine.store.cipher import SEALED_BYTES, Cipher, cipher_of, fitting
from engine.store.manifest import Manifest
from engine.store.recover import map_size
from engine.store.room import is_full
from engine.store.structure import check
from engine.version import VERSION

STEP_VALUES = 4_096  # in one commit of the copy
STEP_BYTES = 8 << 20
ROOM_SHARE, ROOM_BYTES = 1.1, 1 << 20  # of what the values take, and more: pages that are not full or just replaced
PLAIN, SEALED = "plain", "encrypted"
MANIFEST, COUNTERS = b"manifest", b"counters"
_NAMED_ANEW = frozenset((("meta", MANIFEST), ("meta", COUNTERS)))

Value = Callable[[str, bytes, bytes], bytes]


# ---- the steps ----------------------------------------------------------------------------------------------------
class Step(NamedTuple):
    """One step from a format to another. due: of the manifest as the steps before leave it, and of the id of the key
    that is wanted ("": none). manifest: what it says then. value: (table, key, payload) -> payload of every value; None
    where none changes, but for who can read it."""

    what: str
    due: Callable[[Manifest, str], bool]
    manifest: Callable[[Manifest, str], Manifest]
    value: Value | None = None


def _decrypted(manifest: Manifest, key_id: str) -> Manifest:
    removed = manifest.first or manifest.purges or manifest.purged
    return msgspec.structs.replace(
        manifest, format_version=FORMAT_REMOVED if removed else FORMAT_BORN, key_id=""
    )  # fmt: skip


def _encrypted(manifest: Manifest, key_id: str) -> Manifest:
    return msgspec.structs.replace(manifest, format_version=FORMAT_ENCRYPTED, key_id=key_id)


# Of formats 1 and 2 either is read and written as it is: 2 comes of itself with the first removal.
STEPS = (
    Step("format 3 to 1 or 2: records and dead letters are decrypted", lambda m, key: bool(m.key_id) and not key,
         _decrypted),
    Step("format 1 or 2 to 3: records and dead letters are encrypted", lambda m, key: not m.key_id and bool(key),
         _encrypted),
    Step("format 3 to 3: records and dead letters are encrypted with another key",
         lambda m, key: bool(m.key_id) and bool(key) and m.key_id != key, _encrypted),
)  # fmt: skip


class Plan(NamedTuple):
    """before, after: the manifests. steps: those that are due, in their order; none where nothing is to be done."""

    before: Manifest
    after: Manifest
    steps: tuple[Step, ...]

    def value(self, table: str, key: bytes, payload: bytes) -> bytes:
        for step in self.steps:
            if step.value is not None:
                payload = step.value(table, key, payload)
        return payload


def planned(manifest: Manifest, key_id: str) -> Plan:
    """From this manifest to that key."""
    after, steps = manifest, list[Step]()
    for step in STEPS:
        if step.due(after, key_id):
            after = step.manifest(after, key_id)
            steps.append(step)
    return Plan(manifest, after, tuple(steps))


class Origin(Struct, frozen=True, forbid_unknown_fields=True):
    """What a copy is made of, and what it is to become. transaction: the last of that catalog."""

    catalog: str
    inode: int
    transaction: int
    generation: int
    key_id: str
    to_format: int
    to_key_id: str
    steps: tuple[str, ...]
    version: str = VERSION


# ---- the command --------------------------------------------------------------------------------------------------
def run(
    layout: Layout, config: Config, *, to: str = "", from_key_file: str = "", dry_run: bool = False,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:  # fmt: skip
    """Migrate, or say what would be done: formats and key ids before and after, steps in words, how many values, bytes
    needed and free, files to be written; then what was. to: PLAIN, SEALED or "", what store.key_file says; decrypting
    is done only where it is asked for by name. from_key_file: of the key that it is encrypted with, where the setting
    names the new one. advance: called with the number of values that are copied or compared. Raises LockedError,
    FormatError, KeyFileError, NoSpaceError, BadRequestError, NotReadyError, CorruptionError, EngineError: nothing was
    changed unless the message says so."""
    as_owner(layout.data_dir, "migrate")
    held = _alone(layout, dry_run)
    try:
        if not dry_run and (layout.catalog / CURRENT).exists():
            _settle(layout)
        source = Catalog(layout.catalog, write=False, map_size=map_size(config), lock=False)
        try:
            with source.read() as view:
                manifest = view.manifest()
            if manifest is None:
                raise NotReadyError(f"{layout.data_dir} is not born yet; nothing was changed; start the engine once")
            given, wanted = _ciphers(layout, manifest, config.store.key_file, to, from_key_file)
            source.cipher = fitting(given, manifest.key_id, str(layout.data_dir))
            plan = planned(manifest, "" if wanted is None else wanted.key_id)
            return _Migration(layout, config, source, plan, wanted, advance).run(dry_run=dry_run)
        finally:
            source.close()
    finally:
        if held >= 0:
            os.close(held)


def _alone(layout: Layout, dry_run: bool) -> int:
    """The lock of a directory without an engine; -1 where none ever ran and none is to be kept away. Raises
    LockedError."""
    if not dry_run:
        return lock.hold(layout.writer_lock, wait_s=0.0)
    try:
        return lock.hold(layout.writer_lock, wait_s=0.0, unnamed=True)
    except FileNotFoundError:
        return -1


def _ciphers(
    layout: Layout, manifest: Manifest, key_file: str, to: str, from_key_file: str
) -> tuple[Cipher | None, Cipher | None]:
    """Of the key that the directory is encrypted with, and of the one that it is to be. Raises KeyFileError,
    BadRequestError."""
    ours = cipher_of(key_file, layout.data_dir)
    if from_key_file and not manifest.key_id:
        if to == PLAIN:
            return None, None  # decrypted already, and asked again
        raise BadRequestError(f"{layout.data_dir} is not encrypted; nothing was changed; leave out --from-key-file")
    given = cipher_of(from_key_file, layout.data_dir) if from_key_file else ours if manifest.key_id else None
    if to == SEALED and ours is None:
        raise BadRequestError("store.key_file names no key to encrypt with; nothing was changed; set it")
    if to == PLAIN:
        wanted = None
    elif ours is None and manifest.key_id:
        raise KeyFileError(
            f"{layout.data_dir} is encrypted with key {manifest.key_id} and store.key_file is not set; nothing was "
            "changed; set it, or decrypt by name: --to plain --from-key-file FILE"
        )
    else:
        wanted = ours
    if from_key_file and given is not None and given.key_id != manifest.key_id:
        if wanted is not None and wanted.key_id == manifest.key_id:
            return wanted, wanted  # done already, and asked again
        raise KeyFileError(
            f"{layout.data_dir} is encrypted with key {manifest.key_id}, {from_key_file} holds key {given.key_id}; "
            "nothing was changed; name the file that holds the first"
        )
    if given is not None and wanted is not None and given is ours and ours.key_id != manifest.key_id:
        raise KeyFileError(
            f"{layout.data_dir} is encrypted with key {manifest.key_id}, store.key_file holds key {ours.key_id}; "
            "nothing was changed; to change from the one to the other name the old one, too: --from-key-file FILE"
        )
    return given, wanted


def _settle(layout: Layout) -> None:
    """What is left of a migration on either side of CURRENT. Raises BootError, OSError."""
    gc.settle_letters(layout)
    gc.catalogs(layout)


def _number(name: str) -> int:
    return int(name.removeprefix("catalog."))


class _Migration:
    def __init__(
        self, layout: Layout, config: Config, source: Catalog, plan: Plan, cipher: Cipher | None,
        advance: Callable[[int], None],
    ) -> None:  # fmt: skip
        """cipher: of the key that it is to be encrypted with."""
        self.layout, self.config, self.source, self.plan = layout, config, source, plan
        self.cipher, self.advance = cipher, advance
        self.folder = layout.migrating
        self.letters_left_out = 0
        before, after = plan.before, plan.after
        self.origin = Origin(
            source.path.name, source.path.stat().st_ino, int(source.env.info()["last_txnid"]), before.generation,
            before.key_id, after.format_version, after.key_id, tuple(step.what for step in plan.steps),
        )  # fmt: skip

    def run(self, *, dry_run: bool) -> dict[str, Any]:
        start, begun = time.monotonic(), self._begun()
        facts = self._facts(begun) | {"dry_run": dry_run}
        if dry_run:
            return facts
        if not self.plan.steps:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self._gone_for_good()
            return facts
        try:
            self._room(facts["bytes_needed"], facts["bytes_free"])
            new = self._made(begun)
        except (EngineError, OSError) as e:
            self._undo()
            raise _unchanged(e) from e
        self._switch_to(new)
        size = new.stat().st_blocks * 512
        seconds = round(time.monotonic() - start, 3)
        return facts | {"bytes_written": size, "dead_letters_left_out": self.letters_left_out, "seconds": seconds}

    def _facts(self, begun: bool) -> dict[str, Any]:
        before, after = self.plan.before, self.plan.after
        with self.source.read() as view:
            values = sum(int(view.txn.stat(db)["entries"]) for db in self.source.tables.values())
            sealed = sum(int(view.txn.stat(self.source.tables[table])["entries"]) for table in ENCRYPTED)
            used, letters = view.used_bytes(), self._committed(view.counters().letter_bytes)
        more = (bool(after.key_id) - bool(before.key_id)) * SEALED_BYTES * sealed
        number = _number(self.source.path.name) + 1
        catalog = {"path": f"catalog/catalog.{number}", "bytes": round((used + max(0, more)) * ROOM_SHARE) + ROOM_BYTES}
        file = {"path": self.layout.dead_letters.name, "bytes": 2 * letters}  # sealed and as base64, or less
        files = [catalog, *([file] if letters else [])] if self.plan.steps else []
        return {
            "from_format": before.format_version, "to_format": after.format_version, "from_key_id": before.key_id,
            "to_key_id": after.key_id, "steps": [step.what for step in self.plan.steps], "values": values,
            "files": files, "bytes_needed": sum(f["bytes"] for f in files), "resumed": begun,
            "bytes_free": free_bytes(self.layout.data_dir) + (_size(self.folder / "catalog.0") if begun else 0),
        }  # fmt: skip

    def _room(self, needed: int, free: int) -> None:
        if free < needed:
            raise NoSpaceError(f"the copy needs {needed} bytes in {self.layout.data_dir}, {free} are free")

    # ---- before CURRENT ---------------------------------------------------------------------------------------------
    def _begun(self) -> bool:
        """Is there a copy of what is there now that became nothing else?"""
        try:
            origin = msgspec.json.decode((self.folder / "origin").read_bytes(), type=Origin)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False
        return origin == self.origin and (self.folder / "catalog.0").exists()

    def _made(self, begun: bool) -> Path:
        """The new catalog in its place, and its dead letters in theirs; what CURRENT names is the old one still."""
        if not begun:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            make_directory(self.folder)
        target = self._target()
        try:
            if not begun:
                write_new(self.folder / "origin", [msgspec.json.encode(self.origin)])
                failpoint("migrate.begun")
            self._copy(target)
            self._finish(target)
        finally:
            target.close()
        self._verify()
        number = _number(self.source.path.name) + 1
        new = self.layout.catalog / f"catalog.{number}"
        if (self.folder / "letters").exists():
            (self.folder / "letters").rename(self.layout.letters_of(number))
            sync_directory(self.layout.data_dir)
        (self.folder / "catalog.0").rename(new)
        sync_directory(self.layout.catalog)
        failpoint("migrate.placed")
        return new

    def _target(self) -> Catalog:
        return Catalog(self.folder, write=True, map_size=map_size(self.config), cipher=self.cipher)

    def _copy(self, target: Catalog) -> None:
        """All that is not yet there, but the manifest."""
        at, after = _last(target)
        for table in TABLES[at:]:
            while values := self._some(table, after):
                kept = [(k, self.plan.value(table, k, v)) for k, v in values if (table, k) not in _NAMED_ANEW]
                with target.write() as batch:
                    batch.put_new(table, kept, append=True)
                after = values[-1][0]
                self.advance(len(values))
                failpoint("migrate.step")
            after = b""

    def _some(self, table: str, after: bytes) -> list[tuple[bytes, bytes]]:
        """The next values of the source behind a key, checked and decrypted."""
        found, size = list[tuple[bytes, bytes]](), 0
        with self.source.read() as view:
            for key, payload in view.scan(table, after):
                if key == after:
                    continue
                found.append((key, bytes(payload)))
                size += len(payload)
                if len(found) == STEP_VALUES or size >= STEP_BYTES:
                    break
        return found

    def _finish(self, target: Catalog) -> None:
        """The dead letters, and what says that the copy is whole."""
        with self.source.read() as view:
            counters = view.counters()
        counters.letter_bytes = self._letters(self._committed(counters.letter_bytes))
        failpoint("migrate.letters")
        with target.write() as batch:
            batch.put_counters(counters)
            batch.put_manifest(self.plan.after)
        failpoint("migrate.copied")

    def _committed(self, letter_bytes: int) -> int:
        """How much of the dead letters belongs to commits: all of them where they are older than that counting."""
        size = _size(self.layout.dead_letters)
        return size if letter_bytes < 0 else min(letter_bytes, size)

    def _letters(self, committed: int) -> int:
        """The counted dead letters written anew; the size of that file."""
        path, new = self.layout.dead_letters, self.folder / "letters"
        if not path.exists():
            return 0
        given = self.source.cipher
        assert given is None or isinstance(given, Cipher)
        self.letters_left_out = dead_letters.copied(path, committed, new, given, self.cipher)
        return new.stat().st_size

    def _verify(self) -> None:
        """Raises CorruptionError, OSError where the disk does not give back what was written."""
        path = self.folder / "catalog.0"
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from memory
        finally:
            os.close(fd)
        if wrong := check(path):
            raise OSError(errno.EIO, f"what was written does not read back ({wrong[0]}); check that disk", str(path))
        target = self._target()
        try:
            for table in TABLES:
                self._compare(target, table)
        finally:
            target.close()
        failpoint("migrate.verified")

    def _compare(self, target: Catalog, table: str) -> None:
        with self.source.read() as old, target.read() as new:
            pairs = zip_longest(_all(old.scan(table), table), _all(new.scan(table), table), fillvalue=(b"", b""))
            for n, ((key, value), (other, found)) in enumerate(pairs):
                if key != other or self.plan.value(table, key, bytes(value)) != found:
                    where = f"catalog {table}[{(key or other)[:40]!r}]"
                    raise CorruptionError(where, "is not in the copy what it is in the catalog; check that disk")
                if n % STEP_VALUES == STEP_VALUES - 1:
                    self.advance(STEP_VALUES)

    # ---- CURRENT, and after it --------------------------------------------------------------------------------------
    def _switch_to(self, new: Path) -> None:
        """Raises EngineError: the message says on which side of it."""
        current, old = self.layout.catalog / CURRENT, self.source.path
        try:
            write_new(current, [new.name.encode()])
            failpoint("migrate.named")
            _settle(self.layout)
            failpoint("migrate.settled")
            shutil.rmtree(self.folder)
            self._gone_for_good()
            failpoint("migrate.removed")
        except OSError as e:
            if named(current) == old.name:
                self._undo()
                raise _unchanged(e) from e
            raise EngineError(
                f"{e}; the new catalog {new} is in use, but the old one may still be there; `flowkin migrate` again"
            ) from e

    def _gone_for_good(self) -> None:
        """What was removed, by one before this, too: it may have been in the clear."""
        sync_directory(self.layout.catalog)
        sync_directory(self.layout.data_dir)

    def _undo(self) -> None:
        """What nothing names goes, as far as it can be had; a start removes it, too."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            _settle(self.layout)


def _all(pairs: Iterator[tuple[bytes, memoryview]], table: str) -> Iterator[tuple[bytes, memoryview]]:
    return (pair for pair in pairs if (table, pair[0]) not in _NAMED_ANEW)


def _last(target: Catalog) -> tuple[int, bytes]:
    """How far a copy is: the number of the last table that holds anything, and its last key."""
    with target.read() as view:
        for number in range(len(TABLES) - 1, -1, -1):
            with view.txn.cursor(target.tables[TABLES[number]]) as cursor:
                if cursor.last():
                    return number, bytes(cursor.key())
    return 0, b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _unchanged(e: EngineError | OSError) -> EngineError:
    """As ours, with what it leaves."""
    if isinstance(e, OSError):
        if is_full(e):
            return NoSpaceError(f"the disk is full ({e.strerror}); nothing was changed; free some space")
        return EngineError(f"{e}; nothing was changed")
    if isinstance(e, NoSpaceError):
        return NoSpaceError(f"{e}; nothing was changed; free some space")
    if isinstance(e, CorruptionError):
        return CorruptionError(e.what, f"{e.detail}; nothing was migrated; `flowkin doctor --fix` mends what it can")
    return e
