"""Publishing in one process: what is stored, refused and counted; what a failure leaves."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.errors import BadRequestError, CorruptionError, NoSpaceError, NotFoundError
from engine.features import CONTEXT_INDEXES, INDEX, pack, unpack
from engine.limits import LABEL_HISTORY_MAX, SOURCE_BYTES_MAX
from engine.maintain import scrub
from engine.store import coverage, publish, recover
from engine.store.catalog import seq_key
from engine.store.columns import COLUMNS
from engine.store.counters import counted_as
from engine.store.lock import hold
from engine.store.publish import Submission
from ipc.event import Event, FeaturedEvent
from ipc.messages import Reject
from tests.events import blocked, ids, make, several
from tests.store_fixture import OTHER, ROWS, Store, damage


def event(store: Store, seq: int) -> Event:
    with store.catalog.read() as view:
        head = view.head(seq)
    assert head is not None
    return msgspec.msgpack.decode(head, type=Event)


def test_a_generation_holds_a_whole_batch(store: Store) -> None:
    assert (store.generation, store.publisher.manifest.count) == (1, 0)
    outcome = store.publish(several(200))
    assert (outcome.generation, outcome.accepted, outcome.duplicates, outcome.rejects) == (2, 200, 0, [])
    assert store.ids() == ids(several(200))
    store.check()


def test_the_same_again_is_a_duplicate_within_a_batch_and_later(store: Store) -> None:
    outcome = store.publish([make(0), make(1), make(0)])
    assert (outcome.accepted, outcome.duplicates) == (2, 1)
    outcome = store.publish([make(1), make(2)])
    assert (outcome.accepted, outcome.duplicates) == (1, 1)
    assert store.ids() == ids(several(3))


def test_other_content_is_refused_and_nothing_is_changed(store: Store) -> None:
    store.publish([make(0)])
    outcome = store.publish([make(0, dst_port=99), make(1), make(1, dst_port=99)])
    assert (outcome.accepted, outcome.duplicates, len(outcome.rejects)) == (1, 0, 2)
    assert "other content" in outcome.rejects[0].reason
    assert event(store, 0).dst_port == make(0).event.dst_port
    assert store.publisher.counters.conflicts == 2
    assert store.publish([make(0, source="elsewhere")]).accepted == 1  # another identity


def test_the_source_record_alone_decides_what_is_the_same(store: Store) -> None:
    one, two = make(0), make(0, dst_port=99)
    one.raw = two.raw = b"the very record"
    assert store.publish([one]).accepted == 1
    assert store.publish([two]).duplicates == 1


def test_a_damaged_record_is_put_back_by_the_same_again(store: Store) -> None:
    items = several(ROWS + 10)
    items[3].raw = b"the very record"
    store.publish(items[:2])
    store.publish(items[2:])
    with store.catalog.read() as view:
        before = [view.record(seq) for seq in (3, ROWS + 5)]
    for seq in (3, ROWS + 5):
        damage(store.catalog, "records", seq_key(seq))
    again = several(ROWS + 10)
    again[3].raw = b"the very record"
    outcome = store.publish([*again, again[3]])
    assert (outcome.accepted, outcome.duplicates, outcome.rejects) == (0, ROWS + 11, [])
    with store.catalog.read() as view:
        assert [view.record(seq) for seq in (3, ROWS + 5)] == before
    store.check()


def test_a_damaged_record_is_not_put_back_by_another(store: Store) -> None:
    store.publish([make(0)])
    damage(store.catalog, "records", seq_key(0))
    assert len(store.publish([make(0, dst_port=99)]).rejects) == 1
    with pytest.raises(CorruptionError):
        event(store, 0)


def test_a_row_that_was_left_empty_is_built_again_when_its_record_is_back(store: Store) -> None:
    """Its context is not known any more; all else is."""
    store.publish(several(ROWS + 10))
    damage(store.catalog, "records", seq_key(3))
    recover.mend_rows(store.publisher, 0)
    assert store.files()[0].gone.tolist() == [3]
    assert not scrub.run(store.layout, store.catalog, scrub.Pace(), files_only=True).damaged
    assert store.publish(several(ROWS + 10)).duplicates == ROWS + 10
    assert event(store, 3).event_id == make(3).event.event_id
    report = scrub.run(store.layout, store.catalog, scrub.Pace(), files_only=True)
    assert report.bad_rows == [store.publisher.manifest.row_file(0)]
    recover.mend_rows(store.publisher, 0)
    assert not scrub.run(store.layout, store.catalog, scrub.Pace(), files_only=True).damaged
    found, sent = store.files()[0].features[3], unpack([make(3).features])[0]
    assert np.array_equal(found[np.isfinite(sent)], sent[np.isfinite(sent)])
    assert np.isnan(found[list(CONTEXT_INDEXES)]).all()
    assert 3 in [hit.seq for hit in store.ask("e000007", top_k=ROWS, collapse=False).hits]


def test_an_identity_whose_record_is_gone_is_new(store: Store) -> None:
    store.publish(several(3))
    with store.catalog.write() as batch:
        batch.delete("records", seq_key(1))
    outcome = store.publish(several(3))
    assert (outcome.accepted, outcome.duplicates) == (1, 2)
    assert event(store, 3).event_id == make(1).event.event_id
    assert store.publish(several(3)).duplicates == 3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (make(1, event_id="x" * 256), "event_id"),
        (make(1, event_id="a\0b"), "event_id"),
        (make(1, source="ü" * 128), "source over 128 bytes"),
        (make(1, source="a/b"), "source"),
        (make(1, src_ip="nowhere"), "is not an address"),
        (make(1, dst_port=70_000), "port"),
        (make(1, fast_score=2.0), "fast_score"),
        (make(1, ts=-1, ts_start=-1), "time"),
        (FeaturedEvent(make(1).event, b"123"), "features must be 420 bytes"),
    ],
)
def test_a_bad_event_costs_itself_only(store: Store, bad: FeaturedEvent, reason: str) -> None:
    outcome = store.publish([make(0), bad, make(2)])
    assert outcome.accepted == 2
    assert reason in outcome.rejects[0].reason
    counters = store.publisher.counters
    assert counters.sources[counted_as(counters, bad.event.source)].rejected == 1
    assert ("(other)" in counters.sources) == (len(bad.event.source.encode()) > SOURCE_BYTES_MAX)
    store.check()


def test_values_that_are_no_measurement_become_missing(store: Store) -> None:
    row = np.full(105, np.nan, np.float32)
    row[:4] = [np.inf, -np.inf, 5.0, 3.4e38]
    store.publish([FeaturedEvent(make(0).event, pack(row)), make(1)])
    with store.catalog.read() as view:
        record = view.record(0)
    assert record is not None
    features = unpack([record.features])[0]
    assert np.isnan(features[:2]).all()
    assert features[2] == 5.0
    assert all(np.isfinite(v).all() for v in store.snapshot().files[0].vectors.values())
    store.check()


def test_coverage_counts_what_is_present_with_context(store: Store) -> None:
    store.publish([make(0, kind="flow")])
    with store.catalog.read() as view:
        record = view.record(0)
    assert record is not None
    present = int(np.isfinite(unpack([record.features])).sum())
    assert event(store, 0).coverage == present
    with store.catalog.read() as view:
        assert coverage.load(store.layout, view, view.counters())["test"].present.sum() == present
    assert np.isfinite(unpack([record.features])[0, INDEX["connection_rate"]])


def test_offsets_and_rejects_come_with_their_commit(store: Store) -> None:
    reject = Reject("f", 10, "not a line")
    submission = Submission("eve", [], [reject], lambda outcome: None, {b"f": b"100"}, "eve")
    outcome = store.publisher.publish([submission])[0]
    assert outcome.rejects == [reject]
    with store.catalog.read() as view:
        assert bytes(view.get("offsets", b"f") or b"") == b"100"
        assert view.counters().sources["eve"].rejected == 1
    store.publish([], {b"f": b"", b"never": b"", b"g": b"1"})
    with store.catalog.read() as view:
        assert [bytes(key) for key, _ in view.scan("offsets")] == [b"g"]


def test_nothing_new_is_no_new_generation(store: Store) -> None:
    before = store.generation
    assert store.publish([]).generation == before


def test_several_submissions_are_one_commit_with_an_outcome_each(store: Store) -> None:
    made = [Submission("x", [make(n), make(0)], [], lambda outcome: None, source="test") for n in range(3)]
    outcomes = store.publisher.publish(made)
    assert [(o.accepted, o.duplicates) for o in outcomes] == [(1, 1), (1, 1), (1, 1)]
    assert {o.generation for o in outcomes} == {2}


# ---- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["pwrite", "fdatasync", "commit"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_publish_changes_nothing_and_the_next_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: str, code: int
) -> None:
    """A full disk is NoSpaceError, one that does not keep its word OSError; state in memory is as before."""
    store.publish(several(60))
    before = store.publisher.tracker.dump()

    def fails(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    if where == "commit":
        monkeypatch.setattr(store.catalog, "write", fails)
    else:
        monkeypatch.setattr(os, where, fails)
    full = code == errno.ENOSPC and where != "commit"
    with pytest.raises(NoSpaceError if full else OSError):
        store.publish(several(50, 60))
    monkeypatch.undo()
    assert store.publisher.manifest.count == 60
    assert store.publisher.tracker.dump() == before
    assert store.publisher.counters.sources["test"].events == 60
    assert store.publish(several(50, 60)).accepted == 50
    store.check()


def test_no_space_for_a_new_row_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.publish(several(ROWS // 2))
    real = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoSpaceError):  # neither ahead nor when it is needed
        store.publish(several(ROWS, ROWS // 2))
    monkeypatch.setattr(os, "write", real)
    assert not list(store.layout.rows.glob("*.tmp"))
    assert store.publish(several(ROWS, ROWS // 2)).accepted == ROWS
    store.check()


def test_a_switch_that_cannot_be_committed_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that are published after it belong to the model that the manifest names."""
    store.publish(several(70))
    real = store.catalog.write

    def full() -> object:
        raise NoSpaceError("the catalog's map is full")

    monkeypatch.setattr(store.catalog, "write", full)
    with pytest.raises(NoSpaceError):
        store.switch()
    monkeypatch.setattr(store.catalog, "write", real)
    assert store.publisher.models.version == store.publisher.manifest.model != OTHER
    store.publish(several(10, 70))
    store.check()


# ---- what comes later ---------------------------------------------------------------------------------------------


def test_the_last_labels_of_an_event_are_kept(store: Store) -> None:
    """They are part of every answer with it: without a bound one labeller makes an event unanswerable."""
    store.publish(several(5))
    for n in range(LABEL_HISTORY_MAX + 5):
        store.publisher.annotate("e000003", f"label {n}", "ana")
    with store.catalog.read() as view:
        note = view.annotation(3)
    assert note is not None and note.label == f"label {LABEL_HISTORY_MAX + 4}"
    assert [value for *_, value in note.history] == [f"label {n}" for n in range(5, LABEL_HISTORY_MAX + 5)]


def test_labels_keep_their_history_and_touch_no_row(store: Store) -> None:
    store.publish(several(5))
    rows = store.layout.row_file(0, 0).read_bytes()
    first = store.publisher.annotate("e000003", "good", "ana")
    second = store.publisher.annotate("test/e000003", "bad", "eva")
    third = store.publish([], actions=[blocked(3)], source="fw").generation
    assert (first, second, third) == (3, 4, 5)
    with store.catalog.read() as view:
        note = view.annotation(3)
    assert note is not None
    assert (note.label, note.labelled_by, note.firewall_action) == ("bad", "eva", "BLOCK")
    assert [(by, field, value) for _, by, field, value in note.history] == [
        ("ana", "label", "good"), ("eva", "label", "bad"), ("fw", "firewall_action", "BLOCK"),
    ]  # fmt: skip
    assert store.layout.row_file(0, 0).read_bytes() == rows
    assert store.ask("e000000", top_k=4, collapse=False).hits


@pytest.mark.parametrize(("label", "error"), [("a\0b", BadRequestError), ("\U0001f600" * 128, BadRequestError)])
def test_a_label_that_cannot_be_kept_is_refused(store: Store, label: str, error: type[Exception]) -> None:
    store.publish(several(2))
    with pytest.raises(error):
        store.publisher.annotate("e000001", label, "ana")
    with pytest.raises(NotFoundError):
        store.publisher.annotate("none", "x", "ana")
    assert store.generation == 2
    assert store.publish([make(5)]).accepted == 1


def test_a_switch_embeds_everything_anew(store: Store) -> None:
    store.publish(several(150))
    store.index()
    old = store.publisher.manifest
    store.switch()
    now = store.publisher.manifest
    assert now.kept is not None
    assert (now.model, now.epoch, now.kept.model, now.kept.epoch) == (OTHER, 1, old.model, 0)
    assert now.kept.indexes == old.indexes
    assert len(now.indexes) == len(old.indexes) and not set(now.indexes) & set(old.indexes)
    assert {s.number for s in now.sealed} == {0, 1}
    store.check()
    assert store.ask("e000003", space="attack", top_k=5).model == OTHER
    store.publish(several(60, 150))
    store.index()
    store.check()


def test_names_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "FAMILIES_MAX", 3)
    store.publish([make(n, event_id=f"n{n}", family=f"Family {n}") for n in range(6)])
    assert len(store.publisher.names.families) == 3
    families = [event(store, n).family for n in range(6)]
    assert families[2:] == ["Unknown"] * 4
    store.check()


def test_sources_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "SOURCES_MAX", 2)
    store.publish([make(9), make(10, source="second")])
    with pytest.raises(BadRequestError, match="2 sources already"):
        store.publish([make(11, source="third")])
    assert store.publish([make(12)]).accepted == 1
    store.check()


def test_a_new_source_with_a_family_too_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "FAMILIES_MAX", 1)
    assert store.publish([make(0)]).accepted == 1


def test_two_writers_are_refused(tmp_path: Path) -> None:
    from engine.errors import LockedError

    fd = hold(tmp_path / "writer.lock")
    with pytest.raises(LockedError, match=f"pid {os.getpid()}"):
        hold(tmp_path / "writer.lock", wait_s=0.0)
    os.close(fd)
    os.close(hold(tmp_path / "writer.lock", wait_s=0.0))


def test_reopening_finds_everything_as_it_was(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(150))
        store.publisher.annotate("e000003", "x", "ana")
        manifest, counters, names = store.publisher.manifest, store.publisher.counters, store.publisher.names
        state = store.publisher.tracker.dump()
    for _ in range(2):
        with Store(tmp_path / "data") as store:
            assert store.publisher.manifest == manifest
            assert store.publisher.counters == counters
            assert store.publisher.names == names
            assert store.publisher.tracker.dump() == state
            assert store.publisher.counter.value == manifest.generation
            store.check()
    assert COLUMNS.itemsize % 2 == 0
    assert recover.CHUNK_ROWS > 0
