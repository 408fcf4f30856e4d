"""Retention: what is due, and that what left is gone everywhere while nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from engine.config import Retention
from engine.embed.base import SPACES
from engine.embed.text import memo_key
from engine.errors import NoSpaceError, NotFoundError
from engine.features import empty
from engine.limits import FORMAT_REMOVED
from engine.maintain import mend, retention
from engine.search import filters
from engine.search.context_query import QueryContext
from engine.store import checkpoint, switch, tiers
from engine.store.catalog import Batch
from ipc.messages import Filter
from tests.events import blocked, ids, make, several
from tests.store_fixture import OTHER, ROWS, Store, damage

DAY_NS = retention.DAY_NS
NOW_NS = 1_800_000_000_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "data") as store:
        yield store


def due(store: Store, now_ns: int = NOW_NS, **settings: float) -> int:
    with store.catalog.read() as view:
        manifest = store.publisher.manifest
        return retention.due(store.layout, view, manifest, Retention(**settings), now_ns)  # type: ignore[arg-type]


# ---- what is due


def test_age_counts_from_when_a_row_file_was_full(store: Store) -> None:
    store.publish(several(4 * ROWS + 10))
    ages = {0: 9.0, 1: 5.0, 2: 7.0, 3: 0.5}
    store.publisher.manifest = replace(
        store.publisher.manifest, filled={n: int(NOW_NS - days * DAY_NS) for n, days in ages.items()}
    )
    assert due(store) == 0
    assert due(store, days=10) == 0
    assert due(store, days=6) == 1  # the third is older than 6 days, but events leave in order
    assert due(store, days=5) == 3
    assert due(store, days=0.1) == 4  # never the one that is written to


def test_a_row_file_that_an_older_flowkin_filled_is_as_old_as_the_file(store: Store) -> None:
    store.publish(several(ROWS))
    store.publisher.manifest = replace(store.publisher.manifest, filled={})
    at_ns = store.layout.row_file(0, 0).stat().st_mtime_ns
    assert due(store, at_ns + 2 * DAY_NS, days=3) == 0
    assert due(store, at_ns + 4 * DAY_NS, days=3) == 1


def test_size_lets_the_oldest_leave_until_it_is_kept(store: Store) -> None:
    store.publish(several(6 * ROWS))
    store.index()

    def taken() -> int:
        with store.catalog.read() as view:
            return retention.taken_bytes(store.layout, view, store.publisher.manifest)

    before = taken()
    assert due(store, bytes_max=before) == 0
    assert due(store, bytes_max=1) == 6
    for _ in range(6):
        first = due(store, bytes_max=before * 2 // 3)
        if first == store.publisher.manifest.first:
            break
        store.leave(first)
    assert 0 < store.publisher.manifest.first < 6
    assert taken() <= before * 2 // 3


def test_what_is_on_its_way_out_or_in_costs_no_other_event(store: Store) -> None:
    """Records that are not yet deleted, an index over what left and what stays, one that is being built."""
    store.publish(several(8 * ROWS))
    store.index()
    store.merge()
    assert {i.lo for i in store.publisher.manifest.indexes if i.hi > 3 * ROWS} == {0}  # over what leaves and what stays
    with store.catalog.read() as view:
        wanted = retention.taken_bytes(store.layout, view, store.publisher.manifest) * 3 // 4
    first = due(store, bytes_max=wanted)
    assert 1 < first < 4
    store.leave(first, 0)
    (store.layout.indexes / "chronos-0000-000000000000-000000000300-00000000").write_bytes(bytes(1 << 20))
    assert due(store, bytes_max=wanted) <= first + 1  # so small a store has parts that do not shrink with it
    store.leave(first)
    store.split()
    assert due(store, bytes_max=wanted) <= first + 1


def test_the_rows_of_another_model_cost_no_event(store: Store) -> None:
    """A switch takes as much again while it runs, and the version before stays for a way back."""
    store.publish(several(6 * ROWS))
    store.index()
    with store.catalog.read() as view:
        wanted = retention.taken_bytes(store.layout, view, store.publisher.manifest)
    store.begin_switch()
    while store.go_on():
        assert due(store, bytes_max=wanted * 11 // 10) == 0
    switch.finish(store.publisher)
    assert store.publisher.manifest.kept is not None
    assert due(store, bytes_max=wanted * 11 // 10) == 0


# ---- what leaves


def test_an_identity_that_cannot_be_read_holds_nothing_up(store: Store) -> None:
    store.publish(several(2 * ROWS))
    damage(store.catalog, "ids", b"e000003\0test")
    store.leave(1)
    with store.catalog.read() as view:
        assert view.oldest() == ROWS
        assert all(not view.has("ids", f"e{n:06d}\0test".encode()) for n in range(ROWS))
    store.check()


def test_what_left_is_gone_and_all_else_is_as_before(store: Store) -> None:
    store.publish(several(5 * ROWS), actions=[blocked(3), blocked(200)])
    store.index()
    store.publisher.annotate("e000005", "good", "ana")
    store.publisher.annotate("e000150", "good", "ana")
    exact = {s: store.ask("e000300", space=s, top_k=500, collapse=False) for s in SPACES}
    store.leave(2)
    snapshot, first = store.snapshot(), 2 * ROWS
    assert (snapshot.events, snapshot.first_seq, snapshot.count) == (3 * ROWS, first, 5 * ROWS)
    assert store.publisher.manifest.format_version == FORMAT_REMOVED
    assert store.ids() == ids(several(3 * ROWS, first))
    store.check()
    for name in ("e000005", "e000000"):
        with pytest.raises(NotFoundError):
            store.ask(name)
        with pytest.raises(NotFoundError):
            store.publisher.annotate(name, "bad", "ana")
    for space, before in exact.items():
        after = store.ask("e000300", space=space, top_k=500, collapse=False)
        kept = [(h.seq, h.distance) for h in before.hits if h.seq >= first]
        assert [(h.seq, h.distance) for h in after.hits] == kept
        assert after.matched == 3 * ROWS - 1
    with store.catalog.read() as view:
        labelled = filters.mask(snapshot, [], {"label": ["good"]}, view)
        assert (np.flatnonzero(labelled) + first).tolist() == [150]
        assert view.marked("label", "good") == [150]
    some = store.ask("e000300", top_k=500, collapse=False, filter=Filter(families=["PortScan"]))
    assert {h.seq for h in some.hits} == {
        h.seq
        for h in exact["attack"].hits
        if h.seq >= first and h.event.family == "PortScan"  # type: ignore[union-attr]
    }
    assert sorted(p.name for p in store.layout.rows.iterdir())[0] == "0000-00000002"
    assert all(f"{lo:012d}" not in p.name.split("-")[2] for p in store.layout.indexes.iterdir() for lo in (0, ROWS))


def test_an_index_that_reaches_below_serves_what_is_left_until_others_do(store: Store) -> None:
    def ranges() -> set[tuple[int, int]]:
        return {(i.lo // ROWS, i.hi // ROWS) for i in store.publisher.manifest.indexes}

    def found() -> dict[str, list[tuple[int, float]]]:
        out = {}
        for space in (*SPACES, "fused"):
            for wanted in (None, Filter(families=["PortScan", "C2"])):
                hits = store.ask("e000500", space=space, top_k=900, collapse=False, filter=wanted).hits
                out[f"{space} {wanted}"] = [(h.seq, h.distance) for h in hits if h.seq >= store.snapshot().first_seq]
                assert len(out[f"{space} {wanted}"]) == len(hits)
        return out

    store.publish(several(8 * ROWS + 9))
    store.index()
    store.merge()
    assert ranges() == {(0, 8)}
    expected = found()
    for first, left in ((1, {(1, 2), (2, 4), (4, 8)}), (3, {(3, 4), (4, 8)}), (5, {(5, 6), (6, 8)}), (7, {(7, 8)})):
        store.leave(first)
        assert tiers.unindexed(store.publisher.manifest) == [] and tiers.mergeable(store.publisher.manifest) is None
        snapshot = store.snapshot()
        assert snapshot.unindexed("attack") == 9
        still = {key: [hit for hit in hits if hit[0] >= first * ROWS] for key, hits in expected.items()}
        assert found() == still
        store.split()
        assert ranges() == left
        assert tiers.split(store.publisher.manifest) == []
        assert found() == still
        store.check()
    store.leave(8)
    assert ranges() == set()


@pytest.mark.parametrize("slices", [0, 1, 1 << 30])
def test_what_left_comes_again_as_new(store: Store, slices: int) -> None:
    """However far its records are deleted."""
    store.publish(several(6 * ROWS))
    store.leave(5, slices)
    assert store.publish(several(10)).accepted == 10
    assert store.publish(several(10)).duplicates == 10
    assert store.publish(several(10, 6 * ROWS - 10)).duplicates == 10
    store.check()
    with store.catalog.read() as view:
        assert [view.find(name) for name in ids(several(10))] == list(range(6 * ROWS, 6 * ROWS + 10))


def test_all_full_row_files_may_leave(store: Store) -> None:
    store.publish(several(2 * ROWS))
    store.leave(2)
    assert store.snapshot().events == 0
    store.publisher.commit_manifest()
    assert store.snapshot().events == 0
    store.publish(several(5, 500))
    assert len(store.ask("e000500", collapse=False).hits) == 4
    store.check()


def test_sentences_of_what_left_are_forgotten(store: Store) -> None:
    items = [make(n, text=f"words of event {n}") for n in range(ROWS + 1)]
    store.publish(items)
    text = store.publisher.models.embedders["sbert"]
    with store.catalog.read() as view:
        records = [r for _, r in view.records(0, ROWS + 1)]
    import msgspec

    from engine.features import unpack
    from ipc.event import Event

    events = [msgspec.msgpack.decode(r.head, type=Event) for r in records]
    keys = [
        memo_key(text.sentence(e, f))  # type: ignore[attr-defined]
        for e, f in zip(events, unpack([r.features for r in records]), strict=True)
    ]
    with store.catalog.read() as view:
        assert all(view.get("texts", key) is not None for key in keys)
    store.leave(1)
    with store.catalog.read() as view:
        assert [view.get("texts", key) is not None for key in keys] == [False] * ROWS + [True]


# ---- the context


def test_the_context_after_a_kill_needs_no_event_that_left(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(3 * ROWS + 5))
        assert store.publisher.checkpointed < 3 * ROWS
        store.leave(3)
        expected = store.publisher.tracker.dump()
    with Store(tmp_path / "data") as store:
        assert store.publisher.tracker.dump() == expected
        store.check()


def test_a_checkpoint_that_failed_is_not_taken_for_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaves next time still has its context stored before."""

    def full(batch: Batch, seq: int, state: bytes) -> None:
        raise NoSpaceError("the catalog's map is full")

    with Store(tmp_path / "data") as store:
        store.publish(several(3 * ROWS + 5))
        monkeypatch.setattr(checkpoint, "put", full)
        with pytest.raises(NoSpaceError):
            store.leave(3)
        with pytest.raises(NoSpaceError):
            mend.values(store.publisher, [("tracker", checkpoint.KEY)])
        assert (store.publisher.manifest.first, store.publisher.checkpointed < 3 * ROWS) == (0, True)
        monkeypatch.undo()
        store.leave(3)
        expected = store.publisher.tracker.dump()
    with Store(tmp_path / "data") as store:
        assert store.publisher.tracker.dump() == expected
        store.check()


def test_a_reader_that_missed_events_takes_the_stored_context(store: Store) -> None:
    store.publish(several(10))
    context = QueryContext(store.catalog, store.config.network.internal)
    context.fill([], empty(0), None)
    store.publish(several(3 * ROWS, 10))
    store.leave(3)
    store.publish(several(5, 500))
    context.fill([], empty(0), None)
    assert context._tracker is not None
    assert context._tracker.dump() == store.publisher.tracker.dump()


# ---- models


def test_a_switch_goes_on_over_what_left_and_back(store: Store) -> None:
    store.publish(several(4 * ROWS + 7))
    store.begin_switch()
    assert store.go_on()
    store.leave(3)
    store.publish(several(10, 600))
    while store.go_on():
        pass
    switch.finish(store.publisher)
    assert store.publisher.manifest.model == OTHER
    store.check()
    store.index()
    first = store.publisher.manifest.kept
    assert first is not None
    store.leave(4)
    store.publish(several(10, 700))
    store.switch(first.model)
    store.check()
    assert len(store.ask("e000700", top_k=300, collapse=False).hits) == 7 + 20 - 1


def test_a_switch_goes_on_when_all_that_it_began_with_left(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(2 * ROWS + 7))
        store.begin_switch()
        store.publish(several(2 * ROWS, 600))
        store.leave(3)
    with Store(tmp_path / "data") as store:
        assert not store.go_on()
        switch.finish(store.publisher)
        assert store.publisher.manifest.model == OTHER
        assert sorted(p.name for p in store.layout.rows.glob("0001-*")) == ["0001-00000003", "0001-00000004"]
        store.check()


def test_a_version_whose_rows_all_left_is_not_kept(store: Store) -> None:
    store.publish(several(ROWS))
    old = store.publisher.manifest.model
    store.switch()
    store.publish(several(2 * ROWS, 100))
    store.leave(2)
    assert store.publisher.manifest.kept is None
    store.switch(old)
    store.check()
    store.publish(several(5, 900))
    store.check()


def test_a_switch_begun_after_events_left(store: Store) -> None:
    store.publish(several(3 * ROWS + 3))
    store.leave(2)
    store.switch()
    store.check()
    assert sorted(p.name for p in store.layout.rows.glob("0001-*")) == ["0001-00000002", "0001-00000003"]


# ---- what starts on it


def test_a_start_finds_it_so(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(5 * ROWS))
        store.index()
        store.leave(2, 0)
        shape = [(h.seq, h.distance) for h in store.ask("e000300", top_k=50, collapse=False).hits]
    with Store(tmp_path / "data") as store:
        assert store.publisher.manifest.first == 2
        assert [(h.seq, h.distance) for h in store.ask("e000300", top_k=50, collapse=False).hits] == shape
        store.layout.row_file(0, 3).unlink()
    with Store(tmp_path / "data") as store:
        store.check()


def test_coverage_damaged_after_events_left_is_counted_again_of_what_is_left(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(5 * ROWS))
        store.leave(2)
        with store.catalog.write() as batch:
            batch.delete("meta", b"coverage\0test")
            source = next(iter(store.publisher.counters.sources))
            batch.delete("meta", f"coverage\0{source}".encode())
    for _ in range(2):
        with Store(tmp_path / "data") as store:
            counters = store.publisher.counters
            assert (counters.counted, counters.uncounted) == (0, 0) or counters.counted - counters.uncounted == 3 * ROWS
