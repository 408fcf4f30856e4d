"""A purge: what was named is gone from every file and every answer; all else is as before."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
import zstandard

from engine import export
from engine.embed.base import SPACES
from engine.errors import BadRequestError, NoSpaceError, NotFoundError, OverloadedError
from engine.features import empty
from engine.maintain import purge
from engine.search import filters
from engine.search.context_query import QueryContext
from engine.store import gc, tiers
from engine.store.catalog import TABLES, seq_key
from engine.store.dead_letters import newest
from engine.store.publish import Submission
from ipc.messages import Filter, Reject
from tests.events import T0, S, blocked, ids, make, several
from tests.removals import unsynced
from tests.store_fixture import ROWS, Store, damage

VICTIM = "203.0.113.77"  # no other text of a test has it
PURGED = Filter(addr=[VICTIM])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "data") as store:
        yield store


def test_half_written_dead_letters_are_gone_with_the_next_start(tmp_path: Path) -> None:
    """A purge that was killed while it rewrote them: what it was to remove is in there."""
    with Store(tmp_path / "data") as store:
        store.publish(several(5))
        half = store.layout.dead_letters.with_name(f"{store.layout.dead_letters.name}.123.abcd.tmp")
        half.write_text(VICTIM)
    with unsynced() as left, Store(tmp_path / "data") as store:
        assert not half.exists() and not {path for path in left if Path(path) == half}
        store.check()


def victims(count: int, first: int) -> list:  # type: ignore[type-arg]
    return [
        make(n, event_id=f"victim{n:04d}", src_ip=VICTIM, text=f"said of victim{n:04d}")
        for n in range(first, first + count)
    ]


def fill(store: Store, *, indexed: bool = True) -> None:
    """Six row files and a half, the victim in the first, the fourth and the last."""
    store.publish(victims(5, 9_000) + several(3 * ROWS))
    store.publish(victims(7, 9_100) + several(3 * ROWS, 500))
    store.publish(several(20, 1_000) + victims(3, 9_200))
    if indexed:
        store.index()
        store.merge()


def names(store: Store) -> list[str]:
    return [name for name in store.ids() if name.startswith("victim")]


def test_what_is_damaged_is_purged_whole_and_may_come_again(tmp_path: Path) -> None:
    """A record that does not say any more whose it is takes its identity along, an annotation its marks."""
    items = several(10)
    with Store(tmp_path / "data") as store:
        store.publish(items)
        for seq, table in ((3, "records"), (5, "annotations")):
            store.publisher.annotate(items[seq].event.event_id, "good", "ana")
            damage(store.catalog, table, seq_key(seq))
        before = dict(store.publisher.counters.families)
        assert store.purge(ids=["e000003", "e000005"])["events"] == 2
        assert store.publisher.counters.families["PortScan"] == before["PortScan"] - 1
        with store.catalog.read() as view:
            assert view.find("e000003") is None and view.find("e000005") is None
            assert view.marked("label", "good") == []
            assert [view.has(t, seq_key(s)) for t in ("records", "annotations") for s in (3, 5)] == [False] * 4
    with Store(tmp_path / "data") as store:
        assert store.publish(several(10)).accepted == 2
        assert store.publish(several(10)).duplicates == 10
        assert sorted(store.ids()) == ids(items)


def test_what_it_unlinked_a_power_failure_does_not_bring_back(store: Store) -> None:
    fill(store)
    (store.layout.quarantine / "rows").mkdir(parents=True, mode=0o700)
    (store.layout.quarantine / "rows" / "damaged").touch()
    with unsynced() as left:
        assert store.purge(PURGED)["events"] == 15
        kept = {path for path in left if Path(path).parent.parent == store.layout.data_dir}
    assert not kept and not list(store.layout.quarantine.rglob("*damaged"))


def test_a_switch_keeps_no_index_that_holds_it(store: Store) -> None:
    """Of the version before those that were stale are gone for good, and a way back has new ones made."""
    fill(store)
    store.purge(PURGED)
    before = store.publisher.manifest
    assert before.stale and len(before.stale) < len(before.indexes)
    with unsynced() as left:
        store.switch()
        assert not {path for path in left if Path(path).parent == store.layout.indexes}
    now = store.publisher.manifest
    assert now.stale == [] and now.kept is not None
    assert {i.file for i in now.kept.indexes} == {i.file for i in before.indexes} - {*before.stale}
    assert not {path.name for path in store.layout.indexes.iterdir()} & {*before.stale}
    store.check()
    store.switch(before.model)
    assert tiers.unindexed(store.publisher.manifest)
    store.index()
    store.merge()
    assert tiers.unindexed(store.publisher.manifest) == tiers.split(store.publisher.manifest) == []
    store.check()


def test_it_is_gone_and_all_else_is_as_before(store: Store) -> None:
    fill(store)
    store.publisher.annotate("victim9001", "good", "ana")
    asked = ["e000003", "e000510", "e001010"]
    before = {
        (name, space): [
            (h.seq, h.distance)
            for h in store.ask(name, space=space, top_k=900, collapse=False).hits
            if not h.event.event_id.startswith("victim")  # type: ignore[union-attr]
        ]
        for name in asked for space in SPACES
    }  # fmt: skip
    told = store.purge(PURGED)
    assert (told["events"], told["missing"]) == (15, [])
    assert names(store) == []
    snapshot = store.snapshot()
    assert snapshot.events == store.publisher.manifest.events == 6 * ROWS + 20
    for state in ("as it is", "replaced", "opened again"):
        for (name, space), expected in before.items():
            answer = store.ask(name, space=space, top_k=900, collapse=False)
            assert [(h.seq, h.distance) for h in answer.hits] == expected, state
            assert answer.matched == len(expected)
        if state == "as it is":
            assert store.publisher.manifest.stale
            store.split()
            assert tiers.unindexed(store.publisher.manifest) == store.publisher.manifest.stale == []
            store.check()
    with pytest.raises(NotFoundError):
        store.ask("victim9001")
    with store.catalog.read() as view:
        assert view.marked("label", "good") == []
        mask = filters.mask(snapshot, filters.tests(PURGED, snapshot))
        assert not mask.any()
        assert filters.mask(snapshot, []).sum() == snapshot.events
    assert store.purge(PURGED)["events"] == 0
    assert store.publish(victims(5, 9_000)).accepted == 5  # it may come again
    store.check()


def everything_on_disk(store: Store) -> bytes:
    """All bytes of the data directory, and all values decoded."""
    parts = [path.read_bytes() for path in store.layout.data_dir.rglob("*") if path.is_file()]
    with store.catalog.read() as view:
        for table in TABLES:
            parts += [key + b" " + bytes(value) for key, value in view.scan(table)]
        for _, record in view.records(0, 1 << 40):
            parts.append(zstandard.ZstdDecompressor().decompress(record.compressed, max_output_size=1 << 21))
    parts += [base64.b64decode(letter.record) for letter in newest(store.layout.dead_letters)]
    return b"\n".join(parts)


def test_after_compaction_no_byte_is_left(store: Store) -> None:
    """Of ids, texts, the address as text, and as the number that columns hold; of vectors in rows and indexes."""
    items = victims(30, 9_000)
    for item in items:
        item.raw = b'{"raw record of": "' + item.event.event_id.encode() + b'", "from": "' + VICTIM.encode() + b'"}'
    store.publish(several(ROWS, 100) + items + several(ROWS, 300))
    rejects = [Reject("file", 1, f"bad {VICTIM}", b"x"), Reject("file", 2, "bad", VICTIM.encode()), Reject("f", 3, "b")]
    store.publisher.publish(
        [Submission("ndjson", [], rejects, lambda outcome: None, {}, "test", [blocked(1, src_ip=VICTIM, after_s=1e6)])]
    )
    store.index()
    store.publisher.annotate("victim9003", "labelled victim9003", "ana")
    store.layout.quarantine.mkdir()
    (store.layout.quarantine / "0000-00000001").write_bytes(b"old " + VICTIM.encode())
    number = bytes([203, 0, 113, 77])
    columns = b"".join(reversed([bytes([b]) for b in number])) + b"\xff\xff\0\0"  # of src_lo
    with store.catalog.read() as view:
        seq = view.find("victim9004")
    assert seq is not None
    vectors = {space: store.snapshot().vector(space, seq).tobytes() for space in ("chronos", "attack")}
    before = everything_on_disk(store)
    for trace in (b"victim9004", VICTIM.encode(), columns, *vectors.values()):
        assert trace in before
    told = store.purge(PURGED)
    assert (told["events"], told["dead_letters"], told["dead_letters_left"], told["firewall_actions"]) == (30, 2, 1, 1)
    store.split()
    store.compact()
    after = everything_on_disk(store)
    for trace in (b"victim", VICTIM.encode(), columns, *vectors.values()):
        assert trace not in after
    store.check()
    assert store.publish(several(5, 2_000)).accepted == 5
    assert len(list(newest(store.layout.dead_letters))) == 1
    store.check()


def test_in_rounds_as_much_is_gone(store: Store) -> None:
    fill(store)
    with patch.object(purge, "ROUND_EVENTS", 2):
        assert store.purge(PURGED)["events"] == 15
    assert names(store) == []
    store.check()


def test_by_ids_by_family_by_time_and_all_of_it(store: Store) -> None:
    store.publish(several(3 * ROWS))
    told = store.purge(None, ["e000003", "test/e000004", "no such", "e000003"])
    assert (told["events"], told["missing"]) == (2, ["no such"])
    assert store.purge(Filter(families=["C2"]))["events"] == 3 * ROWS // 4
    gone = store.purge(Filter(until=T0 + 50 * S), dry_run=True)["events"]
    assert store.purge(Filter(until=T0 + 50 * S))["events"] == gone > 0
    expected = [n for n in range(50, 3 * ROWS) if n % 4 != 2]
    assert store.ids() == [f"e{n:06d}" for n in expected]
    store.index()
    store.check()
    store.purge(Filter())
    assert store.ids() == [] and store.snapshot().events == 0
    store.publish(several(5, 900))
    assert len(store.ask("e000900", collapse=False).hits) == 4
    store.leave(3)
    store.check()
    assert store.publisher.manifest.events == 5
    for wanted, names_ in ((None, []), (Filter(), ["e000900"])):
        with pytest.raises(BadRequestError, match="name what is to be purged"):
            store.purge(wanted, names_)


def test_a_dry_run_changes_nothing(store: Store) -> None:
    fill(store, indexed=False)
    generation = store.generation
    assert store.purge(PURGED, dry_run=True) == {"events": 15, "missing": [], "dry_run": True}
    assert store.generation == generation and len(names(store)) == 15


def test_events_stored_meanwhile_stay(store: Store) -> None:
    fill(store)

    async def both() -> None:
        task = asyncio.ensure_future(purge.purge(store.publisher, PURGED, []))
        n = 2_000
        while not task.done():
            store.publish(several(3, n))
            n += 3
            await asyncio.sleep(0.001)
        await task

    asyncio.run(both())
    assert names(store) == []
    store.check()
    assert [s for s in store.ids() if s >= "e002000"] == ids(several(len(store.ids()) - 6 * ROWS - 20, 2_000))


def test_letters_of_a_time_and_of_an_address_in_binary(store: Store) -> None:
    packed = bytes([1, 2, 203, 0, 113, 77, 9])
    rejects = [
        Reject("cap.pcap", 0, "short", packed),
        Reject("f", 1, "2001:DB8::5 and more"),
        Reject("f", 2, "not 1.2.3.45"),
    ]
    store.publisher.publish([Submission("pcap", [], rejects, lambda outcome: None, {}, "test")])
    assert store.purge(Filter(families=["none"]))["dead_letters_left"] == 3
    assert store.purge(Filter(src=["2001:db8::/32"]))["dead_letters"] == 1
    assert store.purge(Filter(addr=["1.2.3.4"]))["dead_letters"] == 0
    assert store.purge(PURGED)["dead_letters"] == 1
    assert store.purge(Filter(until=T0))["dead_letters"] == 0
    assert store.purge(Filter(since=T0))["dead_letters"] == 1
    store.publisher.publish([Submission("pcap", [], rejects[:1], lambda outcome: None, {}, "test")])
    assert len(list(newest(store.layout.dead_letters))) == 1


def test_the_context_forgets_the_address_here_and_in_readers_and_after_a_kill(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        fill(store)
        context = QueryContext(store.catalog, store.config.network.internal)
        context.fill([], empty(0), None)
        assert VICTIM.encode() in store.publisher.tracker.dump()
        store.purge(PURGED)
        expected = store.publisher.tracker.dump()
        assert VICTIM.encode() not in expected and b"10.0.1" in expected
        store.publish(several(5, 3_000))
        context.fill([], empty(0), None)
        assert context._tracker is not None
        expected = store.publisher.tracker.dump()
        assert context._tracker.dump() == expected
    with Store(tmp_path / "data") as store:
        assert store.publisher.tracker.dump() == expected
        store.check()


def test_a_row_file_that_is_lost_after_a_purge_is_built_again_without(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        fill(store)
        store.purge(PURGED)
        for number in (0, 6):
            store.layout.row_file(*store.publisher.manifest.row_file(number)).unlink()
    with Store(tmp_path / "data") as store:
        assert names(store) == []
        store.check()
        assert len(store.snapshot().gone) == 15


def test_models_and_a_purge(store: Store) -> None:
    """No way back remains, as its rows would hold what is gone; none is made during a switch."""
    fill(store, indexed=False)
    old = store.publisher.manifest.model
    store.switch()
    assert store.publisher.manifest.kept is not None
    store.purge(PURGED)
    assert store.publisher.manifest.kept is None
    assert [p.name for p in store.layout.rows.glob("0000-*")] == []
    store.begin_switch(old)
    with pytest.raises(OverloadedError, match="switch of models"):
        store.purge(Filter(families=["C2"]))
    while store.go_on():
        pass
    from engine.store import switch

    switch.finish(store.publisher)
    store.check()
    assert len(store.ask("e000003", top_k=900, collapse=False).hits) == store.publisher.manifest.events - 1


def test_what_a_switch_left_that_was_given_up_goes_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row files hold what is to be purged, and are removed only when nothing is being built."""
    fill(store, indexed=False)
    store.begin_switch()
    store.go_on()

    def full(*_: object) -> None:
        raise NoSpaceError("no space")

    monkeypatch.setattr(store.publisher, "_append_other", full)
    store.publish(several(1, 5_000))
    assert store.publisher.manifest.switch is None
    before = store.publisher.manifest
    with pytest.raises(OverloadedError, match="given up"):
        store.purge(PURGED)
    assert store.publisher.manifest == before
    store.publisher.embed_alone()
    gc.collect(store.layout, before)
    assert store.purge(PURGED)["events"]
    assert {path.name[:4] for path in store.layout.rows.iterdir()} == {f"{before.epoch:04d}"}


def test_the_older_system_gets_what_is_left(tmp_path: Path) -> None:
    import faiss

    with Store(tmp_path / "data") as store:
        fill(store, indexed=False)
        store.purge(PURGED)
        store.leave(1)
        events = store.publisher.manifest.events
    n = export.export_legacy(store.layout, tmp_path / "legacy")
    assert n == events
    index = faiss.read_index(str(tmp_path / "legacy" / "attack.faiss"))
    assert index.ntotal == n
    assert np.abs(index.reconstruct_n(0, n)).sum(1).min() > 0


def test_what_a_purge_is_told_survives_as_json(store: Store) -> None:
    fill(store, indexed=False)
    assert msgspec.json.decode(msgspec.json.encode(store.purge(PURGED)))["events"] == 15
