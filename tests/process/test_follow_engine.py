"""A growing EVE log under a real engine: killed at any moment, rotated in every way; each event is stored once."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.engine_fixture import Engine, Starter, all_events, processes
from tests.events import T0
from tests.packets import UDP, P, pcap
from tests.unit.test_eve import ALERT, FLOW, HTTP
from tests.wait import eventually

READERS = 1

SOURCE = '[sources.eve]\npath = "{path}"\nformat = "eve"\npoll_ms = 10\n'


def host(n: int) -> str:
    """Of flows that are open at one time all differ: a text that joins the wrong flow is seen. 19 in all, with 3 URLs:
    sentences take their time."""
    return f"{'abcdefghijklmnopqrs'[n % 19]}.example"


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


class Log:
    """What a detector and its logrotate write, and what must be stored of it: the text of each flow and alert."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.random = path, random.Random(seed)
        self.expected: list[tuple[str, str, int]] = []  # kind, text, port
        self.next = 0
        self.open_flows: list[int] = []  # whose http record is written, whose flow record is not
        self.lost: list[int] = []  # of them those whose http record nobody has any more
        self.old = path.with_name("eve.json.1")

    def _records(self) -> bytes:
        """The next record: the text of a flow, later the flow itself, alerts in between, some of them identical."""
        n = self.next = self.next + 1
        self.open_flows.append(n)
        records: list[dict[str, Any]] = [{**HTTP, "flow_id": n, "http": {"hostname": host(n), "url": f"/{n % 3}"}}]
        if n % 3 == 0:
            alert = {**ALERT, "flow_id": n, "src_port": n % 60_000}
            records += [alert] * (1 + n % 2)
            text = "ET SCAN Potential SSH Scan | Attempted Information Leak | x.example | A"
            self.expected += [("alert", text, n % 60_000)] * (1 + n % 2)
        if len(self.open_flows) > 5:
            records.append(self._end(self.open_flows.pop(self.random.randrange(len(self.open_flows)))))
        return lines(records)

    def _end(self, n: int) -> dict[str, Any]:
        text = "" if n in self.lost else f"{host(n)} | /{n % 3}"
        self.expected.append(("flow", text, n % 60_000))
        return {**FLOW, "flow_id": n, "src_port": n % 60_000}

    def write(self, count: int) -> None:
        """Cut anywhere, also in the middle of lines."""
        data = b"".join(self._records() for _ in range(count))
        with self.path.open("ab", buffering=0) as out:
            while data:
                cut = self.random.randint(1, 4_000)
                out.write(data[:cut])
                data = data[cut:]

    def half(self) -> bytes:
        """Write a line without its end, which is returned."""
        data = self._records()
        with self.path.open("ab") as out:
            out.write(data[:100])
        return data[100:]

    def rename(self) -> None:
        """As logrotate with `create` and delaycompress."""
        self.compress()
        self.path.rename(self.old)
        self.path.touch()

    def compress(self) -> None:
        if self.old.exists():
            packed = self.path.with_name(f"eve.json.{self.next + 2}.gz")
            new = packed.with_suffix(".tmp")
            new.write_bytes(gzip.compress(self.old.read_bytes()))
            shutil.copystat(self.old, new)
            new.rename(packed)
            self.old.unlink()

    def copy_and_truncate(self) -> None:
        """As logrotate with `copytruncate`, where nothing is written between the copy and the cut: those lines are lost
        to everybody."""
        self.compress()
        shutil.copyfile(self.path, self.old)
        self.truncate()

    def end(self) -> None:
        """All open flows end."""
        with self.path.open("ab") as out:
            out.write(lines([self._end(n) for n in self.open_flows]))
        self.open_flows.clear()

    def truncate(self) -> None:
        """In place: the same inode, whatever the file system does."""
        os.truncate(self.path, 0)


def kill_ingest(engine: Engine) -> int:
    victim = engine.pid("ingest")
    os.kill(victim, signal.SIGKILL)
    return victim


def stored(engine: Engine) -> list[tuple[str, str, int]]:
    with engine.client() as client:
        events = [s.event for s in all_events(client)]
    assert len({e.event_id for e in events}) == len(events)  # type: ignore[union-attr]
    return sorted((e.kind, e.text, e.src_port or 0) for e in events)  # type: ignore[union-attr]


def settled(engine: Engine, log: Log) -> None:
    """All that was written is stored, once, each flow with its text."""
    eventually(lambda: engine.facts()["events"] >= len(log.expected), within_s=60)
    assert stored(engine) == sorted(log.expected)
    facts = engine.facts()
    assert facts["conflicts"] == 0
    assert facts["sources"][0]["rejected"] == 0


def caught_up(engine: Engine, log: Log) -> None:
    """Some of what was written is stored: a moment in the middle."""
    eventually(lambda: engine.facts()["events"] > len(log.expected) // 2, within_s=60)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    (tmp_path / "logs").mkdir()
    return Log(tmp_path / "logs" / "eve.json", seed=7)


def serve(start: Starter, tmp_path: Path, path: Path) -> Engine:
    config = tmp_path / "flowkin.toml"
    config.write_text(SOURCE.format(path=path))
    return start("--config", str(config))


def test_ingest_killed_again_and_again_while_the_log_grows(start: Starter, tmp_path: Path, log: Log) -> None:
    engine = serve(start, tmp_path, log.path)
    for _ in range(4):
        log.write(80)
        rest = log.half()
        for _ in range(log.random.randrange(200)):  # at any moment: while it reads, stores, or rests
            engine.pid("ingest")
        victim = kill_ingest(engine)
        with log.path.open("ab") as out:
            out.write(rest)
        log.write(20)  # while nobody reads
        engine.replaced("ingest", victim)
    settled(engine, log)


@pytest.mark.parametrize("rotate", [Log.rename, Log.copy_and_truncate])
def test_rotated_while_it_runs_and_while_it_is_dead(start: Starter, tmp_path: Path, log: Log, rotate: Any) -> None:
    """Directory and pattern as in flowkin.toml; the rotated file is compressed one rotation later."""
    engine = serve(start, tmp_path, log.path.parent)
    log.write(60)
    caught_up(engine, log)
    rotate(log)
    log.write(40)  # distinct from what was there: other flow ids
    victim = kill_ingest(engine)
    log.write(10)
    engine.replaced("ingest", victim)
    settled(engine, log)
    engine.kill()  # all of it, as a power cut leaves it to the page cache
    log.write(15)
    rotate(log)
    log.write(25)
    engine.start("--config", str(tmp_path / "flowkin.toml"))
    settled(engine, log)
    engine.kill()
    log.compress()
    log.write(5)
    engine.start("--config", str(tmp_path / "flowkin.toml"))
    settled(engine, log)


@pytest.mark.parametrize("down", [True, False], ids=["down", "running"])
def test_a_file_that_gets_the_inode_of_a_removed_one(start: Starter, tmp_path: Path, log: Log, down: bool) -> None:
    """Unlinked and created again: a file system may hand out the inode at once. Twice, as the state of each stays."""
    engine = serve(start, tmp_path, log.path)
    for _ in range(2):
        log.write(30)
        log.end()
        settled(engine, log)
        inode = log.path.stat().st_ino
        if down:
            engine.kill()
        log.path.unlink()
        if not down:  # until then its inode is held
            fds = Path(f"/proc/{engine.pid('ingest')}/fd")
            eventually(lambda fds=fds: not any("eve.json" in str(fd.readlink()) for fd in fds.iterdir()))
        log.path.touch()
        if log.path.stat().st_ino != inode:
            if down:
                engine.start("--config", str(tmp_path / "flowkin.toml"))  # to be stopped in good order
            pytest.skip("this file system does not hand out an inode again at once")
        log.write(30)
        if down:
            engine.start("--config", str(tmp_path / "flowkin.toml"))
        settled(engine, log)


def test_a_new_log_in_the_inode_of_an_old_one(start: Starter, tmp_path: Path, log: Log) -> None:
    """Cut and written anew while the engine is down, so that it has the inode for certain; and while it runs."""
    engine = serve(start, tmp_path, log.path)
    log.write(30)
    settled(engine, log)
    engine.kill()
    inode = log.path.stat().st_ino
    data = log.path.read_bytes()
    log.truncate()
    log.lost = [*log.open_flows]  # what waited was in the memory of the engine, and in the file
    log.write(30)
    assert log.path.stat().st_ino == inode and not log.path.read_bytes().startswith(data[:1024])
    engine.start("--config", str(tmp_path / "flowkin.toml"))
    settled(engine, log)
    log.truncate()  # now what waits is in memory still
    log.write(60)
    settled(engine, log)


def test_stats_and_doctor_say_how_far_it_is(start: Starter, tmp_path: Path, log: Log) -> None:
    (tmp_path / "logs" / "old.json.gz").write_bytes(gzip.compress(json.dumps(ALERT).encode()))
    config = tmp_path / "flowkin.toml"
    config.write_text(
        SOURCE.format(path=log.path.parent)
        + '[sources.gone]\npath = "/nowhere/at/all/eve.json"\n[sources.sock]\nlisten = "eve.sock"\nformat = "eve"\n'
    )
    log.write(30)
    engine = start("--config", str(config), readers=2)
    log.expected.append(("alert", "ET SCAN Potential SSH Scan | Attempted Information Leak | x.example | A", 4000))
    settled(engine, log)

    def look() -> dict[str, Any]:
        facts = engine.facts()
        assert facts["followed"][0]["lag_bytes"] == 0
        assert len(facts["followed_files"]) == 2 and all(file["read_at"] for file in facts["followed_files"])
        return facts

    facts = eventually(look)
    eve, gone = facts["followed"]
    assert (eve["name"], eve["files"], eve["error"]) == ("eve", 2, "")
    assert gone["error"] == "/nowhere/at/all cannot be read: No such file or directory"
    files = {file["path"]: file for file in facts["followed_files"]}
    live, old = files["eve.json"], files["old.json.gz"]
    assert live["size"] == log.path.stat().st_size and 0 < live["offset"] < live["size"]  # text waits for its flow
    assert live["event_at"] and not live["done"] and live["waits_since_at"] is None
    assert old["done"] and old["offset"] == len(json.dumps(ALERT))
    (sock,) = facts["listening"]
    assert (sock["connections"], sock["error"]) == (0, "")
    with engine.client() as client:
        assert client.stats().facts["followed_files"] == facts["followed_files"]  # any reader, the same
    said = engine.cli("stats").stdout
    assert "FOLLOWED FILES" in said.upper() and "old.json.gz" in said
    doctor = engine.cli("doctor", "--json")
    assert doctor.returncode == 7
    found = [f for f in json.loads(doctor.stdout)["findings"] if f["object"].startswith("source ")]
    assert [(f["severity"], f["object"]) for f in found] == [("problem", "source gone")]
    assert "No such file or directory" in found[0]["detail"]


def test_a_killed_worker_takes_its_listening_process_along_and_the_next_listens_again(
    start: Starter, tmp_path: Path
) -> None:
    config = tmp_path / "flowkin.toml"
    config.write_text(
        "".join(f'[sources.{name}]\nlisten = "{name}.sock"\nformat = "eve"\n' for name in ("one", "other"))
    )
    engine = start("--config", str(config))
    (session,), run = engine.sessions, engine.layout.run

    def reading(name: str = "") -> set[int]:
        return {pid for pid, command in processes(session).items() if "engine.run.drain" in command and name in command}

    def counts(name: str) -> dict[str, Any]:
        return next(found for found in engine.facts()["listening"] if found["source"] == name)

    def connect(name: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(run / f"{name}.sock"))
        return sock

    def alert(number: int) -> bytes:
        return json.dumps({**ALERT, "flow_id": number, "src_port": number}).encode() + b"\n"

    old, victim = reading(), engine.pid("ingest")
    assert len(old) == 2
    with connect("one") as first:
        first.sendall(alert(1))
        eventually(lambda: counts("one")["stored"] == 1)
        os.kill(victim, signal.SIGKILL)
        assert first.recv(1) == b""
    eventually(lambda: not old & reading())
    engine.replaced("ingest", victim)
    with connect("one") as second, connect("other") as third:
        second.sendall(alert(2))
        third.sendall(alert(3))
        eventually(lambda: counts("one")["stored"] == 2 and counts("other")["stored"] == 1)
        assert (counts("one")["connections"], counts("one")["lost"], counts("one")["gaps"]) == (2, 0, 1)
        (alive,) = reading("/one.sock")
        os.kill(alive, signal.SIGKILL)
        assert second.recv(1) == b""
        third.sendall(alert(4))  # the other source goes on, and so does the worker
        eventually(lambda: counts("other")["stored"] == 2)
        assert "has died" in engine.log
        eventually(lambda: reading("/one.sock") - {alive}, within_s=20)
        with connect("one") as fourth:
            fourth.sendall(alert(5))
            eventually(lambda: counts("one")["stored"] == 3)
    assert (counts("one")["error"], counts("one")["connections"], counts("one")["gaps"]) == ("", 3, 2)
    assert engine.pid("ingest") not in (0, victim)
    assert len(all_events(engine.client())) == 5  # nothing twice
    assert engine.process is not None
    engine.process.kill()  # whoever is killed, nobody is left
    engine.process.wait()
    engine.process = None
    eventually(lambda: not processes(session), within_s=20)
    engine.start("--config", str(config))
    with connect("one") as fifth:
        fifth.sendall(alert(6))
        eventually(lambda: counts("one")["stored"] == 4)


def test_a_stop_does_not_wait_for_a_source_that_cannot_listen(start: Starter, tmp_path: Path) -> None:
    config = tmp_path / "flowkin.toml"
    config.write_text(f'drain_ms = 60_000\n[sources.sock]\nlisten = "{tmp_path}/taken"\nformat = "eve"\n')
    (tmp_path / "taken").touch()
    engine = start("--config", str(config))
    eventually(lambda: "is not a socket of ours" in engine.facts()["listening"][0]["error"])
    assert engine.stop(within_s=15.0) == 0


def test_the_flows_of_a_capture_are_no_larger_commits_than_others(start: Starter, tmp_path: Path) -> None:
    """They come all at once, at its end."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.pcap").write_bytes(pcap([P(T0 + n, src_port=1024 + n, proto=UDP) for n in range(1_000)]))
    config = tmp_path / "flowkin.toml"
    folder = str(tmp_path / "logs")
    ingest = "[ingest]\nsave_events = 128\ncommit_events = 128\n"
    config.write_text(f'{ingest}[sources.cap]\npath = "{folder}"\nformat = "pcap"\npoll_ms = 10\n')
    engine = start("--config", str(config))
    client = engine.client()
    eventually(lambda: client.stats().facts["events"] == 1_000, within_s=30)
    assert client.stats().facts["storing"]["commits"] >= 8
