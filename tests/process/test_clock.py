"""A clock that steps by an hour, back or forward, under a running engine and between a stop and a start."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.bad_disk import bad_clock
from tests.engine_fixture import Starter, all_events, ask
from tests.events import T0, S, ids, make, several
from tests.store_fixture import Store

HOUR_S = 3_600


@pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S])
def test_a_clock_that_steps_costs_neither_order_nor_a_worker(start: Starter, tmp_path: Path, step_s: int) -> None:
    """Events keep the order of their arrival, the last label counts, whoever works is left alone, and who is stopped is
    found as always."""
    (tmp_path / "seam").mkdir()
    clock, env = bad_clock(tmp_path / "seam")
    engine = start(env=env | {"FLOWKIN_HANG_AFTER_MS": "2000"})
    pids = [engine.pid("ingest"), *engine.pids()]
    client = engine.client()
    engine.ingest(several(100))
    first = client.label("e000003", "first")
    clock.write_text(str(step_s))
    later = [make(n, ts=T0 + (n + step_s) * S, ts_start=T0 + (n + step_s) * S) for n in range(100, 200)]
    engine.ingest(later)
    second = client.label("e000003", "second")
    assert second.generation > first.generation
    stored = ids(several(100)) + ids(later)
    assert [s.event.event_id for s in all_events(client)] == stored  # type: ignore[union-attr]
    assert [s.seq for s in client.recent(limit=5).events] == [199, 198, 197, 196, 195]
    note = client.get(["e000003"]).events[0].annotation
    assert note is not None and note.label == "second"
    assert [word for _, _, _, word in note.history] == ["first", "second"]
    assert (note.history[1][0] - note.history[0][0]) // (60 * S) == step_s // 60  # the clock that the workers see
    hits = ask(client, "e000150", before=True, top_k=200, collapse=False).hits
    assert {hit.seq for hit in hits} == {*range(100 if step_s > 0 else 0), *range(100, 150)}
    os.kill(pids[1], signal.SIGSTOP)
    engine.replaced("reader-0", pids[1])
    assert [engine.pid("ingest"), engine.pid("reader-1")] == [pids[0], pids[2]]
    assert engine.cli("doctor").returncode == 0
    assert engine.stop() == 0
    clock.write_text("0")
    engine.start()
    assert [s.event.event_id for s in all_events(engine.client())] == stored  # type: ignore[union-attr]


def test_the_context_of_events_behind_a_step_is_the_same_when_it_is_replayed(tmp_path: Path) -> None:
    steps = [several(100), [make(n, ts=T0 + (n - HOUR_S) * S) for n in range(100, 200)], several(100, 200)]
    with Store(tmp_path / "data") as store:
        for batch in steps:
            assert store.publish(batch).accepted == 100
        expected = store.publisher.tracker.dump()
        store.check()
    with Store(tmp_path / "data") as store:
        assert store.publisher.tracker.dump() == expected
        store.check()
