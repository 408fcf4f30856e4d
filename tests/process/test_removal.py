"""Events leave a running engine: readers answer all the while, and nothing that is gone comes back."""

from __future__ import annotations

import errno
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine import failpoint
from engine.maintain.backup import found, read, verify
from engine.run.confine import landlock_abi
from engine.store.gc import named
from engine.store.tiers import unindexed
from ipc.client import Client
from ipc.errors import ClientError, InternalError, NoSpaceError, NotFoundError
from ipc.event import FeaturedEvent
from ipc.messages import Answer, Filter, Options
from tests.bad_disk import bad_disk
from tests.engine_fixture import Engine, Starter, all_events, ask, cli, shape, stored_ids
from tests.events import ids, make, several
from tests.store_fixture import ROWS, flip
from tests.wait import eventually

READERS = 1  # more where a reader other than the one that is asked matters

KEPT_BYTES = 4 << 20
FAILING = [(point, error) for point, of in failpoint.POINTS.items() for error in of.errors]


class Asking:
    """Asks until it is told to stop. Every hit must be the event that its seq says."""

    def __init__(self, engine: Engine, asked: list[str]) -> None:
        self.answers = 0
        self.wrong: list[str] = []
        self.gone: set[str] = set()  # must be in no answer from now on
        self._stop = threading.Event()
        self._client: Client = engine.client()
        self._thread = threading.Thread(target=self._ask, args=(asked,))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        assert self.wrong == []

    def _ask(self, asked: list[str]) -> None:
        while not self._stop.is_set() and not self.wrong:
            gone = set(self.gone)
            try:
                for name in asked:
                    options = Options(space=("attack", "fused")[self.answers % 2], top_k=50, collapse=False)
                    self._look(self._client.query_similar(name, options=options).answers[0], gone)
                    self.answers += 1
                for stored in self._client.recent(limit=50).events:
                    if f"e{stored.seq:06d}" != stored.event.event_id or stored.event.event_id in gone:  # type: ignore[union-attr]
                        self.wrong.append(f"recent: {stored.seq} is {stored.event}")
            except Exception as e:
                self.wrong.append(repr(e))

    def _look(self, answer: Answer, gone: set[str]) -> None:
        if not answer.hits:
            self.wrong.append("no hits")
        for hit in answer.hits:
            name = hit.event.event_id  # type: ignore[union-attr]
            if name != f"e{hit.seq:06d}" or name in gone:
                self.wrong.append(f"{hit.seq} is {name}")


@contextmanager
def asking(engine: Engine, asked: list[str]) -> Iterator[Asking]:
    one = Asking(engine, asked)
    try:
        yield one
    finally:
        one.stop()


def test_readers_answer_while_the_oldest_leave(start: Starter) -> None:
    """By size: what is stored stays about as large as it may be; what stays is in order, whole, and found."""
    engine = start(readers=2, env={"FLOWKIN_RETENTION__BYTES_MAX": str(KEPT_BYTES)})
    for first in range(0, 900, 100):
        engine.ingest(several(100, first))
    eventually(lambda: engine.manifest().first > 0, within_s=60, every_s=0.1)
    before = engine.manifest().first
    with asking(engine, ["e000890", "e000899"]) as one:
        for first in range(900, 1_150, 25):
            engine.ingest(several(25, first))
        eventually(lambda: engine.manifest().first > before + 2, within_s=60, every_s=0.1)
    assert one.answers > 10
    manifest = engine.manifest()
    assert engine.facts()["events"] == manifest.events
    assert engine.facts()["removed"] == manifest.first_seq
    stored = stored_ids(engine.client())
    assert stored == ids(several(len(stored), 1_150 - len(stored)))


def test_by_age_and_a_kill_between(start: Starter) -> None:
    """Row files that were full for long enough leave, also those that were full before the settings said so."""
    engine = start()
    engine.ingest(several(4 * ROWS + 10))
    engine.indexed(4)
    engine.kill()
    engine.env |= {"FLOWKIN_RETENTION__DAYS": "0.00001"}
    engine.start()
    eventually(lambda: engine.facts()["events"] == 10, within_s=30, every_s=0.1)
    assert stored_ids(engine.client()) == ids(several(10, 4 * ROWS))
    client = engine.client()
    assert len(shape(client.query_similar(f"e{4 * ROWS + 3:06d}").answers[0])) > 0
    try:
        client.query_similar("e000003")
        raise AssertionError("it is still found")
    except NotFoundError:
        pass
    eventually(lambda: engine.facts()["catalog"]["record_bytes"] < 10_000, within_s=30, every_s=0.1)
    assert engine.stop() == 0
    doctor = engine.cli("doctor", "--deep", "--json")
    assert doctor.returncode == 0, doctor.stdout
    engine.start()
    assert engine.ingest(several(20)).accepted == 20
    assert [s.seq for s in all_events(engine.client())][-1] == 4 * ROWS + 29


@pytest.mark.parametrize("armed", [f"{point}={error}" for point, error in FAILING if point.startswith("leave.")])
def test_a_disk_that_fails_while_the_oldest_leave_is_tried_again(start: Starter, armed: str) -> None:
    """No start is needed: files and records are gone in the end."""
    engine = start(env={"FLOWKIN_RETENTION__DAYS": "0.00001", "ENGINE_FAILPOINT": armed})
    victim = engine.pid("ingest")
    engine.ingest(several(4 * ROWS + 10))
    eventually(lambda: engine.facts()["events"] == 10, within_s=90, every_s=0.1)
    eventually(lambda: engine.facts()["catalog"]["record_bytes"] < 10_000, within_s=30, every_s=0.1)
    there = lambda: {p.name for folder in ("rows", "indexes") for p in (engine.data_dir / folder).iterdir()}  # noqa: E731
    eventually(lambda: there() <= named(engine.layout, engine.manifest()), within_s=30)
    assert engine.pid("ingest") == victim
    assert stored_ids(engine.client()) == ids(several(10, 4 * ROWS))
    assert engine.stop() == 0
    assert engine.cli("doctor", "--deep").returncode == 0


# ---- compaction


COMPACT_KILLED = {  # point: is the new file the catalog?
    "compact.copied": False, "compact.opened": False, "compact.caught_up": False, "compact.named": True,
    "compact.followed": True, "compact.removed": True,
}  # fmt: skip


def test_every_step_of_a_compaction_is_one_where_it_is_killed() -> None:
    assert {point for point in failpoint.POINTS if point.startswith("compact.")} == set(COMPACT_KILLED)


@pytest.mark.parametrize(("point", "new"), COMPACT_KILLED.items())
def test_a_compaction_killed_at_any_step_loses_nothing(start: Starter, point: str, new: bool) -> None:
    """SIGKILL of ingest: the old catalog is used or the new one, whole; no reader's client notices."""
    engine = start("--set", "readers.confine=off", readers=2, env={"ENGINE_FAILPOINT": point})  # below: confined ones
    engine.ingest(several(100))
    engine.client().label("e000007", "good")
    victim = engine.pid("ingest")
    with asking(engine, ["e000003", "e000090"]):
        with pytest.raises(ClientError):
            engine.client().compact()
        engine.replaced("ingest", victim)
        done = engine.ingest(several(50, 100))
        assert done.accepted == 50
        found = engine.client().get(["e000149"], min_generation=done.generation)
        assert found.missing == []
    assert (engine.layout.catalog / "CURRENT").read_text() == ("catalog.1" if new else "catalog.0")
    name = (engine.layout.catalog / "CURRENT").read_text()
    assert sorted(p.name for p in engine.layout.catalog.iterdir()) == ["CURRENT", name, f"{name}-lock"]
    assert stored_ids(engine.client()) == ids(several(150))
    assert engine.client().get(["e000007"]).events[0].annotation.label == "good"  # type: ignore[union-attr]
    assert [r["restarts"] for r in engine.facts()["readers"]] == [0, 0]


@pytest.mark.parametrize("armed", [f"{point}={error}" for point, error in FAILING if point.startswith("compact.")])
def test_a_disk_that_fails_in_a_compaction_loses_nothing(start: Starter, armed: str) -> None:
    """Before CURRENT names the new one: an error, nothing is changed, and the next is done. After it: it is done; where
    nobody knows, the next process looks."""
    point, _, error = armed.partition("=")
    engine = start("--set", "readers.confine=off", env={"ENGINE_FAILPOINT": armed})
    engine.ingest(several(100))
    victim = engine.pid("ingest")
    name = "catalog.1"
    with asking(engine, ["e000003", "e000090"]):
        if point == "compact.named":
            with pytest.raises(ClientError):
                engine.client().compact()
            engine.replaced("ingest", victim)
        elif COMPACT_KILLED[point]:
            assert engine.client().compact().facts["waits_for"] == []
        else:
            with pytest.raises(NoSpaceError if error == "ENOSPC" else InternalError, match="nothing was changed"):
                engine.client().compact()
            folder = engine.layout.catalog
            assert sorted(p.name for p in folder.iterdir()) == ["CURRENT", "catalog.0", "catalog.0-lock"]
            assert engine.client().compact().facts["waits_for"] == []
        assert engine.ingest(several(50, 100)).accepted == 50
    assert (engine.pid("ingest") == victim) == (point != "compact.named")
    assert (engine.layout.catalog / "CURRENT").read_text() == name
    assert stored_ids(engine.client()) == ids(several(150))
    assert engine.stop() == 0
    del engine.env["ENGINE_FAILPOINT"]
    engine.start()
    assert sorted(p.name for p in engine.layout.catalog.iterdir()) == ["CURRENT", name, f"{name}-lock"]
    assert stored_ids(engine.client()) == ids(several(150))


@pytest.mark.parametrize("confine", ["off", "require" if landlock_abi() else "auto"])
def test_readers_and_writers_notice_nothing_of_a_compaction(start: Starter, confine: str) -> None:
    """Confined readers are replaced one by one, others stay; no question fails, and none is answered of a past."""
    engine = start("--set", f"readers.confine={confine}", readers=2)
    pids = engine.pids()
    engine.ingest(several(300))
    stop, seen = threading.Event(), list[list[str]]()
    sent = 300

    def write() -> None:
        nonlocal sent
        client = engine.client()
        reader = engine.client()
        while not stop.is_set():
            client.ingest("ndjson", several(5, sent))
            sent += 5
            seen.append(reader.get([f"e{sent - 1:06d}"]).missing)  # an acknowledged event is there for everybody

    writer = threading.Thread(target=write)
    with asking(engine, ["e000003", "e000290"]):
        writer.start()
        try:
            told = [engine.json("compact") for _ in range(3)]
        finally:
            stop.set()
            writer.join()
    assert all(one["waits_for"] == [] and one["bytes_after"] > 0 for one in told)
    assert stored_ids(engine.client()) == ids(several(sent))
    assert seen and not any(seen)
    assert (engine.layout.catalog / "CURRENT").read_text() == "catalog.3"
    confined = any(r["confined"]["landlock"] or r["confined"]["seccomp"] for r in engine.facts()["readers"])
    assert (engine.pids() == pids) == (not confined)
    assert "leaving for a reader" not in engine.log
    for pid in [*engine.pids(), engine.pid("ingest")]:
        held = Path(f"/proc/{pid}/maps").read_text()
        assert "catalog.3" in held
        assert "(deleted)" not in "".join(line for line in held.splitlines() if "/catalog/" in line)
    assert engine.stop() == 0
    assert engine.cli("doctor", "--deep").returncode == 0


@pytest.mark.skipif(not landlock_abi(), reason="nothing confines here")
def test_a_kill_while_confined_readers_have_both_open_loses_nothing(start: Starter) -> None:
    """They let go of what the compaction would have put in place, and follow to what the next one does."""
    engine = start("--set", "readers.confine=require", readers=2, env={"ENGINE_FAILPOINT": "compact.opened"})
    engine.ingest(several(100))
    victim = engine.pid("ingest")
    with asking(engine, ["e000003", "e000090"]):
        with pytest.raises(ClientError):
            engine.client().compact()
        engine.replaced("ingest", victim)
        assert engine.ingest(several(50, 100)).accepted == 50
    assert sorted(p.name for p in engine.layout.catalog.iterdir()) == ["CURRENT", "catalog.0", "catalog.0-lock"]
    assert stored_ids(engine.client()) == ids(several(150))
    for pid in engine.pids():
        eventually(lambda pid=pid: "/catalog.1" not in Path(f"/proc/{pid}/maps").read_text())


# ---- purge

VICTIM = "203.0.113.77"
PURGE_KILLED = {  # point: is the first row file already without them?
    "purge.forgotten": False, "purge.emptied": False, "purge.emptied:2": True, "purge.committed": True,
}  # fmt: skip


def victims(count: int, first: int) -> list[FeaturedEvent]:
    return [make(n, event_id=f"victim{n:04d}", src_ip=VICTIM) for n in range(first, first + count)]


def with_victims(engine: Engine) -> None:
    """In the first, the third and the last row file."""
    engine.ingest([*several(10), *victims(5, 9_000), *several(150, 10)])
    engine.ingest([*victims(5, 9_100), *several(30, 160)])


def test_every_step_of_a_purge_is_one_where_it_is_killed() -> None:
    points = {point.partition(":")[0] for point in PURGE_KILLED}
    assert {point for point in failpoint.POINTS if point.startswith("purge.")} == points


@pytest.mark.parametrize(("point", "begun"), PURGE_KILLED.items())
def test_a_purge_killed_at_any_step_is_asked_for_again(start: Starter, point: str, begun: bool) -> None:
    """SIGKILL of ingest: each event is whole or gone, and the same purge removes the rest."""
    engine = start(env={"ENGINE_FAILPOINT": point})
    with_victims(engine)
    engine.indexed(3)
    victim = engine.pid("ingest")
    with pytest.raises(ClientError):
        engine.client().purge(filter=Filter(addr=[VICTIM]))
    engine.replaced("ingest", victim)
    stored = stored_ids(engine.client())
    assert [name for name in stored if name < "v"] == ids(several(190))
    left = [name for name in stored if name >= "v"]
    assert left == [e.event.event_id for e in [*(() if begun else victims(5, 9_000)), *victims(5, 9_100)]]
    assert {s.event.event_id for s in engine.client().list(filter=Filter(src=[VICTIM])).events} == set(left)  # type: ignore[union-attr]
    assert engine.stop() == 0
    del engine.env["ENGINE_FAILPOINT"]
    engine.start()
    assert engine.client().purge(filter=Filter(addr=[VICTIM])).facts["events"] == len(left)
    assert stored_ids(engine.client()) == ids(several(190))
    eventually(lambda: engine.facts()["stale_indexes"] == 0 and not unindexed(engine.manifest()), within_s=60)
    assert engine.stop() == 0
    assert engine.cli("doctor", "--deep").returncode == 0
    for path in (*engine.layout.rows.iterdir(), *engine.layout.indexes.iterdir()):
        assert path.name in named(engine.layout, engine.manifest())


@pytest.mark.parametrize("armed", [
    f"{point}={error}" for point in ("purge.emptied", "purge.emptied:2") for error in failpoint.DISK
])  # fmt: skip
def test_a_disk_that_fails_in_a_purge_is_what_it_is_answered_and_asked_again_it_ends(
    start: Starter, armed: str
) -> None:
    engine = start(env={"ENGINE_FAILPOINT": armed})
    with_victims(engine)
    engine.indexed(3)
    victim = engine.pid("ingest")
    with pytest.raises(NoSpaceError if "ENOSPC" in armed else InternalError, match="ask for the purge again"):
        engine.client().purge(filter=Filter(addr=[VICTIM]))
    left = engine.client().list(filter=Filter(src=[VICTIM])).events
    assert len(left) == (5 if ":2" in armed else 10)
    assert engine.client().purge(filter=Filter(addr=[VICTIM])).facts["events"] == len(left)
    assert stored_ids(engine.client()) == ids(several(190))
    assert engine.pid("ingest") == victim
    kept = lambda: named(engine.layout, engine.manifest())  # noqa: E731
    eventually(lambda: {p.name for p in engine.layout.rows.iterdir()} <= kept(), within_s=30)
    assert engine.stop() == 0
    assert engine.cli("doctor", "--deep").returncode == 0


def test_readers_answer_while_events_are_purged(start: Starter) -> None:
    """After the acknowledgement no answer shows them; other hits are as before; after `compact` no byte is left."""
    engine = start(readers=2)
    with_victims(engine)
    engine.indexed(3)
    client = engine.client()
    asked = ["e000003", "e000180"]
    before = {n: shape(ask(client, n, space="attack", top_k=300, collapse=False)) for n in asked}
    gone = {s.seq for s in all_events(client, filter=Filter(addr=[VICTIM]))}
    assert len(gone) == 10
    stop = threading.Event()
    wrong: list[str] = []
    acknowledged = threading.Event()

    def look() -> None:
        mine = engine.client()
        while not stop.is_set() and not wrong:
            late = acknowledged.is_set()
            for name in asked:
                try:
                    hits = shape(ask(mine, name, space="attack", top_k=300, collapse=False))
                    recent = {s.seq for s in mine.recent(limit=300).events}
                except Exception as e:
                    wrong.append(repr(e))
                    return
                if [h for h in hits if h[0] not in gone] != [h for h in before[name] if h[0] not in gone]:
                    wrong.append(f"{name}: {hits}")
                if late and (gone & {seq for seq, _ in hits} or gone & recent):
                    wrong.append("it is still shown")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        would = engine.json("purge", "--addr", VICTIM, "--dry-run")
        assert (would["events"], would["dry_run"]) == (10, True)
        told = engine.json("purge", "--addr", VICTIM, "--yes")
        assert told["events"] == 10
        assert engine.client().list(filter=Filter(addr=[VICTIM]), min_generation=told["generation"]).events == []
        acknowledged.set()
        eventually(lambda: engine.facts()["stale_indexes"] == 0, within_s=60)
        assert engine.json("compact")["waits_for"] == []
    finally:
        stop.set()
        thread.join()
    assert wrong == []
    assert engine.client().get(["victim9000"]).missing == ["victim9000"]
    assert engine.facts()["events"] == 190
    assert engine.stop() == 0
    for path in engine.data_dir.rglob("*"):
        if path.is_file() and path.name != "engine.log":
            data = path.read_bytes()
            assert b"victim9" not in data and VICTIM.encode() not in data, path
    assert engine.cli("doctor", "--deep").returncode == 0


def test_a_purge_of_backups_killed_at_any_step_leaves_each_whole_and_the_next_ends_it(
    engine: Engine, tmp_path: Path
) -> None:
    """The one with the events or the one without them is there; asked again, only that without them is, by its name."""
    with_victims(engine)
    home = tmp_path / "backups"
    assert engine.cli("backup", "create", home, "--name", "old").returncode == 0
    shutil.copytree(home / "old", tmp_path / "old")
    command = ("purge", "--addr", VICTIM, "--yes", "--backups", home)
    for point in (
        "restore.file",
        "restore.renamed",
        "backup.catalog",
        "backup.described",
        "backup.renamed",
        "backup.doomed",
    ):
        killed = cli(*command, data_dir=engine.data_dir, env=engine.env | {"ENGINE_FAILPOINT": point})
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        whole = {"backup.renamed": ["old", "old.purged"], "backup.doomed": ["old.purged"]}.get(point, ["old"])
        assert sorted(found(home)) == whole
        assert {f.severity for name in whole for f in verify(home / name)} == {"ok"}
        told = engine.json(*command)
        assert told["events"] == 0  # it was killed after the engine had removed them
        assert [one["name"] for one in told["backups"]][-1] == "old" and not any(b["error"] for b in told["backups"])
        assert sorted(p.name for p in home.iterdir()) == [".backup.lock", "old"]
        assert not any(
            b"victim9" in p.read_bytes() or VICTIM.encode() in p.read_bytes() for p in home.rglob("*") if p.is_file()
        )
        assert read(home / "old").events == 190
        shutil.rmtree(home / "old")
        shutil.copytree(tmp_path / "old", home / "old")
    (home / "old" / "catalog" / "catalog.0").chmod(0o600)
    flip(home / "old" / "catalog" / "catalog.0", 5_000)
    done = engine.cli(*command)
    assert done.returncode == 7 and "is left as it is" in done.stdout


def test_a_full_disk_is_what_a_purge_is_answered_and_asked_again_it_ends(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "seam").mkdir()
    disk, env = bad_disk(tmp_path / "seam")
    engine = start(env=env)
    with_victims(engine)
    disk.write_text(str(errno.ENOSPC))
    with pytest.raises(NoSpaceError, match="the disk is full"):
        engine.client().purge(filter=Filter(addr=[VICTIM]))
    disk.unlink()
    assert engine.client().purge(filter=Filter(addr=[VICTIM])).facts["events"] == 10
    assert stored_ids(engine.client()) == ids(several(190))
    assert engine.stop() == 0
    assert engine.cli("doctor", "--deep").returncode == 0


def test_a_purge_that_names_nothing_is_refused(engine: Engine) -> None:
    engine.ingest(several(3))
    for args in (("--yes",), ("e000001", "--family", "C2", "--yes")):
        done = engine.cli("purge", *args)
        assert done.returncode == 2 and "name the events" in done.stderr
    assert engine.cli("purge", "e000001", stdin=b"n\n").returncode != 0
    assert stored_ids(engine.client()) == ids(several(3))
    assert engine.cli("purge", "e000001", stdin=b"y\n").returncode == 0
    assert stored_ids(engine.client()) == ["e000000", "e000002"]
