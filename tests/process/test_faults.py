"""Faults: a process killed at birth, files deleted, cut and bit-flipped.

Nothing acknowledged is lost, no distance is wrong, and a start never refuses because of a derived file."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engine import failpoint
from engine.embed import models
from engine.embed.base import SPACES
from engine.errors import CorruptionError, FormatError
from engine.layout import Layout
from engine.store import recover
from engine.store.manifest import Manifest
from engine.store.rows import HEADER_BYTES, RowMap, _offsets
from engine.store.tiers import mergeable, unindexed
from ipc.errors import ClientError, InternalError, NoSpaceError
from tests.bad_disk import bad_disk
from tests.engine_fixture import ROOT, Starter, all_events, answers, ask, environment, shape, stored_ids
from tests.events import ids, make, several
from tests.one_thread import ONE_THREAD
from tests.store_fixture import OTHER, ROWS, Store, closed, flip, other_model
from tests.wait import eventually

READERS = 1

ASKED = ["e000003", "e000070", "e000129"]


def run_steps(data_dir: Path, *steps: str, point: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "tests.process.steps", str(data_dir), *steps],
        env=environment({"ENGINE_FAILPOINT": point, "PYTHONPATH": str(ROOT)}), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def born(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return closed(tmp_path_factory.mktemp("born") / "data")


@pytest.fixture
def data_dir(born: Path, tmp_path: Path) -> Path:
    target = tmp_path / "data"
    shutil.copytree(born, target)
    return target


@pytest.fixture
def opened(data_dir: Path) -> Iterator[Callable[[], Store]]:
    """opened() -> a Store on data_dir; opening it again closes the one before."""
    stores: list[Store] = []

    def close() -> None:
        while stores:
            stores.pop().close()

    def begin() -> Store:
        close()
        stores.append(Store(data_dir))
        return stores[0]

    begin.close = close  # type: ignore[attr-defined]
    yield begin
    close()


# ---- killed in retention: all other failpoints in test_failpoints.py and test_removal.py --------------------------

RETENTION_KILLED = ["leave.hidden", "leave.unlinked", "leave.swept", "leave.swept:2"]


@pytest.mark.parametrize("point", RETENTION_KILLED)
def test_retention_killed_at_any_step_has_let_go_and_goes_on(
    data_dir: Path, opened: Callable[[], Store], point: str
) -> None:
    """SIGKILL: what was to leave left with the first commit; the next start removes what is left of it."""
    opened().publish(several(250, 150))
    generation = opened().generation
    opened.close()  # type: ignore[attr-defined]
    died = run_steps(data_dir, "retain:6", "sweep", point=point)
    assert died.returncode == -signal.SIGKILL, died.stderr
    store = opened()
    manifest = store.publisher.manifest
    assert (manifest.generation, manifest.first) == (generation + 1, 6)
    assert store.ids() == ids(several(16, 384))
    assert sorted(p.name for p in store.layout.rows.glob("0000-*")) == ["0000-00000006"]
    assert list(store.layout.indexes.iterdir()) == []
    assert len(store.ask("e000390", top_k=50, collapse=False).hits) == 15
    assert store.publish(several(5)).accepted == 5  # again, and new
    assert opened().ids() == ids(several(16, 384)) + ids(several(5))
    store = opened()
    store.check()


def test_retention_is_killed_at_every_failpoint_of_it() -> None:
    assert {point.partition(":")[0] for point in RETENTION_KILLED} == {
        point for point in failpoint.POINTS if point.startswith("leave.")
    }


# ---- killed at birth; at every step of all that follows: test_failpoints.py ---------------------------------------


BIRTH = """
import os, signal, sys
from pathlib import Path
from tests.store_fixture import Store
real = os.fsync
def fsync(fd):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(fd)
for nth in range(1, 100):
    if (pid := os.fork()) == 0:  # as yet nothing is open, and there is no thread
        left, os.fsync = nth, fsync
        Store(Path(sys.argv[1]) / f"data{nth}").close()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(status, flush=True)
    if status == 0:
        break
"""


def test_killed_at_birth_the_next_start_is_a_birth(tmp_path: Path) -> None:
    """SIGKILL at the first fsync of a birth, at the second, and so on until one succeeds."""
    born = subprocess.run(
        [sys.executable, "-P", "-c", BIRTH, str(tmp_path)], env=environment(ONE_THREAD), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert born.returncode == 0, born.stderr
    *died, last = map(int, born.stdout.split())
    assert len(died) >= 3 and set(died) == {-signal.SIGKILL} and last == 0
    for nth in range(1, len(died) + 2):
        with Store(tmp_path / f"data{nth}") as store:
            store.publish(several(2))
            assert (store.generation, store.ids()) == (2, ids(several(2)))


# ---- damaged derived files ----------------------------------------------------------------------------------------


def row_file(store_dir: Path, number: int) -> Path:
    return store_dir / "rows" / f"0000-{number:08d}"


def gone(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zeroed(path: Path) -> None:
    size = path.stat().st_size
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))


def flipped(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [gone, cut])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_row_file_gone_or_cut_is_built_again(
    data_dir: Path, opened: Callable[[], Store], harm: Callable[[Path], None], number: int
) -> None:
    expected = {name: shape(opened().ask(name, top_k=20, collapse=False)) for name in ASKED}
    opened.close()  # type: ignore[attr-defined]
    harm(row_file(data_dir, number))
    store = opened()
    store.check()
    assert {name: shape(store.ask(name, top_k=20, collapse=False)) for name in ASKED} == expected
    store.publish(several(100, 150))
    store.index()
    store.check()
    assert {i.lo for i in store.publisher.manifest.indexes} == {0, 64, 128}


@pytest.mark.parametrize("harm", [flipped, zeroed])
def test_the_last_row_file_damaged_is_built_again_at_the_start(
    data_dir: Path, opened: Callable[[], Store], harm: Callable[[Path], None]
) -> None:
    store = opened()
    expected = {name: shape(store.ask(name, top_k=20, collapse=False)) for name in ASKED}
    path = row_file(data_dir, 2)
    at = _offsets(ROWS)["attack"]
    opened.close()  # type: ignore[attr-defined]
    flip(path, at + 3) if harm is flipped else harm(path)
    store = opened()
    store.check()
    assert {name: shape(store.ask(name, top_k=20, collapse=False)) for name in ASKED} == expected


def test_a_damaged_file_that_is_not_in_use_yet_stops_nothing(data_dir: Path, opened: Callable[[], Store]) -> None:
    """A row file made for events that were never committed, cut to half: the next publish needs it."""
    with Store(data_dir) as store:
        store.publish(several(42, 150))  # 192 = 3 full files
    died = run_steps(data_dir, "publish:192:10", point="publish.synced")
    assert died.returncode == -signal.SIGKILL
    cut(row_file(data_dir, 3))
    store = opened()
    assert store.publish(several(10, 192)).accepted == 10
    store.check()


@pytest.mark.parametrize("space", SPACES)
def test_a_flipped_bit_in_a_vector_never_gives_a_wrong_distance(
    data_dir: Path, opened: Callable[[], Store], space: str
) -> None:
    """While it is in use: the hit is left out, of the answers and of explanations, in every way to ask."""
    store = opened()
    whole = {name: dict(shape(store.ask(name, space=space, top_k=149, collapse=False))) for name in ASKED}
    size = store.files()[0].vectors[space].strides[0]
    damaged = 7
    flip(row_file(data_dir, 0), _offsets(ROWS)[space] + damaged * size + 3, 0x40)  # an exponent bit
    for name in ASKED:
        for options in ({"collapse": False}, {"collapse": True}, {"explain": True}, {"space": "fused"}):
            answer = store.ask(name, **{"space": space, "top_k": 149} | options)
            assert damaged not in [hit.seq for hit in answer.hits]
            if answer.space == space:
                assert all(hit.distance == whole[name][hit.seq] for hit in answer.hits)
            if answer.counter_example is not None:
                assert answer.counter_example.seq != damaged
        if name != f"e{damaged:06d}":
            few = store.ask(name, space=space, top_k=5, collapse=False)
            assert all(hit.distance == whole[name][hit.seq] for hit in few.hits)
    with pytest.raises(CorruptionError):
        store.ask(f"e{damaged:06d}", space=space)


def test_a_vector_of_nan_is_no_hit_and_hides_no_other(data_dir: Path, opened: Callable[[], Store]) -> None:
    store = opened()
    with row_file(data_dir, 2).open("r+b") as file:  # seq 130, a row without an index
        file.seek(_offsets(ROWS)["attack"] + 2 * 256)
        file.write(np.full(64, np.nan, "<f4").tobytes())
    answer = store.ask("e000140", space="attack", top_k=149, collapse=False)
    seqs = [hit.seq for hit in answer.hits]
    assert len(set(seqs)) == len(seqs)
    assert set(seqs) == set(range(150)) - {130, 140}  # 149 asked for, one of them damaged


def test_flipped_columns_let_no_wrong_event_through_a_filter(data_dir: Path, opened: Callable[[], Store]) -> None:
    from engine.store.columns import COLUMNS
    from ipc.messages import Filter

    store = opened()
    at = COLUMNS.fields["family"][1]  # type: ignore[index]
    names = store.snapshot().names.families
    wanted = names.index("C2")
    with row_file(data_dir, 2).open("r+b") as file:  # seq 129, a PortScan, says now that it is C2
        file.seek(_offsets(ROWS)["columns"] + 1 * COLUMNS.itemsize + at)
        file.write(int(wanted).to_bytes(2, "little"))
    answer = store.ask("e000140", top_k=149, collapse=False, filter=Filter(families=["C2"]))
    assert {hit.event.family for hit in answer.hits} == {"C2"}  # type: ignore[union-attr]


@pytest.mark.parametrize("harm", [gone, cut])
def test_an_index_gone_or_cut_is_built_again(
    data_dir: Path, opened: Callable[[], Store], harm: Callable[[Path], None]
) -> None:
    with Store(data_dir) as store:
        expected = {name: shape(store.ask(name, top_k=20, collapse=False)) for name in ASKED}
        victims = [store.layout.index_file(i.file) for i in store.publisher.manifest.indexes if i.lo == 64]
    for path in victims:
        path.chmod(0o600)
        harm(path)
    store = opened()
    assert {i.lo for i in store.publisher.manifest.indexes} == {0}
    assert {name: shape(store.ask(name, top_k=20, collapse=False)) for name in ASKED} == expected
    store.index()
    assert {i.lo for i in store.publisher.manifest.indexes} == {0, 64}
    assert {name: shape(store.ask(name, top_k=20, collapse=False)) for name in ASKED} == expected


def test_damage_that_only_a_checksum_sees_is_found_and_mended_by_a_running_engine(start: Starter) -> None:
    """Sealed row files and indexes bit-flipped while it is stopped: it starts, verifies, and builds them again."""
    engine = start()
    engine.ingest(several(200))
    engine.indexed(3)
    expected = answers(engine.client(), ASKED, top_k=20, collapse=False)
    manifest = engine.manifest()
    assert engine.stop() == 0
    flip(engine.layout.row_file(*manifest.row_file(0)), _offsets(ROWS)["chronos"] + 5 * 512 + 3, 0x40)
    bad = next(i for i in manifest.indexes if i.lo == 128)
    flip(engine.layout.index_file(bad.file), bad.size // 2)
    engine.start()

    def mended() -> bool:
        now = engine.manifest()
        whole = now.revisions.get(0, 0) > 0 and bad.file not in {i.file for i in now.indexes}
        return whole and not unindexed(now) and mergeable(now) is None

    eventually(mended, within_s=60, every_s=0.1)
    eventually(lambda: answers(engine.client(), ASKED, top_k=20, collapse=False) == expected, every_s=0.2)
    assert not any(m.bad_rows(ROWS) for m in engine.row_maps()[:3])
    assert [s.seq for s in all_events(engine.client())] == list(range(200))


def test_unknown_files_are_left_alone_and_temporary_ones_removed(data_dir: Path, opened: Callable[[], Store]) -> None:
    rows = data_dir / "rows"
    for name in ("notes.txt", "0000-00000009", "0000-00000001.123.abcd.tmp"):
        (rows / name).write_bytes(b"x")
    store = opened()
    assert (rows / "notes.txt").exists()
    assert not (rows / "0000-00000009").exists()
    assert not (rows / "0000-00000001.123.abcd.tmp").exists()
    store.check()


# ---- a damaged catalog --------------------------------------------------------------------------------------------


def damage_record(data_dir: Path, text: bytes) -> None:
    """Flip one byte of every place where this text stands in the catalog file."""
    path = data_dir / "catalog" / "catalog.0"
    blob = path.read_bytes()
    at, found = blob.find(text), 0
    while at >= 0:
        flip(path, at + len(text) - 1, 0x01)
        found += 1
        at = blob.find(text, at + 1)
    assert found


def test_a_damaged_record_is_refused_and_all_others_are_fine(start: Starter, data_dir: Path) -> None:
    """It is named when asked for, left out of answers and lists, and the engine starts and goes on."""
    marked = make(500, text="a very particular signature")
    with Store(data_dir) as store:
        store.publish([marked])
        store.publish(several(5, 600))
    damage_record(data_dir, b"a very particular signature")
    engine = start(data_dir=data_dir)
    client = engine.client()
    with pytest.raises(InternalError, match="disagree with their checksum"):
        client.get(["e000500"])
    assert client.get(["e000600"]).missing == []
    answer = ask(client, "e000140", top_k=200, collapse=False)
    assert [hit.seq for hit in answer.hits].count(150) == 0
    assert len(answer.hits) == 154
    assert len(stored_ids(client)) == 155
    assert len(client.recent(limit=20).events) == 19
    assert engine.ingest(several(10, 700)).accepted == 10


def test_a_damaged_record_and_its_row_file_gone_cost_one_event(data_dir: Path, opened: Callable[[], Store]) -> None:
    """Two faults at once: the row is left empty, all others are built again, and it starts."""
    with Store(data_dir) as store:
        store.publish([make(500, text="a very particular signature")])
    damage_record(data_dir, b"a very particular signature")
    row_file(data_dir, 2).unlink()
    store = opened()
    answer = store.ask("e000140", top_k=200, collapse=False)
    assert {hit.seq for hit in answer.hits} == set(range(150)) - {140}
    store.publish(several(100, 600))
    store.index()
    assert len(store.ask("e000140", top_k=300, collapse=False).hits) == 249
    assert opened().publisher.manifest.revisions == {2: 1}  # not built again and again


def test_a_damaged_checkpoint_is_replayed_from_the_records(data_dir: Path, opened: Callable[[], Store]) -> None:
    store = opened()
    store.publisher.checkpoint()
    with store.catalog.write() as batch:
        value = bytes(batch.txn.get(b"checkpoint", db=store.catalog.tables["tracker"]))
        batch.txn.put(b"checkpoint", value[:20] + b"\xff" + value[21:], db=store.catalog.tables["tracker"])
    expected = store.publisher.tracker.dump()
    store = opened()
    assert store.publisher.tracker.dump() == expected


def test_a_newer_format_is_refused_with_a_sentence(data_dir: Path) -> None:
    from engine.store.manifest import encode

    with Store(data_dir) as store:
        manifest: Manifest = store.publisher.manifest
        with store.catalog.write() as batch:
            from msgspec.structs import replace

            batch.put("meta", b"manifest", encode(replace(manifest, format_version=99)))
    with pytest.raises(FormatError, match="has format 99"):
        Store(data_dir)


def test_the_context_is_the_same_after_a_kill(data_dir: Path, opened: Callable[[], Store]) -> None:
    """Replayed from checkpoint and records, bit for bit."""
    store = opened()
    store.publish(several(300, 150))
    expected = store.publisher.tracker.dump()
    store = opened()
    assert store.publisher.tracker.dump() == expected


def test_header_and_map_of_a_row_file(data_dir: Path) -> None:
    file = RowMap(row_file(data_dir, 0), 0, ROWS)
    assert file.path.read_bytes()[:HEADER_BYTES].startswith(b"flowkin rows 1\nrows 64\n")
    assert recover.CHUNK_ROWS >= ROWS


# ---- a disk that is full, and one that does not keep its word -----------------------------------------------------


@pytest.fixture
def failing(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """(file, environment): while the file holds an errno, every fdatasync of a worker fails with it."""
    (tmp_path / "seam").mkdir()
    return bad_disk(tmp_path / "seam")


def test_a_full_disk_stops_ingest_and_nothing_else(start: Starter, failing: tuple[Path, dict[str, str]]) -> None:
    trigger, env = failing
    engine = start(readers=2, env=env)
    engine.ingest(several(100))
    trigger.write_text(str(errno.ENOSPC))
    with pytest.raises(NoSpaceError, match="disk is full"):
        engine.ingest(several(10, 100))
    assert len(ask(engine.client(), "e000003", top_k=5).hits) == 5
    assert engine.client().get(["e000100"]).missing == ["e000100"]
    trigger.unlink()
    assert engine.ingest(several(10, 100)).accepted == 10
    assert stored_ids(engine.client()) == ids(several(110))
    assert [r["restarts"] for r in engine.facts()["readers"]] == [0, 0]
    assert engine.facts()["ingest"]["restarts"] == 0


@pytest.mark.parametrize("which", ["catalog", "rows"])
def test_a_largest_size_of_files_is_a_full_disk(start: Starter, which: str) -> None:
    """RLIMIT_FSIZE of the running worker: of the catalog LMDB writes a part and says EIO, of a row file nothing."""
    engine = start()
    engine.ingest(several(100))
    victim = engine.pid("ingest")
    size = (engine.layout.catalog / "catalog.0").stat().st_size if which == "catalog" else HEADER_BYTES
    resource.prlimit(victim, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    first = 100
    with pytest.raises(NoSpaceError, match="disk of the catalog is full" if which == "catalog" else "disk is full"):
        while first < 5_000:  # LMDB has free pages for some
            assert engine.ingest(several(50, first)).accepted == 50
            first += 50
    for _ in range(3):
        with pytest.raises(NoSpaceError, match="not stored"):
            engine.ingest(several(50, first))
        assert stored_ids(engine.client()) == ids(several(first))
    resource.prlimit(victim, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert engine.ingest(several(50, first)).accepted == 50
    assert stored_ids(engine.client()) == ids(several(first + 50))
    assert engine.pid("ingest") == victim
    assert engine.stop() == 0
    engine.start()
    assert stored_ids(engine.client()) == ids(several(first + 50))


def test_a_model_that_finds_no_room_is_refused_by_that_name(
    start: Starter, failing: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    trigger, env = failing
    engine = start(env=env)
    (tmp_path / "made" / "models").mkdir(parents=True)
    files = models.read(other_model(Layout(tmp_path / "made")))
    trigger.write_text(str(errno.ENOSPC))
    with pytest.raises(NoSpaceError, match="the version was not stored"):
        engine.client().add_model(OTHER, files)
    trigger.unlink()
    engine.client().add_model(OTHER, files)


def test_a_disk_that_fails_ends_the_writer_and_the_next_one_looks(
    start: Starter, failing: tuple[Path, dict[str, str]]
) -> None:
    """EIO at fdatasync: nothing may be assumed any more. The worker leaves, a new one starts from what is committed; no
    client waits for ever."""
    trigger, env = failing
    engine = start(env=env)
    engine.ingest(several(100))
    victim = engine.pid("ingest")
    trigger.write_text(str(errno.EIO))
    with pytest.raises(ClientError):
        engine.client(2_000).ingest("ndjson", several(10, 100))
    engine.replaced("ingest", victim)
    assert engine.ingest(several(20, 100)).accepted == 20
    assert stored_ids(engine.client()) == ids(several(120))
