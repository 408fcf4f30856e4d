"""Both clients against the real server side, in one process: the engine's loop runs in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
import uvloop

from ipc import errors
from ipc.aio import AsyncClient
from ipc.client import Client
from ipc.event import Event, FeaturedEvent
from ipc.frames import FrameReader, frame
from ipc.messages import (
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    AddModel,
    Answers,
    Cancel,
    Classified,
    Classify,
    Compact,
    Done,
    ErrorCode,
    Explain,
    Explained,
    Explanation,
    Facts,
    Failure,
    ForgetModel,
    Found,
    Generation,
    Get,
    Hello,
    Info,
    Ingest,
    Ingested,
    Label,
    List,
    Measure,
    Models,
    Options,
    Ping,
    Pong,
    Purge,
    QueryEvent,
    QuerySimilar,
    QueryVector,
    Recent,
    Reply,
    Request,
    RollbackModel,
    Scrub,
    SearchText,
    Stats,
    UseModel,
    Watch,
    Welcome,
    decode_reply,
    encode,
)
from ipc.server import Bounds, Connection, Role, Server
from tests.engine_fixture import open_files
from tests.wait import eventually

EVENT = FeaturedEvent(Event(event_id="a", source="s", ts=2, ts_start=1))
QUICK = Bounds(connections_max=50, pending_max=4, hello_s=0.2, frame_s=0.2, write_s=0.3, write_high_bytes=1 << 16)


class OddError(Exception):
    code = ErrorCode.NO_SPACE


class Engine:
    """A query and a write socket served on a loop, a uvloop if none is given, in a thread. Get(["...", ...]) gives
    orders."""

    def __init__(self, directory: Path, bounds: Bounds, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.query, self.write = directory / "q.sock", directory / "w.sock"
        self.seen: list[Request] = []
        self.late: list[tuple[Connection, int]] = []  # requests never answered
        self.watchers: list[tuple[Connection, int]] = []
        self.closes = 0
        self.servers = {name: self._server(name, bounds) for name in ("read", "write")}
        self._loop = loop or uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listeners: list[asyncio.AbstractServer] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._sockets: list[socket.socket] = []
        for role, path in (("read", self.query), ("write", self.write)):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(path))
            listener.listen(128)
            listener.setblocking(False)
            self._sockets.append(listener)
            self.do(lambda role=role, listener=listener: self._accept(role, listener))

    def _server(self, role: Role, bounds: Bounds) -> Server:
        def closed() -> None:
            self.closes += 1

        return Server(
            role=role,
            handle=self.handle,
            generation=lambda: 7,
            name=role,
            version="0",
            other_socket="/the/other.sock",
            bounds=bounds,
            on_close=closed,
        )

    def _accept(self, role: str, listener: socket.socket) -> None:
        def readable() -> None:
            with contextlib.suppress(BlockingIOError):
                self.servers[role].adopt(listener.accept()[0])

        self._loop.add_reader(listener, readable)

    def do(self, fn: Callable[[], object]) -> None:
        """Run on the engine's loop, and wait for it."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (fn(), done.set()))
        assert done.wait(5)

    def run(self, coro) -> object:  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(coro, self._loop).result(5)

    def handle(self, connection: Connection, request: Request) -> None:
        self.seen.append(request)
        i = request.request_id
        reply: Reply
        match request:
            case Get(ids=["late", *_]):
                self.late.append((connection, i))
                return
            case Get(ids=["break", times]) if sum(r == Get for r in map(type, self.seen)) <= int(times):
                connection.abort()
                return
            case Get(ids=["busy", times]) | Label(id="busy", label=times) if self.asked(request) <= int(times):
                connection.fail(i, ErrorCode.OVERLOADED, "as asked", 5)
                return
            case Get(ids=["large"]):
                connection.reply_raw(i, bytes(FRAME_BYTES_MAX + 1))
                return
            case Get(ids=["bytes", size]):
                connection.reply(Facts(i, 7, {"x": "x" * int(size)}))
                return
            case Get(ids=["raise"]):
                raise ZeroDivisionError("secret")
            case Get(ids=["no_space"]):
                raise OddError("the disk is full")
            case Get(ids=["fail", code]):
                connection.fail(i, ErrorCode(int(code)), "as asked", 50)
                return
            case Label(label="break"):
                connection.abort()
                return
            case Label(label="late") | Ingest(format="late") | Scrub() | Measure():
                self.late.append((connection, i))
                return
            case Watch():
                self.watchers.append((connection, i))
                return
            case Ping():
                reply = Pong(i, 7)
            case Info() | Stats() | Models():
                reply = Facts(i, 7, {"uid": connection.uid, "pid": connection.pid, "client": connection.client})
            case Get() | List() | Recent():
                reply = Found(i, 7, [], ["a"], 3)
            case QuerySimilar() | QueryEvent() | QueryVector() | SearchText():
                reply = Answers(i, 7, [])
            case Classify():
                reply = Classified(i, 7, [])
            case Explain():
                reply = Explained(i, 7, Explanation(event_id="a", space="attack", distance=1.0))
            case Ingest():
                reply = Ingested(i, 7, len(request.events), 0, len(request.rejects))
            case Label() | UseModel() | AddModel() | RollbackModel() | ForgetModel() | Compact() | Purge():
                reply = Done(i, 7)
            case _:
                raise AssertionError(request)
        connection.reply(reply)

    def asked(self, request: Request) -> int:
        return sum(type(seen) is type(request) for seen in self.seen)

    @property
    def open(self) -> int:
        return sum(len(server.connections) for server in self.servers.values())

    def shut(self, role: str) -> None:
        """All connections of a role are gone, as when its worker leaves."""
        server = self.servers[role]
        gone = list(server.connections)
        self.do(lambda: (server.close(), setattr(server, "draining", False)))
        eventually(lambda: not server.connections.intersection(gone))

    def stop(self) -> None:
        for server in self.servers.values():
            self.do(server.close)
        eventually(lambda: self.open == 0)
        accepted = sum(server.counters.accepted for server in self.servers.values())
        eventually(lambda: self.closes == accepted)
        for listener in self._sockets:
            self.do(lambda listener=listener: self._loop.remove_reader(listener))
            listener.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path, QUICK)
    yield engine
    engine.stop()


@pytest.fixture
def client(engine: Engine) -> Iterator[Client]:
    with Client(engine.query, engine.write, timeout_ms=2_000, client_name="test") as client:
        yield client


class Raw:
    """A peer that need not behave."""

    def __init__(self, path: Path, *, hello: bool = True) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(5)
        self.sock.connect(str(path))
        self.frames = FrameReader(FRAME_BYTES_MAX)
        if hello:
            self.send(Hello(PROTOCOL_VERSION, "raw"))
            welcome = self.reply()
            if not isinstance(welcome, Welcome):
                self.sock.close()
                raise AssertionError(welcome)

    def send(self, *requests: Request) -> None:
        self.sock.sendall(b"".join(frame(encode(request)) for request in requests))

    def reply(self) -> Reply | None:
        """The next reply, None at the end of the stream."""
        while (body := self.frames.next_frame()) is None:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.frames.feed(data)
        return decode_reply(body)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


# ---- every message, both clients


def ask_all(c: Client) -> list[Reply]:
    return [
        c.ping(), c.info(), c.stats(), c.models(), c.get(["a"], features=True, raw=True), c.list(limit=3),
        c.recent(by_event_time=True), c.query_similar("a", options=Options(top_k=3)), c.query_events([EVENT]),
        c.query_vector(b"\0" * 8, "m"), c.search_text("dns"), c.explain("a", "b"), c.label("a", "tp", by="ann"),
        c.ingest("eve", [EVENT, EVENT]), c.use_model("v2"), c.add_model("v2", {"x": b"1"}), c.classify(["a"], [EVENT]),
        c.rollback_model(), c.forget_model(),
    ]  # fmt: skip


async def ask_all_async(c: AsyncClient) -> list[Reply]:
    return [
        await c.ping(), await c.info(), await c.stats(), await c.models(), await c.get(["a"], features=True, raw=True),
        await c.list(limit=3), await c.recent(by_event_time=True), await c.query_similar("a", options=Options(top_k=3)),
        await c.query_events([EVENT]), await c.query_vector(b"\0" * 8, "m"), await c.search_text("dns"),
        await c.explain("a", "b"), await c.label("a", "tp", by="ann"), await c.ingest("eve", [EVENT, EVENT]),
        await c.use_model("v2"), await c.add_model("v2", {"x": b"1"}), await c.classify(["a"], [EVENT]),
        await c.rollback_model(), await c.forget_model(),
    ]  # fmt: skip


def test_both_clients_speak_every_message(engine: Engine, client: Client) -> None:
    replies = ask_all(client)
    sent, engine.seen = engine.seen, []

    async def scenario() -> list[Reply]:
        async with AsyncClient(engine.query, engine.write, client_name="test") as c:
            return await ask_all_async(c)

    assert asyncio.run(scenario()) == replies
    assert [type(request) for request in engine.seen] == [type(request) for request in sent]
    assert replies[1] == Facts(2, 7, {"uid": os.getuid(), "pid": os.getpid(), "client": "test"})
    assert isinstance(replies[13], Ingested)
    assert replies[13].accepted == 2


def test_the_deadline_of_the_call_travels_in_the_request(engine: Engine, client: Client) -> None:
    client.query_similar("a", timeout_ms=300)
    client.get(["a"], timeout_ms=300)
    similar, get = engine.seen
    assert isinstance(similar, QuerySimilar)
    assert isinstance(get, Get)
    assert 200 < similar.options.deadline_ms <= 300
    assert 200 < get.deadline_ms <= 300


def test_failures_are_raised_by_name(client: Client) -> None:
    with pytest.raises(errors.NotReadyError, match="as asked") as e:
        client.get(["fail", "5"])
    assert (e.value.retry_after_ms, e.value.exit_status) == (50, 6)
    with pytest.raises(errors.NoSpaceError, match="the disk is full"):
        client.get(["no_space"])
    with pytest.raises(errors.InternalError) as internal:
        client.get(["raise"])
    assert "secret" not in str(internal.value)
    client.ping()


def test_a_reply_too_large_for_a_frame_says_to_ask_for_less(client: Client) -> None:
    with pytest.raises(errors.BadRequestError, match="ask for less"):
        client.get(["large"])
    client.ping()


def test_no_engine_is_a_connect_error(tmp_path: Path) -> None:
    with pytest.raises(errors.ConnectError, match="is it started") as e:
        Client(tmp_path / "none.sock").ping()
    assert e.value.exit_status == 5
    with pytest.raises(errors.ConnectError):
        asyncio.run(AsyncClient(tmp_path / "none.sock").ping())


# ---- breaking connections


def test_a_read_is_sent_again_once_when_its_connection_breaks(engine: Engine, client: Client) -> None:
    client.get(["break", "1"])
    engine.seen.clear()
    with pytest.raises(errors.ConnectionLostError):
        client.get(["break", "9"])
    assert len(engine.seen) == 2
    client.ping()


def test_a_write_is_never_sent_again(engine: Engine, client: Client) -> None:
    with pytest.raises(errors.ConnectionLostError):
        client.label("a", "break")
    assert len(engine.seen) == 1
    client.label("a", "tp")


def test_the_async_client_sends_reads_again_and_writes_not(engine: Engine) -> None:
    async def scenario() -> None:
        async with AsyncClient(engine.query, engine.write) as c:
            await c.get(["break", "1"])
            with pytest.raises(errors.ConnectionLostError):
                await c.label("a", "break")
            await c.label("a", "tp")

    asyncio.run(scenario())
    assert [type(r) for r in engine.seen] == [Get, Get, Label, Label]


@pytest.mark.parametrize("role", ["read", "write"])
def test_an_idle_connection_that_the_engine_closed_is_noticed_before_sending(
    engine: Engine, client: Client, role: str
) -> None:
    client.ping()
    client.label("a", "tp")
    engine.shut(role)
    client.label("a", "tp")
    client.ping()


# ---- deadlines, cancel, interrupt


def test_what_was_refused_for_want_of_room_is_sent_again_when_the_engine_says(engine: Engine, client: Client) -> None:
    """A write, too: nothing of it was done. All within the one deadline; then the refusal is what is raised."""
    assert client.get(["busy", "3"]).generation == 7
    assert client.label("busy", "2").generation == 7
    assert [type(request) for request in engine.seen] == [Get] * 4 + [Label] * 3
    with pytest.raises(errors.OverloadedError, match="as asked"):
        client.get(["busy", "1000"], timeout_ms=50)

    async def scenario() -> None:
        engine.seen.clear()
        async with AsyncClient(engine.query, engine.write) as c:
            assert (await c.get(["busy", "3"])).generation == 7
            assert (await c.label("busy", "2")).generation == 7
            with pytest.raises(errors.OverloadedError):
                await c.get(["busy", "1000"], timeout_ms=50)

    asyncio.run(scenario())


def test_a_late_answer_is_a_deadline_error_and_the_request_is_cancelled(engine: Engine, client: Client) -> None:
    start_s = time.monotonic()
    with pytest.raises(errors.DeadlineError):
        client.get(["late"], timeout_ms=50)
    assert time.monotonic() - start_s < 2
    connection, request_id = engine.late[0]
    eventually(lambda: not connection.wants(request_id))
    client.ping()


def test_the_async_client_drops_a_late_answer_and_keeps_the_connection(engine: Engine) -> None:
    async def scenario() -> None:
        async with AsyncClient(engine.query, timeout_ms=2_000) as c:
            await c.ping()
            with pytest.raises(errors.DeadlineError):
                await c.get(["late"], timeout_ms=1)
            task = asyncio.create_task(c.get(["late"]))
            while len(engine.late) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await c.ping()

    asyncio.run(scenario())
    for connection, request_id in engine.late:
        eventually(lambda c=connection, i=request_id: not c.wants(i))
    assert engine.servers["read"].counters.accepted == 1


def test_ctrl_c_cancels_and_closes(engine: Engine, client: Client) -> None:
    def interrupt() -> None:
        eventually(lambda: engine.late)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        client.get(["late"])
    thread.join()
    connection, request_id = engine.late[0]
    eventually(lambda: not connection.wants(request_id))
    eventually(lambda: not engine.servers["read"].connections)
    client.ping()


def test_cancel_answers_the_target_with_cancelled(engine: Engine) -> None:
    with Raw(engine.query) as raw:
        raw.send(Get(1, ["late"]), Cancel(2, 1), Cancel(3, 1))
        assert raw.reply() == Failure(1, ErrorCode.CANCELLED, "cancelled by the client")
        assert raw.reply() == Done(2, 7, {"cancelled": True})
        assert raw.reply() == Done(3, 7, {"cancelled": False})
        connection, _ = engine.late[0]
        engine.do(lambda: connection.reply(Pong(1, 7)))  # dropped
        raw.send(Ping(1), Ping(4))  # or the late answer would be that of the second
        assert raw.reply() == Failure(1, ErrorCode.BAD_REQUEST, "request id 1 was cancelled; take another")
        assert raw.reply() == Pong(4, 7)


# ---- pipelining and watching


def test_pipelined_requests_are_answered_in_order_and_failures_stop_nothing(engine: Engine, client: Client) -> None:
    makes = [(lambda i, ms, n=n: Get(i, ["fail", "3"] if n % 3 == 0 else ["a"])) for n in range(20)]
    kinds = [type(reply) for reply in client.pipeline(makes, window=4)]
    assert kinds == [Failure if n % 3 == 0 else Found for n in range(20)]


def test_large_requests_and_large_replies_at_once_do_not_block_each_other(engine: Engine, client: Client) -> None:
    big = FeaturedEvent(EVENT.event, b"", bytes(1 << 20))
    replies = list(client.pipeline([lambda i, ms: QueryEvent(i, [big] * 3)] * 8, window=4))
    assert [type(reply) for reply in replies] == [Answers] * 8
    sizes = [300_000] * 12
    got = list(client.pipeline([lambda i, ms, n=n: Get(i, ["bytes", str(n)]) for n in sizes], window=4))
    assert [len(reply.facts["x"]) for reply in got if isinstance(reply, Facts)] == sizes


def test_an_abandoned_pipeline_leaves_a_usable_client(engine: Engine, client: Client) -> None:
    replies = client.pipeline([lambda i, ms: Ping(i)] * 20, window=4)
    next(replies)
    replies.close()
    assert client.ping().generation == 7


def test_watch_gives_growing_generations_and_survives_its_reader(engine: Engine, client: Client) -> None:
    def publish(generation: int) -> None:
        connection, request_id = engine.watchers[-1]
        engine.do(lambda: connection.reply(Generation(request_id, generation), more=True))

    def later() -> None:
        eventually(lambda: len(engine.watchers) == 1)
        for generation in (3, 4, 4, 5):
            publish(generation)
        engine.shut("read")
        eventually(lambda: len(engine.watchers) == 2)
        publish(5)
        publish(9)

    thread = threading.Thread(target=later)
    thread.start()
    watching = client.watch(after_generation=3)
    assert [next(watching) for _ in range(3)] == [4, 5, 9]
    watching.close()
    thread.join()
    eventually(lambda: not engine.servers["read"].connections)


def test_the_async_client_watches_beside_other_calls(engine: Engine) -> None:
    async def scenario() -> None:
        async with AsyncClient(engine.query) as c:
            watching = c.watch()
            first = asyncio.create_task(anext(watching))
            while not engine.watchers:
                await asyncio.sleep(0.01)
            await asyncio.gather(*(c.ping() for _ in range(3)))
            connection, request_id = engine.watchers[0]
            engine._loop.call_soon_threadsafe(lambda: connection.reply(Generation(request_id, 8), more=True))
            assert await first == 8
            await watching.aclose()
            await c.ping()

    asyncio.run(scenario())


# ---- a client that is closed


LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("loop", LOOPS)
def test_what_an_async_client_waits_for_ends_when_it_is_closed(
    engine: Engine, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Reads are not sent again, the watch does not connect again, what was refused is not tried again."""
    before = open_files()

    async def scenario() -> None:
        c = AsyncClient(engine.query, engine.write, timeout_ms=5_000)
        watched: list[int] = []

        async def watch() -> None:
            watched.extend([generation async for generation in c.watch()])

        read, written = asyncio.create_task(c.get(["late"])), asyncio.create_task(c.label("a", "late"))
        refused, watching = asyncio.create_task(c.get(["busy", "1000000"])), asyncio.create_task(watch())
        while len(engine.late) < 2 or not engine.watchers or not refused_once(engine):
            await asyncio.sleep(0.01)
        c.close()
        for task in (read, written, refused):
            with pytest.raises(errors.ConnectError, match="the client was closed"):
                await task
        await watching
        assert watched == []
        for call in (c.ping(), c.label("a", "tp")):
            with pytest.raises(errors.ConnectError, match="the client was closed"):
                await call
        assert [generation async for generation in c.watch()] == []
        c.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())
    eventually(lambda: engine.open == 0)
    assert [server.counters.accepted for server in engine.servers.values()] == [1, 1]
    assert open_files() - before == set()


def refused_once(engine: Engine) -> bool:
    return any(request.ids[0] == "busy" for request in engine.seen if isinstance(request, Get))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("there", [True, False])
def test_an_async_client_that_is_closed_while_it_connects_keeps_no_connection(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop], steps: int, there: bool
) -> None:
    """At each step: before there is a connection, when it was just made, while no Welcome comes."""
    path, before = tmp_path / "mute.sock", open_files()

    async def scenario() -> None:
        c = AsyncClient(path, timeout_ms=5_000)
        tasks = [asyncio.create_task(c.ping()) for _ in range(2)]
        for _ in range(steps):
            await asyncio.sleep(0)
        c.close()
        for task in tasks:
            with pytest.raises(errors.ConnectError, match="the client was closed" if there else None):
                await task

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mute:
        if there:
            mute.bind(str(path))
            mute.listen(4)
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(scenario())
        assert {name for name in open_files() - before if name.split()[0] != str(mute.fileno())} == set()


def test_one_that_sends_much_at_once_holds_up_nobody(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it lies in one read; after its time the others have their turn, and then the rest comes, in order."""
    monkeypatch.setattr("ipc.server.TURN_S", 0.0)
    with Raw(engine.query) as many, Raw(engine.query) as one:
        engine.do(lambda: (many.send(*(Ping(i) for i in range(1, 201))), one.send(Ping(1_000))))
        assert [many.reply() for _ in range(200)] == [Pong(i, 7) for i in range(1, 201)]
        assert one.reply() == Pong(1_000, 7)
        many.send(Ping(201))
        assert many.reply() == Pong(201, 7)
    ids = [request.request_id for request in engine.seen]
    assert ids.index(1_000) <= 2


def test_half_a_frame_behind_many_whole_ones_has_its_time_too(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipc.server.TURN_S", 0.0)
    with Raw(engine.query) as raw:
        raw.sock.sendall(b"".join(frame(encode(Ping(i))) for i in range(1, 4)) + b"\x40\0\0\0\x90")
        assert [raw.reply() for _ in range(3)] == [Pong(i, 7) for i in range(1, 4)]
        ended = raw.reply()
        assert isinstance(ended, Failure) and "half a frame" in ended.detail
        assert raw.reply() is None


def test_what_a_closed_client_had_under_way_does_not_connect_again(engine: Engine) -> None:
    with Client(engine.query, engine.write, timeout_ms=2_000) as client:
        watching = client.watch()
        thread = threading.Thread(target=lambda: publish(engine, 8))
        thread.start()
        assert next(watching) == 8
        thread.join()
        replies = client.pipeline([lambda i, ms: Ping(i)] * 20, window=4)
        next(replies)
        few = client.pipeline([lambda i, ms: Label(i, "a", "tp")] * 20, window=4)
        next(few)
    eventually(lambda: engine.open == 0)
    labels = sum(isinstance(request, Label) for request in engine.seen)
    for pipeline in (replies, few):
        with pytest.raises(errors.ConnectionLostError):
            next(pipeline)
    assert list(watching) == []
    assert [server.counters.accepted for server in engine.servers.values()] == [2, 1]
    assert sum(isinstance(request, Label) for request in engine.seen) == labels
    assert client.ping().generation == 7  # it may be asked anew
    client.close()


def publish(engine: Engine, generation: int) -> None:
    connection, request_id = eventually(lambda: engine.watchers and engine.watchers[-1])
    engine.do(lambda: connection.reply(Generation(request_id, generation), more=True))


# ---- the server side, against peers that do not behave


def test_the_first_message_must_be_a_hello_of_a_known_version(engine: Engine) -> None:
    for first in (Ping(5), Hello(PROTOCOL_VERSION + 1), Hello(0)):
        with Raw(engine.query, hello=False) as raw:
            raw.send(first)
            reply = raw.reply()
            assert isinstance(reply, Failure)
            assert reply.code == ErrorCode.VERSION
            assert "speaks protocol 1 to 1" in reply.detail
            assert raw.reply() is None
    with Raw(engine.query) as raw:
        raw.send(Hello(PROTOCOL_VERSION, request_id=3), Ping(4))
        assert isinstance(raw.reply(), Failure)
        assert raw.reply() == Pong(4, 7)


def test_silence_before_the_hello_ends_the_connection(engine: Engine) -> None:
    with Raw(engine.query, hello=False) as raw:
        reply = raw.reply()
        assert isinstance(reply, Failure)
        assert "no Hello came within 0.2 s" in reply.detail
        assert raw.reply() is None


def test_half_a_frame_ends_the_connection_however_it_dribbles(engine: Engine) -> None:
    with Raw(engine.query) as raw:
        raw.send(Ping(1))
        assert raw.reply() == Pong(1, 7)
        raw.sock.sendall(b"\x40\0\0\0")
        start_s = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start_s < 3:
                raw.sock.sendall(b"x")
                time.sleep(0.02)
                if engine.open == 0:
                    break
        assert time.monotonic() - start_s < 2
        reply = raw.reply()
        assert isinstance(reply, Failure)
        assert "half a frame" in reply.detail


@pytest.mark.parametrize("kind", [asyncio.SelectorEventLoop, uvloop.Loop])
def test_the_time_for_half_a_frame_runs_only_while_its_peer_is_read(
    tmp_path: Path, kind: type[asyncio.AbstractEventLoop]
) -> None:
    """Ten replies that are written while a read is looked through are more than may stay unread, and the read ends with
    half a frame: no timer may be left of it that would end a peer which then sends the rest and reads everything."""
    bounds = QUICK._replace(pending_max=10, frame_s=60.0, write_s=60.0)
    timers: list[asyncio.TimerHandle] = []

    class Loop(kind):  # type: ignore[misc, valid-type]
        def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
            timer: asyncio.TimerHandle = super().call_later(delay, callback, *args)
            if callback.__name__ == "_end" and delay == bounds.frame_s:
                timers.append(timer)
            return timer

    engine = Engine(tmp_path, bounds, Loop())
    last = frame(encode(Ping(11)))
    with Raw(engine.query) as raw:
        gets = [frame(encode(Get(n, ["bytes", "100000"]))) for n in range(1, 11)]
        raw.sock.sendall(b"".join(gets) + last[:3])
        eventually(lambda: len(engine.seen) == 10)
        engine.do(lambda: None)  # and the read that they came with was looked through
        assert timers == []
        assert [type(raw.reply()) for _ in range(10)] == [Facts] * 10
        eventually(lambda: len(timers) == 1 and not timers[0].cancelled())
        raw.sock.sendall(last[3:])
        assert raw.reply() == Pong(11, 7)
        eventually(lambda: [timer.cancelled() for timer in timers] == [True])
    engine.stop()


def test_an_idle_connection_between_frames_is_left_alone(engine: Engine) -> None:
    with Raw(engine.query) as raw:
        time.sleep(QUICK.frame_s + QUICK.hello_s)
        raw.send(Ping(1))
        assert raw.reply() == Pong(1, 7)


@pytest.mark.parametrize("stream", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_stream_without_frames_is_closed(engine: Engine, stream: bytes) -> None:
    for hello in (True, False):
        with Raw(engine.query, hello=hello) as raw:
            raw.sock.sendall(stream)
            assert isinstance(raw.reply(), Failure)
            assert raw.reply() is None
    eventually(lambda: engine.open == 0)


def test_a_hello_has_small_frames_only(engine: Engine) -> None:
    with Raw(engine.query, hello=False) as raw:
        raw.sock.sendall(frame(msgpack.packb([0, 1, "x" * 5_000])))
        reply = raw.reply()
        assert isinstance(reply, Failure)
        assert "oversized" in reply.detail


def test_a_bad_body_in_a_good_frame_costs_one_failure(engine: Engine) -> None:
    bodies = [msgpack.packb([1, "x"]), msgpack.packb([99, 17]), b"\xc1", b"\x92\x01" + b"\x91" * 50_000]
    bodies += [msgpack.packb([7, 21, "a", {"top_k": 0}]), b"\x93\x07\x16\xa2\xff\xfe"]
    with Raw(engine.query) as raw:
        for body, request_id in zip(bodies, [0, 17, 0, 0, 21, 22], strict=True):
            raw.sock.sendall(frame(body))
            reply = raw.reply()
            assert isinstance(reply, Failure)
            assert (reply.request_id, reply.code) == (request_id, ErrorCode.BAD_REQUEST)
            assert len(reply.detail) <= 500
        raw.send(Ping(1))
        assert raw.reply() == Pong(1, 7)


def test_each_role_refuses_the_others_messages_naming_the_right_socket(engine: Engine) -> None:
    with Raw(engine.query) as raw:
        raw.send(Label(3, "a", "b"))
        reply = raw.reply()
        assert isinstance(reply, Failure)
        assert reply.code == ErrorCode.WRONG_SOCKET
        assert reply.detail == "Label belongs to the write socket (/the/other.sock)"
    with Raw(engine.write) as raw:
        raw.send(Get(3, ["a"]), Ping(4), Stats(5))
        reply = raw.reply()
        assert isinstance(reply, Failure)
        assert reply.detail == "Get belongs to the query socket (/the/other.sock)"
        assert raw.reply() == Pong(4, 7)
        assert isinstance(raw.reply(), Facts)


def test_pending_requests_are_bounded_and_their_ids_unique(engine: Engine) -> None:
    with Raw(engine.query) as raw:
        raw.send(*(Get(n, ["late"]) for n in range(1, 5)))
        raw.send(Get(1, ["late"]))
        reply = raw.reply()
        assert isinstance(reply, Failure)
        assert (reply.request_id, reply.code) == (1, ErrorCode.BAD_REQUEST)
        raw.send(Ping(9))
        reply = raw.reply()
        assert isinstance(reply, Failure)
        assert (reply.request_id, reply.code, reply.retry_after_ms) == (9, ErrorCode.OVERLOADED, 100)


def test_a_peer_that_does_not_read_is_not_read_and_then_closed(engine: Engine) -> None:
    with Raw(engine.query) as raw:
        raw.sock.settimeout(0.05)
        sent = 0
        with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            for n in range(100_000):
                raw.send(Get(n + 1, ["bytes", "20000"]))
                sent += 1
        assert sent < 90_000
        eventually(lambda: engine.open == 0)
        assert len(engine.seen) * 20_000 < QUICK.write_bytes_max
    assert engine.servers["read"].counters.errors == 1


def test_more_answers_at_once_than_a_connection_holds_are_refused_and_those_it_holds_are_read(tmp_path: Path) -> None:
    """A client that read all it could was closed for not reading: no kernel takes 4 MB within one turn of a loop."""
    engine = Engine(tmp_path, QUICK._replace(pending_max=300, write_bytes_max=1 << 20, write_s=10.0))
    with Raw(engine.query) as raw:
        raw.send(*(Get(n, ["late"]) for n in range(1, 201)))
        eventually(lambda: len(engine.late) == 200)

        def answer() -> None:
            for connection, request_id in engine.late:
                connection.reply(Facts(request_id, 7, {"x": "x" * 20_000}))

        engine.do(answer)
        replies = [raw.reply() for _ in range(200)]
        codes = [reply.code for reply in replies if isinstance(reply, Failure)]
        assert {reply.request_id for reply in replies} == set(range(1, 201))
        assert 0 < len(codes) < 190 and set(codes) == {ErrorCode.OVERLOADED}
        raw.send(Ping(900))
        assert raw.reply() == Pong(900, 7)
    engine.stop()


def test_a_forked_client_has_a_connection_of_its_own(client: Client, engine: Engine) -> None:
    """With its parent's it took its parent's answers, whose requests have the same ids."""
    client.ping()
    child = os.fork()
    if child == 0:
        os._exit(0 if client.ping().generation == 7 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.ping().generation == 7
    assert engine.servers["read"].counters.accepted == 2


def test_an_hour_for_a_call_is_more_than_a_message_may_say(engine: Engine) -> None:
    with Client(engine.query, timeout_ms=3_600_000) as client:
        client.recent()

    async def ask() -> None:
        async with AsyncClient(engine.query, timeout_ms=3_600_000) as client:
            await client.recent()

    asyncio.run(ask())
    assert [request.deadline_ms for request in engine.seen if isinstance(request, Recent)] == [600_000, 600_000]


@pytest.mark.parametrize("kind", [*errors.BY_CODE.values(), errors.ConnectError, errors.ConnectionLostError])
def test_an_error_crosses_to_another_process(kind: type[errors.ClientError]) -> None:
    connects = issubclass(kind, errors.ConnectError)
    error = kind("a.sock", "why") if connects else kind(ErrorCode.DENIED, "why", 5)  # type: ignore[arg-type]
    other = copy.copy(error)
    assert (type(other), vars(other), str(other)) == (kind, vars(error), "why")


def test_a_peer_that_leaves_takes_its_requests_along(engine: Engine) -> None:
    with Raw(engine.query) as raw:
        raw.send(Get(1, ["late"]))
        connection, request_id = eventually(lambda: engine.late and engine.late[0])
        assert connection.wants(request_id)
    eventually(lambda: not connection.wants(request_id))
    engine.do(lambda: connection.reply(Pong(request_id, 7)))


def test_connections_are_bounded(engine: Engine) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(QUICK.connections_max):
            stack.enter_context(Raw(engine.query))
        with pytest.raises(errors.OverloadedError, match="connections are in use"):
            Client(engine.query, timeout_ms=300).ping()
        with pytest.raises(errors.OverloadedError):
            asyncio.run(AsyncClient(engine.query, timeout_ms=300).ping())
    eventually(lambda: engine.open == 0)
    assert engine.closes == engine.servers["read"].counters.accepted > QUICK.connections_max + 2


def test_drain_answers_what_is_pending_reads_no_more_and_closes(engine: Engine) -> None:
    with Client(engine.query) as client:
        client.ping()
    eventually(lambda: engine.open == 0)  # that it was once without connections must not end the drain
    with Raw(engine.query) as idle, Raw(engine.query) as busy, Raw(engine.query) as watching:
        busy.send(Get(1, ["late"]))
        watching.send(Watch(1))
        connection, _ = eventually(lambda: engine.late and engine.late[0])
        eventually(lambda: engine.watchers)
        drained = asyncio.run_coroutine_threadsafe(engine.servers["read"].drain(), engine._loop)
        assert idle.reply() is None
        assert watching.reply() is None
        busy.send(Ping(2))
        assert not drained.done()
        engine.do(lambda: connection.reply(Pong(1, 7)))
        assert busy.reply() == Pong(1, 7)
        assert busy.reply() is None
        drained.result(5)
    with pytest.raises(errors.ConnectionLostError):
        Client(engine.query).ping()


def test_a_drain_waits_for_events_and_for_no_order(engine: Engine) -> None:
    """The tasks of a worker that leaves have ended: nobody would answer a scrub or a switch of models any more."""
    with Raw(engine.write) as both, Raw(engine.write) as ordering:
        both.send(Scrub(1), Ingest(2, "late", []), Label(3, "a", "late"))
        ordering.send(Measure(1))
        eventually(lambda: len(engine.late) == 4)
        drained = asyncio.run_coroutine_threadsafe(engine.servers["write"].drain(), engine._loop)
        for raw, request_id in ((both, 1), (both, 3), (ordering, 1)):
            reply = raw.reply()
            assert isinstance(reply, Failure)
            assert (reply.request_id, reply.code, reply.retry_after_ms) == (request_id, ErrorCode.NOT_READY, 1_000)
            assert "the engine stops" in reply.detail and "ask again" in reply.detail
        assert ordering.reply() is None
        assert not drained.done()
        connection, request_id = next(late for late in engine.late if late[1] == 2)
        engine.do(lambda: connection.reply(Ingested(request_id, 7, 0, 0, 0)))
        assert both.reply() == Ingested(2, 7, 0, 0, 0)
        assert both.reply() is None
        drained.result(5)


def test_an_old_client_of_thirty_lines_with_nothing_but_msgpack_is_served(engine: Engine) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(engine.query))
    stream = sock.makefile("rwb")

    def call(*request: object) -> list[object]:
        body = msgpack.packb(request)
        stream.write(struct.pack("<I", len(body)) + body)
        stream.flush()
        (size,) = struct.unpack("<I", stream.read(4))
        reply: list[object] = msgpack.unpackb(stream.read(size))
        return reply

    assert call(0, 1)[:3] == [64, 0, 1]
    assert call(1, 5) == [65, 5, 7]
    assert call(4, 6, ["a"])[:2] == [68, 6]
    stream.close()
    sock.close()
