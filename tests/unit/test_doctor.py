"""The doctor: says what is wrong, writes nothing unless asked, and never while an engine runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import doctor
from engine.doctor import Finding
from engine.layout import Layout
from engine.lock import hold
from engine.rows import _offsets
from tests.events import several
from tests.store_fixture import ROWS, Store, flip


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


def test_fix_removes_what_is_derived_and_the_next_start_builds_it(layout: Layout) -> None:
    flip(layout.row_file(0, 1), _offsets(ROWS)["sbert"] + 9)
    flip(layout.row_file(0, 2), _offsets(ROWS)["attack"] + 9)
    index = sorted(layout.indexes.iterdir())[0]
    flip(index, index.stat().st_size // 2)
    mended = problems(layout, deep=True, fix=True)
    assert len(mended) == 3
    assert all(f.fixed for f in mended)
    assert len(list(layout.quarantine.iterdir())) == 3
    with Store(layout.data_dir) as store:
        store.check()
        store.index()
    assert problems(layout, deep=True) == []


def test_fix_touches_nothing_while_an_engine_runs(layout: Layout) -> None:
    flip(layout.row_file(0, 1), _offsets(ROWS)["sbert"] + 9)
    before = tree(layout)
    fd = hold(layout.writer_lock)
    (found,) = problems(layout, deep=True, fix=True)
    os.close(fd)
    assert not found.fixed
    assert "while an engine runs" in found.detail
    assert tree(layout) == before


def test_damaged_values_are_counted_table_by_table(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "VALUES_MAX", 7)  # so that a table takes several transactions
    with Store(layout.data_dir) as store:
        for seq in (3, 77):
            key = seq.to_bytes(8, "big")
            with store.catalog.write() as batch:
                value = bytearray(batch.txn.get(key, db=store.catalog.tables["records"]))
                value[20] ^= 1
                batch.txn.put(key, bytes(value), db=store.catalog.tables["records"])
    (found,) = problems(layout, deep=True)
    assert found.object == "catalog records"
    assert found.detail.startswith("2 of 150 values are damaged; the first: catalog records[")
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
    assert not [f for f in doctor.run(layout) if f.object == f"model {old.model}"]
    layout.row_file(*old.row_file(0)).unlink()
    assert [f.severity for f in doctor.run(layout) if f.object == f"model {old.model}"] == ["note"]
    assert problems(layout) == []
