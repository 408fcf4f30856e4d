"""Where the time of storing goes (engine/store/stages.py)."""

from __future__ import annotations

import time

import pytest

from engine.layout import Layout
from engine.store import stages
from tests.events import several
from tests.store_fixture import Store


def told(layout: Layout) -> dict[str, tuple[float, float]]:
    """(wall_s, cpu_s) by stage."""
    return {row["stage"]: (row["wall_s"], row["cpu_s"]) for row in stages.facts(layout)["stages"]}


def test_before_any_worker_there_is_nothing_to_tell(tmp_path):
    assert stages.facts(Layout(tmp_path / "nobody")) == {}


def test_what_lies_between_two_laps_is_counted_once_and_where_the_second_says(tmp_path):
    layout = Layout(tmp_path / "data")
    layout.make()
    begun = time.perf_counter()
    timed = stages.Stages(layout)
    timed.lap("admit")
    until = time.thread_time() + 0.02
    while time.thread_time() < until:  # busy: it is CPU, too
        pass
    timed.lap("context")
    took = time.perf_counter() - begun
    found = told(layout)
    assert found["context"][1] >= 0.02 and 0.02 <= found["context"][0] <= took
    assert sum(wall for wall, _ in found.values()) <= took
    assert {stage for stage, (wall, _) in found.items() if wall} == {"admit", "context"}
    timed.start()
    timed.add("index", 3_000_000_000, 2_000_000_000)
    assert told(layout)["index"] == (3.0, 2.0)
    with pytest.raises(KeyError):
        timed.lap("tea")


def test_a_publish_is_in_its_stages_and_a_start_begins_at_zero(store: Store):
    begun = time.perf_counter()
    store.publish(several(100))
    took = time.perf_counter() - begun
    facts, found = stages.facts(store.layout), told(store.layout)
    assert (facts["events"], facts["commits"]) == (100, 1)
    passed = {"admit", "features", "context", "chronos", "sbert", "attack", "append", "sync", "records", "commit"}
    assert all(found[stage][0] > 0 for stage in passed)
    assert sum(wall for wall, _ in found.values()) <= took
    assert found["parse"] == found["index"] == (0.0, 0.0)
    store.publish(several(100))  # all are known
    assert stages.facts(store.layout)["events"] == 100
    stages.Stages(store.layout)
    assert stages.facts(store.layout)["commits"] == 0 and not any(wall for wall, _ in told(store.layout).values())
