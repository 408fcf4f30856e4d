"""The child that builds: how it makes way for readers, and what becomes of it where no core is ever free."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import pytest

from engine.maintain import jobs
from engine.maintain.build import IndexJob
from tests.events import several
from tests.store_fixture import Store


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


def test_a_child_that_never_found_a_free_core_begins_again_niced(
    store: Store, seen: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        built = asyncio.run((runs := jobs.Jobs()).run(a_job(store), idle_s=0.001))
    assert built is not None and built.indexes
    assert [policy for policy, _ in seen] == [os.SCHED_IDLE, os.SCHED_OTHER]
    assert "begins again, niced" in caplog.text
    assert runs.failures == 0 and not runs.running
