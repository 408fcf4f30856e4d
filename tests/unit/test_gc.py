"""What is unlinked, and what is not."""

from __future__ import annotations

from engine.store import gc, switch
from engine.store.rows import RowMap
from tests.events import several
from tests.removals import unsynced
from tests.store_fixture import Store


def names(store: Store) -> set[str]:
    return {p.name for folder in (store.layout.rows, store.layout.indexes) for p in folder.iterdir()}


def test_only_what_no_manifest_names_is_removed(store: Store) -> None:
    store.publish(several(150))
    store.index()
    kept = names(store)
    strays = {
        "rows": ["0000-00000077", "0007-00000000", "0000-00000000.3", "0000-00000001.9.a.tmp", "readme", "0000-1"],
        "indexes": ["attack-0000-000000000000-000000000064-0123abcd", "other-0000", "x.tmp"],
    }
    for folder, files in strays.items():
        for name in files:
            (store.layout.data_dir / folder / name).write_bytes(b"x")
    gone = {"0000-00000077", "0007-00000000", "0000-00000000.3", "attack-0000-000000000000-000000000064-0123abcd"}
    assert set(gc.collect(store.layout, store.publisher.manifest)) == gone
    assert names(store) == kept | {"0000-00000001.9.a.tmp", "readme", "0000-1", "other-0000", "x.tmp"}
    assert set(gc.collect(store.layout, store.publisher.manifest, boot=True)) == {"0000-00000001.9.a.tmp", "x.tmp"}
    store.check()


def test_what_is_removed_a_power_failure_does_not_bring_back(store: Store) -> None:
    """As after a death between the commit that purged it and its unlink."""
    store.publish(several(70))
    store.layout.row_file(7, 0).write_bytes(b"x")
    store.layout.index_file("attack-0000-000000000000-000000000064-0123abcd").write_bytes(b"x")
    with unsynced() as left:
        assert len(gc.collect(store.layout, store.publisher.manifest)) == 2
        assert not left


def test_the_next_row_file_is_kept(store: Store) -> None:
    """It is made and synced before the commit that first names it."""
    store.publish(several(64))
    path = store.layout.row_file(0, 1)
    path.write_bytes(b"x")
    assert gc.collect(store.layout, store.publisher.manifest, boot=True) == []
    assert path.exists()
    path.unlink()


def test_a_mapping_outlives_the_unlink(store: Store) -> None:
    store.publish(several(70))
    mapped = RowMap(store.layout.row_file(0, 0), 0, 64)
    before = mapped.vectors["attack"].copy()
    mapped.path.unlink()
    assert (mapped.vectors["attack"] == before).all()
    assert mapped.bad_rows(64) == []


def test_files_of_the_model_before_are_kept_and_those_before_that_are_not(store: Store) -> None:
    store.publish(several(70))
    store.index()
    old = store.publisher.manifest.model
    store.switch()
    assert gc.collect(store.layout, store.publisher.manifest) == []
    first = {p.name for p in store.layout.rows.glob("0000-*")} | {p.name for p in store.layout.indexes.glob("*-0000-*")}
    assert len(first) == 2 + 3
    second = names(store) - first
    store.switch(old)  # back
    assert names(store) == first | second
    switch.forget(store.publisher)
    assert names(store) == first
    store.switch()
    assert names(store) == first | {name.replace("0001-", "0002-") for name in second if name[0] == "0"} | {
        i.file for i in store.publisher.manifest.indexes
    }
    store.check()


def test_what_a_switch_has_built_so_far_is_kept_until_it_is_given_up(store: Store) -> None:
    store.publish(several(150))
    before = names(store)
    store.begin_switch()
    store.go_on()
    built = names(store) - before
    assert len(built) == 1 + 1 + 3  # the file that is filled, the one that is written to, indexes
    assert gc.collect(store.layout, store.publisher.manifest, boot=True) == []
    switch.give_up(store.publisher)
    assert names(store) == before
    store.check()
