"""Compaction: the same content in a smaller file, whatever is written meanwhile, and no byte of what was deleted."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from msgspec.structs import replace

from engine.errors import BootError, EngineError, NoSpaceError, OverloadedError
from engine.maintain import compact as compaction
from engine.maintain import doctor
from engine.maintain.build import Built, Job
from engine.store.catalog import TABLES, Catalog
from tests.events import ids, make, several
from tests.removals import unsynced
from tests.store_fixture import ROWS, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "data") as store:
        yield store


def content(catalog: Catalog) -> dict[tuple[str, bytes], bytes]:
    """All but the manifest, checked."""
    with catalog.read() as view:
        found = {(table, key): bytes(value) for table in TABLES for key, value in view.scan(table)}
    del found["meta", b"manifest"]
    return found


@contextmanager
def commits_of(compacting: compaction.Compacting, events: int) -> Iterator[None]:
    """With that setting."""
    config = compacting.worker.config
    small = replace(config.ingest, save_events=1, commit_events=events)
    with (
        patch.object(compacting.worker, "config", replace(config, ingest=small)),
        patch.object(compaction, "KEYS_AT_ONCE_MIN", 0),
    ):
        yield


def files(store: Store) -> list[str]:
    return sorted(p.name for p in store.layout.catalog.iterdir())


def test_it_holds_the_same_in_a_smaller_file(store: Store) -> None:
    store.publish(several(6 * ROWS))
    store.publisher.annotate("e000350", "good", "ana")
    store.leave(5)
    before, generation = content(store.catalog), store.generation
    done = store.compact()
    assert content(store.catalog) == before
    assert done["bytes_after"] < done["bytes_before"] / 2
    assert (store.generation, done["waits_for"]) == (generation + 1, [])
    assert files(store) == ["CURRENT", "catalog.1", "catalog.1-lock"]
    store.publish(several(10, 500))
    store.check()
    store.compact()
    assert files(store) == ["CURRENT", "catalog.2", "catalog.2-lock"]
    store.check()
    assert store.ids() == ids(several(ROWS, 5 * ROWS)) + ids(several(10, 500))


def test_the_old_file_does_not_come_back_after_a_power_failure(store: Store) -> None:
    store.publish(several(ROWS))
    old = str(store.catalog.path)
    with unsynced() as left:
        store.compact()
        assert not Path(old).exists() and not left


def test_a_catalog_that_lost_its_name_is_not_taken_for_none(tmp_path: Path) -> None:
    """CURRENT is gone, as a copy by hand leaves it out: a birth beside the catalog would remove it with all files."""
    with Store(tmp_path / "data") as store:
        store.publish(several(100))
        store.compact()
        expected, layout, config = store.ids(), store.layout, store.config
    (layout.catalog / "CURRENT").unlink()
    before = sorted(path for path in layout.data_dir.rglob("*") if path.parent != layout.run)
    with pytest.raises(BootError, match=r"CURRENT is gone, and catalog\.1 may hold all events; nothing was changed"):
        Store(tmp_path / "data")
    assert sorted(path for path in layout.data_dir.rglob("*") if path.parent != layout.run) == before
    assert any("catalog.1 are there" in finding.detail for finding in doctor.run(layout))
    fixed = doctor.fix(layout, config)
    assert any(finding.fixed and "names catalog.1 again" in finding.detail for finding in fixed)
    with Store(tmp_path / "data") as store:
        assert store.ids() == expected
        store.check()


def test_a_reopened_directory_is_the_compacted_one(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(10))
        store.compact()
        store.publish(several(10, 10))
    with Store(tmp_path / "data") as store:
        assert store.ids() == ids(several(20))
        store.check()


def test_what_is_written_meanwhile_is_in_the_new_file(store: Store) -> None:
    """Events, labels and deletions, before the copy begins, during it and after, in rounds and at the end."""
    store.publish(several(4 * ROWS))
    compacting = store.compacting()
    copied, n = compacting.jobs.run, 0

    def write(times: int) -> None:
        nonlocal n
        for _ in range(times):
            store.publish(several(5, 1_000 + 5 * n))
            store.publisher.annotate(f"e{100 + n % 50:06d}", f"label {n % 3}", "ana")
            n += 1

    async def run(job: Job) -> Built | None:
        write(3)
        copying = asyncio.ensure_future(copied(job))
        while not copying.done():
            write(1)
            await asyncio.sleep(0.005)
        store.leave(1, 1)
        write(3)
        return await copying

    async def both() -> None:
        task = asyncio.ensure_future(compacting.run())
        while not task.done():
            if store.catalog.changed is None or n < 30:  # the last rounds are run through without us
                write(1)
            await asyncio.sleep(0)
        await task

    with commits_of(compacting, 2), patch.object(compacting.jobs, "run", run):
        asyncio.run(both())
    assert n > 6
    store.leave(1)
    store.check()
    names = store.ids()
    assert names[: 3 * ROWS] == ids(several(3 * ROWS, ROWS))
    assert names[3 * ROWS :] == ids(several(len(names) - 3 * ROWS, 1_000))
    assert store.publisher.manifest.generation == store.snapshot().generation


def test_it_ends_however_fast_events_come(store: Store) -> None:
    """The most that a commit may hold, in every turn of the loop."""
    most, n = 200, 0
    store.publish(several(4 * ROWS))
    compacting = store.compacting()
    copied = compacting.jobs.run

    def write() -> None:
        nonlocal n
        store.publish(several(most, 10_000 + most * n))
        n += 1

    async def run(job: Job) -> Built | None:
        for _ in range(20):
            write()
        return await copied(job)

    async def both() -> None:
        task = asyncio.ensure_future(compacting.run())
        turns = 0
        while not task.done():
            if n >= 20 and store.catalog.changed is not None:
                turns += 1
                assert turns < 100
                write()
            await asyncio.sleep(0 if n >= 20 else 0.005)
        await task

    with commits_of(compacting, most), patch.object(compacting.jobs, "run", run):
        asyncio.run(both())
    store.check()
    assert store.publisher.manifest.count == 4 * ROWS + most * n


def test_what_is_open_follows_and_lets_go_of_the_old_file(store: Store) -> None:
    store.publish(several(50))
    code = f"""
import sys
from pathlib import Path
from engine.store.catalog import Catalog
catalog = Catalog(Path({str(store.layout.catalog)!r}), write=False, map_size=1 << 30)
assert not catalog.follow()
with catalog.read() as view:
    print(view.manifest().count, flush=True)
    sys.stdin.readline()
    assert catalog.follow()
    assert view.head(7) and view.find("e000007") == 7  # what was begun ends on the old one
    with catalog.read() as newer:
        print(newer.manifest().count, flush=True)
del view, newer
maps = Path("/proc/self/maps").read_text()
print("catalog.0" in maps, "catalog.1" in maps, not catalog.follow())
"""

    async def run() -> None:
        from tests.engine_fixture import environment

        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", code, stdin=pipe, stdout=pipe,
                                                     env=environment())  # fmt: skip
        assert child.stdout is not None and child.stdin is not None
        assert await child.stdout.readline() == b"50\n"
        await store.compacting().run()
        store.publish(several(5, 50))
        child.stdin.write(b"\n")
        assert await child.stdout.readline() == b"55\n"
        assert await child.stdout.readline() == b"False True True\n"
        assert await child.wait() == 0

    asyncio.run(run())


CONFINED = """
import sys
from pathlib import Path
from engine.run import confine
from engine.store.catalog import Catalog
from engine.errors import BootError
data = Path(sys.argv[1])
catalog = Catalog(data / "catalog", write=False, map_size=1 << 30)
if sys.argv[2] == "replaced":
    catalog.open_next()
print(confine.confine([data, *confine.libraries()]).whole, flush=True)
sys.stdin.readline()
try:
    print(catalog.follow(), flush=True)
except BootError:
    print("BootError", flush=True)
with catalog.read() as view:
    print(catalog.path.name, view.manifest().count, flush=True)
"""


@pytest.mark.parametrize(
    ("since", "told"), [("replaced", b"True\ncatalog.1 55\n"), ("before", b"BootError\ncatalog.0 50\n")]
)
def test_who_is_confined_follows_to_what_was_open_before(store: Store, since: str, told: bytes) -> None:
    """A reader opens no lock file any more; what took its place since the copy was there has that open."""
    from tests.engine_fixture import environment

    store.publish(several(50))
    children: list[asyncio.subprocess.Process] = []

    async def child() -> None:
        pipe = asyncio.subprocess.PIPE
        one = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", CONFINED, str(store.layout.data_dir), since, stdin=pipe, stdout=pipe,
            env=environment(),
        )  # fmt: skip
        children.append(one)
        assert one.stdout is not None
        if await one.stdout.readline() != b"True\n":
            one.kill()
            await one.wait()
            pytest.skip("this machine has not both, Landlock and seccomp")

    async def rolled(within_s: float) -> bool:
        if since == "replaced":
            await child()
        return True

    async def run() -> None:
        if since == "before":
            await child()
        await store.compacting(rolled).run()
        store.publish(several(5, 50))
        out, _ = await children[0].communicate(b"\n")
        assert (out, children[0].returncode) == (told, 0)

    asyncio.run(run())
    assert files(store) == ["CURRENT", "catalog.1", "catalog.1-lock"]


def test_readers_that_cannot_be_replaced_keep_the_old_one(store: Store) -> None:
    store.publish(several(50))

    async def not_all(within_s: float) -> bool:
        assert (store.layout.catalog / "NEXT").read_text() == "catalog.1"
        return False

    generation = store.generation
    with pytest.raises(EngineError, match="not every reader"):
        asyncio.run(store.compacting(not_all).run())
    assert files(store) == ["CURRENT", "catalog.0", "catalog.0-lock"]
    assert (store.generation, store.catalog.changed) == (generation, None)
    store.publish(several(5, 50))
    store.compact()
    store.check()


def test_one_at_a_time(store: Store) -> None:
    compacting = store.compacting()

    async def two() -> list[Any]:
        return await asyncio.gather(compacting.run(), compacting.run(), return_exceptions=True)

    first, second = asyncio.run(two())
    assert isinstance(first, dict) and isinstance(second, OverloadedError)


def test_a_disk_that_is_short_changes_nothing(store: Store) -> None:
    store.publish(several(20))
    generation = store.generation
    with (
        patch.object(compaction, "free_bytes", lambda folder: 4096),
        pytest.raises(NoSpaceError, match="4096 are free"),
    ):
        store.compact()
    with patch.object(compaction, "write_new", side_effect=OSError(28, "No space left on device")):
        with pytest.raises(OSError):
            store.compact()
    assert store.catalog.path.name == "catalog.0"
    assert store.catalog.changed is None
    store.publish(several(20, 20))
    assert store.generation == generation + 1
    store.compact()
    store.check()


def test_no_byte_of_what_was_deleted_is_left(store: Store) -> None:
    """Neither in free pages nor in the gaps of others."""
    store.publish([make(n, event_id=f"particular{n:04d}", text="") for n in range(ROWS)] + several(ROWS + 5, 100))
    store.publisher.annotate("particular0003", "a very particular label", "ana")
    path = store.catalog.path
    store.leave(1)
    assert b"particular00" in path.read_bytes()
    store.compact()
    assert b"particular" not in store.catalog.path.read_bytes()
    assert os.listdir(store.layout.quarantine) == [] if store.layout.quarantine.exists() else True
    store.check()


def test_a_catalog_that_is_gone_is_an_error_still(store: Store, tmp_path: Path) -> None:
    (tmp_path / "CURRENT").write_text("catalog.7")
    with pytest.raises(BootError, match=r"catalog\.7, which .* names, is gone"):
        Catalog(tmp_path, write=False, map_size=1 << 20)
