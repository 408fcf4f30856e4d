"""The catalog: LMDB, one writer, and the only commit point of the store.

Always true
  - Every value ends with 8 bytes, xxh3_64 of its payload seeded by its table and key; checked whenever it leaves here.
  - A read transaction lives for one micro-batch: begin, read, copy out, end. None survives an await, none is held idle.
  - In an encrypted directory the payload of a value in ENCRYPTED is sealed (engine/store/cipher.py). The checksum is
    that of what is stored: comparing, copying and deleting take no key.
  - One process writes (it holds writer.lock). Keys are at most 511 bytes. On-disk format 0.9.
  - CURRENT names the file in use. engine/maintain/compact.py puts another one in its place; who has a Catalog open
    follows.

Tables
  records      seq u64 BE -> u32 LE length of head | head (msgpack Event) | features (420 bytes or none) | raw (zstd)
  ids          event_id NUL source -> seq u64 BE | xxh3_128 of raw
  annotations  seq -> msgpack Annotation           marks     field NUL value NUL seq -> nothing (index of annotations)
  texts        xxh3_128 of (text model, sentence) -> float32 vector
  offsets      followed file -> its state          tracker   the context's state, in pieces (engine/store/checkpoint.py)
  extents      first seq -> u32 rows, then xxh3_64 of each region's bytes
  meta         "manifest", "names" (families and sources by number), "counters"; for each source "coverage" NUL source
               (engine/store/coverage.py) and "letters" NUL source (engine/store/dead_letters.py); "action" NUL number
               u64 BE -> a firewall action that waits for its events (engine/store/actions.py); "card" NUL model version
               -> sha256 of its card; "internal" -> network.internal of the last start
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Iterator, Sequence, Set
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import lmdb
import msgspec
import xxhash

from engine.errors import BadRequestError, BootError, CorruptionError, OverloadedError
from engine.files import TMP_SUFFIX, sync_directory, write_new
from engine.store.cipher import Cipher, NoKey, fitting
from engine.store.counters import Counters, Names
from engine.store.environment import READERS_MAX, copied, cut, environment
from engine.store.manifest import Manifest, key_id
from engine.store.manifest import decode as decode_manifest
from engine.store.manifest import encode as encode_manifest
from engine.store.record import HEAD, Record, split_record
from engine.store.room import refused
from ipc.event import Annotation, Event

TABLES = ("records", "ids", "annotations", "marks", "texts", "offsets", "tracker", "extents", "meta")
ENCRYPTED = ("records",)  # tables that hold source records and texts
MARKED = ("label", "firewall_action")  # of an annotation, in `marks`
KEY_BYTES_MAX = 511
MARK_BYTES_MAX = KEY_BYTES_MAX - 8  # of a mark without its seq
CURRENT = "CURRENT"
NEXT = "NEXT"  # while the catalog is compacted: what CURRENT is about to name
RESTORE = "`flowkin backup restore`, or send it again from its sources"
CATALOG_NAME = re.compile(r"catalog\.\d+")
_SUM = struct.Struct("<Q")
_EXTENT = struct.Struct("<I5Q")
_decode_annotation = msgspec.msgpack.Decoder(Annotation).decode
_decode_event = msgspec.msgpack.Decoder(Event).decode
_encode = msgspec.msgpack.Encoder().encode
_xxh = xxhash.xxh3_64_intdigest


def seq_key(seq: int) -> bytes:
    return seq.to_bytes(8, "big")


def id_key(event_id: str, source: str) -> bytes:
    return f"{event_id}\0{source}".encode()


def card_key(version: str) -> bytes:
    return f"card\0{version}".encode()


def named(current: Path) -> str:
    """The name of the catalog's file that CURRENT holds. Raises BootError."""
    name = current.read_bytes().decode("ascii", "replace").strip()
    if not CATALOG_NAME.fullmatch(name):
        raise BootError(
            f"{current} names no catalog but {name[:40]!r}; nothing was changed; `flowkin doctor --fix` writes it again"
        )
    return name


def catalogs_in(folder: Path) -> list[str]:
    """The catalogs in a folder, whether CURRENT names them or not."""
    return sorted(path.name for path in folder.glob("catalog.*") if CATALOG_NAME.fullmatch(path.name))


def _make(folder: Path, map_size: int) -> None:
    """An empty catalog, and CURRENT, which names it: LMDB syncs no directory, and does not open a file of which half
    was written, so it is whole and durable before it has its name, and that is before CURRENT has it. A catalog.0 that
    is there is kept. Raises BootError where another is there, which a birth never leaves without CURRENT; OSError."""
    path = folder / "catalog.0"
    if others := [name for name in catalogs_in(folder) if name != path.name]:
        raise BootError(
            f"{folder / CURRENT} is gone, and {', '.join(others)} may hold all events; nothing was changed; `flowkin "
            "doctor --fix` names the catalog again where there is only one; of several, write the newest's name into it"
        )
    if not path.exists():
        tmp = path.with_name(f"{path.name}{TMP_SUFFIX}")
        lock = tmp.with_name(f"{tmp.name}-lock")
        tmp.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        try:
            with environment(tmp, map_size, len(TABLES), write=True, durability="full") as env:
                for name in TABLES:
                    env.open_db(name.encode())
                env.sync(True)
        except lmdb.Error as e:
            raise BootError(f"no catalog can be made in {folder}: {e}") from e
        lock.unlink()
        tmp.rename(path)
        sync_directory(folder)
    write_new(folder / CURRENT, [path.name.encode()])


class _Opened(NamedTuple):
    """An open file. seen: what CURRENT was when it named it."""

    path: Path
    seen: tuple[int, int]
    inode: int
    env: Any
    tables: dict[str, Any]


def _seen(current: Path) -> tuple[int, int]:
    """What another CURRENT is another by."""
    found = current.stat()
    return found.st_ino, found.st_mtime_ns


class Catalog:
    """An open catalog. Close it before the process forks or ends; LMDB opens a file once per process. changed: while it
    is a set, every (table, key) that is written."""

    def __init__(
        self, folder: Path, *, write: bool, map_size: int, durability: str = "full", lock: bool = True,
        cipher: Cipher | None = None,
    ) -> None:  # fmt: skip
        """lock: False for a copy that nobody ever writes to; then nothing appears beside it, as in the directory of
        somebody else, whose engine could not open what we create. cipher: of store.key_file; without it what
        takes no key can be done in an encrypted directory, and all else raises KeyFileError. Raises
        BootError where there is no catalog and write is False, or it cannot be opened, and KeyFileError where `cipher`
        is not that of the directory."""
        current = folder / CURRENT
        if not current.exists():
            if not write:
                raise BootError(f"{folder}: no catalog here; start the engine once to create it")
            _make(folder, map_size)
        self.folder, self._write, self._lock = folder, write, lock
        self.damage = ""  # what is wrong with its structure: nothing is written on top of that
        tables = len(TABLES)
        self._environment = partial(environment, map_size=map_size, tables=tables, write=write, durability=durability)
        self._seeds = {name: _xxh(name.encode()) for name in TABLES}
        self._next: _Opened | None = None
        self._opened = self._open_current()
        self.changed: set[tuple[str, bytes]] | None = None
        self.cipher: Cipher | NoKey | None = None
        try:
            self.cipher = fitting(cipher, self._key_id(), str(folder.parent))
        except BaseException:
            self.close()
            raise

    def _key_id(self) -> str | None:
        """Of the key that it names; None where nothing is born yet, or the manifest is damaged."""
        with self.read() as view, contextlib.suppress(CorruptionError):
            blob = view.get("meta", b"manifest")
            return None if blob is None else key_id(blob)
        return None

    def need_key(self) -> None:
        """Raises KeyFileError where the directory is encrypted and no key was given."""
        if isinstance(self.cipher, NoKey):
            raise self.cipher.error()

    def _open_current(self) -> _Opened:
        current = self.folder / CURRENT
        while True:
            seen, path = _seen(current), self.folder / named(current)
            try:
                if not path.exists():
                    raise BootError(
                        f"catalog {path}, which {current} names, is gone; nothing was changed; "
                        f"`flowkin doctor --fix` if it is CURRENT that is damaged, else {RESTORE}"
                    )
                if self._next is not None and self._next.inode == path.stat().st_ino:
                    return self._next._replace(seen=seen)
                return self.opened(path, seen)
            except BootError:
                if seen == _seen(current):  # or else it was compacted this moment, and names another file
                    raise

    def opened(self, path: Path, seen: tuple[int, int] = (0, 0)) -> _Opened:
        """A file opened as this catalog is. Raises BootError."""
        try:
            ours = path.with_name(f"{path.name}-lock").exists() or path.parent.stat().st_uid == os.geteuid()
            env = self._environment(path, lock=self._lock and (ours or self._write))
            if wanted := cut(path, env):
                env.close()
                raise BootError(f"catalog {path} is cut: it has not {wanted} bytes; nothing was changed; {RESTORE}")
            tables = {name: env.open_db(name.encode(), create=self._write) for name in TABLES}
            return _Opened(path, seen, path.stat().st_ino, env, tables)
        except lmdb.Error as e:
            raise BootError(f"catalog {path} cannot be opened: {e}; nothing was changed; {RESTORE}") from e

    def open_next(self) -> None:
        """Open what a compaction is about to put in this one's place, too, if there is one: for who can open nothing
        later, and follows all the same. Raises BootError."""
        with contextlib.suppress(FileNotFoundError, BootError):  # or it was given up this moment
            self._next = self.opened(self.folder / named(self.folder / NEXT))
        self.follow()

    def follow(self) -> bool:
        """Use the file that CURRENT names now, where that is another. What was begun on the old one may end there: it
        is closed when nobody uses it any more. Raises BootError; then the old one stays open."""
        given_up = self._next is not None and not (self.folder / NEXT).exists()  # or in use: it goes after CURRENT
        moved = _seen(self.folder / CURRENT) != self._opened.seen
        if moved:
            self._opened = self._open_current()
        if moved or given_up:
            self._next = None
        return moved

    @property
    def path(self) -> Path:
        return self._opened.path

    @property
    def env(self) -> Any:
        return self._opened.env

    @property
    def tables(self) -> dict[str, Any]:
        return self._opened.tables

    def close(self) -> None:
        self.env.close()

    def read(self) -> View:
        """A read transaction, to be used with `with` and for one micro-batch only."""
        while True:
            opened = self._opened  # a thread may read while another one follows
            try:
                return View(self, opened, opened.env.begin(buffers=True))
            except lmdb.MapResizedError:
                opened.env.set_mapsize(0)
            except lmdb.ReadersFullError as e:
                if not opened.env.reader_check():
                    raise OverloadedError(f"all {READERS_MAX} reader slots of the catalog are taken; try again") from e

    def writable(self) -> None:
        """Raises CorruptionError where the structure is damaged: a write may take the place of what is stored."""
        if self.damage:
            raise CorruptionError(f"catalog {self.path}", f"{self.damage}; nothing is stored any more; {RESTORE}")

    def write(self) -> Batch:
        """The write transaction; `with catalog.write() as batch:` commits at the end, aborts on an error. Raises
        CorruptionError as writable()."""
        self.writable()
        try:
            return Batch(self, self._opened, self.env.begin(write=True, buffers=True))
        except lmdb.PanicError as e:
            raise refused(e, self.path) from e

    def copied(self, view: View) -> Iterator[bytes]:
        """A compacted copy of what `view` sees, in blocks; it may not be used meanwhile. Whoever writes waits for
        nothing, but pages that it frees are kept. Raises CorruptionError."""
        return copied(view.env, view.txn, self.path)

    def seed(self, table: str) -> int:
        """Of the checksums of its keys."""
        return self._seeds[table]

    def seal(self, table: str, key: bytes, payload: bytes) -> bytes:
        if self.cipher is not None and table in ENCRYPTED:
            payload = self.cipher.seal(table, key, payload)
        return payload + _SUM.pack(_xxh(payload, _xxh(key, self._seeds[table])))

    def unseal(self, table: str, key: bytes | memoryview, value: memoryview) -> memoryview:
        """The payload, which may still be encrypted, valid as long as `value` is. Raises CorruptionError."""
        size = len(value) - 8
        payload = value[:size]
        if size < 0 or _xxh(payload, _xxh(key, self._seeds[table])) != _SUM.unpack_from(value, size)[0]:
            raise CorruptionError(
                f"catalog {table}[{bytes(key)[:40]!r}]",
                "its bytes disagree with their checksum; this value is refused, all others are unchanged; "
                "`flowkin doctor --deep` finds all such; `flowkin backup restore BACKUP DIR` brings back what was",
            )
        return payload

    def broken(self, error: lmdb.Error) -> CorruptionError:
        """What LMDB says of a page that it cannot read, as ours."""
        return CorruptionError(f"catalog {self.path}", f"{error}; all else is unchanged; {RESTORE}")


class View:
    """One read transaction. What it returns is copied out unless it says memoryview."""

    def __init__(self, catalog: Catalog, opened: _Opened, txn: Any) -> None:
        self.catalog, self.txn, self.env = catalog, txn, opened.env
        self._tables, self._unseal, self._cipher = opened.tables, catalog.unseal, catalog.cipher
        self._records, self._annotations = opened.tables["records"], opened.tables["annotations"]
        self._records_seed = catalog.seed("records")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.txn.abort()

    def get(self, table: str, key: bytes) -> memoryview | None:
        """Checked payload; a view into the map that must not outlive this transaction."""
        try:
            value = self.txn.get(key, None, self._tables[table])
        except lmdb.Error as e:
            raise self.catalog.broken(e) from e
        if value is None:
            return None
        payload = self._unseal(table, key, value)
        return payload if self._cipher is None else self._decrypted(table, key, payload)

    def _decrypted(self, table: str, key: bytes, payload: memoryview) -> memoryview:
        assert self._cipher is not None
        return memoryview(self._cipher.open(table, key, payload)) if table in ENCRYPTED else payload

    def has(self, table: str, key: bytes) -> bool:
        """Is there a value, whole or not?"""
        return self.txn.get(key, None, self._tables[table]) is not None

    def without_record(self, lo: int, hi: int) -> list[int]:
        """Seqs in [lo, hi) that have none."""
        there = set()
        with self.txn.cursor(self._records) as cursor:
            for key in cursor.iternext(values=False) if cursor.set_range(seq_key(lo)) else ():
                if (seq := int.from_bytes(key, "big")) >= hi:
                    break
                there.add(seq)
        return [seq for seq in range(lo, hi) if seq not in there]

    def keys(self, table: str) -> Iterator[bytes]:
        """The keys of a table, in order; their values are not looked at."""
        with self.txn.cursor(self._tables[table]) as cursor:
            for key in cursor.iternext(values=False):
                yield bytes(key)

    def scan(self, table: str, start: bytes = b"", *, prefix: bytes = b"") -> Iterator[tuple[bytes, memoryview]]:
        """(key, checked payload) in order of keys from `start` on, as long as keys begin with `prefix`."""
        with self.txn.cursor(self._tables[table]) as cursor:
            try:
                if not cursor.set_range(start or prefix) if (start or prefix) else not cursor.first():
                    return
                for key, value in cursor.iternext():
                    if prefix and bytes(key[: len(prefix)]) != prefix:
                        return
                    at = bytes(key)
                    payload = self._unseal(table, at, value)
                    yield at, payload if self._cipher is None else self._decrypted(table, at, payload)
            except lmdb.Error as e:
                raise self.catalog.broken(e) from e

    def used_bytes(self) -> int:
        """Of the pages that hold something: what a compacted copy has, or nearly."""
        stats = [self.env.stat(), *(self.txn.stat(table) for table in self._tables.values())]
        pages = sum(int(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"]) for s in stats)
        return pages * int(stats[0]["psize"])

    def manifest(self) -> Manifest | None:
        blob = self.get("meta", b"manifest")
        return None if blob is None else decode_manifest(blob)

    def names(self) -> Names:
        blob = self.get("meta", b"names")
        return Names(["Unknown"], []) if blob is None else msgspec.msgpack.decode(blob, type=Names)

    def card(self, version: str) -> bytes:
        """sha256 of the card of a model version, as it was when it came; empty where it is not known."""
        return bytes(self.get("meta", card_key(version)) or b"")

    def counters(self) -> Counters:
        blob = self.get("meta", b"counters")
        return Counters() if blob is None else msgspec.msgpack.decode(blob, type=Counters)

    def head(self, seq: int) -> bytes | None:
        """The stored event as msgpack, ready to be spliced into a reply."""
        key = seq.to_bytes(8, "big")
        try:
            value = self.txn.get(key, None, self._records)
        except lmdb.Error as e:
            raise self.catalog.broken(e) from e
        if value is None:
            return None
        end = len(value) - 8  # unseal() without its calls: each hit comes by here
        if end < 0 or _xxh(value[:end], _xxh(key, self._records_seed)) != _SUM.unpack_from(value, end)[0]:
            self._unseal("records", key, value)
        if self._cipher is not None:
            value = self._cipher.open("records", key, value[:end])
        return bytes(value[4 : 4 + HEAD.unpack_from(value)[0]])

    def stored(self, seq: int) -> bytes:
        """As head, of an event that there must be. Raises CorruptionError."""
        head = self.head(seq)
        if head is None:
            raise CorruptionError(f"catalog records[{seq}]", f"the record is not there; {RESTORE}")
        return head

    def record(self, seq: int) -> Record | None:
        payload = self.get("records", seq_key(seq))
        return None if payload is None else split_record(payload)

    def records(self, lo: int, hi: int) -> Iterator[tuple[int, Record]]:
        """(seq, record) for seqs in [lo, hi), in order."""
        for key, payload in self.scan("records", seq_key(lo)):
            seq = int.from_bytes(key, "big")
            if seq >= hi:
                return
            yield seq, split_record(payload)

    def oldest(self) -> int:
        """The lowest seq that has a record or an extent; beyond all that may be where there is none."""
        found = 1 << 63
        for table in ("records", "extents"):
            with self.txn.cursor(self._tables[table]) as cursor:
                if cursor.first():
                    found = min(found, int.from_bytes(cursor.key(), "big"))
        return found

    def count_from(self, seq: int) -> int:
        """How many records there are from `seq` on; looks at those before it."""
        before = 0
        with self.txn.cursor(self._records) as cursor:
            for key in cursor.iternext(values=False):
                if int.from_bytes(key, "big") >= seq:
                    break
                before += 1
        return int(self.txn.stat(self._records)["entries"]) - before

    @cached_property
    def _annotated(self) -> bool:
        """Is anything annotated at all?"""
        return bool(self.txn.stat(self._annotations)["entries"])

    def annotation_bytes(self, seq: int) -> bytes | None:
        if not self._annotated:
            return None
        key = seq.to_bytes(8, "big")
        try:
            value = self.txn.get(key, None, self._annotations)
        except lmdb.Error as e:
            raise self.catalog.broken(e) from e
        return None if value is None else bytes(self._unseal("annotations", key, value))

    def annotation(self, seq: int) -> Annotation | None:
        payload = self.get("annotations", seq_key(seq))
        return None if payload is None else _decode_annotation(payload)

    def marked(self, field: str, value: str) -> list[int]:
        """Seqs whose annotation `field` is `value`, ascending."""
        prefix = f"{field}\0{value}\0".encode()
        if len(prefix) > MARK_BYTES_MAX:  # nothing is stored under so long a word
            return []
        return [int.from_bytes(key[len(prefix) :], "big") for key, _ in self.scan("marks", prefix=prefix)]

    def identity(self, event_id: str, source: str) -> tuple[int, bytes] | None:
        """(seq, content hash) of a stored identity."""
        payload = self.get("ids", id_key(event_id, source))
        return None if payload is None else (int.from_bytes(payload[:8], "big"), bytes(payload[8:24]))

    def names_of(self, seqs: Set[bytes]) -> Iterator[bytes]:
        """The keys in `ids` that lead to one of these seq_keys; their checksums are not looked at. Looks at all."""
        with self.txn.cursor(self._tables["ids"]) as cursor:
            for key, value in cursor.iternext():
                if bytes(value[:8]) in seqs:
                    yield bytes(key)

    @cached_property
    def _ids(self) -> Any:
        """One cursor for all that are looked up; it ends with the transaction."""
        return self.txn.cursor(self._tables["ids"])

    def find(self, name: str) -> int | None:
        """Seq of a bare event_id (the newest event that bears it) or of source/event_id exactly. Raises
        CorruptionError; in an encrypted directory also where another event is sealed there, as `ids` is not sealed."""
        seq, head = self._find(name), None
        if seq is not None and isinstance(self._cipher, Cipher):
            with contextlib.suppress(CorruptionError):  # whoever reads it hears that; a purge need not read it
                head = self.head(seq)
        if head is not None:
            event = _decode_event(head)
            if name not in (event.event_id, f"{event.source}/{event.event_id}"):
                raise CorruptionError(
                    f"catalog ids[{name!r}]",
                    f"somebody changed it: it leads to event {event.source}/{event.event_id}; {RESTORE}",
                )
        return seq

    def _find(self, name: str) -> int | None:
        prefix = f"{name}\0".encode()
        try:
            found = len(prefix) <= 500 and self._ids.set_range(prefix) and self._ids.key()[: len(prefix)] == prefix
        except lmdb.Error as e:
            raise self.catalog.broken(e) from e
        if found:
            return self._newest(prefix)
        source, slash, event_id = name.partition("/")
        known = self.identity(event_id, source) if slash and len(prefix) <= 501 else None
        return known[0] if known else None

    def _newest(self, prefix: bytes) -> int:
        """The highest seq of the ids that begin with prefix; the cursor is at the first of them."""
        newest = -1
        try:
            for key, value in self._ids.iternext():
                if key[: len(prefix)] != prefix:
                    break
                newest = max(newest, int.from_bytes(self._unseal("ids", key, value)[:8], "big"))
        except lmdb.Error as e:
            raise self.catalog.broken(e) from e
        return newest

    def extents(self) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """(first seq, rows, checksum of each region) of every commit."""
        for key, payload in self.scan("extents"):
            rows, *sums = _EXTENT.unpack(payload)
            yield int.from_bytes(key, "big"), rows, tuple(sums)


class Batch(View):
    """The write transaction. Leaving the `with` block commits; an error inside aborts and nothing has changed. A full
    map is a NoSpaceError, whatever met it: a deletion, too, takes pages."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            try:
                self.txn.commit()
            except lmdb.Error as e:
                raise refused(e, self.catalog.path) from e
        else:
            self.txn.abort()
            if isinstance(error, lmdb.MapFullError):
                raise refused(error, self.catalog.path) from error

    def put(self, table: str, key: bytes, payload: bytes, *, append: bool = False, overwrite: bool = True) -> bool:
        """False where the key is there and overwrite is False."""
        if self.catalog.changed is not None:
            self.catalog.changed.add((table, key))
        sealed = self.catalog.seal(table, key, payload)
        done: bool = self.txn.put(key, sealed, db=self._tables[table], append=append, overwrite=overwrite)
        return done

    def put_new(self, table: str, items: Sequence[tuple[bytes, bytes]], *, append: bool = False) -> None:
        """Many (key, payload) in order of keys, none of which is there; append: all lie behind those that are. Raises
        AssertionError where a key is there: two processes publish."""
        seal = self.catalog.seal
        if self.catalog.changed is not None:
            self.catalog.changed.update((table, key) for key, _ in items)
        sealed = [(key, seal(table, key, payload)) for key, payload in items]
        with self.txn.cursor(self._tables[table]) as cursor:
            _, added = cursor.putmulti(sealed, overwrite=False, append=append)
        if added != len(sealed):
            raise AssertionError(f"{table}: {len(sealed) - added} keys appeared while the only writer was publishing")

    def delete(self, table: str, key: bytes) -> None:
        if self.catalog.changed is not None:
            self.catalog.changed.add((table, key))
        self.txn.delete(key, db=self._tables[table])

    def put_manifest(self, manifest: Manifest) -> None:
        self.put("meta", b"manifest", encode_manifest(manifest))

    def put_names(self, names: Names) -> None:
        self.put("meta", b"names", _encode(names))

    def put_counters(self, counters: Counters) -> None:
        self.put("meta", b"counters", _encode(counters))

    def put_extent(self, first: int, rows: int, sums: tuple[int, ...]) -> None:
        self.put("extents", seq_key(first), _EXTENT.pack(rows, *sums), append=True)

    def delete_annotation(self, seq: int, note: Annotation | None) -> None:
        """note: what it is now, as far as that can be read."""
        key = seq_key(seq)
        self.delete("annotations", key)
        for field in MARKED:
            if value := getattr(note, field, ""):
                self.delete("marks", f"{field}\0{value}\0".encode() + key)

    def put_annotation(self, seq: int, old: Annotation | None, new: Annotation) -> None:
        """Store the current value and its history, and move the index entries of the fields that changed. Raises
        BadRequestError for a word that is too long for the index."""
        for field in MARKED:
            most = MARK_BYTES_MAX - len(field) - 2
            if len(getattr(new, field).encode()) > most:
                raise BadRequestError(f"a {field} has at most {most} bytes; nothing was changed")
        self.put("annotations", seq_key(seq), _encode(new))
        self.put_marks(seq, old, new)

    def put_marks(self, seq: int, old: Annotation | None, new: Annotation) -> None:
        for field in MARKED:
            before, after = getattr(old, field, ""), getattr(new, field)
            if before != after:
                if before:
                    self.delete("marks", f"{field}\0{before}\0".encode() + seq_key(seq))
                if after:
                    self.put("marks", f"{field}\0{after}\0".encode() + seq_key(seq), b"")
