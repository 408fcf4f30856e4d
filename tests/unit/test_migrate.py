"""Migration in this process: how far a copy is, what a later format adds, what is compared before it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from engine.errors import BadRequestError, CorruptionError, DeniedError, EngineError, NoSpaceError, NotReadyError
from engine.files import free_bytes
from engine.layout import Layout
from engine.limits import FORMAT_BORN, FORMAT_ENCRYPTED, FORMAT_REMOVED
from engine.maintain import migrate
from engine.store.catalog import TABLES, Catalog
from engine.store.manifest import Manifest
from ipc.messages import Reject
from tests.events import ids, several
from tests.store_fixture import ROWS, Store, closed, configured


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """150 events, two letters, one of them damaged."""
    closed(tmp_path / "data")
    with Store(tmp_path / "data") as store:
        store.publisher.publish([store_letters()])
    path = tmp_path / "data" / "dead_letters.ndjson"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b"reason", b"raeson"))
    return tmp_path / "data"


def store_letters() -> Any:
    from engine.store.publish import Submission

    return Submission("ndjson", [], [Reject("file", n, f"bad {n}", b"record") for n in (1, 2)], lambda o: None)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "a.key"
    path.touch(0o600)
    path.write_text("ab" * 32)
    return path


def run(data_dir: Path, key: Path | None = None, **more: Any) -> dict[str, Any]:
    return migrate.run(Layout(data_dir), configured(data_dir, key), **more)


def test_rotated_dead_letters_are_nobody_elses(data_dir: Path, key: Path) -> None:
    """logrotate's names are no name of ours, whatever the catalog's number is."""
    run(data_dir, key)
    letters = (data_dir / "dead_letters.ndjson").read_bytes()
    rotated = [data_dir / f"dead_letters.ndjson.{end}" for end in ("1", "2", "2.gz", "20261127")]
    for path in rotated:
        path.write_bytes(b"rotated")
    with Store(data_dir, key):
        pass
    run(data_dir, None, to="plain", from_key_file=str(key))
    assert all(path.read_bytes() == b"rotated" for path in rotated)
    assert b"sealed" in letters and b"reason" in (data_dir / "dead_letters.ndjson").read_bytes()


def test_dead_letters_of_before_they_were_counted_are_kept(data_dir: Path, key: Path) -> None:
    with Store(data_dir) as store, store.catalog.write() as batch:
        batch.put_counters(msgspec.structs.replace(store.publisher.counters, letter_bytes=-1))
    facts = run(data_dir, key)
    assert facts["dead_letters_left_out"] == 1 and all(file["bytes"] > 0 for file in facts["files"])
    assert (data_dir / "dead_letters.ndjson").read_bytes().count(b"\n") == 1


def stopping(after: int, told: list[int]) -> Callable[[int], None]:
    """Ctrl-C when so many values were told."""

    def advance(n: int) -> None:
        told.append(n)
        if sum(told) >= after:
            raise KeyboardInterrupt

    return advance


@pytest.mark.parametrize("after", [1, 60, 149, 160, 310])
def test_it_goes_on_behind_the_last_key_that_was_committed(data_dir: Path, key: Path, after: int) -> None:
    told: list[int] = []
    with patch.object(migrate, "STEP_VALUES", 7):
        with pytest.raises(KeyboardInterrupt):
            run(data_dir, key, advance=stopping(after, told))
        copied: list[tuple[str, bytes]] = []
        some = migrate._Migration._some

        def watched(self: Any, table: str, key: bytes) -> Any:
            found = some(self, table, key)
            copied.extend((table, key) for key, _ in found)
            return found

        with patch.object(migrate._Migration, "_some", watched):
            done = run(data_dir, key)
    assert done["resumed"]
    assert len(copied) == done["values"] - sum(told)
    with Store(data_dir, key) as store:
        store.check()
        assert store.ids() == ids(several(150))


def test_a_damaged_letter_is_left_out_and_told(data_dir: Path, key: Path) -> None:
    assert run(data_dir, key)["dead_letters_left_out"] == 1
    assert (data_dir / "dead_letters.ndjson").read_bytes().count(b"\n") == 1
    with Store(data_dir, key) as store:
        assert store.publisher.counters.letter_bytes == (data_dir / "dead_letters.ndjson").stat().st_size
        store.publisher.publish([store_letters()])
    assert (data_dir / "dead_letters.ndjson").read_bytes().count(b"\n") == 3


def test_formats_are_those_of_what_was_removed(data_dir: Path, key: Path) -> None:
    assert run(data_dir, key)["to_format"] == FORMAT_ENCRYPTED
    assert run(data_dir, key, to=migrate.PLAIN)["to_format"] == FORMAT_BORN
    with Store(data_dir) as store:
        store.leave(1)
    assert run(data_dir, key)["from_format"] == FORMAT_REMOVED
    assert run(data_dir, key, to=migrate.PLAIN)["to_format"] == FORMAT_REMOVED
    with Store(data_dir) as store:
        store.check()
        assert store.ids() == ids(several(150 - ROWS, ROWS))


def test_a_later_format_is_one_more_step(data_dir: Path, key: Path) -> None:
    """Steps that are due follow each other in one copy; a value that a step changes is compared as it is to be."""

    def value(table: str, key: bytes, payload: bytes) -> bytes:
        return payload + b"!" if table == "offsets" else payload

    step = migrate.Step(
        "offsets shout", lambda m, key: m.row_file_rows == ROWS and not m.names_count > 90,
        lambda m, key: msgspec.structs.replace(m, names_count=91), value,
    )  # fmt: skip
    with Store(data_dir) as store:
        store.publish(several(5, 150), {b"file": b"at 5"})
    with patch.object(migrate, "STEPS", (*migrate.STEPS, step)):
        assert len(run(data_dir, key)["steps"]) == 2
        assert run(data_dir, key)["steps"] == []
    catalog = Catalog(Layout(data_dir).catalog, write=False, map_size=1 << 30)
    with catalog.read() as view:
        manifest = view.manifest()
        assert isinstance(manifest, Manifest)
        assert (manifest.names_count, manifest.format_version) == (91, FORMAT_ENCRYPTED)
        assert bytes(view.get("offsets", b"file") or b"") == b"at 5!"
    catalog.close()


@pytest.mark.parametrize("table", TABLES)
def test_a_copy_that_is_not_what_it_should_be_is_not_used(data_dir: Path, key: Path, table: str) -> None:
    """One value more, one less, another one: found before CURRENT names it, in every table."""
    with Store(data_dir) as store:
        store.publish(several(5, 150), {b"file": b"at 5"})
        store.publisher.annotate("e000003", "good", "ana")
        store.publisher.checkpoint()
    finish = migrate._Migration._finish
    for spoil in ("more", "less", "other"):

        def spoilt(self: Any, target: Catalog, spoil: str = spoil) -> None:
            finish(self, target)
            with target.write() as batch:
                keys = [k for k in batch.keys(table) if (table, k) not in migrate._NAMED_ANEW]
                if spoil == "more":
                    batch.put(table, b"\0" + keys[0], b"")
                elif spoil == "less":
                    batch.delete(table, keys[-1])
                else:
                    batch.put(table, keys[-1], b"else")

        with patch.object(migrate._Migration, "_finish", spoilt):
            with pytest.raises(CorruptionError, match=f"catalog {table}.*is not in the copy what it is"):
                run(data_dir, key)
        assert not (data_dir / "migrating").exists()
    with Store(data_dir) as store:
        store.check()


def test_a_disk_that_is_short_is_said_before_anything_is_written(data_dir: Path, key: Path) -> None:
    with patch.object(migrate, "free_bytes", lambda folder: 4_096):
        told = run(data_dir, key, dry_run=True)
        assert told["bytes_free"] == 4_096 < told["bytes_needed"]
        with pytest.raises(NoSpaceError, match="4096 are free; nothing was changed"):
            run(data_dir, key)
    assert not (data_dir / "migrating").exists()
    assert run(data_dir, key)["bytes_written"] > 4_096


def test_a_disk_that_becomes_full_meanwhile_changes_nothing(disk: Path, key: Path) -> None:
    """A real one, whose free bytes were there when it began."""
    data_dir = closed(disk / "data")
    kept = [path.read_bytes() for path in (data_dir / "catalog").iterdir() if not path.name.endswith("-lock")]
    filler = disk / "filler"
    filler.write_bytes(bytes(free_bytes(disk) - (100 << 10)))
    with patch.object(migrate, "free_bytes", lambda folder: 1 << 30), patch.object(migrate, "STEP_VALUES", 32):
        with pytest.raises(NoSpaceError, match="nothing was changed"):
            run(data_dir, key)
    assert free_bytes(disk) >= 90 << 10
    assert [p.read_bytes() for p in (data_dir / "catalog").iterdir() if not p.name.endswith("-lock")] == kept
    assert not (data_dir / "migrating").exists()
    filler.unlink()
    assert not run(data_dir, key)["resumed"]
    with Store(data_dir, key) as store:
        store.check()


def test_only_the_owner_migrates(data_dir: Path, key: Path) -> None:
    """What root wrote the engine's user could not read."""
    with patch.object(migrate.os, "geteuid", lambda: 4_711), pytest.raises(DeniedError, match="as its owner"):
        run(data_dir, key)
    assert not (data_dir / "migrating").exists()


def test_what_was_never_born_is_not_migrated(tmp_path: Path, key: Path) -> None:
    layout = Layout(tmp_path / "none")
    layout.make()
    with pytest.raises(EngineError, match="no catalog here"):
        run(layout.data_dir, key)
    Catalog(layout.catalog, write=True, map_size=1 << 30).close()
    with pytest.raises(NotReadyError, match="not born yet"):
        run(layout.data_dir, key)
    with pytest.raises(BadRequestError):
        run(closed(tmp_path / "plain"), to=migrate.SEALED)
