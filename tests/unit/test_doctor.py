"""The doctor: says what is wrong, mends nothing unless asked, and never while an engine runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import load
from engine.errors import DeniedError, LockedError
from engine.layout import Layout
from engine.maintain import doctor, mend, scrub
from engine.maintain.build import Built, IndexJob, Job
from engine.maintain.doctor import Finding
from engine.maintain.jobs import Jobs
from engine.maintain.take import create
from engine.store import quarantine
from engine.store.catalog import seq_key
from engine.store.dead_letters import newest
from engine.store.lock import hold
from engine.store.publish import Submission
from engine.store.rows import _offsets
from ipc.messages import Reject
from tests.events import several
from tests.store_fixture import ROWS, Store, damage, flip


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """A closed, healthy data directory."""
    with Store(tmp_path / "data") as store:
        store.publish(several(150))
        store.index()
        layout = store.layout
    yield layout


def problems(layout: Layout, **more: bool) -> list[Finding]:
    return [f for f in doctor.run(layout, **more) if f.severity == "problem" and "are left on its disk" not in f.detail]


def tree(layout: Layout) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in layout.data_dir.rglob("*") if p.is_file() and "lock" not in p.name}


@pytest.mark.parametrize("deep", [False, True])
def test_a_healthy_directory_has_no_problem_and_is_not_touched(layout: Layout, deep: bool) -> None:
    before = tree(layout)
    assert problems(layout, deep=deep) == []
    assert tree(layout) == before


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    missing, *_ = doctor.run(Layout(tmp_path / "none"))
    assert (missing.severity, missing.object) == ("problem", str(tmp_path / "none"))
    (tmp_path / "empty").mkdir(mode=0o700)
    assert [f.detail for f in problems(Layout(tmp_path / "empty"))] == [
        "there is no catalog; `flowkin start` creates one"
    ]


def test_others_must_not_enter(layout: Layout) -> None:
    layout.data_dir.chmod(0o755)
    (found,) = problems(layout)
    assert "mode 0755" in found.detail
    layout.data_dir.chmod(0o700)


@pytest.mark.parametrize("deep", [False, True])
def test_missing_and_cut_files_are_found_at_once_flipped_ones_by_deep(layout: Layout, deep: bool) -> None:
    index = sorted(layout.indexes.iterdir())
    index[0].unlink()
    index[1].chmod(0o600)
    os.truncate(index[1], 100)
    flip(index[2], index[2].stat().st_size // 2)
    layout.row_file(0, 0).unlink()
    flip(layout.row_file(0, 1), _offsets(ROWS)["sbert"] + 9)
    flip(layout.row_file(0, 2), _offsets(ROWS)["sums"] + 9)
    found = {f.object for f in problems(layout, deep=deep)}
    plain = {str(index[0]), str(index[1]), str(layout.row_file(0, 0))}
    flipped = {str(index[2]), str(layout.row_file(0, 1)), str(layout.row_file(0, 2))}
    assert found == (plain | flipped if deep else plain)


def fixed(layout: Layout) -> list[Finding]:
    return doctor.fix(layout, load(env={}, flags={"data_dir": str(layout.data_dir)}))


def test_fix_builds_again_what_is_derived_and_keeps_the_damaged_files(layout: Layout) -> None:
    flip(layout.row_file(0, 1), _offsets(ROWS)["sbert"] + 9)
    flip(layout.row_file(0, 2), _offsets(ROWS)["attack"] + 9)
    index = sorted(layout.indexes.iterdir())[0]
    flip(index, index.stat().st_size // 2)
    assert len(problems(layout, deep=True)) == 3
    (found,) = fixed(layout)
    assert (found.severity, found.fixed) == ("ok", True)
    assert problems(layout, deep=True) == []
    kept = [path.name.partition("-")[2] for path, _ in quarantine.listed(layout)]
    assert sorted(kept) == sorted([index.name, "0000-00000001", "0000-00000002"])
    (said,) = [f for f in doctor.run(layout) if f.object == str(layout.quarantine)]
    assert (said.severity, said.detail[:15]) == ("note", "3 damaged files")
    with Store(layout.data_dir) as store:
        store.check()
        assert len(store.publisher.manifest.indexes) == 3  # over both full row files, in each space


def test_fix_touches_nothing_while_an_engine_runs(layout: Layout) -> None:
    flip(layout.row_file(0, 1), _offsets(ROWS)["sbert"] + 9)
    before = tree(layout)
    fd = hold(layout.writer_lock)
    with pytest.raises(LockedError):
        fixed(layout)
    os.close(fd)
    assert tree(layout) == before


def test_fix_mends_values_that_follow_from_others_and_names_the_rest(layout: Layout) -> None:
    with Store(layout.data_dir) as store:
        store.publish(several(3, 1_000), {b"file": b"state"})
        store.publisher.annotate("e000002", "odd", "ann")
        store.publisher.checkpoint()
    damaged = {
        "ids": b"e000007\0test", "marks": b"label\0odd\0" + seq_key(2), "tracker": b"checkpoint", "offsets": b"file",
        "records": seq_key(5), "meta": b"counters",
    }  # fmt: skip
    with Store(layout.data_dir) as store:
        expected = store.publisher.counters
        store.publisher.checkpoint()
        with store.catalog.write() as batch:
            text = next(batch.keys("texts"))
            for table, key in {**damaged, "texts": text}.items():
                value = bytearray(batch.txn.get(key, db=store.catalog.tables[table]))
                value[-1] ^= 1
                batch.txn.put(key, bytes(value), db=store.catalog.tables[table])
        report = scrub.run(layout, store.catalog, scrub.Pace())
        assert sorted(report.bad_values) == sorted([*damaged.items(), ("texts", text)])
        left = mend.values(store.publisher, report.bad_values)
        assert left == [("records", seq_key(5))]
        with store.catalog.read() as view:
            assert view.find("e000007") == 7
            assert view.marked("label", "odd") == [2]
            assert view.counters() == expected
            assert view.get("texts", text) is None and view.get("offsets", b"file") is None
        assert store.publish(several(144, 6)).accepted == 0
    (found,) = problems(layout, deep=True)
    assert found.object == "catalog records"
    assert found.detail.startswith("1 of 153 values are damaged: 5; they are refused, all others are whole; `flowkin")
    with Store(layout.data_dir) as store:
        assert store.publish(several(150)).accepted == 0
    assert problems(layout, deep=True) == []


def test_what_is_left_is_a_problem_whatever_was_mended(layout: Layout) -> None:
    flip(layout.row_file(0, 1), _offsets(ROWS)["sbert"] + 9)
    with Store(layout.data_dir) as store:
        damage(store.catalog, "records", seq_key(5))
    *_, found = fixed(layout)
    assert (found.severity, found.fixed) == ("problem", False)
    assert found.detail.startswith("1 damaged files and values mended; left: catalog records")
    (said,) = problems(layout)  # a look that is not deep knows it from the scrub
    assert said.object == "scrub" and "left: catalog records" in said.detail


def test_an_index_that_cannot_be_built_ends_it(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(layout.row_file(0, 1), _offsets(ROWS)["sbert"] + 9)
    flip(index := sorted(layout.indexes.iterdir())[0], index.stat().st_size // 2)
    run = Jobs.run

    async def fails(self: Jobs, job: Job, **how: float) -> Built | None:
        if not isinstance(job, IndexJob):
            return await run(self, job, **how)
        self.failures += 1
        await asyncio.sleep(0)
        return None

    monkeypatch.setattr(Jobs, "run", fails)
    *_, found = fixed(layout)
    assert found.severity == "problem" and "left: indexes or retention, which fail" in found.detail
    os.close(hold(layout.writer_lock))  # nobody has it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_nothing_appears_in_the_directory_of_somebody_else(layout: Layout, tmp_path: Path) -> None:
    """Its engine could not open it."""
    for path in layout.catalog.glob("*-lock"):
        path.unlink()
    for path in (layout.data_dir, *layout.data_dir.rglob("*")):
        os.chown(path, 12_345, 12_345)
    before = sorted(layout.data_dir.rglob("*"))
    assert [f for f in problems(layout, deep=True) if "uid" not in f.detail] == []
    create(layout, tmp_path / "backups", map_size=doctor.MAP_BYTES)
    with pytest.raises(DeniedError, match="uid 12345"):
        fixed(layout)
    assert sorted(layout.data_dir.rglob("*")) == before


def test_fix_writes_a_model_that_ships_again_and_a_name_of_the_catalog(layout: Layout) -> None:
    (model,) = layout.models.iterdir()
    whole = {path.name: path.read_bytes() for path in model.iterdir()}
    flip(model / "card.json", 700, 0x01)
    (layout.catalog / "CURRENT").write_bytes(b"catalog.8")
    (damaged,) = problems(layout, deep=True)
    assert "which" in damaged.detail and "`flowkin doctor --fix`" in damaged.detail
    current, rest = fixed(layout)
    assert current.fixed and rest.severity == "ok"
    assert {path.name: path.read_bytes() for path in model.iterdir()} == whole
    assert problems(layout, deep=True) == []


def test_a_card_that_was_changed_is_not_believed(layout: Layout) -> None:
    """It has no checksum of its own: the catalog knows it from when it came."""
    (model,) = layout.models.iterdir()
    text = (model / "card.json").read_text()
    at = text.index("precedent_bound") + 20
    flip(model / "card.json", at, 0x01)
    assert [f.object for f in problems(layout, deep=True)] == [f"model {model.name}"]


def test_damaged_letters_are_counted(layout: Layout) -> None:
    with Store(layout.data_dir) as store:
        rejects = [Reject("file", n, "bad", b"abc") for n in range(3)]
        store.publisher.publish([Submission("ndjson", [], rejects, lambda outcome: None, {}, "test")])
    assert problems(layout, deep=True) == []
    flip(layout.dead_letters, 100, 0x01)
    (found,) = problems(layout)
    assert found.detail.startswith("1 lines are damaged or gone")
    assert len(list(newest(layout.dead_letters))) == 2


def test_damaged_values_are_counted_table_by_table(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "PIECE_VALUES", 7)  # so that a table takes several transactions
    with Store(layout.data_dir) as store:
        for seq in (3, 77):
            key = seq.to_bytes(8, "big")
            with store.catalog.write() as batch:
                value = bytearray(batch.txn.get(key, db=store.catalog.tables["records"]))
                value[20] ^= 1
                batch.txn.put(key, bytes(value), db=store.catalog.tables["records"])
    (found,) = problems(layout, deep=True)
    assert found.object == "catalog records"
    assert found.detail.startswith("2 of 150 values are damaged: 3, 77; ")
    assert problems(layout) == []


def test_a_record_too_few_and_a_model_that_is_damaged(layout: Layout) -> None:
    with Store(layout.data_dir) as store:
        with store.catalog.write() as batch:
            batch.delete("records", (5).to_bytes(8, "big"))
        model = store.layout.model(store.publisher.manifest.model)
    flip(model / "attack.safetensors", 4_000)
    found = {f.object: f.detail for f in problems(layout)}
    assert found["catalog records"] == "149 are stored, the manifest counts 150"
    assert "is damaged" in found[f"model {model.name}"]


def test_a_catalog_that_is_none_is_a_finding(layout: Layout) -> None:
    path = layout.catalog / "catalog.0"
    path.write_bytes(b"\xff" * path.stat().st_size)
    (found,) = problems(layout)
    assert "cannot be opened" in found.detail


def test_a_way_back_that_is_gone_is_noted(layout: Layout) -> None:
    with Store(layout.data_dir) as store:
        old = store.publisher.manifest
        store.switch()
    assert not [f for f in doctor.run(layout) if f.object == f"rollback to {old.model}"]
    layout.row_file(*old.row_file(0)).unlink()
    assert [f.severity for f in doctor.run(layout) if f.object == f"rollback to {old.model}"] == ["note"]
    assert problems(layout) == []
