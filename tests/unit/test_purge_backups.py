"""A purge of backups: what was named is in none of them, what was not is in each as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import OverloadedError
from engine.layout import Layout
from engine.maintain.backup import found, read, restore, verify
from engine.maintain.purge_backups import SUFFIX, Purged, purge_backups
from engine.maintain.take import create
from engine.store.dead_letters import newest
from engine.store.publish import Submission
from ipc.event import FeaturedEvent
from ipc.messages import Filter, Reject
from tests.events import ids, make, several
from tests.store_fixture import ROWS, Store, flip

MAP_BYTES = 1 << 30
VICTIM = "203.0.113.77"
FILTER = Filter(addr=[VICTIM])


def victims(count: int, first: int) -> list[FeaturedEvent]:
    return [
        make(n, event_id=f"victim{n:04d}", src_ip=VICTIM, text=f"said of victim{n:04d}")
        for n in range(first, first + count)
    ]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three backups of one directory: before the victim came, with it in a full row file, and in the last one, too."""
    home, layout = tmp_path / "backups", Layout(tmp_path / "data")
    with Store(layout.data_dir) as store:
        store.publish(several(ROWS + 10))
        store.index()
    create(layout, home, "first", map_size=MAP_BYTES)
    with Store(layout.data_dir) as store:
        store.publish([*victims(5, 9_000), *several(2 * ROWS, 500)])
        store.publisher.annotate("e000003", "kept", "ana")
        store.publisher.publish(
            [Submission("ndjson", [], [Reject("f", 1, "bad", VICTIM.encode())], lambda o: None, {}, "test", [])]
        )
        store.index()
    create(layout, home, "second", map_size=MAP_BYTES)
    with Store(layout.data_dir) as store:
        store.publish(victims(3, 9_100))
    create(layout, home, map_size=MAP_BYTES)
    return home


def purged(home: Path, wanted: Filter | None = FILTER, names: tuple[str, ...] = ()) -> list[Purged]:
    with Store(home.parent / "other") as store:
        config = store.config
    return purge_backups(home, config, wanted, names)


def holds(home: Path, *traces: bytes) -> list[str]:
    return [
        f"{path.relative_to(home)}: {trace!r}"
        for path in home.rglob("*")
        if path.is_file()
        for trace in traces
        if trace in path.read_bytes()
    ]


def test_it_is_in_no_backup_any_more_and_all_else_is(home: Path, tmp_path: Path) -> None:
    last = next(name for name in found(home) if "Z-g" in name)
    before = {name: read(home / name) for name in found(home)}
    traces = (b"victim9", VICTIM.encode(), bytes([77, 113, 0, 203, 0xFF, 0xFF, 0, 0]))  # the last as columns have it
    assert {line.split("/")[0] for line in holds(home, *traces)} == {"second", last}
    untouched = {path: path.stat().st_ino for path in (home / "first").rglob("*")}
    told = {one.name: one for one in purged(home)}
    assert [told[n].events for n in ("first", "second", last)] == [0, 5, 8]
    assert [told[n].dead_letters for n in ("first", "second", last)] == [0, 1, 1]
    assert {name for name, one in told.items() if one.changed} == {"second", last}
    assert not any(one.error for one in told.values())
    assert holds(home, *traces) == []
    assert untouched == {path: path.stat().st_ino for path in (home / "first").rglob("*")}
    assert {name: b.created_at for name, b in before.items()} == {n: read(home / n).created_at for n in found(home)}
    assert sorted(p.name for p in home.iterdir() if not p.name.startswith(".")) == sorted(before)
    assert sorted(p.name for p in home.glob(".*")) == [".backup.lock"]
    for name in before:
        assert "problem" not in {f.severity for f in verify(home / name)}, name
    restore(home / last, tmp_path / "restored")
    with Store(tmp_path / "restored") as store:
        assert store.ids() == ids([*several(ROWS + 10), *several(2 * ROWS, 500)])
        with store.catalog.read() as view:
            assert view.marked("label", "kept") == [3]
        store.index()
        store.check()
    assert not any(one.changed for one in purged(home))


def test_indexes_that_the_engine_had_not_replaced_yet_are_in_none(home: Path) -> None:
    """The engine had purged before the backup was taken, so that nothing is left to purge there but these."""
    with Store(home.parent / "data") as store:
        store.purge(FILTER)
        stale = set(store.publisher.manifest.stale)
    create(Layout(home.parent / "data"), home, "stale", map_size=MAP_BYTES)
    folder = home / "stale" / "indexes"
    assert stale and stale <= {p.name for p in folder.iterdir()}
    told = {one.name: one for one in purged(home)}
    assert told["stale"].changed and not told["stale"].error
    assert stale.isdisjoint(p.name for p in folder.iterdir())
    assert "problem" not in {f.severity for f in verify(home / "stale")}
    assert not any(one.changed for one in purged(home))


def test_by_ids_and_one_that_is_damaged_stays_and_is_named(home: Path) -> None:
    flip(home / "first" / "catalog" / "catalog.0", 9_000)
    told = {one.name: one for one in purged(home, None, ("e000003",))}
    assert "first" in told["first"].error or "checksum" in told["first"].error
    assert [(one.events, one.changed) for name, one in told.items() if name != "first"] == [(1, True), (1, True)]
    assert read(home / "first").events == ROWS + 10


def test_what_a_killed_purge_left_is_finished(home: Path) -> None:
    """Both are there: it is made again. Only the new one is: it has the name."""
    (home / "first").rename(home / f"first{SUFFIX}")
    create(Layout(home.parent / "data"), home, f"second{SUFFIX}", map_size=MAP_BYTES)
    told = {one.name: one for one in purged(home)}
    assert told["first"].events == 0 and told[f"second{SUFFIX}"].events == 8  # a backup of that name, of another time
    assert (home / f"second{SUFFIX}").exists() and (home / "second").exists()
    assert not told["second"].changed and "is there already" in told["second"].error


def test_one_at_a_time(home: Path) -> None:
    from engine.maintain.backup import alone

    with alone(home), pytest.raises(OverloadedError):
        purged(home)


def test_an_encrypted_one_takes_its_key(tmp_path: Path) -> None:
    """Its dead letters are opened to see what they hold; without the key it is left as it is, and says so."""
    key, home, layout = tmp_path / "key", tmp_path / "backups", Layout(tmp_path / "data")
    key.write_text("ab" * 32)
    key.chmod(0o600)
    with Store(layout.data_dir, key) as store:
        store.publish([*several(ROWS + 10), *victims(5, 9_000)])
        rejects = [Reject("f", n, "bad", text) for n, text in enumerate((VICTIM.encode(), b"another"))]
        store.publisher.publish([Submission("ndjson", [], rejects, lambda o: None, {}, "test", [])])
    create(layout, home, "one", map_size=MAP_BYTES)
    before = read(home / "one")
    (left,) = purged(home)
    assert "is encrypted with key" in left.error and read(home / "one") == before
    with Store(tmp_path / "third", key) as store:
        config = store.config
    (told,) = purge_backups(home, config, FILTER, ())
    assert (told.events, told.dead_letters, told.error) == (5, 1, "")
    restore(home / "one", tmp_path / "restored")
    with Store(tmp_path / "restored", key) as store:
        assert store.ids() == ids(several(ROWS + 10))
        assert [x.data for x in newest(store.layout.dead_letters, store.catalog.cipher)] == [b"another"]
