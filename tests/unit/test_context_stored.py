"""The context of stored events: files in the order of time, late flows counted, memory bounded."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import feed
from engine import facts
from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.features import CONTEXT_INDEXES, empty, unpack
from engine.sources.synthetic import generate
from engine.store import checkpoint
from engine.store.publish import Submission
from engine.store.recover import replayed
from ipc.event import Event, FeaturedEvent
from ipc.messages import Filter
from tests.events import T0, S, make, several, write
from tests.store_fixture import ROWS, Store


def stored_features(data_dir: Path, files: list[Path]) -> dict[str, bytes]:
    """event_id -> features of what `flowkin ingest FILES` would store."""
    with Store(data_dir) as store:
        for batch in feed.batches(feed.parts(files, feed.How())):
            store.publisher.publish([Submission(batch.format, batch.events, batch.rejects, lambda outcome: None)])
        with store.catalog.read() as view:
            heads = store.ids()
            return {name: record.features for name, (_, record) in zip(heads, view.records(0, 1 << 40), strict=True)}


@pytest.fixture
def items() -> list[FeaturedEvent]:
    found = list(generate(600, seed=11))
    for item in found:
        item.event.text = ""
    return found


def test_finished_files_are_taken_in_the_order_of_time(tmp_path: Path, items: list[FeaturedEvent]) -> None:
    """Shuffled, or cut into files that interleave: the features of the file in order."""
    order = np.random.default_rng(1).permutation(len(items))
    files = {
        "in_order": [write(tmp_path / "a.ndjson", items)],
        "shuffled": [write(tmp_path / "b.ndjson", [items[i] for i in order])],
        "interleaved": [write(tmp_path / f"c{k}.ndjson", items[k::3]) for k in range(3)],
    }
    found = {name: stored_features(tmp_path / name, paths) for name, paths in files.items()}
    assert len(found["in_order"]) == len(items)
    assert found["shuffled"] == found["in_order"] and found["interleaved"] == found["in_order"]
    rows = unpack(list(found["in_order"].values()))[:, list(CONTEXT_INDEXES)]
    assert np.isfinite(rows).mean() > 0.8


def test_late_flows_are_counted_in_stats_and_the_count_survives(tmp_path: Path) -> None:
    def told(store: Store) -> Any:
        with store.catalog.read() as view:
            return facts.stats(store.layout, view)["context"]

    with Store(tmp_path / "data") as store:
        assert told(store) == {"late": 0, "unplaced": 0}
        store.publish([make(1, kind="flow", ts=T0 + 2_000 * S, ts_start=T0), make(2, kind="flow", ts=T0, ts_start=T0)])
        assert told(store) == {"late": 1, "unplaced": 0}
    with Store(tmp_path / "data") as store:
        store.publish([make(3, kind="flow", ts=T0, ts_start=T0)])
        assert told(store) == {"late": 2, "unplaced": 0}


def test_ten_times_as_many_hosts_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = 400
    for name, bound in (("CONTEXT_HOSTS_MAX", hosts), ("PAIRS_MAX", 2 * hosts)):
        monkeypatch.setattr(f"engine.context.state.{name}", bound)
    monkeypatch.setattr("engine.context.addresses.CONTEXT_HOSTS_MAX", hosts)
    tracker, sizes, dumps, ts = Tracker(CIDRS_INTERNAL), [], [], T0
    tracemalloc.start()
    try:
        for part in range(20):
            for at in range(part * hosts, (part + 1) * hosts, 100):
                events = []
                for i in range(at, at + 100):
                    ts += S // 10
                    events.append(Event(event_id="e", source="s", ts=ts, ts_start=ts, src_ip=f"10.0.{i >> 8}.{i & 255}",
                                        dst_ip=f"11.0.{i >> 8}.{i & 255}", dst_port=i % 1_000, proto=6))  # fmt: skip
                overlay = tracker.overlay()
                overlay.observe(events, empty(100))
                tracker.merge(overlay)
            dumps.append(len(tracker.dump()))
            del events, overlay
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(tracker.sources) == len(tracker.targets) == hosts
    assert max(dumps[10:]) < 1.1 * dumps[9] and max(sizes[10:]) < 1.1 * sizes[9]


def test_a_context_that_is_stored_in_slices_is_whole_at_any_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.store.checkpoint.SLICE_BYTES", 100)
    monkeypatch.setattr("engine.store.checkpoint.SLICE_EVENT_BYTES", 1)
    seqs, slices, n = set(), 0, 0
    while n < 4 * ROWS:
        with Store(tmp_path / "data") as store:  # never closed in an orderly way: nothing is stored at its end
            for _ in range(ROWS - 5):
                store.publish(several(1, n))
                n += 1
                slices += store.publisher.tracker.dumping is not None
            expected = store.publisher.tracker.dump()
            with store.catalog.read() as view:
                stored = checkpoint.stored(view)
        if stored is not None:
            seqs.add(stored[0])
        with Store(tmp_path / "data") as store:
            assert store.publisher.tracker.dump() == expected
            store.check()
    assert seqs and slices > 2 * len(seqs), (seqs, slices)


def test_a_purge_ends_a_dump_that_still_holds_the_address(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.store.checkpoint.SLICE_BYTES", 1)
    monkeypatch.setattr("engine.store.checkpoint.SLICE_EVENT_BYTES", 0)
    store.publish(several(ROWS))
    store.publish([make(ROWS, src_ip="203.0.113.77")])
    store.publish(several(1, ROWS + 1))
    assert store.publisher.tracker.dumping is not None
    store.purge(Filter(addr=["203.0.113.77"]))
    assert store.publisher.tracker.dumping is None
    store.publish(several(2 * ROWS, ROWS + 2))
    for n in range(40):
        store.publish(several(1, 4 * ROWS + n))
    with store.catalog.read() as view:
        stored = checkpoint.stored(view)
    assert stored is not None and b"203.0.113.77" not in stored[1]


def test_a_tracker_without_overlays_forgets_the_bytes_of_long_ago() -> None:
    """As in a reader, which follows for months."""
    tracker, rows = Tracker(CIDRS_INTERNAL), empty(1)
    rows[:] = 9.0
    for second in range(0, 20_000, 2):
        tracker.observe([make(0, kind="flow", ts=T0 + second * S, ts_start=T0).event], rows.copy())
    (stream,) = tracker.streams.own.values()
    assert len(stream.slices) <= 930 // 2 + 1


def test_a_large_state_is_stored_as_seldom_as_its_bytes_allow_and_a_start_replays_the_rest(tmp_path: Path) -> None:
    def stored(store: Store) -> tuple[int, int]:
        """(events seen, bytes) of the stored state."""
        with store.catalog.read() as view:
            seq, state = checkpoint.stored(view) or (0, b"")
            return seq, len(state)

    with Store(tmp_path / "data") as store:
        seen = [0]
        for first in range(0, 24 * ROWS, ROWS):
            store.publish([make(i, src_ip=f"10.1.{i >> 8}.{i & 255}") for i in range(first, first + ROWS)])
            at, size = stored(store)
            if at != seen[-1]:
                seen.append(at)
                assert at - seen[-2] in (ROWS, 2 * ROWS, 3 * ROWS, 4 * ROWS)
        gaps = np.diff(seen).tolist()
        assert gaps == sorted(gaps) and gaps[0] == ROWS and gaps[-1] == checkpoint.FILES_MAX * ROWS  # it grows
        assert size > ROWS * checkpoint.BYTES_MAX and 0 < at < store.publisher.manifest.count - ROWS
        again, count, _ = replayed(store.catalog, Tracker(CIDRS_INTERNAL), list(CIDRS_INTERNAL))
        assert count == 24 * ROWS
        events = [make(i, src_ip=f"10.1.{i >> 9}.{i & 255}").event for i in range(24 * ROWS, 25 * ROWS)]
        ours, theirs = empty(ROWS), empty(ROWS)
        store.publisher.tracker.overlay().observe(events, ours)
        again.observe(events, theirs)
        assert np.isfinite(ours).any() and np.array_equal(ours, theirs, equal_nan=True)
