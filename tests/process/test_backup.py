"""Backups of a real engine in the middle of ingest. Killed at every step of one: test_failpoints.py."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from engine.maintain.backup import found, read, verify
from engine.store.catalog import Catalog
from tests.engine_fixture import ROOT, Engine, Starter, answers, cli, environment, shape, stored_ids
from tests.events import ids, several
from tests.store_fixture import Store, closed, flip
from tests.wait import eventually

READERS = 1

ASKED = ["e000003", "e000070", "e000129"]

WRITER = """
import sys
from pathlib import Path
from ipc.client import Client
from tests.events import several

with Client.for_data_dir(Path(sys.argv[1]), timeout_ms=20_000) as client:
    for number in range(1_000_000):
        done = client.ingest("ndjson", several(10, number * 10), source="test")
        print(done.generation, number * 10 + done.accepted, flush=True)  # acknowledged
        if not sys.stdin.readline():
            break
"""


class Writer:
    """A process that stores events, ten at a time, each time that it is told to; what was acknowledged is known here:
    (generation, events stored then)."""

    def __init__(self, engine: Engine) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", WRITER, str(engine.data_dir)], env=environment(), cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.acknowledged: list[tuple[int, int]] = []

    def acknowledge(self) -> tuple[int, int]:
        assert self.process.stdout is not None and self.process.stdin is not None
        generation, events = map(int, self.process.stdout.readline().split())
        self.acknowledged.append((generation, events))
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.acknowledged[-1]

    def end(self) -> None:
        rest, _ = self.process.communicate(timeout=30)  # what was under way
        for line in rest.splitlines():
            generation, events = map(int, line.split())
            self.acknowledged.append((generation, events))
        assert self.process.returncode == 0


def test_a_backup_taken_in_the_middle_of_ingest_opens_at_exactly_its_generation(start: Starter, tmp_path: Path) -> None:
    """The writer never stops: what was acknowledged up to the backup's generation is there, and nothing else; the same
    events stored by themselves give the same answers."""
    engine, home = start(), tmp_path / "backups"
    writer = Writer(engine)
    while writer.acknowledge()[1] < 200:
        pass
    taken = []
    for _ in range(2):
        command = [sys.executable, "-P", "-m", "cli", "backup", "create", str(home), "--data-dir", str(engine.data_dir)]
        backup = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        before = len(writer.acknowledged)
        while backup.poll() is None:  # it waits for nobody, and nobody for it
            writer.acknowledge()
            with suppress(subprocess.TimeoutExpired):
                backup.wait(0.1)
        assert backup.returncode == 0
        assert len(writer.acknowledged) > before
        (taken_now,) = found(home).keys() - set(taken)
        taken.append(taken_now)
    writer.end()
    for name in taken:
        described = read(home / name)
        assert described.left_out == described.damaged == []
        assert [f for f in verify(home / name) if f.severity != "ok"] == []
        there = max(events for generation, events in writer.acknowledged if generation <= described.generation)
        assert described.events == there
        assert described.generation < writer.acknowledged[-1][0]
    assert read(home / taken[1]).events > read(home / taken[0]).events

    described = read(home / taken[0])
    assert cli("backup", "restore", home / taken[0], tmp_path / "restored").returncode == 0
    with Store(tmp_path / "fresh") as store:
        store.publish(several(described.events))
        store.index()
        store.merge()
        expected = {name: shape(store.ask(name, top_k=20, collapse=False)) for name in ASKED}
    assert engine.stop() == 0
    restored = start(data_dir=tmp_path / "restored")
    assert stored_ids(restored.client()) == ids(several(described.events))
    restored.indexed(described.events // 64)
    assert answers(restored.client(), ASKED, top_k=20, collapse=False) == expected
    assert restored.ingest(several(20, described.events - 10)).accepted == 10
    assert restored.manifest().generation > described.generation
    assert restored.stop() == 0


def test_a_backup_at_rest_gives_the_same_answers_after_the_engine_is_gone(start: Starter, tmp_path: Path) -> None:
    engine, home = start(), tmp_path / "backups"
    engine.ingest(several(200))
    engine.client().label("e000070", "true_positive", by="ana")
    engine.indexed(3)
    made = engine.json("backup", "create", home, "--name", "one")
    assert (made["events"], made["linked_files"], made["left_out"]) == (200, 0, [])
    assert made["generation"] == engine.manifest().generation
    engine.ingest(several(50, 200))
    again = engine.json("backup", "create", home, "--name", "two")
    assert again["linked_files"] > 0 and again["copied_bytes"] + again["linked_bytes"] == again["bytes"]
    for path in (p for p in (home / "one").rglob("*") if "rows" in p.parts and p.is_file()):
        twin = home / "two" / path.relative_to(home / "one")
        assert (twin.stat().st_ino == path.stat().st_ino) == (path.name != "0000-00000003")
    expected = answers(engine.client(), ASKED, top_k=20, collapse=False)
    assert engine.stop() == 0
    shutil.rmtree(engine.data_dir)
    done = cli("backup", "restore", home / "two", engine.data_dir)
    assert "250 events" in done.stdout and done.returncode == 0, done.stderr
    engine.start()
    assert answers(engine.client(), ASKED, top_k=20, collapse=False) == expected
    assert engine.client().get(["e000070"]).events[0].annotation.label == "true_positive"  # type: ignore[union-attr]
    assert engine.cli("doctor", "--deep").returncode == 0


def test_a_stopped_engine_is_backed_up_too_and_the_commands_tell_what_they_find(start: Starter, tmp_path: Path) -> None:
    engine, home = start(), tmp_path / "backups"
    engine.ingest(several(100))
    assert engine.stop() == 0
    done = engine.cli("backup", "create", home, "--name", "one")
    assert done.returncode == 0 and "100 events · generation" in done.stdout, done.stderr
    assert engine.cli("backup", "create", home, "--name", "one").returncode == 2
    assert cli("backup", "verify", home / "one").returncode == 0
    listed = cli("backup", "list", home)
    assert listed.returncode == 0 and listed.stdout.splitlines()[1].startswith("one ")
    refused = cli("backup", "restore", home / "one", engine.data_dir)
    assert refused.returncode == 2 and "nothing was changed" in refused.stderr
    flip(home / "one" / "rows/0000-00000000", 5_000)
    done = cli("backup", "verify", home / "one", "--json")
    assert done.returncode == 7 and "disagrees with its checksum" in done.stdout
    flip(home / "one" / "backup.json", 50)
    (damaged,) = cli("backup", "list", home).stdout.splitlines()[1:]
    assert "is damaged" in damaged or "disagrees" in damaged
    assert cli("backup", "verify", home / "none").returncode == 3
    assert cli("backup", "delete", home / "one").returncode == 0
    assert "no backup" in cli("backup", "list", home).stdout
    assert cli("backup", "prune", home, "--keep", 0).returncode == 2


# ---- stopped and killed ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def born(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return closed(tmp_path_factory.mktemp("born") / "data")


def names(home: Path) -> set[str]:
    return {path.name for path in home.iterdir()} - {".backup.lock"}


def test_a_backup_that_is_stopped_by_a_signal_leaves_nothing(born: Path, tmp_path: Path) -> None:
    """Ctrl-C: what was begun is removed at once."""
    home = tmp_path / "backups"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from engine.maintain import take; from engine.layout import Layout\n"
        "take.failpoint = lambda name: os.kill(os.getpid(), signal.SIGINT) if name == 'backup.file' else None\n"
        "take.create(Layout(Path(sys.argv[1])), Path(sys.argv[2]), map_size=1 << 30)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(born), str(home)], env=environment(), capture_output=True, check=False
    )
    assert b"KeyboardInterrupt" in done.stderr
    assert names(home) == set()


def test_a_backup_killed_while_it_copies_the_catalog_pins_nothing(start: Starter, tmp_path: Path) -> None:
    """Its read transaction goes with it: the engine frees the slot, and goes on."""
    engine = start()
    engine.ingest(several(100))
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from engine.maintain import take; from engine.layout import Layout\n"
        "real = take.Catalog.copied\n"
        "def copied(self, view):\n"
        "    for block in real(self, view):\n"
        "        print(self.env.readers(), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield block\n"
        "take.Catalog.copied = copied\n"
        "take.create(Layout(Path(sys.argv[1])), Path(sys.argv[2]), map_size=1 << 30)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(engine.data_dir), str(tmp_path / "backups")], env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = {int(line.split()[0]) for line in done.stdout.splitlines()[1:] if line.strip()}
    dead = {pid for pid in pids if not Path(f"/proc/{pid}").exists()}
    assert dead

    def freed() -> bool:
        catalog = Catalog(engine.layout.catalog, write=False, map_size=1 << 30)
        try:
            lines = catalog.env.readers().splitlines()[1:]
        finally:
            catalog.close()
        return not dead & {int(line.split()[0]) for line in lines if line.strip()}

    eventually(freed)
    assert engine.ingest(several(100, 100)).accepted == 100
