"""Power failures: what was acknowledged is there in every state that a disk may be left in, and a start never refuses.

The engine is real and recorded by strace; these tests skip where that may not trace. By hand, more of it:
python -m tests.power --states 100000 --seed 7
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine_fixture import ROOT, environment
from tests.power import migration
from tests.power.disk import Disk, Folder
from tests.power.explore import birth_window, explore, failures, rows_written, windows, without
from tests.power.oracle import Oracle, Promise, scratch
from tests.power.trace import Acknowledged, Migrated, Picture, Sync, SyncRange, is_set_anew, why_not
from tests.power.workload import SMALL_PUBLISH, STEPS, Recording, record

STATES = 1_400
STATES_META = 400
STATES_AGAIN = 150  # of each of two
STATES_MIGRATED = 200
STATES_MUTATED = 600  # at most; a few findings end it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("power")
    if reason := why_not(folder):
        pytest.skip(f"no power failures are replayed: {reason}")
    return folder


@pytest.fixture(scope="module")
def recording(folder: Path) -> Recording:
    return record(folder / "full")


@pytest.fixture(scope="module")
def migrated(folder: Path, recording: Recording) -> Recording:
    return migration.record(folder / "migrated", recording)


@pytest.fixture(scope="module")
def oracle(recording: Recording) -> Iterator[Oracle]:
    with scratch() as checked:
        yield Oracle(recording, checked)


@pytest.mark.parametrize("name", ["recording", "migrated"])
def test_no_store_escaped_the_recording(name: str, request: pytest.FixtureRequest) -> None:
    """What the operations make is what lies on the real disk, byte for byte, but for what a start sets anew."""
    recording: Recording = request.getfixturevalue(name)
    disk = Disk(recording.left)
    for operation in recording.operations:
        disk.apply(operation)
    real = {
        str(path.relative_to(recording.data_dir.parent)): None if path.is_dir() else path.read_bytes()
        for path in recording.data_dir.rglob("*")
        if not is_set_anew(str(path.relative_to(recording.data_dir)))
    }
    assert disk.whole() == {"data": None} | real


def test_nothing_waits_for_a_sync_when_an_acknowledgement_leaves(recording: Recording) -> None:
    """No file, no name: every step before it was made durable, that of the directory itself, too."""
    disk = Disk()
    acknowledged = 0
    for operation in recording.operations:
        disk.apply(operation)
        if isinstance(operation, Acknowledged):
            acknowledged += 1
            assert list(disk.pending()) == []
    assert acknowledged == len(STEPS)


def test_a_start_syncs_the_names_that_a_dead_process_left(recording: Recording) -> None:
    """Killed between a rename and the sync of its directory, again and again: the next start finds the name and builds
    on it, so it has to make it durable."""
    disk = Disk()
    acknowledged = 0
    death = 1 + next(n for n, step in enumerate(STEPS) if step.killed)
    left: list[str] = []
    for operation in recording.operations:
        names = isinstance(operation, Sync) and isinstance(disk.at(operation.path), Folder)
        if not (names and 0 < acknowledged < death):
            disk.apply(operation)
        if isinstance(operation, Acknowledged):
            acknowledged += 1
            left = [*disk.pending()] if acknowledged == death else left
    assert sorted(left) == ["data", "data/indexes", "data/rows"]
    assert list(disk.pending()) == []


def test_after_a_power_failure_all_that_was_acknowledged_is_there(
    recording: Recording, oracle: Oracle, record_property: Callable[[str, object], None]
) -> None:
    """Once, with its record and its three vectors as they were written; no half batch, no older generation, nothing to
    mend, indexes whole, and the next append works. All states of one publish and one index swap, then drawn ones."""
    found = explore(recording, oracle, STATES, seed=0, exhaustive=windows(recording))
    assert found.findings == []
    assert found.states == STATES
    assert found.exhaustive > 800
    record_property("states", found.states)


@pytest.mark.parametrize(
    ("kind", "path", "finding"),
    [
        (Sync, "", "lost: "),
        (Sync, "data", "mended: model"),
        (Sync, "data/catalog", "lost: "),
        (SyncRange, "data/catalog/*", "lost: "),
        (Sync, "data/rows", "mended: row file"),
        (Sync, "data/rows/0000-????????", "mended: row file"),
        (Sync, "data/indexes", "mended: index files gone"),
        (Sync, "data/indexes/*", "disagrees with its checksum"),
        (Sync, "data/dead_letters.ndjson", "lost: dead letters"),
        (Sync, "data/models", "mended: model"),
        (Sync, "data/models/.model-*", "refused: "),
    ],
)
def test_a_sync_that_is_left_out_is_noticed(
    recording: Recording, oracle: Oracle, kind: type[Sync | SyncRange], path: str, finding: str
) -> None:
    less = recording._replace(operations=without(recording.operations, kind, path))
    assert len(less.operations) < len(recording.operations)
    found = explore(less, oracle, STATES_MUTATED, seed=0, findings_max=6)
    assert any(finding in what for what in found.findings), found


def test_a_catalog_that_is_never_synced_is_noticed(recording: Recording, tmp_path: Path) -> None:
    """LMDB dies of it (SIGBUS: a file shorter than its pages), so not in this process."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.power", "--recorded", str(recording.data_dir.parent), "--without",
         "data/catalog/catalog.0*", "--states", str(STATES_MUTATED), "--no-exhaustive", "--scratch", str(tmp_path)],
        env=environment({"PYTHONPATH": str(ROOT)}), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "usage" not in done.stderr, done


@pytest.mark.parametrize("steps", [0, SMALL_PUBLISH], ids=["in a birth", "in a publish"])
def test_a_second_power_failure_after_the_first_loses_nothing_either(
    recording: Recording, folder: Path, steps: int, record_property: Callable[[str, object], None]
) -> None:
    """What a first one left is started from, recorded, and fails again."""
    torn: list[tuple[Picture, Promise]] = []
    for place, disk, promise in failures(recording):
        if place in (rows_written(recording) if steps else birth_window(recording)):
            drawn = [disk.draw(random.Random(n)) for n in range(20)]
            torn += [(picture, promise) for picture in drawn if picture != disk.whole()]
    left, promise = max(torn, key=lambda one: len(one[0]))  # the most names: half made files
    again = record(folder / f"again-{steps}", left=left, generations=promise.generations, steps=steps + 2)
    with scratch() as checked:
        found = explore(again, Oracle(again, checked), STATES_AGAIN, seed=0)
    assert found.findings == []
    assert found.states == STATES_AGAIN
    record_property("states", found.states)


def test_durability_meta_loses_the_last_commit_at_most(
    folder: Path, record_property: Callable[[str, object], None]
) -> None:
    recording = record(folder / "meta", "meta")
    with scratch() as checked:
        found = explore(recording, Oracle(recording, checked, may_lose=1), STATES_META, seed=0)
        assert found.findings == []
        assert found.states == STATES_META
        record_property("states", found.states)
        full = explore(recording, Oracle(recording, checked), STATES_META, seed=0, findings_max=1)
        assert any("lost: " in finding for finding in full.findings)


def test_what_a_migration_removes_is_gone_for_good_when_it_says_that_it_is_done(migrated: Recording) -> None:
    disk, done = Disk(migrated.left), 0
    for operation in migrated.operations:
        disk.apply(operation)
        if isinstance(operation, Migrated):
            done += 1
            assert list(disk.pending()) == []
    assert done == 2


def test_a_migration_loses_nothing_and_is_done_or_not(
    migrated: Recording, record_property: Callable[[str, object], None]
) -> None:
    """A directory is the old one or the new one, whole; a start opens it with the key that it names, leaves nothing of
    the other, and the migration may be asked for again, which goes on with its copy. All states from where the copy
    leaves its directory to the end, then drawn ones, of the way back, too."""
    with scratch() as checked:
        oracle = migration.MigrationOracle(migrated, checked)
        found = explore(migrated, oracle, STATES_MIGRATED, seed=0, exhaustive=migration.commit_window(migrated))
    assert found.findings == []
    assert found.states == STATES_MIGRATED
    assert found.exhaustive > 60
    assert oracle.resumed > 40
    record_property("states", found.states)


@pytest.mark.parametrize(
    ("kind", "path", "finding"),
    [
        (Sync, "data", "dead_letters.ndjson: encrypted is True, in the clear is True"),
        (Sync, "data/catalog", "lost: dead letters"),
        (Sync, "data/catalog/CURRENT.*", "names no catalog"),
        (Sync, "data/migrating/letters.*", "lost: dead letters"),
        (SyncRange, "data/migrating/catalog.0", "refused: "),
    ],
)
def test_a_sync_that_a_migration_leaves_out_is_noticed(
    migrated: Recording, tmp_path: Path, kind: type[Sync | SyncRange], path: str, finding: str
) -> None:
    less = migrated._replace(operations=without(migrated.operations, kind, path))
    assert len(less.operations) < len(migrated.operations)
    with scratch() as checked:
        oracle, places = migration.MigrationOracle(less, checked), migration.commit_window(less)
        found = explore(less, oracle, STATES_MUTATED, seed=0, drawn=places, findings_max=3)
    assert any(finding in what for what in found.findings), found
