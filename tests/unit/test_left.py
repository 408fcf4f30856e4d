"""What left on purpose is missed by nobody: not by a scrub, a repair, the doctor, or a backup and its way back."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import files
from engine.errors import CorruptionError, NotFoundError
from engine.layout import Layout
from engine.maintain import doctor, mend, purge, scrub
from engine.maintain.backup import restore, verify
from engine.maintain.scrub import Pace, Report
from engine.maintain.take import create
from engine.maintain.upkeep import Upkeep
from engine.store import quarantine
from engine.store.catalog import CURRENT, Catalog, seq_key
from engine.store.manifest import Manifest
from engine.store.recover import drop_indexes
from engine.store.rows import AbsentRows, RowMap
from ipc.messages import Filter
from tests.events import several
from tests.removals import unsynced
from tests.store_fixture import ROWS, Store, flip

MAP_BYTES = 1 << 30
PURGED = [f"e{n:06d}" for n in (2 * ROWS + 3, 2 * ROWS + 5, 4 * ROWS + 1)]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Two of four full row files left by retention, a slice of their records is still there; some events are purged
    from one that is full and from the one that is written to. The indexes are stale. Closed."""
    with Store(tmp_path / "data") as store:
        store.publish(several(4 * ROWS + 20))
        store.index()
        store.leave(2, slices=1)
        asyncio.run(purge.purge(store.publisher, None, PURGED))
    return Layout(tmp_path / "data")


@pytest.fixture
def store(layout: Layout) -> Iterator[Store]:
    with Store(layout.data_dir) as store:
        yield store


def problems(layout: Layout) -> list[str]:
    found = doctor.run(layout, deep=True)
    return [f"{f.object}: {f.detail}" for f in found if f.severity == "problem"]


def events(manifest: Manifest) -> int:
    return 2 * ROWS + 20 - len(PURGED)


def test_a_scrub_finds_nothing_wrong(store: Store) -> None:
    report = scrub.run(store.layout, store.catalog, Pace())
    assert report.damaged == 0, report
    manifest = store.publisher.manifest
    assert report.files == 3 + len(manifest.indexes) + 1  # row files that are left, indexes, the model
    assert manifest.events == events(manifest)


def test_a_row_file_that_is_written_anew_is_sealed_anew_unless_it_was_damaged(store: Store) -> None:
    manifest = store.publisher.manifest
    sealed = {s.number: s.checksum for s in manifest.sealed}
    assert sorted(sealed) == [2, 3]
    for number in sealed:
        path = store.layout.row_file(*manifest.row_file(number))
        assert RowMap(path, number, ROWS).checksum() == sealed[number]
    flip(store.layout.row_file(*manifest.row_file(3)), 5_000)
    asyncio.run(purge.purge(store.publisher, None, [f"e{3 * ROWS + 60:06d}"]))
    assert sorted(s.number for s in store.publisher.manifest.sealed) == [2]
    report = scrub.run(store.layout, store.catalog, Pace())
    assert [number for _, number, _ in report.bad_rows] == [3]


def test_a_damaged_value_of_what_left_since_needs_no_mending(store: Store) -> None:
    """A report is older than what it is held against."""
    first = store.publisher.manifest.first_seq
    gone = [("records", seq_key(first - 1)), ("annotations", seq_key(3)), ("records", seq_key(2 * ROWS + 3))]
    there = ("records", seq_key(2 * ROWS + 4))
    assert mend.values(store.publisher, [*gone, there]) == [there]
    assert mend.values(store.publisher, [("ids", b"e000003\0test")]) == []
    assert set(store.ids()) == {f"e{n:06d}" for n in range(2 * ROWS, 4 * ROWS + 20)} - set(PURGED)
    store.leave(2)
    with store.catalog.read() as view:
        assert view.find("e000003") is None
    store.check()


def test_a_row_file_that_left_is_not_built_again(store: Store) -> None:
    upkeep = Upkeep(store.layout, store.config, store.publisher, lambda: None)
    old = store.publisher.manifest
    assert upkeep.drop(Report(bad_rows=[old.row_file(1), old.row_file(old.row_files), (0, 2, 0)])) == 0
    assert upkeep.drop(Report(bad_rows=[old.row_file(2)])) == 1


def test_without_a_purged_row_file_a_reader_still_knows_what_is_gone(store: Store) -> None:
    os.truncate(store.layout.row_file(*store.publisher.manifest.row_file(2)), 4_096)
    store.snapshots.current, store.snapshots._blob = None, b""
    with store.catalog.read() as view:
        snapshot = store.snapshots.refresh(view)
    assert isinstance(snapshot.files[0], AbsentRows)
    assert (snapshot.events, snapshot.has(2 * ROWS + 3), snapshot.has(2 * ROWS + 4)) == (
        store.publisher.manifest.events, False, True,
    )  # fmt: skip
    with pytest.raises(NotFoundError):
        store.ask(PURGED[0])


def test_nothing_of_a_purge_comes_into_quarantine_or_stays_there(store: Store) -> None:
    manifest = store.publisher.manifest
    stale = manifest.stale[0]
    with unsynced() as left:
        drop_indexes(store.publisher, [stale])
    assert not left
    assert not store.layout.index_file(stale).exists() and quarantine.listed(store.layout) == []
    assert stale not in store.publisher.manifest.stale
    kept = next(i.file for i in store.publisher.manifest.indexes if i.file not in manifest.stale)
    drop_indexes(store.publisher, [kept])
    (store.layout.models / "damaged").mkdir()
    (store.layout.models / "damaged" / "file").write_bytes(b"x")
    quarantine.put(store.layout, store.layout.models / "damaged")
    assert len(quarantine.listed(store.layout)) == 2
    asyncio.run(purge.purge(store.publisher, Filter(addr=["192.0.2.254"]), []))
    assert quarantine.listed(store.layout) == []


def test_a_backup_carries_what_left_and_is_left_alone_by_a_purge(layout: Layout, tmp_path: Path) -> None:
    made = create(layout, tmp_path / "backups", map_size=MAP_BYTES)
    name = f"e{3 * ROWS + 1:06d}"
    with Store(layout.data_dir) as store:
        manifest = store.publisher.manifest
        rows = {f"rows/{layout.row_file(*manifest.row_file(n)).name}" for n in (2, 3, 4)}
        asyncio.run(purge.purge(store.publisher, None, [name]))
        assert name not in store.ids()
    assert (made.backup.events, made.backup.left_out, made.backup.damaged) == (manifest.events, [], [])
    assert {file.path for file in made.backup.files if file.path.startswith("rows/")} == rows
    assert {f.severity for f in verify(made.path)} == {"ok"}
    restore(made.path, tmp_path / "restored")
    with Store(tmp_path / "restored") as restored:
        assert restored.publisher.manifest == manifest
        assert (manifest.first, sum(manifest.purged.values()), bool(manifest.stale)) == (2, len(PURGED), True)
        assert sorted(manifest.filled) == [2, 3]
        restored.leave(2)
        restored.check()
        assert name in restored.ids() and not set(PURGED) & set(restored.ids())
    assert problems(Layout(tmp_path / "restored")) == []


def test_the_doctor_counts_what_is_left(layout: Layout) -> None:
    assert problems(layout) == []


def test_on_a_damaged_structure_nothing_is_removed_and_nothing_put_in_its_place(store: Store) -> None:
    store.catalog.damage = "its structure is damaged"
    before = store.ids()
    with pytest.raises(CorruptionError):
        asyncio.run(purge.purge(store.publisher, None, ["e000200"]))
    with pytest.raises(CorruptionError):
        store.compact()
    store.catalog.damage = ""
    assert store.ids() == before and store.catalog.path.name == "catalog.0"


def test_a_scrub_follows_a_catalog_that_was_compacted_meanwhile(layout: Layout, tmp_path: Path) -> None:
    """The newest manifest is in the one that CURRENT names."""
    with Store(layout.data_dir) as store:
        store.compact()
        newest = store.generation
        shutil.copytree(layout.data_dir, tmp_path / "copy")
    moved = Layout(tmp_path / "copy")
    catalog = Catalog(moved.catalog, write=False, map_size=MAP_BYTES)
    shutil.copy2(moved.catalog / "catalog.1", moved.catalog / "catalog.2")
    files.write_new(moved.catalog / CURRENT, [b"catalog.2"])
    assert scrub.run(moved, catalog, Pace(), files_only=True).generation == newest
    assert catalog.path.name == "catalog.2"
    catalog.close()
