"""Opening a data directory: birth, replay, and files that are built again from the records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.config import load
from engine.context import Tracker
from engine.embed import models
from engine.errors import FormatError, ModelError
from engine.store import recover
from engine.store.recover import catch_up, mend_rows, replayed
from tests.events import make, several
from tests.store_fixture import ROWS, Store


def test_a_birth_is_private_and_whole(store: Store) -> None:
    data_dir = store.layout.data_dir
    assert (store.generation, store.publisher.manifest.count, store.publisher.manifest.row_file_rows) == (1, 0, ROWS)
    assert store.publisher.manifest.model == models.shipped().name
    for path in set(data_dir.rglob("*")) - set(store.layout.models.glob("*/*")):  # weights are no secret
        mode = path.stat().st_mode & 0o077
        assert mode == 0, f"{path} {mode:o}"
    assert not list(data_dir.rglob("*.tmp"))


def test_the_rows_of_a_file_are_fixed_at_birth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(70))
    monkeypatch.setattr("tests.store_fixture.ROWS", 128)
    with Store(tmp_path / "data") as store:
        assert store.config.store.row_file_rows == 128
        assert store.publisher.manifest.row_file_rows == 64
        store.publish(several(70, 70))
        assert len(list(store.layout.rows.iterdir())) == 3


def test_a_model_that_is_gone_or_damaged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not come with the package; tests/unit/test_doctor.py has one that does."""
    monkeypatch.setattr(recover.models, "ships", lambda version, known: {})
    with Store(tmp_path / "data") as store:
        store.publish(several(5))
        path = store.layout.model(store.publisher.manifest.model)
    card = path / "card.json"
    kept = card.read_bytes()
    card.unlink()
    with pytest.raises(ModelError, match=r"card\.json cannot be read"):
        Store(tmp_path / "data")
    card.write_bytes(kept.replace(b'"seed"', b'"sead"'))
    with pytest.raises(ModelError, match="damaged"):
        Store(tmp_path / "data")
    card.write_bytes(kept)
    with Store(tmp_path / "data") as store:
        store.check()


@pytest.mark.parametrize("chunk", [1, 7, 1_024])
def test_replay_gives_the_tracker_of_ingest(store: Store, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    for first in range(0, 150, 25):
        store.publish(several(25, first))
    monkeypatch.setattr(recover, "CHUNK_ROWS", chunk)
    internal = store.config.network.internal
    tracker, seq, _ = replayed(store.catalog, Tracker(internal), internal)
    assert seq == 150
    assert tracker.dump() == store.publisher.tracker.dump()


def test_catching_up_ends_at_the_committed_count(store: Store) -> None:
    store.publish(several(30))
    tracker = Tracker(store.config.network.internal)
    assert catch_up(store.catalog, tracker, 0) == (30, True)
    assert catch_up(store.catalog, tracker, 30) == (30, True)
    store.publish(several(5, 30))
    assert catch_up(store.catalog, tracker, 30) == (35, True)
    assert tracker.dump() == store.publisher.tracker.dump()


@pytest.mark.parametrize("number", [0, 2])
def test_a_row_file_built_again_is_the_same(store: Store, number: int) -> None:
    store.publish(several(150))
    store.publisher.annotate("e000003", "x", "ana")
    store.index()
    before = {r: v.copy() for r, v in store.files()[number].vectors.items()}
    answer = store.ask("e000140", top_k=30, collapse=False)
    mend_rows(store.publisher, number)
    assert store.publisher.manifest.revisions == {number: 1}
    assert all(np.array_equal(before[s], store.files()[number].vectors[s]) for s in before)
    store.check()
    again = store.ask("e000140", top_k=30, collapse=False)
    assert [(h.seq, h.distance) for h in again.hits] == [(h.seq, h.distance) for h in answer.hits]
    store.publish(several(60, 150))
    store.index()
    store.check()


def test_a_counter_that_says_anything_is_set_right(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        store.publish(several(5))
    (tmp_path / "data" / "generation").unlink()
    with Store(tmp_path / "data") as store:
        assert store.publisher.counter.value == store.generation == 2


def test_a_counter_above_the_truth_is_set_right(tmp_path: Path) -> None:
    """A damaged page: waiting readers and watchers would be told of what is not there."""
    with Store(tmp_path / "data") as store:
        store.publish(several(5))
        store.publisher.counter._cells[0] = 1 << 40
    with Store(tmp_path / "data") as store:
        assert store.publisher.counter.value == store.generation == 2


def test_a_directory_of_another_format_is_left_alone(tmp_path: Path) -> None:
    import msgspec

    from engine.store.manifest import encode

    with Store(tmp_path / "data") as store:
        store.publish([make(0)])
        later = msgspec.structs.replace(store.publisher.manifest, features_version=2)
        with store.catalog.write() as batch:
            batch.put("meta", b"manifest", encode(later))
    before = {p: p.read_bytes() for p in (tmp_path / "data" / "rows").iterdir()}
    with pytest.raises(FormatError, match="features 2"):
        Store(tmp_path / "data")
    assert {p: p.read_bytes() for p in (tmp_path / "data" / "rows").iterdir()} == before
    assert load(env={}).store.row_file_rows > 0


def test_a_damaged_note_of_the_internal_networks_is_written_anew(tmp_path: Path) -> None:
    with Store(tmp_path / "data") as store:
        table, key = store.catalog.tables["meta"], b"internal"
        with store.catalog.write() as batch:
            value = bytearray(batch.txn.get(key, None, table))
            whole = bytes(value)
            value[3] ^= 1
            batch.txn.put(key, bytes(value), db=table)
    with Store(tmp_path / "data") as store, store.catalog.read() as view:
        assert bytes(view.txn.get(key, None, store.catalog.tables["meta"])) == whole


def test_other_internal_networks_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = []
    for flags in ({}, {}, {"network__internal": ["192.0.2.0/24"]}, {"network__internal": ["192.0.2.0/24"]}):
        caplog.clear()
        with Store(tmp_path / "data", **flags) as store:
            store.publish(several(5, len(said) * 5))
        said.append([m for m in caplog.messages if m.startswith("network.internal was 10.0.0.0/8")])
    assert [len(messages) for messages in said] == [0, 0, 1, 0]
    assert "is 192.0.2.0/24: from generation 3 on" in said[2][0]
