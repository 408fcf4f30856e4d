"""Real processes under a real supervisor; only the workers' work is made up (fake_role.py)."""

from __future__ import annotations

import collections
import contextlib
import grp
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.layout import Layout
from engine.run import heartbeat
from ipc.client import Client
from ipc.errors import ClientError, ConnectError, DeadlineError
from ipc.messages import Get
from tests.engine_fixture import environment
from tests.wait import eventually

HEAVY = ("numpy", "faiss", "lmdb", "torch", "onnxruntime")


class Engine:
    """A supervisor process, its log, its workers."""

    def __init__(self, data_dir: Path, *flags: str, env: dict[str, str] | None = None, shell: str = "", fds=()) -> None:  # type: ignore[no-untyped-def]
        self.layout = Layout(data_dir)
        self.log_file = data_dir.parent / f"{data_dir.name}.{time.monotonic_ns()}.log"
        command = [sys.executable, "-P", "-m", "tests.process.fake_engine", str(data_dir), *flags]
        if shell:
            command = ["bash", "-c", f'{shell} exec "$@"', "bash", *command]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=fds,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def ready(self) -> Engine:
        eventually(lambda: "\nREADY pid=" in self.log or self.process.poll() is not None)
        assert self.process.poll() is None, self.log
        return self

    def client(self, timeout_ms: int = 5_000) -> Client:
        return Client.for_data_dir(self.layout.data_dir, timeout_ms=timeout_ms)

    def pid(self, role: str) -> int:
        beat = heartbeat.read(self.layout.heartbeat(role))
        return beat.pid if beat is not None else 0

    def restarted(self, role: str, old: int) -> int:
        """The pid of the worker that replaced `old`, once it is ready."""

        def new() -> int:
            pid = self.pid(role)
            born = self.log.rfind(f"{role} started, pid {pid}")
            return pid if pid not in (0, old) and born >= 0 and self.log.find(f"{role} is ready", born) >= 0 else 0

        return eventually(new)

    def workers(self) -> dict[int, str]:
        """Living workers of this data directory, by pid."""
        found = {}
        for line in self.log.splitlines():
            if " started, pid " in line:
                role, pid = line.split('msg="')[1].rstrip('"').split(" started, pid ")
                if alive(int(pid)):
                    found[int(pid)] = role
        return found

    def stop(self, number: int = signal.SIGTERM, within_s: float = 10) -> int:
        self.process.send_signal(number)
        return self.process.wait(within_s)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start(*flags: str, data_dir: Path = tmp_path / "data", **more: object) -> Engine:
        engines.append(Engine(data_dir, *flags, **more))  # type: ignore[arg-type]
        return engines[-1]

    yield start
    for engine in engines:
        workers = engine.workers()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.process.pid, signal.SIGKILL)
        engine.process.wait()
        eventually(lambda workers=workers: not any(map(alive, workers)))


def test_32_connections_in_a_burst_are_spread_and_workers_are_light(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=4").ready()
    clients = [engine.client() for _ in range(32)]
    threads = [threading.Thread(target=client.ping) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    facts = [client.info().facts for client in clients]
    counts = collections.Counter(fact["role"] for fact in facts)
    assert len(counts) == 4
    assert all(abs(count - 8) <= 1.6 for count in counts.values()), counts
    assert all(fact["heavy"] == [] and fact["threads"] == "1" for fact in facts)
    maps = Path(f"/proc/{engine.process.pid}/maps").read_text()
    assert not [name for name in HEAVY if f"/{name}/" in maps]
    eventually(lambda: sum(heartbeat.read(engine.layout.heartbeat(f"reader-{i}")).connections for i in range(4)) == 32)  # type: ignore[union-attr]
    for client in clients:
        client.close()
    eventually(lambda: sum(heartbeat.read(engine.layout.heartbeat(f"reader-{i}")).connections for i in range(4)) == 0)  # type: ignore[union-attr]
    with contextlib.ExitStack() as stack:  # counts went back: the next ones are spread again
        again = [stack.enter_context(engine.client()).info().facts["role"] for _ in range(8)]
    assert max(collections.Counter(again).values()) <= 3


def test_the_supervisor_imports_nothing_heavy() -> None:
    modules = "engine.run.supervisor, engine.run.worker, ipc.client, ipc.aio"
    code = f"import {modules}, sys; print(set({HEAVY}) & set(sys.modules))"
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_a_killed_reader_is_restarted_and_costs_others_nothing(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=2").ready()
    with engine.client() as one, engine.client() as two:
        victim, other = one.info().facts["pid"], two.info().facts["pid"]
        assert victim != other
        fds = Path(f"/proc/{engine.process.pid}/fd")
        before = len(list(fds.iterdir()))
        os.kill(victim, signal.SIGKILL)
        assert one.ping().generation == 1, "a read is tried again on another reader"
        assert two.info().facts["pid"] == other
    eventually(lambda: victim not in engine.workers() and engine.log.count(" is ready") == 4)
    assert sorted(engine.workers().values()) == ["ingest", "reader-0", "reader-1"]
    assert "was killed by SIGKILL; again in 0.1 s" in engine.log
    eventually(lambda: len(list(fds.iterdir())) <= before)  # the descriptors of the dead worker are closed


def test_writes_wait_while_the_ingest_worker_is_restarted(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=1").ready()
    old = engine.pid("ingest")
    os.kill(old, signal.SIGSTOP)
    os.kill(old, signal.SIGKILL)
    with engine.client() as client:
        client.ping()
        client.label("a", "b")
    assert engine.restarted("ingest", old)


def test_sigterm_drains_leaves_with_0_and_leaves_nothing_behind(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=2").ready()
    workers = engine.workers()
    assert len(workers) == 3
    with engine.client() as client, engine.client() as idle:
        idle.ping()
        client.ping()
        answers: list[object] = []
        thread = threading.Thread(
            target=lambda: answers.append(client.call(lambda i, ms: Get(i, ["slow", "600"], deadline_ms=ms)))
        )
        before = [heartbeat.read(engine.layout.heartbeat(f"reader-{i}")).requests for i in range(2)]  # type: ignore[union-attr]
        thread.start()
        eventually(
            lambda: before != [heartbeat.read(engine.layout.heartbeat(f"reader-{i}")).requests for i in range(2)]  # type: ignore[union-attr]
        )
        assert engine.stop() == 0
        thread.join(5)
        assert len(answers) == 1, "what was under way is answered"
        with pytest.raises(ConnectError):
            idle.ping()
    assert not any(map(alive, workers))
    assert {path.name for path in engine.layout.run.iterdir()} == {"supervisor.pid", "audit.ndjson"}
    assert engine.layout.supervisor_pid.read_bytes() == b""
    assert start("readers.count=1").ready().stop(signal.SIGINT) == 0


def test_a_hung_worker_does_not_hold_up_the_stop_and_a_second_sigterm_means_now(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=1", "drain_ms=60000").ready()
    with engine.client(timeout_ms=200) as client, pytest.raises(DeadlineError):
        client.get(["hang"])
    engine.process.send_signal(signal.SIGTERM)
    eventually(lambda: "stopping" in engine.log)
    assert engine.process.poll() is None
    deadline_s = time.monotonic() + 5
    while engine.process.poll() is None and time.monotonic() < deadline_s:
        engine.process.send_signal(signal.SIGTERM)  # those of the first half second count as the first one
        with contextlib.suppress(subprocess.TimeoutExpired):
            engine.process.wait(0.1)
    assert engine.process.poll() == 0
    quick = start("readers.count=1", "drain_ms=300").ready()
    with quick.client(timeout_ms=200) as client, pytest.raises(DeadlineError):
        client.get(["hang"])
    start_s = time.monotonic()
    assert quick.stop() == 0
    assert 0.25 < time.monotonic() - start_s < 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_at_any_moment_of_the_stop_leaves_its_status_at_0(
    start: Callable[..., Engine], number: signal.Signals
) -> None:
    """One a millisecond until it is gone, so that some come while the interpreter itself ends."""
    engine = start("readers.count=1").ready()
    engine.process.send_signal(signal.SIGTERM)
    while engine.process.poll() is None:
        engine.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            engine.process.wait(0.001)
    assert engine.process.returncode == 0


def test_a_signal_to_the_whole_group_is_one_orderly_stop(start: Callable[..., Engine]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        engine = start("readers.count=2").ready()
        os.killpg(engine.process.pid, number)
        assert engine.process.wait(10) == 0
        assert "SIGKILL" not in engine.log
        assert "killed" not in engine.log


def test_workers_die_with_their_supervisor_and_the_next_start_finds_its_way(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=2").ready()
    workers = engine.workers()
    stopped = next(pid for pid, role in workers.items() if role == "reader-0")
    os.kill(stopped, signal.SIGSTOP)
    engine.process.kill()
    eventually(lambda: not any(map(alive, workers)), within_s=10)
    assert engine.layout.query_socket.exists(), "left by the killed one"
    with start("readers.count=1").ready().client() as client:
        client.ping()


@pytest.mark.parametrize("how", ["stopped", "hanging"])
def test_a_worker_without_signs_of_life_is_killed_and_replaced(start: Callable[..., Engine], how: str) -> None:
    engine = start("readers.count=1", "hang_after_ms=700").ready()
    old = engine.pid("reader-0")
    if how == "stopped":
        os.kill(old, signal.SIGSTOP)
    else:
        with engine.client(timeout_ms=100) as client, pytest.raises(DeadlineError):
            client.get(["hang"])
    assert engine.restarted("reader-0", old)
    assert engine.log.count("gave no sign of life") == 1
    with engine.client() as client:
        client.ping()


def test_new_connections_avoid_a_worker_that_is_silent(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=2").ready()
    silent = engine.pid("reader-0")
    os.kill(silent, signal.SIGSTOP)
    beat = heartbeat.read(engine.layout.heartbeat("reader-0"))
    assert beat is not None
    eventually(lambda: time.monotonic_ns() - beat.stamp_ns > 1.5e9)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            assert stack.enter_context(engine.client()).info().facts["role"] == "reader-1"
    os.kill(silent, signal.SIGCONT)


def test_a_supervisor_that_slept_does_not_blame_its_workers(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=1", "hang_after_ms=700").ready()
    pids = set(engine.workers())
    group = [engine.process.pid, *pids]
    for pid in group:
        os.kill(pid, signal.SIGSTOP)
    threading.Event().wait(1.6)  # the stop itself is the thing under test
    for pid in group:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: "slept for" in engine.log)
    with engine.client() as client:
        client.ping()
    assert set(engine.workers()) == pids


def test_a_second_engine_on_the_same_directory_is_refused_naming_the_first(start: Callable[..., Engine]) -> None:
    first = start("readers.count=1").ready()
    second = start("readers.count=1")
    assert second.process.wait(10) == 1
    assert f"another engine, pid {first.process.pid}" in second.log
    with first.client() as client:
        client.ping()
    elsewhere = start(f"sockets.query={first.layout.query_socket}", data_dir=first.layout.data_dir.parent / "other")
    assert elsewhere.process.wait(10) == 1
    assert "another process listens" in elsewhere.log
    with first.client() as client:
        client.ping()


def plant(kind: str, data: Path) -> str:
    """Something an attacker or an accident left; returns what the refusal must say."""
    data.mkdir(mode=0o700)
    run = data / "run"
    victim = data.parent / "victim"
    victim.mkdir()
    match kind:
        case "writable":
            data.chmod(0o770)
            return "can be written to by others"
        case "link":
            data.rmdir()
            data.symlink_to(victim)
            return "is not a directory"
        case "run link":
            run.symlink_to(victim)
            return "is not a directory"
        case "pid link":
            run.mkdir(mode=0o700)
            (run / "supervisor.pid").symlink_to(victim / "file")
            return "cannot be opened"
        case "pid pipe":
            run.mkdir(mode=0o700)
            os.mkfifo(run / "supervisor.pid")
            return "it is no plain file"
        case "pid hard link":
            run.mkdir(mode=0o700)
            (data.parent / "other").write_text("precious")
            (run / "supervisor.pid").hardlink_to(data.parent / "other")
            return "it has a second name"
        case "open parent":
            data.parent.chmod(0o777)
            return f"{data.parent}, above {data}, can be written to by others (mode 0777)"
        case "group's parent":
            data.parent.chmod(0o770)
            return f"{data.parent}, above {data}, can be written to by others (mode 0770)"
        case "foreign parent":
            os.chown(data.parent, 12_345, -1)
            return f"{data.parent}, above {data}, belongs to uid 12345"
        case "socket file":
            run.mkdir(mode=0o700)
            (run / "query.sock").write_text("precious")
            return "is not a socket of ours"
        case "socket link":
            run.mkdir(mode=0o700)
            (run / "write.sock").symlink_to(victim / "file")
            return "is not a socket of ours"
        case "foreign":
            os.chown(data, 12_345, -1)
            return "belongs to uid 12345"
    raise AssertionError(kind)


PLANTED = (
    "writable", "link", "run link", "pid link", "pid pipe", "pid hard link", "socket file", "socket link", "foreign",
    "open parent", "group's parent", "foreign parent",
)  # fmt: skip


@pytest.mark.parametrize("kind", PLANTED)
def test_what_others_could_have_planted_is_refused_and_left_alone(
    start: Callable[..., Engine], tmp_path: Path, kind: str
) -> None:
    if kind.startswith("foreign") and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    why = plant(kind, tmp_path / "data")
    engine = start()
    assert engine.process.wait(10) == 1
    assert why in engine.log
    assert not list((tmp_path / "victim").iterdir())
    if kind == "socket file":
        assert engine.layout.query_socket.read_text() == "precious"
    if kind == "pid hard link":
        assert (tmp_path / "other").read_text() == "precious"


def test_a_socket_elsewhere_is_not_put_where_others_could_replace_it(
    start: Callable[..., Engine], tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    engine = start(f"sockets.query={tmp_path / 'open' / 'query.sock'}")
    assert engine.process.wait(10) == 1
    assert "open, above" in engine.log and "can be written to by others" in engine.log
    assert not list((tmp_path / "open").iterdir())


def test_in_a_sticky_directory_only_its_owner_replaces_a_thing(start: Callable[..., Engine], tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    start("readers.count=1").ready()


def test_directories_and_sockets_get_their_modes(start: Callable[..., Engine]) -> None:
    group = grp.getgrgid(1).gr_name if os.geteuid() == 0 else ""
    engine = start(
        "readers.count=1", "sockets.query_mode=0666", "sockets.write_mode=0600", f"sockets.write_group={group}"
    ).ready()
    assert engine.layout.write_socket.stat().st_gid == (1 if group else os.getegid())
    modes = {
        path.name: oct(path.stat().st_mode & 0o777) for path in (engine.layout.data_dir, *engine.layout.run.iterdir())
    }
    assert modes["query.sock"] == "0o666"
    assert modes["write.sock"] == "0o600"
    assert modes["data"] == "0o700"
    assert modes["supervisor.pid"] == modes["ingest.heartbeat"] == "0o600"


def test_a_worker_that_cannot_start_ends_the_start(start: Callable[..., Engine]) -> None:
    refusing = start("readers.count=1", env={"FAKE_INGEST": "boot_error"})
    assert refusing.process.wait(10) == 70
    assert "ingest exited with status 70, which means: do not restart" in refusing.log
    failing = start("readers.count=2", env={"FAKE_READER_1": "fail"})  # one that crashes has longer (test_restart.py)
    assert failing.process.wait(10) == 9
    assert "reader-1 exited with status 9, and was not ready in 3 tries" in failing.log
    assert not failing.workers()
    assert "READY" not in failing.log


def test_one_reader_down_for_good_leaves_a_serving_engine_and_sighup_tries_again(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=2", env={"FAKE_READER_1": "boot_error_later"}).ready()
    os.kill(engine.pid("reader-1"), signal.SIGKILL)
    eventually(lambda: "the others go on" in engine.log)
    with engine.client() as client:
        assert client.info().facts["role"] == "reader-0"
    (engine.layout.data_dir / "reader-1.born").unlink()
    engine.process.send_signal(signal.SIGHUP)
    eventually(lambda: "rolled" in engine.log)
    assert sorted(engine.workers().values()) == ["ingest", "reader-0", "reader-1"]


def test_a_reader_that_leaves_by_itself_is_dealt_no_connection(start: Callable[..., Engine]) -> None:
    """It has the fewest, so it was dealt those that it had just closed, and nobody read them until it was gone."""
    engine = start("readers.count=2").ready()

    def asked() -> str:
        with engine.client(timeout_ms=20_000) as late:
            role: str = late.info().facts["role"]
            return role

    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        held = [stack.enter_context(engine.client(timeout_ms=20_000)) for _ in range(6)]
        client, leaving = held[0], held[0].info().facts["role"]
        for one in held[1:]:
            if one.info().facts["role"] == leaving:
                one.close()
        page = engine.layout.heartbeat(leaving)
        before = heartbeat.read(page)
        slow = pool.submit(client.call, lambda i, ms: Get(i, ["slow", "6000"], deadline_ms=ms))
        eventually(lambda: before != heartbeat.read(page) and heartbeat.read(page).requests > before.requests)  # type: ignore[union-attr]
        os.kill(engine.pid(leaving), signal.SIGTERM)
        eventually(lambda: leaving not in [asked() for _ in range(6)])  # it may not have heard of it at first
        assert not slow.done()
        slow.result(30)


def test_a_worker_that_fails_again_at_a_sighup_keeps_no_other_from_its_turn(start: Callable[..., Engine]) -> None:
    down = {"FAKE_READER_0": "boot_error_later", "FAKE_READER_1": "boot_error_later"}
    engine = start("readers.count=3", env=down).ready()
    for role in ("reader-0", "reader-1"):
        os.kill(engine.pid(role), signal.SIGKILL)
    eventually(lambda: engine.log.count("the others go on") == 2)
    (engine.layout.data_dir / "reader-1.born").unlink()
    before = engine.pid("reader-2")
    engine.process.send_signal(signal.SIGHUP)
    eventually(lambda: "rolled" in engine.log)
    assert sorted(engine.workers().values()) == ["ingest", "reader-1", "reader-2"]
    assert engine.pid("reader-2") != before


def test_sighup_rolls_the_readers_without_a_failed_read(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=2").ready()
    before = engine.workers()
    stop, failures, done = threading.Event(), [], 0

    def ask() -> None:
        nonlocal done
        with engine.client() as client:
            while not stop.is_set():
                try:
                    client.ping()
                    done += 1
                except ClientError as e:
                    failures.append(e)

    thread = threading.Thread(target=ask)
    thread.start()
    engine.process.send_signal(signal.SIGHUP)
    eventually(lambda: "rolled" in engine.log)
    stop.set()
    thread.join()
    after = engine.workers()
    assert failures == []
    assert done > 0
    assert sorted(after.values()) == sorted(before.values())
    kept = set(before) & set(after)
    assert [before[pid] for pid in kept] == ["ingest"]


def test_the_ingest_worker_has_confined_readers_replaced_and_no_others(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=2", env={"FAKE_READER_0": "confined"}).ready()
    before = {role: pid for pid, role in engine.workers().items()}
    with engine.client(timeout_ms=15_000) as client:
        assert client.label("a", "roll").facts == {"all": True}
        after = {role: pid for pid, role in engine.workers().items()}
        assert {role for role in before if before[role] != after[role]} == {"reader-0"}
        client.ping()
    assert engine.log.count("rolled") == 1


def test_a_sighup_while_confined_readers_are_replaced_is_not_lost(start: Callable[..., Engine]) -> None:
    confined = {"FAKE_READER_0": "confined", "FAKE_READER_1": "confined"}
    engine = start("readers.count=3", env=confined).ready()
    before = {role: pid for pid, role in engine.workers().items()}
    with engine.client(timeout_ms=15_000) as client, ThreadPoolExecutor(1) as pool:
        told = pool.submit(client.label, "a", "roll")
        eventually(lambda: "rolling 2 readers" in engine.log)
        engine.process.send_signal(signal.SIGHUP)
        assert told.result().facts == {"all": True}
        eventually(lambda: "SIGHUP" in engine.log and engine.log.rindex("rolled") > engine.log.index("SIGHUP"))
    after = {role: pid for pid, role in engine.workers().items()}
    assert {role for role in before if before[role] != after[role]} == {"reader-0", "reader-1", "reader-2"}


def test_readers_that_crash_in_a_row_have_their_files_checked_first(start: Callable[..., Engine]) -> None:
    engine = start("readers.count=1").ready()
    with engine.client() as client, pytest.raises(ConnectError):
        client.get(["segv"])
    eventually(lambda: "SUSPECT chronos 0-16384.faiss" in engine.log)
    with engine.client() as client:
        client.ping()
    log = engine.log
    assert log.index("SUSPECT") < log.rindex("reader-0 started")


def test_systemd_is_told_and_its_sockets_are_used(start: Callable[..., Engine], tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        told.bind(str(tmp_path / "notify"))
        told.settimeout(10)
        paths = {name: tmp_path / f"{name}.sock" for name in ("query", "write")}
        listeners = []
        for path in paths.values():
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(path))
            listener.listen()
            listeners.append(listener.fileno())
        a, b = listeners
        engine = start(
            "readers.count=1",
            env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"},
            shell=f"exec 103<&{a} 104<&{b} 3<&103 4<&104; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=query:write",
            fds=(a, b),
        ).ready()

        def heard(wanted: bytes) -> bool:
            return wanted in told.recv(4_096)

        eventually(lambda: heard(b"READY=1"))
        eventually(lambda: heard(b"WATCHDOG=1"))
        assert not engine.layout.query_socket.exists()
        with Client(paths["query"], paths["write"]) as client:
            client.ping()
            client.label("a", "b")
        engine.process.send_signal(signal.SIGHUP)
        eventually(lambda: heard(b"RELOADING=1"))
        eventually(lambda: heard(b"READY=1"))
        assert engine.stop() == 0
        eventually(lambda: heard(b"STOPPING=1"))
        assert all(path.exists() for path in paths.values()), "systemd's sockets stay"
