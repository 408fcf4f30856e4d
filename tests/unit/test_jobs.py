"""The child that builds: how it makes way for readers, and what becomes of it where no core is ever free."""

from __future__ import annotations

import asyncio
import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config import Network
from engine.maintain import jobs, upkeep
from engine.maintain.build import IndexJob
from tests.events import several
from tests.store_fixture import ROWS, Store


def a_job(store: Store) -> IndexJob:
    store.publish(several(64))
    manifest = store.publisher.manifest
    return IndexJob(
        data_dir=str(store.layout.data_dir), parent_pid=os.getpid(), map_size=64 << 20,
        row_files=[manifest.row_file(0)], rows=manifest.row_file_rows,
    )  # fmt: skip


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the kernel says of each child once it was started: policy and niceness."""
    found: list[tuple[int, int]] = []
    step_back = jobs._step_back

    def watched(pid: int, niceness: int, *, idle: bool) -> None:
        step_back(pid, niceness, idle=idle)
        found.append((os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)))

    monkeypatch.setattr(jobs, "_step_back", watched)
    return found


@pytest.mark.parametrize(
    ("how", "policy", "niceness"),
    [({"idle_s": 60.0}, os.SCHED_IDLE, 0), ({}, os.SCHED_OTHER, jobs.NICENESS), ({"niceness": 0}, os.SCHED_OTHER, 0)],
    ids=["only a free core", "niced", "in a hurry"],
)
def test_a_child_makes_way_as_it_was_told(
    store: Store, seen: list[tuple[int, int]], how: dict[str, Any], policy: int, niceness: int
) -> None:
    built = asyncio.run(jobs.Jobs().run(a_job(store), **how))
    assert built is not None and built.indexes
    assert seen == [(policy, min(19, os.getpriority(os.PRIO_PROCESS, 0) + niceness))]


def test_the_pause_stays_the_same_however_often_it_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that grows without end ended the scrub for good after some days. Who asked for the job hears of it at
    once: only who tries again by itself pauses."""
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    failing = jobs.Jobs()
    failing.failures = 5_000
    job = a_job(store)
    job.rows = 0

    async def fail() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(jobs.asyncio, "sleep", pause)
            assert await failing.run(job) is None
            assert paused == [] and failing.failures == 5_001
            await failing.pause()
            failing.call_off(IndexJob)  # nothing runs: nothing changes
            assert await failing.run(a_job(store)) is not None
            await failing.pause()

    asyncio.run(fail())
    assert paused == [jobs.RETRY_S_MAX, 0.0] and failing.failures == 0


def test_what_a_child_had_half_written_goes_with_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stayed until the next start, and could hold what a purge had removed everywhere else."""
    job = a_job(store)
    job.rows = 0
    others = store.layout.rows / "0000-00000001.1.0badcafe.tmp"  # of a process that lives
    others.write_bytes(b"half")
    step_back, half = jobs._step_back, []

    def writes(pid: int, niceness: int, *, idle: bool) -> None:
        step_back(pid, niceness, idle=idle)
        for folder in (store.layout.rows, store.layout.indexes, store.layout.catalog):
            half.append(folder / f"new.{pid}.0badcafe.tmp")
            half[-1].write_bytes(b"half")

    monkeypatch.setattr(jobs, "_step_back", writes)
    assert asyncio.run(jobs.Jobs().run(job)) is None
    assert len(half) == 3 and not any(path.exists() for path in half)
    assert others.exists()


def test_a_child_that_never_found_a_free_core_begins_again_niced(
    store: Store, seen: list[tuple[int, int]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had made goes, and nothing else."""
    monkeypatch.setattr(upkeep, "IDLE_S_A_ROW_FILE", 0.001)
    store.publish(several(150))
    store.index()
    named = {index.file for index in store.publisher.manifest.indexes}
    store.publish(several(60, 150))
    monkeypatch.setattr("secrets.token_hex", lambda size: "0badcafe")
    config: Any = SimpleNamespace(network=Network(), store=store.config.store)
    keeper = upkeep.Upkeep(store.layout, config, store.publisher, lambda: None)
    half = store.layout.index_file(f"chronos-0000-{2 * ROWS:012d}-{3 * ROWS:012d}-0badcafe")
    for path in (half, half.with_name(f"{half.name}.1.tmp")):
        path.write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        asyncio.run(keeper._index([2]))
    assert [policy for policy, _ in seen] == [os.SCHED_IDLE, os.SCHED_OTHER]
    assert "begins again, niced" in caplog.text
    assert keeper.jobs.failures == 0 and not keeper.jobs.running
    now = {index.file for index in store.publisher.manifest.indexes}
    assert {path.name for path in store.layout.indexes.iterdir()} == now > named
