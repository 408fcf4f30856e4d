"""A switch of models and the way back, in one process: what is embedded when, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.errors import NoSpaceError
from engine.files import free_bytes
from engine.store import switch, tiers
from engine.store.manifest import Embedded, Manifest, Switch, decode, encode
from engine.store.rows import file_bytes
from tests.events import several
from tests.store_fixture import OTHER, ROWS, Store, other_model


def test_both_versions_get_what_comes_during_a_switch(store: Store) -> None:
    store.publish(several(150))
    old = store.publisher.manifest
    store.begin_switch()
    store.publish(several(30, 150))
    assert store.ask("e000160", space="attack", top_k=3).model == old.model
    store.go_on()
    store.publish(several(100, 180))
    under_way = store.publisher.manifest.switch
    assert under_way is not None and (under_way.since, under_way.to.count) == (150, 64)
    store.check()
    while store.go_on():
        pass
    switch.finish(store.publisher)
    store.check()  # every row, those of the 130 too, is what the new version makes of its record
    assert store.ask("e000279", space="attack", top_k=3).model == OTHER
    kept = store.publisher.manifest.kept
    assert kept is not None and kept.count == 280


def test_the_way_back_is_one_commit(store: Store) -> None:
    store.publish(several(150))
    store.index()
    before = store.publisher.manifest
    store.switch()
    generation = store.generation
    store.switch(before.model)
    now = store.publisher.manifest
    assert store.generation == generation + 1
    assert (now.epoch, now.indexes, now.sealed) == (before.epoch, before.indexes, before.sealed)
    assert now.kept is not None and now.kept.model == OTHER
    store.check()


def test_an_epoch_is_given_out_once(store: Store) -> None:
    """Also where there was nothing to embed."""
    old = store.publisher.manifest.model
    store.switch()
    store.publish(several(70))
    store.begin_switch(old)
    under_way = store.publisher.manifest.switch
    assert under_way is not None and under_way.to.epoch != store.publisher.manifest.epoch
    while store.go_on():
        pass
    store.check()


def test_what_came_since_is_embedded_before_the_way_back(store: Store) -> None:
    store.publish(several(150))
    old = store.publisher.manifest
    store.switch()
    store.publish(several(100, 150))
    store.index()
    store.begin_switch(old.model)
    assert store.publisher.manifest.kept is None
    assert switch.progress(store.publisher.manifest) | {"begun_at": 0} == {  # type: ignore[operator]
        "version": old.model, "events": 100, "events_done": 0, "begun_at": 0, "events_per_s": 0.0, "eta_s": None,
    }  # fmt: skip
    store.publish(several(10, 250))
    store.go_on()
    done = switch.progress(store.publisher.manifest)
    assert done is not None and (done["events_done"], done["events_per_s"], done["eta_s"]) == (42, 84.0, 0.7)
    assert store.ask("e000255", space="attack", top_k=3).model == OTHER
    store.check()
    while store.go_on():
        pass
    switch.finish(store.publisher)
    assert store.publisher.manifest.epoch == old.epoch
    store.check()
    assert {s.number for s in store.publisher.manifest.sealed} == {2}  # 0 and 1 never were


def test_a_way_back_names_no_row_twice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version before has indexes over parts of a row file that is full by now."""
    monkeypatch.setattr(tiers, "EARLY_ROWS", 16)
    store.publish(several(168))
    store.index()
    store.index_early()
    old = store.publisher.manifest.model
    store.switch()
    store.publish(several(40, 168))
    store.switch(old)
    covered = [seq for i in store.publisher.manifest.indexes if i.space == "attack" for seq in range(i.lo, i.hi)]
    assert sorted(covered) == list(range(3 * ROWS))
    assert tiers.unindexed(store.publisher.manifest) == []
    store.check()


def test_a_way_back_that_was_given_up_is_still_there(store: Store) -> None:
    store.publish(several(100))
    old = store.publisher.manifest.model
    store.switch()
    store.publish(several(100, 100))
    store.begin_switch(old)
    store.go_on()
    switch.give_up(store.publisher)
    kept = store.publisher.manifest.kept
    assert kept is not None and (kept.model, kept.count) == (old, 128)
    store.publish(several(10, 200))
    store.switch(old)
    store.check()


def test_giving_up_a_new_version_leaves_the_one_that_is_kept(store: Store) -> None:
    """Also once row files have left, so that the first row of a new version is not row 0."""
    store.publish(several(150))
    old = store.publisher.manifest.model
    store.switch()
    store.leave(1)
    before = store.publisher.manifest
    third = switch.target(store.layout, before, "v0-third")
    switch.begin(store.publisher, store.publisher.models, third)
    store.go_on()
    switch.give_up(store.publisher)
    now = store.publisher.manifest
    assert now.kept is not None and now.kept == before.kept
    assert switch.whole(store.layout, now, now.kept)
    assert not list(store.layout.rows.glob("0002-*"))
    store.switch(old)
    store.check()


def test_a_switch_of_a_directory_from_before_is_of_a_new_version() -> None:
    """`was_kept` came later."""
    begun = Manifest(row_file_rows=64, model="v1", switch=Switch(Embedded("v2", 3), 1, 0, 0, was_kept=True))
    tree = msgspec.msgpack.decode(encode(begun))
    assert tree["switch"].pop() is True
    under_way = decode(msgspec.msgpack.encode(tree)).switch
    assert under_way is not None and not under_way.was_kept


def test_a_start_goes_on_with_a_switch(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(150))
        store.begin_switch()
        store.go_on()
    with Store(tmp_path / "data") as store:
        store.publish(several(50, 150))
        while store.go_on():
            pass
        switch.finish(store.publisher)
        store.check()
        assert store.publisher.manifest.model == OTHER


@pytest.mark.parametrize("number", [0, 2])
def test_a_start_begins_a_switch_anew_where_its_files_are_gone(tmp_path: Path, number: int) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(150))
        store.begin_switch()
        store.go_on()
        store.publish(several(50, 150))
        store.layout.row_file(1, number).unlink()
    with Store(tmp_path / "data") as store:
        under_way = store.publisher.manifest.switch
        assert under_way is not None and (under_way.to, under_way.since) == (Embedded(OTHER, 2), 200)
        while store.go_on():
            pass
        switch.finish(store.publisher)
        store.check()
        assert not list(store.layout.rows.glob("0001-*"))


def test_a_start_that_begins_a_way_back_anew_still_has_the_rows_of_before(tmp_path: Path) -> None:
    """Only a file that was written during the switch is gone."""
    with Store(tmp_path / "data") as store:
        store.publish(several(100))
        old = store.publisher.manifest.model
        store.switch()
        store.publish(several(100, 100))
        store.begin_switch(old)
        store.publish(several(100, 200))
        store.layout.row_file(0, 4).unlink()
    with Store(tmp_path / "data") as store:
        under_way = store.publisher.manifest.switch
        assert under_way is not None and under_way.was_kept and (under_way.to.epoch, under_way.to.count) == (0, 100)
        while store.go_on():
            pass
        switch.finish(store.publisher)
        store.check()


def test_a_start_gives_a_switch_up_whose_version_is_gone(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(100))
        store.begin_switch()
        (store.layout.model(OTHER) / "card.json").unlink()
    with Store(tmp_path / "data") as store:
        assert store.publisher.manifest.switch is None
        store.publish(several(10, 100))
        store.check()
        assert not list(store.layout.rows.glob("0001-*"))


def test_a_start_forgets_a_way_back_whose_files_are_gone(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(100))
        store.switch()
        store.layout.row_file(0, 1).unlink()
    with Store(tmp_path / "data") as store:
        assert store.publisher.manifest.kept is None
        store.check()
        assert not list(store.layout.rows.glob("0000-*"))


def test_no_event_waits_for_a_switch_that_cannot_be_written(store: Store) -> None:
    """The other version's next row file has a directory in its place: the events are stored, the switch is given up."""
    store.publish(several(100))
    model = store.publisher.manifest.model
    store.begin_switch()
    store.layout.row_file(1, 2).mkdir()
    assert store.publish(several(100, 100)).accepted == 100
    assert store.publisher.manifest.switch is None
    store.layout.row_file(1, 2).rmdir()
    assert store.publish(several(10, 200)).accepted == 10
    store.check()
    assert store.publisher.manifest.model == model


def test_a_way_back_that_cannot_be_written_is_still_there_afterwards(store: Store) -> None:
    store.publish(several(100))
    old = store.publisher.manifest.model
    store.switch()
    store.publish(several(100, 100))
    store.begin_switch(old)
    store.layout.row_file(0, 4).mkdir()
    assert store.publish(several(100, 200)).accepted == 100
    assert store.publisher.manifest.switch is None
    kept = store.publisher.manifest.kept
    assert kept is not None and (kept.model, kept.count) == (old, 100)
    store.publisher.embed_alone()  # as the upkeep does at its next look
    store.layout.row_file(0, 4).rmdir()
    store.publish(several(10, 300))
    store.switch(old)
    store.check()


# ---- a disk that is short -------------------------------------------------------------------------------------------


def test_a_switch_is_refused_where_the_disk_is_short(disk: Path) -> None:
    with Store(disk / "data") as store:
        store.publish(several(10 * ROWS))
        store.publisher.close()  # the next row file is there
        other_model(store.layout)
        before, files = store.publisher.manifest, sorted(store.layout.rows.iterdir())
        needed = 11 * file_bytes(ROWS)
        assert switch.needed_bytes(before, Embedded(OTHER, 1)) == needed
        filler = disk / "filler"
        filler.write_bytes(bytes(free_bytes(disk) - needed + (1 << 16)))
        with pytest.raises(NoSpaceError, match=rf"needs {needed} bytes on disk, \d+ are free; nothing was changed"):
            store.begin_switch()
        assert store.publisher.manifest == before
        assert sorted(store.layout.rows.iterdir()) == files
        filler.unlink()
        store.switch()
        store.check()
        filler.write_bytes(bytes(free_bytes(disk) - needed))
        with pytest.raises(NoSpaceError, match=f"`flowkin models gc` removes {before.model}"):
            store.begin_switch()
