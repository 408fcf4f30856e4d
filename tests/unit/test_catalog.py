"""The catalog: values with checksums, transactions, identities, annotations."""

from __future__ import annotations

import errno
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec
import pytest

from engine.errors import BadRequestError, BootError, CorruptionError, FormatError, NoSpaceError, OverloadedError
from engine.store import catalog as catalog_module
from engine.store import room as room_module
from engine.store.catalog import CURRENT, Catalog, id_key, seq_key
from engine.store.counters import Names
from engine.store.manifest import Embedded, IndexFile, Manifest, SealedRows, Switch, decode, encode
from engine.store.record import join_record, split_record
from ipc.event import FEATURE_BYTES, Annotation, Event

MAP = 1 << 24


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    folder = tmp_path / "catalog"
    folder.mkdir()
    opened = Catalog(folder, write=True, map_size=MAP)
    yield opened
    opened.close()


def put(catalog: Catalog, table: str, **values: bytes) -> None:
    with catalog.write() as batch:
        for key, value in values.items():
            batch.put(table, key.encode(), value)


def test_a_value_comes_back_and_a_missing_one_is_none(catalog: Catalog) -> None:
    put(catalog, "meta", a=b"1", b=b"")
    with catalog.read() as view:
        assert bytes(view.get("meta", b"a") or b"") == b"1"
        assert bytes(view.get("meta", b"b") or b"") == b""
        assert view.get("meta", b"c") is None
        assert view.get("texts", b"a") is None


def test_an_error_in_a_batch_changes_nothing(catalog: Catalog) -> None:
    put(catalog, "meta", a=b"1")
    with pytest.raises(ZeroDivisionError), catalog.write() as batch:
        batch.put("meta", b"a", b"2")
        raise ZeroDivisionError
    with catalog.read() as view:
        assert bytes(view.get("meta", b"a") or b"") == b"1"


@pytest.mark.parametrize("at", [0, 3, -1])
def test_a_flipped_byte_is_refused_by_name(catalog: Catalog, at: int) -> None:
    put(catalog, "records", key1=b"payload", key2=b"payload")
    with catalog.write() as batch:
        value = bytearray(batch.txn.get(b"key1", db=catalog.tables["records"]))
        value[at] ^= 1
        batch.txn.put(b"key1", bytes(value), db=catalog.tables["records"])
    with catalog.read() as view:
        with pytest.raises(CorruptionError, match=r"catalog records\[b'key1'\]"):
            view.get("records", b"key1")
        assert bytes(view.get("records", b"key2") or b"") == b"payload"


def test_a_value_under_another_key_or_in_another_table_is_refused(catalog: Catalog) -> None:
    """The checksum is seeded by both: a page that LMDB finds in the wrong place does not pass."""
    sealed = catalog.seal("records", b"key1", b"payload")
    with catalog.write() as batch:
        batch.txn.put(b"key2", sealed, db=catalog.tables["records"])
        batch.txn.put(b"key1", sealed, db=catalog.tables["annotations"])
        batch.txn.put(b"key3", b"short", db=catalog.tables["records"])
    with catalog.read() as view:
        for table, key in (("records", b"key2"), ("annotations", b"key1"), ("records", b"key3")):
            with pytest.raises(CorruptionError):
                view.get(table, key)


def test_many_are_put_at_once_as_one_by_one_and_read_back(catalog: Catalog) -> None:
    with catalog.write() as batch:
        batch.put_new("records", [(seq_key(seq), b"%d" % seq) for seq in range(5)], append=True)
        batch.put_new("records", [(seq_key(seq), b"%d" % seq) for seq in range(5, 9)], append=True)
        batch.put_new("ids", [(b"b", b"2"), (b"d", b"4")])
        batch.put_new("ids", [(b"a", b"1"), (b"c", b"3"), (b"e", b"5")])
        batch.put_new("ids", [])
    with catalog.read() as view:
        assert [(k, bytes(v)) for k, v in view.scan("records")] == [(seq_key(seq), b"%d" % seq) for seq in range(9)]
        assert [(k, bytes(v)) for k, v in view.scan("ids")] == [(b"%c" % (96 + n), b"%d" % n) for n in range(1, 6)]


@pytest.mark.parametrize(("table", "key", "append"), [("ids", b"key1", False), ("records", b"key1", True)])
def test_a_key_that_is_there_is_never_put_over(catalog: Catalog, table: str, key: bytes, append: bool) -> None:
    put(catalog, table, key1=b"old")
    with pytest.raises(AssertionError, match="appeared"), catalog.write() as batch:
        batch.put_new(table, [(key, b"new"), (b"key2", b"new")], append=append)
    with catalog.read() as view:
        assert [(k, bytes(v)) for k, v in view.scan(table)] == [(b"key1", b"old")]


def test_scan_goes_in_order_from_a_key_and_stays_in_its_prefix(catalog: Catalog) -> None:
    put(catalog, "meta", aa=b"1", ab=b"2", b=b"3", c=b"4")
    with catalog.read() as view:
        assert [k for k, _ in view.scan("meta")] == [b"aa", b"ab", b"b", b"c"]
        assert [k for k, _ in view.scan("meta", b"ab")] == [b"ab", b"b", b"c"]
        assert [k for k, _ in view.scan("meta", prefix=b"a")] == [b"aa", b"ab"]
        assert [k for k, _ in view.scan("meta", prefix=b"d")] == []
        assert [k for k, _ in view.scan("texts")] == []


@pytest.mark.parametrize("features", [b"", bytes(FEATURE_BYTES)])
def test_a_record_is_split_as_it_was_joined(features: bytes) -> None:
    head, raw = msgspec.msgpack.encode({"a": 1}), b"compressed"
    record = split_record(memoryview(join_record(head, features, raw)))
    assert (record.head, record.features, record.compressed) == (head, features, raw)


def test_find_takes_the_newest_of_a_bare_id_and_one_exactly_with_its_source(catalog: Catalog) -> None:
    with catalog.write() as batch:
        for seq, (event_id, source) in enumerate([("x", "zeek"), ("x", "eve"), ("eve/x", "zeek"), ("xy", "eve")]):
            batch.put("ids", id_key(event_id, source), seq_key(seq) + bytes(16))
    with catalog.read() as view:
        assert view.find("x") == 1
        assert view.find("zeek/x") == 0
        assert view.find("eve/xy") == 3
        assert view.find("eve/x") == 2  # an id of that name goes first
        assert view.find("zeek/eve/x") == 2
        assert view.find("y") is None
        assert view.find("eve/y") is None
        assert view.find("/") is None
        assert view.find("é" * 384) is None
        assert view.find("a" * 100 + "/" + "é" * 280) is None


def test_annotations_keep_their_history_and_move_their_marks(catalog: Catalog) -> None:
    first = Annotation(label="good", labelled_by="ana", labelled_at=1)
    second = Annotation(label="bad", labelled_by="eva", labelled_at=2, firewall_action="BLOCK")
    with catalog.write() as batch:
        batch.put_annotation(7, None, first)
        batch.put_annotation(3, None, first)
    with catalog.write() as batch:
        batch.put_annotation(7, first, second)
    with catalog.read() as view:
        assert view.marked("label", "good") == [3]
        assert view.marked("label", "bad") == [7]
        assert view.marked("firewall_action", "BLOCK") == [7]
        assert view.marked("label", "goo") == []
        assert view.annotation(7) == second
    with catalog.write() as batch:
        batch.put_annotation(7, second, Annotation())
    with catalog.read() as view:
        assert view.marked("label", "bad") == []


def test_a_word_too_long_for_its_mark_is_refused_and_matches_nothing(catalog: Catalog) -> None:
    longest = 511 - 8 - len("label") - 2
    with catalog.write() as batch:
        batch.put_annotation(1, None, Annotation(label="a" * longest))
        with pytest.raises(BadRequestError, match=f"at most {longest} bytes"):
            batch.put_annotation(2, None, Annotation(label="\U0001f600" * 128))
    with catalog.read() as view:
        assert view.marked("label", "a" * longest) == [1]
        assert view.marked("label", "\U0001f600" * 128) == []


def test_a_full_map_is_no_space_and_the_next_batch_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    catalog = Catalog(folder, write=True, map_size=1 << 20)
    with pytest.raises(NoSpaceError, match="not stored"), catalog.write() as batch:
        for i in range(100):
            batch.put("texts", seq_key(i), bytes(1 << 16))
    put(catalog, "meta", a=b"1")
    with catalog.read() as view:
        assert list(view.scan("texts")) == []
        assert view.get("meta", b"a") is not None
    catalog.close()


def test_a_full_map_is_no_space_for_a_deletion_too(tmp_path: Path) -> None:
    """It takes pages for those that it changes, as does a value that a compaction writes again."""
    folder = tmp_path / "small"
    folder.mkdir()
    catalog = Catalog(folder, write=True, map_size=1 << 20)
    with pytest.raises(NoSpaceError):
        for i in range(10_000):
            with catalog.write() as batch:
                batch.put("texts", seq_key(i), bytes(900))
    with catalog.read() as view:
        stored = list(view.scan("texts"))
    with pytest.raises(NoSpaceError, match="not stored"), catalog.write() as batch:
        for key, _ in stored[::2]:
            batch.delete("texts", key)
    with catalog.read() as view:
        assert list(view.scan("texts")) == stored
    catalog.close()


def test_a_commit_that_the_disk_refuses_is_an_oserror(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO at the commit: nothing may be assumed any more, the worker has to leave; but LMDB says that, too, where the
    disk took a part of a write for want of room."""
    room = True
    monkeypatch.setattr(room_module, "has_room", lambda *_: room)

    class Refusing:
        def __init__(self, error: lmdb.Error) -> None:
            self.error = error

        def commit(self) -> None:
            raise self.error

    for error, kind in ((lmdb.Error("Input/output error"), OSError), (lmdb.DiskError("full"), NoSpaceError)):
        batch = catalog_module.Batch(catalog, catalog._opened, Refusing(error))
        with pytest.raises(kind) as caught, batch:
            pass
        if kind is OSError:
            assert caught.value.errno == errno.EIO  # type: ignore[attr-defined]
    room = False
    for error, kind in ((lmdb.Error("Input/output error"), NoSpaceError), (lmdb.PanicError("panic"), OSError)):
        with pytest.raises(kind), catalog_module.Batch(catalog, catalog._opened, Refusing(error)):
            pass


def test_room_is_what_a_file_behind_the_size_would_find(tmp_path: Path) -> None:
    from engine.store.room import has_room

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert has_room(tmp_path, 1 << 20, 1 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        assert not has_room(tmp_path, 1 << 20, 1)
        assert has_room(tmp_path, 0, 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not has_room(tmp_path, 0, 1 << 50)
    assert list(tmp_path.iterdir()) == []


def test_no_reader_slot_is_a_clear_error(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def begin(self, **more: object) -> None:
            raise lmdb.ReadersFullError("full")

        def reader_check(self) -> int:
            return 0

    real = catalog._opened
    catalog._opened = real._replace(env=Full())
    with pytest.raises(OverloadedError, match="reader slots"):
        catalog.read()
    catalog._opened = real


def test_what_is_no_catalog_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BootError, match="no catalog here"):
        Catalog(tmp_path, write=False, map_size=MAP)
    (tmp_path / CURRENT).write_text("catalog.0")
    (tmp_path / "catalog.0").write_bytes(b"not an LMDB file at all" * 1000)
    with pytest.raises(BootError, match="cannot be opened"):
        Catalog(tmp_path, write=False, map_size=MAP)


def test_a_birth_that_a_death_ended_begins_anew(tmp_path: Path) -> None:
    """Half of the first pages written: LMDB would refuse that file for ever."""
    (tmp_path / "catalog.0.tmp").write_bytes(bytes(4096))
    (tmp_path / "catalog.0.tmp-lock").write_bytes(b"garbage")
    catalog = Catalog(tmp_path, write=True, map_size=MAP)
    put(catalog, "meta", a=b"1")
    catalog.close()
    assert {path.name for path in tmp_path.iterdir()} == {CURRENT, "catalog.0", "catalog.0-lock"}


def test_a_catalog_without_its_name_is_kept(tmp_path: Path) -> None:
    """CURRENT comes last in a birth."""
    catalog = Catalog(tmp_path, write=True, map_size=MAP)
    put(catalog, "meta", a=b"1")
    catalog.close()
    (tmp_path / CURRENT).unlink()
    catalog = Catalog(tmp_path, write=True, map_size=MAP)
    with catalog.read() as view:
        assert view.get("meta", b"a") is not None
    catalog.close()


def test_a_catalog_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """It held all events: an empty one in its place would hide that."""
    Catalog(tmp_path, write=True, map_size=MAP).close()
    (tmp_path / "catalog.0").unlink()
    with pytest.raises(BootError, match="is gone"):
        Catalog(tmp_path, write=True, map_size=MAP)


def test_a_reader_adopts_a_map_that_grew(tmp_path: Path) -> None:
    """As the readers do, which open the catalog with the map size of their own configuration."""
    writer = Catalog(tmp_path, write=True, map_size=1 << 20)
    put(writer, "meta", a=b"1")
    writer.close()
    small = Catalog(tmp_path, write=False, map_size=4096)
    with small.read() as view:
        assert view.get("meta", b"a") is not None
    small.close()


# ---- the manifest -------------------------------------------------------------------------------------------------

INDEX = IndexFile("attack", 0, 64, "attack-x", 10, b"1" * 16, "ivf_flat", 8)


def test_a_copy_is_what_a_view_sees_and_smaller(catalog: Catalog, tmp_path: Path) -> None:
    with catalog.write() as batch:
        batch.put_new("records", [(seq_key(n), bytes(1_000)) for n in range(500)])
    with catalog.write() as batch:
        for n in range(0, 500, 2):
            batch.delete("records", seq_key(n))
    with catalog.read() as view:
        with catalog.write() as batch:
            batch.put("records", seq_key(1_000), b"later")
        used = view.used_bytes()
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / "catalog.0").write_bytes(b"".join(catalog.copied(view)))
    (tmp_path / "copy" / CURRENT).write_text("catalog.0")
    copy = Catalog(tmp_path / "copy", write=False, map_size=1 << 20, lock=False)
    try:
        with copy.read() as view:
            assert [int.from_bytes(key, "big") for key, _ in view.scan("records")] == list(range(1, 500, 2))
    finally:
        copy.close()
    assert {p.name for p in (tmp_path / "copy").iterdir()} == {"catalog.0", CURRENT}
    size = (tmp_path / "copy" / "catalog.0").stat().st_size
    assert size < catalog.path.stat().st_size
    assert used / 2 < size < used * 2


def test_a_copy_that_nobody_wants_any_more_ends(catalog: Catalog) -> None:
    with catalog.write() as batch:
        batch.put_new("records", [(seq_key(n), bytes(1_000)) for n in range(500)])
    with catalog.read() as view:
        blocks = catalog.copied(view)
        assert next(blocks)
        blocks.close()  # type: ignore[attr-defined]
        assert sum(map(len, catalog.copied(view))) > 500_000
    assert "catalog copy" not in {thread.name for thread in threading.enumerate()}


def test_a_manifest_survives_a_round_trip() -> None:
    manifest = Manifest(
        generation=5, count=130, row_file_rows=64, model="v1", epoch=2, revisions={1: 3}, indexes=[INDEX],
        sealed=[SealedRows(0, b"x" * 16)], kept=Embedded("v0", 1, 120, {0: 1}, [], [INDEX]),
        switch=Switch(Embedded("v2", 3, 64), 130, 0, 17, 0.5, True),
    )  # fmt: skip
    assert decode(encode(manifest)) == manifest
    assert manifest.row_files == 3
    assert [manifest.row_file(n) for n in range(2)] == [(2, 0, 0), (2, 1, 3)]


@pytest.mark.parametrize("field", ["format_version", "features_version"])
def test_a_newer_manifest_is_refused_by_name(field: str) -> None:
    tree = msgspec.msgpack.decode(encode(Manifest(row_file_rows=64, model="v1")))
    with pytest.raises(FormatError, match="99"):
        decode(msgspec.msgpack.encode(tree | {field: 99}))
    with pytest.raises(FormatError, match="99"):  # even where its shape is another
        decode(msgspec.msgpack.encode({"format_version": 99, "features_version": 99, "count": "many"}))


def test_a_manifest_with_an_unknown_field_is_read(tmp_path: Path) -> None:
    tree = msgspec.msgpack.decode(encode(Manifest(row_file_rows=64, model="v1")))
    assert decode(msgspec.msgpack.encode(tree | {"later": 1})).model == "v1"


def test_names_count_their_entries() -> None:
    assert Names(["Unknown", "DDoS"], [("eve", "eve")]).count == 3
    assert Event(event_id="a", source="b", ts=1, ts_start=1).family == ""


@pytest.mark.parametrize("blob", [b"", b"\x82\xa1", b"\xa1\xff", b"\x81\xd0\x80\x01", b"\x91" * 3_000])
def test_what_is_no_manifest_is_refused_by_name(blob: bytes) -> None:
    with pytest.raises(CorruptionError, match="the manifest: cannot be decoded"):
        decode(blob)
