"""Scrubbing: what is looked at, how fast, when; where damaged files are put; what a reader does without one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.config import Config, Store, load
from engine.errors import BootError, ConfigError, CorruptionError
from engine.layout import Layout
from engine.maintain import scrub, scrubbing
from engine.maintain.scrub import Pace, Report
from engine.maintain.scrubbing import Mended, Scrubbing
from engine.store import quarantine
from engine.store.counter import Counter
from engine.store.rows import AbsentRows
from engine.store.structure import check
from tests.events import several
from tests.store_fixture import ROWS, flip
from tests.store_fixture import Store as Opened


def test_scrub_hours_is_a_setting_with_bounds() -> None:
    assert load(env={}).store.scrub_hours == 24
    assert load(env={"FLOWKIN_STORE__SCRUB_HOURS": "1"}).store.scrub_hours == 1
    for wrong in (0, 8_761):
        with pytest.raises(ConfigError, match="scrub_hours"):
            load(env={}, flags={"store.scrub_hours": wrong})


def test_a_pace_sleeps_for_what_is_ahead_and_never_without_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [0.0], []
    monkeypatch.setattr(scrub, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=slept.append))
    pace, free = Pace(100), Pace()
    for at in (pace, free):
        at.read(50)
    assert slept == [0.5]
    now[0] = 2.0
    pace.read(100)
    assert slept == [0.5] and (pace.bytes, free.bytes) == (150, 50)


@pytest.mark.parametrize("cached", [True, False])
def test_chunks_are_the_bytes_of_a_file(tmp_path: Path, cached: bool) -> None:
    data = os.urandom(scrub.CHUNK_BYTES * 2 + 77)
    (tmp_path / "file").write_bytes(data)
    if not cached:
        fd = os.open(tmp_path / "file", os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    pace = Pace()
    assert b"".join(scrub.chunks(tmp_path / "file", pace)) == data
    assert pace.bytes == len(data)


def test_what_was_replaced_meanwhile_is_not_damaged(store: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is read anew where a file is missing."""
    store.publish(several(200))
    store.index()
    old = store.publisher.manifest
    for file in old.indexes:
        store.layout.index_file(file.file).unlink()
    store.publisher.drop_indexes([file.file for file in old.indexes])
    newest, asked = scrub._manifest, iter([old])
    monkeypatch.setattr(scrub, "_manifest", lambda catalog: next(asked, None) or newest(catalog))
    report = scrub.run(store.layout, store.catalog, Pace(), files_only=True)
    assert (report.bad_indexes, report.bad_rows, report.files) == ([], [], 13)


def test_a_copy_of_the_catalog_finds_room_or_is_not_made(store: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    store.publish(several(100))
    assert scrub.copy_checked(store.layout, store.catalog, Pace()) == ([], "")
    monkeypatch.setattr(scrub, "free_bytes", lambda folder: 1_000)
    found, why = scrub.copy_checked(store.layout, store.catalog, Pace())
    assert found == [] and "1000 are free" in why
    assert list(store.layout.run.glob("structure.*")) == []


def test_a_copy_that_a_killed_process_left_is_removed(store: Opened) -> None:
    (store.layout.run / "structure.999999999").write_bytes(b"left")
    scrub.copy_checked(store.layout, store.catalog, Pace())
    assert list(store.layout.run.glob("structure.*")) == []


# ---- the structure of a catalog -----------------------------------------------------------------------------------


def test_the_structure_tells_sizes_of_nodes_and_the_list_of_free_pages(store: Opened, tmp_path: Path) -> None:
    for n in range(4):
        store.publish(several(50, n * 50))
    blob, path = store.catalog.path.read_bytes(), tmp_path / "copy"
    path.write_bytes(blob)
    assert check(path) == []
    at = blob.index(b"e000050\0test") - 2  # the size of its key
    path.write_bytes(blob)
    flip(path, at, 0x10)
    assert check(path)
    path.write_bytes(blob[: len(blob) // 2])
    assert check(path)
    path.write_bytes(b"")
    assert check(path)


def test_nothing_is_written_on_top_of_a_damaged_structure(store: Opened) -> None:
    store.publish(several(10))
    store.catalog.damage = "its structure is damaged (page 7)"
    with pytest.raises(CorruptionError, match=r"page 7\); nothing is stored any more; `flowkin backup restore`"):
        store.publish(several(10, 10))
    assert len(store.ask("e000003").hits) > 0


def test_a_catalog_that_went_back_is_refused_and_a_damaged_counter_is_not_believed(tmp_path: Path) -> None:
    with Opened(tmp_path / "data") as store:
        store.publish(several(10))
        path, layout = store.catalog.path, store.layout
        generation = store.generation
        old = path.read_bytes()
        store.publish(several(10, 10))
        store.publish(several(10, 20))
    path.write_bytes(old)
    with pytest.raises(CorruptionError, match=f"newest generation is {generation}, but {generation + 2} was there"):
        Opened(tmp_path / "data")
    flip(layout.generation, 1)
    with Opened(tmp_path / "data") as store:
        assert store.generation == generation
    counter = Counter(layout.generation, write=False)
    assert counter.told == counter.value == generation
    counter.close()


def test_a_cut_catalog_and_a_current_that_names_none_are_refused(tmp_path: Path) -> None:
    with Opened(tmp_path / "data") as store:
        store.publish(several(100))
        path, current = store.catalog.path, store.layout.catalog / "CURRENT"
    current.write_bytes(b"\xe3atalog.0")
    with pytest.raises(BootError, match=r"names no catalog.*doctor --fix"):
        Opened(tmp_path / "data")
    current.write_bytes(b"catalog.0")
    os.truncate(path, path.stat().st_size - 4_096)
    with pytest.raises(BootError, match=r"is cut.*backup restore"):
        Opened(tmp_path / "data")


# ---- quarantine ---------------------------------------------------------------------------------------------------


def test_the_quarantine_is_bounded_in_number_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path)
    monkeypatch.setattr(quarantine, "BYTES_MAX", 1_000)
    monkeypatch.setattr(quarantine, "FREE_BYTES_MIN", 0)

    def put(name: str, size: int) -> Path | None:
        (tmp_path / name).write_bytes(bytes(size))
        return quarantine.put(layout, tmp_path / name)

    for n in range(quarantine.FILES_MAX + 3):
        assert put(f"file{n:02d}", 10) is not None
    assert len(quarantine.listed(layout)) == quarantine.FILES_MAX
    assert quarantine.listed(layout)[0][0].name.endswith("file03")
    assert put("large", 990) is not None
    assert sum(size for _, size in quarantine.listed(layout)) <= 1_000
    assert put("too-large", 1_001) is None and not (tmp_path / "too-large").exists()
    assert quarantine.put(layout, tmp_path / "gone") is None
    monkeypatch.setattr(quarantine, "FREE_BYTES_MIN", 1 << 60)
    assert put("no-room", 10) is None and not (tmp_path / "no-room").exists()


# ---- when ---------------------------------------------------------------------------------------------------------


class FakeUpkeep:
    def __init__(self) -> None:
        self.scrub_soon: Any = None
        self.publisher = SimpleNamespace(catalog=SimpleNamespace(damage=""))
        self.mended: list[Report] = []

    async def mend(self, report: Report) -> tuple[int, list[str]]:
        self.mended.append(report)
        return 1, ["catalog records[5]"]


def made(tmp_path: Path) -> Scrubbing:
    layout = Layout(tmp_path)
    layout.run.mkdir()
    config = Config(data_dir=str(tmp_path), store=Store(scrub_hours=1))
    return Scrubbing(SimpleNamespace(layout=layout, config=config), FakeUpkeep())  # type: ignore[arg-type]


def test_a_scrub_is_paced_unless_it_is_asked_for_and_told_in_stats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scrubber = made(tmp_path)
    ran: list[int] = []

    async def run(job: Any) -> Any:
        ran.append(job.bytes_per_s)
        report = Report(begun_at=1, finished_at=2_000_000_001, seconds=2.0, files=3, values=4, bad_values_count=2)
        return SimpleNamespace(scrubbed=report)

    monkeypatch.setattr(scrubber.jobs, "run", run)

    async def all_of_it() -> dict[str, Any]:
        always = asyncio.create_task(scrubber.always())
        while not ran:
            await asyncio.sleep(0)
        scrubber.met()
        while len(ran) < 2:
            await asyncio.sleep(0)
        scrubber.met()  # so soon after the last one it waits
        found = await scrubber.ask()
        always.cancel()
        return found

    found = asyncio.run(all_of_it())
    assert ran == [scrub.BYTES_PER_S, scrub.BYTES_PER_S, 0]
    assert (found["damaged"], found["mended"], found["left"], found["left_names"]) == (2, 1, 1, ["catalog records[5]"])
    assert (found["seconds"], found["files"], found["values"]) == (2.0, 3, 4)
    assert scrubbing.facts(Layout(tmp_path).scrub) == found


def test_the_next_scrub_is_due_after_scrub_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scrubber, waited, done = made(tmp_path), [], []

    async def tried(bytes_per_s: int) -> bool:
        done.append(bytes_per_s)
        return len(done) < 3

    async def wait_for(waiting: Any, after_s: float) -> None:
        waiting.close()
        waited.append(after_s)
        if len(waited) == 3:
            raise asyncio.CancelledError
        raise TimeoutError

    monkeypatch.setattr(scrubber, "_tried", tried)
    monkeypatch.setattr(scrubbing.asyncio, "wait_for", wait_for)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scrubber.always())
    assert waited == [3_600.0, 3_600.0, scrubbing.AGAIN_S]  # the third failed


@pytest.mark.parametrize("blob", [b"", b"{", b"\xff", b'{"report":{},"mended":"x"}'])
def test_a_damaged_report_is_none(tmp_path: Path, blob: bytes) -> None:
    (tmp_path / "scrub.json").write_bytes(blob)
    assert scrubbing.facts(tmp_path / "scrub.json") is None
    assert scrubbing.facts(tmp_path / "none") is None
    (tmp_path / "scrub.json").write_bytes(msgspec.json.encode(Mended(Report(), 0, [], 0)))
    assert scrubbing.facts(tmp_path / "scrub.json") is not None


# ---- without a row file -------------------------------------------------------------------------------------------


def test_a_reader_that_starts_without_a_row_file_answers_from_the_rest(tmp_path: Path) -> None:
    with Opened(tmp_path / "data") as store:
        store.publish(several(200))
        store.index()
        whole = {hit.seq: hit.distance for hit in store.ask("e000003", space="attack", top_k=199, collapse=False).hits}
        os.truncate(store.layout.row_file(0, 1), 4_096)
        with store.catalog.read() as view:
            store.snapshots.current = None
            store.snapshots._blob = b""
            assert isinstance(store.snapshots.refresh(view).files[1], AbsentRows)
        for options in ({"space": "attack"}, {"space": "fused"}, {"space": "sbert", "explain": True}):
            hits = store.ask("e000003", top_k=199, collapse=False, **options).hits  # type: ignore[arg-type]
            assert {hit.seq for hit in hits} == set(range(200)) - {3} - set(range(ROWS, 2 * ROWS))
        attack = store.ask("e000003", space="attack", top_k=199, collapse=False).hits
        assert all(hit.distance == whole[hit.seq] for hit in attack)
        with pytest.raises(CorruptionError):
            store.ask("e000070")
        store.layout.row_file(0, 1).unlink()
        store.snapshots.current = None
        with store.catalog.read() as view:
            with pytest.raises(FileNotFoundError):  # the first time: a newer manifest may name another
                store.snapshots.refresh(view)
            assert np.isnan(store.snapshots.refresh(view).files[1].vectors["attack"]).all()
