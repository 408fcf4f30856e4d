"""Coverage: what is counted with each commit is what the stored events hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine import facts
from engine.features import empty, pack
from engine.limits import SOURCES_MAX
from engine.maintain import doctor
from engine.store import coverage
from engine.store.columns import COLUMNS
from engine.store.counters import Counters, Names, SourceCounters
from engine.store.rows import _offsets
from ipc.event import FEATURE_COUNT, FeaturedEvent
from ipc.messages import FRAME_BYTES_MAX, Facts, encode
from tests.events import make, several
from tests.store_fixture import ROWS, Store, flip


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(1, 12))
    few = draw(arrays(np.float32, (n, 4), elements=st.sampled_from([np.nan, 0.0, -0.0, 1.0, -3.5, float("inf")])))
    features = empty(n)
    features[:, draw(st.permutations(range(FEATURE_COUNT)))[:4]] = few
    return features, draw(arrays(np.uint16, n, elements=st.integers(0, 3)))


@given(tables(), st.data())
def test_however_it_is_cut_the_coverage_is_that_of_the_cells(
    table: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    features, numbers = table
    cuts = sorted(data.draw(st.sets(st.sampled_from(range(1, len(numbers))), max_size=4))) if len(numbers) > 1 else []
    found: dict[int, coverage.Coverage] = {}
    for part in np.split(np.arange(len(numbers)), cuts):
        for number, new in coverage.by_source(features[part], numbers[part]).items():
            found[number] = found[number].merged(new) if number in found else new
    assert found.keys() == set(numbers.tolist())
    for number, c in found.items():
        for column in range(FEATURE_COUNT):
            cells = [float(v) for v in features[numbers == number, column] if np.isfinite(v)]
            assert (c.present[column], c.zeros[column]) == (len(cells), cells.count(0.0))
            assert c.filled[column] == bool(cells)
            assert c.constant[column] == (len(cells) > 1 and len(set(cells)) == 1)
            if cells:
                assert (c.low[column], c.high[column]) == (min(cells), max(cells))
            else:
                assert np.isnan(c.low[column]) and np.isnan(c.high[column])


@settings(max_examples=15)
@given(st.lists(st.lists(st.tuples(st.integers(0, 120), st.sampled_from("abc")), max_size=40), max_size=6))
def test_stored_coverage_is_that_of_the_records_and_survives(batches: list[list[tuple[int, str]]]) -> None:
    """Duplicates and refused events count nothing; Store.check recounts from the records."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(coverage, "COUNT_EVENTS", 20)
        data_dir = Path(folder) / "data"
        with Store(data_dir) as store:
            for batch in batches:
                store.publish([make(n, source=source, dst_port=70_000 if n % 17 == 0 else 1) for n, source in batch])
            store.check()
        with Store(data_dir) as store:
            store.check()
        found = doctor.run(store.layout, deep=True)
        assert [f for f in found if f.severity == "problem" and "are left on its disk" not in f.detail] == []


def test_a_failed_commit_counts_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "COUNT_EVENTS", 2)
    store.publish(several(3))

    def fail(name: str) -> None:
        if name == "publish.before_commit":
            raise OSError(5, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("engine.store.publish.failpoint", fail)
        with pytest.raises(OSError, match="input/output"):
            store.publish(several(3, 3))
    store.check()
    store.publish(several(3, 3))
    store.check()


def test_a_directory_from_before_the_counting_is_filled_in(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(200, source="a") + several(70, 200, source="b"))
        assert store.publisher.counters.counted == 270 >= coverage.COUNT_EVENTS
        with store.catalog.write() as batch:
            for source in ("a", "b"):
                batch.delete("meta", f"coverage\0{source}".encode())
            old = msgspec.to_builtins(batch.counters())
            del old["letter_bytes"], old["counted"]
            old["sources"]["a"]["coverage_sum"] = 7
            batch.put("meta", b"counters", msgspec.msgpack.encode(old))
        with store.catalog.read() as view:
            rows = facts.stats(store.layout, view, ["a"])
        assert [s["features_filled"] for s in rows["sources"]] == [None, None]
        assert rows["features"] == {}
    found = [f for f in doctor.run(store.layout) if f.object.startswith("coverage of ")]
    assert [(f.severity, f.detail) for f in found] == [
        ("note", "what it fills is not counted yet; the next start counts it")
    ] * 2
    with Store(tmp_path / "data") as store:
        store.check()
        assert store.publisher.counters.counted == 270
        store.publish(several(5, 300, source="b"))
        store.check()


def test_a_damaged_value_is_counted_again_and_stops_nothing(tmp_path: Path) -> None:
    def damage(store: Store) -> None:
        with store.catalog.write() as batch:
            table = store.catalog.tables["meta"]
            value = bytearray(batch.txn.get(b"coverage\0test", db=table))
            value[9] ^= 4
            batch.txn.put(b"coverage\0test", bytes(value), db=table)

    with Store(tmp_path / "data") as store:
        store.publish(several(300))
        damage(store)
        with store.catalog.read() as view:
            assert facts.stats(store.layout, view)["sources"][0]["groups"] is None
        assert store.publish(several(10, 300)).accepted == 10
    with Store(tmp_path / "data") as store:
        store.check()
        assert store.publisher.counters.counted == 310


def test_doctor_says_what_is_filled_and_compares_when_deep(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        bare = [FeaturedEvent(make(n, source="bare", src_ip="", dst_ip="", proto=None).event) for n in range(3)]
        store.publish(several(300) + bare)
    found = {f.object: f for f in doctor.run(store.layout, deep=True)}
    assert found["coverage of test"].severity == found["coverage of bare"].severity == "ok"
    assert found["coverage of test"].detail.startswith("fills ")
    assert "of 105 features (events: 300)" in found["coverage of test"].detail
    assert "of 105 features (events: 3)" in found["coverage of bare"].detail
    assert found["coverage"].severity == "ok"
    flip(store.layout.row_file(0, 0), _offsets(ROWS)["features"] + 3)
    wrong = [f.detail for f in doctor.run(store.layout, deep=True) if f.object == "coverage of test"]
    assert wrong[1:] == ["its coverage is not what the row files hold; stats may mislead"]


@pytest.mark.parametrize(
    ("format_name", "row", "said"),
    [
        ("eve", [float("nan")] * 105, "no feature of its windows and histories"),
        ("pcap", [1.0] * 10 + [float("nan")] * 95, "a capture should fill"),
        ("eve", [1.0] * 105, "most of what it fills never varies"),
    ],
)
def test_doctor_notes_what_is_amiss_in_many_events_only(format_name: str, row: list[float], said: str) -> None:
    names = Names(["Unknown"], [("x", format_name)])
    one = coverage.of(np.array([row, row], np.float32))
    for events, noted in ((2, False), (1_000, True)):
        (finding,) = doctor._sources(names, Counters(sources={"x": SourceCounters(events)}), {"x": one})
        assert (finding.severity == "note", said in finding.detail) == (noted, noted)


def test_doctor_notes_a_source_that_is_mostly_refused_and_the_dead_letters(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish([make(0)])
        store.publish([make(0, dst_port=port) for port in (1, 2)])
    found = {f.object: f for f in doctor.run(store.layout)}
    assert "2 records were rejected, more than stored" in found["coverage of test"].detail
    assert found["coverage of test"].severity == found["dead letters"].severity == "note"
    assert "2 of test: event '...' is stored with other content" in found["dead letters"].detail


def test_the_facts_of_as_many_sources_as_there_may_be_fit_into_a_frame(store: Store) -> None:
    most = 2**40
    full = coverage.Coverage(most, *[np.full(105, most, np.uint64)] * 2, *[np.full(105, 1.1e38, np.float32)] * 2)
    name = "ü" * 60
    sources = {f"{name}{n:04d}": SourceCounters(most, most, most) for n in range(SOURCES_MAX)}
    with store.catalog.read() as view:
        rows = facts.sources(view, Counters(sources=sources), dict.fromkeys(sources, full))
        found = facts.stats(store.layout, view)
    found |= {"sources": rows, "features": {s: coverage.columns(full) for s in list(sources)[:64]}}
    assert len(encode(Facts(1, 1, found))) < FRAME_BYTES_MAX


def test_features_asked_for_come_in_full(store: Store) -> None:
    row = np.full(105, np.nan, np.float32)
    row[3], row[9] = 5.0, 0.0
    store.publish([FeaturedEvent(make(n, source="x").event, pack(row)) for n in range(2)])
    with store.catalog.read() as view:
        found = facts.stats(store.layout, view, ["x", "nobody"])["features"]
    assert found.keys() == {"x"}
    assert [found["x"][k][9] for k in ("present", "zeros", "min", "max")] == [2, 2, 0.0, 0.0]
    assert [found["x"][k][3] for k in ("present", "zeros", "min", "max")] == [2, 0, 5.0, 5.0]
    assert [found["x"][k][1] for k in ("present", "zeros", "min", "max")] == [0, 0, None, None]


def test_a_damaged_row_stops_no_event_and_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "COUNT_EVENTS", 20)
    store.publish(several(10))
    source_at = _offsets(ROWS)["columns"] + COLUMNS.fields["source"][1]  # type: ignore[index]
    flip(store.layout.row_file(0, 0), source_at)
    with store.catalog.read() as view:
        assert facts.stats(store.layout, view)["sources"][0]["features_filled"] is None
    assert store.publish(several(40, 10)).accepted == 40


def test_a_row_file_that_is_gone_stops_no_event_and_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "COUNT_EVENTS", 64)
    store.publish(several(63))
    row_file = store.layout.row_file(0, 0)
    row_file.rename(row_file.with_suffix(".away"))
    with store.catalog.read() as view:
        assert facts.stats(store.layout, view)["sources"][0]["features_filled"] is None
    assert store.publish(several(7, 63)).accepted == 7  # through the writer's open file, and into the next one
    assert store.publisher.counters.counted == 0
    row_file.with_suffix(".away").rename(row_file)
    store.publish(several(1, 70))
    assert store.publisher.counters.counted == 71
    store.check()
