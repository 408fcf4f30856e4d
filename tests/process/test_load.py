"""Load and back-pressure from outside: peers that do not behave, crowds, no descriptors, more than can be answered or
stored. Whoever else asks is answered; what is refused is refused by name; nothing acknowledged is lost.

`--idle 10000 --active 1000` is the crowd that is promised, `--stop-s 60` the time a reader is stopped; by default both
are less. `--keep` appends what came of them to bench/results."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness import keep
from engine.run import heartbeat
from ipc.client import Client
from ipc.errors import ClientError, OverloadedError
from ipc.frames import FrameReader, frame
from ipc.messages import (
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    Answers,
    ErrorCode,
    Failure,
    Hello,
    List,
    Options,
    Ping,
    Pong,
    QuerySimilar,
    Reply,
    Request,
    Welcome,
    decode_reply,
    encode,
)
from tests.bad_disk import slow_disk
from tests.engine_fixture import SHM, Engine, Starter, ask, processes, shape, shared, stored_ids
from tests.events import ids, several, write
from tests.wait import eventually

MIB = 1 << 20
PATIENCE = {"FLOWKIN_SOCKETS__PATIENCE_MS": "1000"}
FILES = 700  # descriptors of an engine that has few


class Peer:
    """A connection that need not behave."""

    def __init__(self, path: Path, *, hello: bool = True) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))  # before the timeout: with one, a full backlog is an error instead of a wait
        self.sock.settimeout(30)
        self.frames = FrameReader(FRAME_BYTES_MAX)
        if hello:
            self.send(Hello(PROTOCOL_VERSION, "peer"))

    def send(self, *requests: Request) -> None:
        self.sock.sendall(b"".join(frame(encode(request)) for request in requests))

    def reply(self) -> Reply:
        while (body := self.frames.next_frame()) is None:
            data = self.sock.recv(1 << 16)
            assert data, "the connection was closed"
            self.frames.feed(data)
        return decode_reply(body)

    def send_what_fits(self, request: bytes) -> None:
        """Until the engine reads no more of it, or closes."""
        self.sock.settimeout(0.2)
        with contextlib.suppress(OSError):
            while True:
                self.sock.sendall(request)

    @property
    def closed(self) -> bool:
        poll = select.poll()
        poll.register(self.sock, 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def rss_bytes(pid: int) -> int:
    return int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) << 10


def connections(engine: Engine) -> list[int]:
    beats = [heartbeat.read(engine.layout.heartbeat(f"reader-{i}")) for i in range(engine.readers)]
    return [beat.connections for beat in beats if beat is not None]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine of little patience with 200 events."""
    engine = Engine(tmp_path_factory.mktemp("load") / "data", env=PATIENCE)
    try:
        engine.start()
        engine.ingest(several(200))
        yield engine
    finally:
        engine.close()


def test_peers_that_do_not_behave_are_closed_and_nobody_else_notices(served: Engine) -> None:
    """No Hello; half a frame, a byte at a time; replies that are never read, many and few; replies read a byte at a
    time. All at once, several of each."""
    pids = served.pids()
    client = served.client()
    expected = shape(ask(client, "e000003"))
    before = [rss_bytes(pid) for pid in pids]
    large = frame(encode(List(1, limit=200, features=True, raw=True)))
    path = served.layout.query_socket
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(Peer(path, hello=False)) for _ in range(4)]
        half = [stack.enter_context(Peer(path)) for _ in range(4)]
        never, few, slow = ([stack.enter_context(Peer(path)) for _ in range(4)] for _ in range(3))
        for peer in half:
            peer.sock.sendall(b"\x40\x42\x0f\x00")
        for peer in never + slow:
            peer.send_what_fits(large)
        for peer in few:  # more than the kernel takes, less than where the engine reads no more
            peer.send(*(List(i, limit=200, features=True, raw=True) for i in range(1, 5)))
        bad = {"silent": silent, "half": half, "never": never, "few": few, "slow": slow}

        def all_closed() -> bool:
            for peer in half + slow:
                with contextlib.suppress(OSError):
                    peer.sock.sendall(b"x") if peer in half else peer.sock.recv(1, socket.MSG_DONTWAIT)
            assert shape(ask(client, "e000003")) == expected
            left = [name for name, peers in bad.items() if not all(peer.closed for peer in peers)]
            assert not left, left
            return True

        eventually(all_closed, every_s=0.05)
        for pid, was in zip(pids, before, strict=True):
            assert rss_bytes(pid) - was < 64 * MIB
    assert served.pids() == pids
    assert "does not read its replies" in served.log


def test_each_of_too_many_requests_has_one_reply(served: Engine) -> None:
    """Eight connections send 600 each, of which 256 may be under way, and read what comes: an answer, OVERLOADED with
    the time to wait, or DEADLINE; once each. A client of the library, which waits as it is told, has all it asked."""
    path = served.layout.query_socket
    found: Counter[str] = Counter()
    problems: list[str] = []

    def flood(number: int) -> None:
        with Peer(path) as peer:
            assert isinstance(peer.reply(), Welcome)
            wanted = set(range(1, 601))
            requests = [QuerySimilar(i, f"e{(i + number) % 200:06d}", Options(deadline_ms=100)) for i in wanted]
            threading.Thread(target=peer.send, args=requests).start()
            while wanted:
                reply = peer.reply()
                if reply.request_id not in wanted:
                    problems.append(f"{reply.request_id} is answered twice: {reply}")
                wanted.discard(reply.request_id)
                found[reply.code.name if isinstance(reply, Failure) else type(reply).__name__] += 1
                if isinstance(reply, Failure) and reply.code == ErrorCode.OVERLOADED and not reply.retry_after_ms:
                    problems.append(f"no time to wait: {reply}")

    threads = [threading.Thread(target=flood, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    with served.client() as polite:
        for n in range(20):
            assert ask(polite, f"e{n:06d}", top_k=5).hits
    for thread in threads:
        thread.join(60)
    assert not problems
    assert found.total() == 8 * 600
    assert found.keys() <= {Answers.__name__, "OVERLOADED", "DEADLINE"}
    assert found["OVERLOADED"] and found[Answers.__name__]


def test_a_crowd_is_served_and_shared(served: Engine, request: pytest.FixtureRequest) -> None:
    """Many connections that say nothing, and some that ask: all are answered, no reader has 20 % more than its part."""
    idle, active = int(request.config.getoption("--idle")), int(request.config.getoption("--active"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < idle + active + 200:
        pytest.skip(f"{idle + active} connections need more than {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before, rss = sum(connections(served)), [rss_bytes(pid) for pid in served.pids()]
    try:
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(Peer(served.layout.query_socket)) for _ in range(idle + active)]
            assert all(isinstance(peer.reply(), Welcome) for peer in peers)
            for i, peer in enumerate(peers[idle:]):
                peer.send(QuerySimilar(1, f"e{i % 200:06d}", Options(deadline_ms=30_000)))
            assert all(isinstance(peer.reply(), Answers) for peer in peers[idle:])
            eventually(lambda: sum(connections(served)) >= idle + active)
            counts = connections(served)
            assert max(counts) <= 1.2 * sum(counts) / len(counts), counts
            grown = sum(rss_bytes(pid) - was for pid, was in zip(served.pids(), rss, strict=True))
            print(f"{idle} idle, {active} active: {counts}, {grown / (idle + active) / 1024:.1f} KiB each")
            assert grown / (idle + active) < 64 << 10
            if request.config.getoption("--keep"):
                kib = round(grown / (idle + active) / 1024, 2)
                figures = {"connections": idle + active, "of_each_reader": counts, "kib_each": kib}
                keep("crowd", {"idle": idle, "active": active}, figures)
        eventually(lambda: sum(connections(served)) <= before, within_s=20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_others_put_into_shared_memory_is_not_the_engines(start: Starter) -> None:
    """A bench beside it, another test."""
    engine = start(readers=1)
    assert engine.process is not None
    with tempfile.TemporaryDirectory(dir=SHM), tempfile.NamedTemporaryFile(dir=SHM) as ours:
        assert shared([os.getpid()]) == {Path(ours.name)}
        assert shared(processes(engine.process.pid)) == set()
        engine.close()


@pytest.mark.parametrize("who", ["supervisor", "reader-0"])
def test_without_descriptors_connections_wait_and_are_served_later(start: Starter, who: str) -> None:
    engine = start(readers=1)
    assert engine.process is not None
    pid = engine.process.pid if who == "supervisor" else engine.pid(who)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, hard))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(engine.layout.query_socket)) for _ in range(20)]
        eventually(lambda: "Too many open files; tried again" in engine.log)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert all(isinstance(peer.reply(), Welcome) for peer in peers)
        for peer in peers:
            peer.send(Ping(1))
            assert isinstance(peer.reply(), Pong)
    eventually(lambda: re.search(r"connections are (accepted|taken) again", engine.log))
    assert engine.log.count("tried again every 0.1 s") == 1


def test_too_few_descriptors_are_told_at_the_start_and_connections_beyond_are_refused(tmp_path: Path) -> None:
    engine = Engine(
        tmp_path / "data", readers=1, under=("bash", "-c", f'ulimit -n {FILES}; exec "$@"', "bash"), env=PATIENCE
    )
    try:
        engine.start()
        taken = int(re.findall(r"a worker takes (\d+) connections, not sockets.connections_max = 12000", engine.log)[0])
        assert 100 < taken < FILES
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(Peer(engine.layout.query_socket)) for _ in range(taken)]
            assert all(isinstance(peer.reply(), Welcome) for peer in peers)
            with pytest.raises(OverloadedError, match=f"all {taken} connections are in use"):
                engine.client(timeout_ms=500).ping()
            peers[0].send(Ping(1))
            assert isinstance(peers[0].reply(), Pong)
        assert engine.client().ping().generation > 0
    finally:
        engine.close()


def test_ingest_faster_than_the_disk_waits_and_loses_nothing(start: Starter, tmp_path: Path) -> None:
    """Every sync takes 50 ms and 1,024 events may wait: writers are told to, the worker's memory stays, the command
    waits as it is told, and what was acknowledged is there once."""
    (tmp_path / "seam").mkdir()
    slow, env = slow_disk(tmp_path / "seam")
    engine = start(env=env | {"FLOWKIN_INGEST__QUEUE_EVENTS": "1024", "FLOWKIN_INGEST__COMMIT_EVENTS": "200"})
    engine.ingest(several(64))
    before = rss_bytes(engine.pid("ingest"))
    slow.write_text("50")
    refused: list[ClientError] = []
    acknowledged: list[str] = []

    def feed(number: int) -> None:
        with Client.for_data_dir(engine.data_dir, timeout_ms=60_000) as client:
            for at in range(3):
                batch = several(100, 1_000 + number * 500 + at * 100)
                try:
                    client.ingest("ndjson", batch, source="test")
                    acknowledged.extend(ids(batch))
                except ClientError as e:
                    refused.append(e)

    threads = [threading.Thread(target=feed, args=(n,)) for n in range(15)]
    for thread in threads:
        thread.start()
    fed = engine.json("ingest", write(tmp_path / "e.ndjson", several(500, 20_000)))
    for thread in threads:
        thread.join(120)
    slow.unlink()
    assert fed["accepted"] == 500
    assert not refused
    facts = engine.facts()
    assert facts["ingest"]["errors"] > 0  # told to wait
    assert rss_bytes(engine.pid("ingest")) - before < 96 * MIB
    stored = Counter(stored_ids(engine.client()))
    assert set(stored.values()) == {1}
    assert stored.keys() == {*ids(several(64)), *acknowledged, *ids(several(500, 20_000))}


def test_a_stopped_reader_costs_its_clients_one_connection(start: Starter, request: pytest.FixtureRequest) -> None:
    """SIGSTOP: killed after hang_after_ms and replaced; whoever asks again is answered. With --stop-s for so long,
    and with hang_after_ms as it ships."""
    stop_s = float(request.config.getoption("--stop-s"))
    engine = start(env={} if stop_s else {"FLOWKIN_HANG_AFTER_MS": "1000"})
    engine.ingest(several(100))
    clients = [engine.client() for _ in range(8)]
    expected = [shape(ask(client, "e000003")) for client in clients]
    victim = engine.pid("reader-0")
    os.kill(victim, signal.SIGSTOP)
    stopped_s = time.monotonic()
    assert [shape(ask(client, "e000003")) for client in clients] == expected
    engine.replaced("reader-0", victim)
    replaced_s = time.monotonic() - stopped_s
    if stop_s:
        eventually(lambda: time.monotonic() - stopped_s >= stop_s, within_s=stop_s + 1, every_s=0.1)
        with pytest.raises(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
        assert replaced_s < stop_s
        assert [shape(ask(client, "e000003")) for client in clients] == expected
        if request.config.getoption("--keep"):
            keep("stopped", {"stop_s": stop_s}, {"stopped_s": stop_s, "replaced_s": round(replaced_s, 2)})
