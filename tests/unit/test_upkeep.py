"""Files that one child builds while another one's are named; row files that cannot be built again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config import Network, Retention
from engine.errors import NoSpaceError
from engine.files import free_bytes
from engine.maintain import upkeep
from engine.maintain.build import Built, IndexJob, Job, build_indexes
from engine.maintain.jobs import Jobs
from engine.maintain.scrub import Report
from engine.maintain.upkeep import Upkeep
from engine.store import tiers
from tests.events import several
from tests.store_fixture import ROWS, Store, flip


class Slow(Jobs):
    """Builds in this process; then `running` until `end` is set, as a child that goes on to other spaces."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store, self.built, self.end = store, asyncio.Event(), asyncio.Event()

    async def run(self, job: Job, **how: float) -> Built | None:
        assert isinstance(job, IndexJob)
        self.running = type(job).__name__
        made = build_indexes(self.store.layout, job.row_files, job.rows, job.part)
        self.built.set()
        await self.end.wait()
        self.running = ""
        return made


@pytest.mark.parametrize("first", ["merge", "build"])
def test_who_ends_first_leaves_the_files_of_the_other_alone(store: Store, first: str) -> None:
    """A merge of row files 0 and 1 beside the indexes of row file 2, whose files nothing names yet."""
    store.publish(several(150))
    store.index()
    replaced = {index.file for index in store.publisher.manifest.indexes}
    store.publish(several(50, 150))

    async def both() -> None:
        config: Any = SimpleNamespace(network=Network(), store=store.config.store)
        keeper = Upkeep(store.layout, config, store.publisher, lambda: None)
        keeper.jobs, keeper.merges = builds, merges = Slow(store), Slow(store)
        tasks = [asyncio.create_task(keeper._merge()), asyncio.create_task(keeper._index([2]))]
        await merges.built.wait()
        await builds.built.wait()
        order = [merges, builds] if first == "merge" else [builds, merges]
        waits = tasks if first == "merge" else tasks[::-1]
        for jobs, task in zip(order, waits, strict=True):
            jobs.end.set()
            await task

    asyncio.run(both())
    named = {index.file for index in store.publisher.manifest.indexes}
    assert {path.name for path in store.layout.indexes.iterdir()} == named
    assert {(index.lo, index.hi) for index in store.publisher.manifest.indexes} == {(0, 128), (128, 192)}
    assert not named & replaced


def test_a_merge_that_fails_time_and_again_holds_up_no_smaller_one(store: Store) -> None:
    """As of a child that is killed for its memory."""

    class Large(Jobs):
        async def run(self, job: Job, **how: float) -> Built | None:
            assert isinstance(job, IndexJob)
            if len(job.row_files) > 2:
                self.failures += 1
                return None
            self.failures = 0
            return build_indexes(store.layout, job.row_files, job.rows, job.part)

    store.publish(several(4 * 64))
    store.index()
    config: Any = SimpleNamespace(network=Network(), store=store.config.store)
    keeper = Upkeep(store.layout, config, store.publisher, lambda: None)
    keeper.merges = Large()

    async def merge() -> None:
        for _ in range(upkeep.FAILURES_MAX + 2):
            await keeper._merge()

    asyncio.run(merge())
    assert {(index.lo, index.hi) for index in store.publisher.manifest.indexes} == {(0, 128), (128, 256)}


def test_rows_of_a_file_that_is_being_filled_are_indexed_after_the_last_event(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were not where the last event came before the full row files had their indexes."""

    class Here(Jobs):
        async def run(self, job: Job, **how: float) -> Built | None:
            assert isinstance(job, IndexJob)
            return build_indexes(store.layout, job.row_files, job.rows, job.part)

    monkeypatch.setattr(tiers, "EARLY_ROWS", 16)
    monkeypatch.setattr(upkeep, "EARLY_WAIT_S", 0.0)
    store.publish(several(ROWS + 40))
    config: Any = SimpleNamespace(network=Network(), store=store.config.store, retention=Retention())
    keeper = Upkeep(store.layout, config, store.publisher, lambda: None)
    keeper.jobs, keeper.merges = Here(), Here()

    async def until_indexed() -> None:
        running = asyncio.create_task(keeper.run())
        async with asyncio.timeout(60):
            while not store.publisher.manifest.indexes or tiers.early(store.publisher.manifest):
                await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(until_indexed())
    covered = {(index.lo, index.hi) for index in store.publisher.manifest.indexes}
    assert covered == {(0, ROWS), (ROWS, ROWS + 16), (ROWS + 16, ROWS + 32)}


def test_files_of_a_switch_that_was_given_up_wait_for_no_merge(store: Store) -> None:
    """A purge does: they hold what it is to remove."""
    store.publish(several(10))
    config: Any = SimpleNamespace(network=Network(), store=store.config.store)
    keeper = Upkeep(store.layout, config, store.publisher, lambda: None)
    names = {"0007-00000000": store.layout.rows, "sbert-0007-000000000000-000000000064-0badcafe": store.layout.indexes}
    for name, folder in names.items():
        (folder / name).write_bytes(b"old")
    keeper.merges.running, keeper.jobs.running = "IndexJob", "FillJob"
    keeper.remove_abandoned()
    assert all((folder / name).exists() for name, folder in names.items())
    keeper.jobs.running = ""
    keeper.remove_abandoned()
    assert not any((folder / name).exists() for name, folder in names.items())
    store.check()


def test_what_fails_without_a_child_ends_the_wait_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "AGAIN_S", 0.0)

    class Refused(Jobs):
        async def run(self, job: Job, **how: float) -> Built | None:
            raise OSError("no process can be started")

    async def waited() -> bool:
        config: Any = SimpleNamespace(network=Network(), store=store.config.store, retention=store.config.retention)
        keeper = Upkeep(store.layout, config, store.publisher, lambda: None)
        keeper.jobs = keeper.merges = Refused()
        working = asyncio.create_task(keeper.run())
        try:
            return await keeper.settled()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    store.publish(several(150))
    assert not asyncio.run(waited())


def test_a_row_file_that_was_purged_before_the_child_opened_it_costs_no_failure(store: Store) -> None:
    """It is told as one that is not there, and the manifest of now names another."""
    store.publish(several(150))
    before = store.publisher.manifest.row_file(0)
    store.purge(ids=["e000003"])
    built = build_indexes(
        store.layout, [before, store.publisher.manifest.row_file(1)], store.publisher.manifest.row_file_rows
    )
    assert (built.bad_rows, built.indexes) == ([before], [])
    config: Any = SimpleNamespace(network=Network(), store=store.config.store)
    keeper = Upkeep(store.layout, config, store.publisher, lambda: None)
    assert not keeper._named(before)
    store.index()
    store.check()


def test_rows_are_indexed_early_unless_their_file_fills_up_fast(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "EARLY_ROWS", 16)
    monkeypatch.setattr(upkeep, "EARLY_WAIT_S", 0.0)

    async def looked(more: int) -> list[tuple[int, int]]:
        """The ranges that the child is asked for, where so many events come while it is waited."""
        config: Any = SimpleNamespace(network=Network(), store=store.config.store, retention=store.config.retention)
        keeper = Upkeep(store.layout, config, store.publisher, lambda: None)
        keeper.jobs = jobs = Slow(store)
        jobs.end.set()
        keeper.look()
        store.publish(several(more, store.publisher.manifest.count))
        running = asyncio.create_task(keeper.run())
        await keeper.idle()
        while tiers.early(store.publisher.manifest):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        return sorted((i.lo, i.hi) for i in store.publisher.manifest.indexes if i.space == "attack")

    store.publish(several(18))
    assert asyncio.run(looked(3)) == [(0, 16)]
    assert asyncio.run(looked(30)) == [(0, 16), (16, 32), (32, 48)]  # in the end all the same
    store.check()


# ---- row files that cannot be built again -------------------------------------------------------------------------


def damaged(store: Store, number: int) -> Report:
    """What a scrub says of a row file with a byte that is another."""
    name = store.publisher.manifest.row_file(number)
    flip(store.layout.row_file(*name), store.layout.row_file(*name).stat().st_size // 4)
    return Report(bad_rows=[name])


def test_who_waits_hears_of_a_full_disk_and_with_room_the_row_file_is_mended(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is being written, so that the ingest worker itself builds it."""
    monkeypatch.setattr(upkeep, "AGAIN_S", 0.01)

    async def scrubbed(store: Store) -> None:
        keeper = Upkeep(store.layout, store.config, store.publisher, lambda: None)
        running = asyncio.create_task(keeper.run())
        report = damaged(store, 1)
        filler = disk / "filler"
        filler.write_bytes(bytes(free_bytes(disk)))
        assert await keeper.mend(report) == (0, ["row file 0000-00000001"])
        filler.unlink()
        while keeper._bad_rows:
            await asyncio.sleep(0.01)
        assert await keeper.mend(damaged(store, 1)) == (1, [])
        running.cancel()

    with Store(disk / "data") as store:
        store.publish(several(100))
        store.index()
        asyncio.run(asyncio.wait_for(scrubbed(store), 30))
        assert store.publisher.manifest.row_file(1)[2] == 2
        store.check()


def test_a_row_file_that_cannot_be_named_is_built_again_later_and_nothing_else_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit finds no room while the others are indexed."""
    store.publish(several(200))
    replace_rows, asked = store.publisher.replace_rows, []

    def short(number: int, *more: Any) -> None:
        asked.append(number)
        if len(asked) == 1:
            raise NoSpaceError("no room")
        replace_rows(number, *more)

    monkeypatch.setattr(store.publisher, "replace_rows", short)
    monkeypatch.setattr(upkeep, "AGAIN_S", 3_600.0)

    async def both() -> None:
        keeper = Upkeep(store.layout, store.config, store.publisher, lambda: None)
        running = asyncio.create_task(keeper.run())
        report = damaged(store, 1)
        mending = asyncio.create_task(keeper.mend(report))
        while not asked:
            await asyncio.sleep(0.01)
        await keeper.idle()
        assert tiers.unindexed(store.publisher.manifest) == [1]
        keeper._put_on(report.bad_rows[0])  # time is up
        assert await mending == (1, [])
        await keeper.idle()
        running.cancel()

    asyncio.run(asyncio.wait_for(both(), 30))
    assert asked == [1, 1] and tiers.unindexed(store.publisher.manifest) == []
    store.check()
