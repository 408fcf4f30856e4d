"""The blocking client: one deadline per call, one named error per way to fail.

Always true
  - A call ends by its deadline plus LATE_MS, whatever the engine does. The same deadline travels in the request.
  - A read is sent again, once, when its connection breaks; a write never is. An idle connection that the engine closed
    meanwhile is noticed before a request is sent.
  - A call that is interrupted (Ctrl-C, or any exception while waiting) leaves no connection with an answer under way:
    it is cancelled and closed, and the next call connects anew.
  - One thread at a time. Nothing of ours is imported but ipc, so a client needs msgspec and nothing else.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike, fspath
from types import TracebackType
from typing import Self, TypeVar, get_args

from msgspec.structs import replace

from ipc.errors import ClientError, ConnectError, ConnectionLostError, DeadlineError, VersionError, error_of
from ipc.event import FeaturedEvent, FirewallAction
from ipc.frames import FrameError, FrameReader, frame
from ipc.messages import (
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    AddModel,
    Answers,
    Cancel,
    Classified,
    Classify,
    Done,
    ErrorCode,
    Explain,
    Explained,
    Facts,
    Failure,
    Filter,
    Found,
    Generation,
    Get,
    Hello,
    Info,
    Ingest,
    Ingested,
    Label,
    List,
    Models,
    Options,
    Ping,
    Pong,
    QueryEvent,
    QuerySimilar,
    QueryVector,
    Recent,
    Reject,
    Reply,
    Request,
    SearchText,
    Stats,
    UseModel,
    Voting,
    Watch,
    Welcome,
    Write,
    decode_reply,
    encode,
)

LATE_MS = 500  # what an answer may take on its way beyond the deadline the engine was given
READ_BYTES = 1 << 18
FOREVER = float("inf")
QUERY_SOCKET, WRITE_SOCKET = "run/query.sock", "run/write.sock"  # below a data directory, as engine/layout.py has it

Path = str | PathLike[str]
Make = Callable[[int, int], Request]  # (request id, milliseconds left) -> the request
R = TypeVar("R", bound=Reply)
WRITES = get_args(Write)
DEFAULT, TEXT, VOTING = Options(), Options(space="sbert"), Voting()
How = TypeVar("How", Options, Voting)


class Wire:
    """One connection: requests out, replies in by their id. Sends and receives at once, so that neither side can
    block the other."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.welcome: Welcome | None = None
        self._socket: socket.socket | None = None
        self._frames = FrameReader(FRAME_BYTES_MAX)
        self._replies: dict[int, deque[Reply]] = {}  # by id; an id is here while its replies are awaited

    def connect(self, client_name: str, deadline_s: float) -> None:
        """Connect and say hello, if that is not done or the engine closed meanwhile."""
        if self._socket is not None and (self._replies or not self._gone()):
            return
        for last in (False, True):  # a worker may leave between accept and welcome; nothing was asked yet, so once more
            self.close()
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                left_us = max(1_000, int((deadline_s - time.monotonic()) * 1e6))
                # not settimeout(): on a non-blocking socket a full backlog is an error instead of a wait
                self._socket.setsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", *divmod(left_us, 1_000_000))
                )
                self._socket.connect(self.path)
                self._socket.setblocking(False)
            except BlockingIOError as e:
                self.close()
                raise DeadlineError(ErrorCode.DEADLINE, f"the engine at {self.path} accepts no connection") from e
            except OSError as e:
                self.close()
                why = e.strerror or str(e)
                raise ConnectError(self.path, f"no engine at {self.path} ({why}); is it started?") from e
            try:
                with contextlib.suppress(ConnectionLostError):  # a refusal may already be there to read
                    self.send(Hello(PROTOCOL_VERSION, client_name), deadline_s)
                self.expect(0)
                welcome = self.receive(0, deadline_s)
            except ConnectionLostError:
                self.close()
                if last:
                    raise
                continue
            except BaseException:
                self.close()
                raise
            if not isinstance(welcome, Welcome):
                self.close()
                raise error_of(welcome) if isinstance(welcome, Failure) else self._foreign("no Welcome")
            self.welcome = welcome
            self._replies.clear()
            return

    def expect(self, request_id: int) -> None:
        self._replies.setdefault(request_id, deque())

    def forget(self, request_id: int) -> None:
        self._replies.pop(request_id, None)

    def send(self, request: Request, deadline_s: float) -> None:
        """Send a whole request; replies that come meanwhile are kept."""
        sock = self._open()
        left = memoryview(frame(encode(request)))
        while left:
            try:
                left = left[sock.send(left) :]
            except BlockingIOError:
                if self._wait(select.POLLIN | select.POLLOUT, deadline_s) & ~select.POLLOUT:
                    self._read()
            except OSError as e:
                raise self._lost() from e

    def receive(self, request_id: int, deadline_s: float) -> Reply:
        """The next reply with this id. Failure(0) is about the connection and ends it."""
        waiting = self._replies[request_id]
        while not waiting:
            self._wait(select.POLLIN, deadline_s)
            self._read()
        return waiting.popleft()

    def close(self) -> None:
        sock, self._socket = self._socket, None
        self._replies.clear()
        self._frames = FrameReader(FRAME_BYTES_MAX)
        if sock is not None:
            sock.close()

    def give_up(self, request_id: int) -> None:
        """Nobody waits for this any more: tell the engine if that can be done at once, and close."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(frame(encode(Cancel(0, request_id))))
        self.close()

    def _read(self) -> None:
        try:
            data = self._open().recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as e:
            raise self._lost() from e
        if not data:
            raise self._lost()
        self._frames.feed(data)
        try:
            while (body := self._frames.next_frame()) is not None:
                reply = decode_reply(body)
                if reply.request_id in self._replies:
                    self._replies[reply.request_id].append(reply)
                elif reply.request_id == 0 and isinstance(reply, Failure):
                    self.close()
                    raise error_of(reply)
        except (FrameError, ValueError, RecursionError) as e:
            self.close()
            raise self._foreign(str(e)) from e

    def _wait(self, events: int, deadline_s: float) -> int:
        poll = select.poll()
        poll.register(self._open(), events)
        left_ms = None if deadline_s == FOREVER else max(0.0, deadline_s - time.monotonic()) * 1_000
        ready = poll.poll(left_ms)
        if not ready:
            raise DeadlineError(ErrorCode.DEADLINE, f"no answer from {self.path} in time")
        return ready[0][1]

    def _gone(self) -> bool:
        """The engine closed this idle connection, or left something unasked on it."""
        poll = select.poll()
        poll.register(self._open(), select.POLLIN)
        return bool(poll.poll(0))

    def _open(self) -> socket.socket:
        if self._socket is None:
            raise self._lost()
        return self._socket

    def _lost(self) -> ConnectionLostError:
        return ConnectionLostError(self.path, f"the connection to {self.path} broke before the answer came")

    def _foreign(self, why: str) -> VersionError:
        return VersionError(ErrorCode.VERSION, f"what answers at {self.path} does not speak our protocol: {why}")


class Client:
    """Reads go to the query socket, writes to the write socket; either is connected when first needed.

    Every method may raise ClientError (ipc/errors.py) and takes `timeout_ms`, its one deadline (default: the client's).
    """

    def __init__(
        self, query_path: Path, write_path: Path = "", *, timeout_ms: int = 5_000, client_name: str = "flowkin"
    ) -> None:
        self.timeout_ms, self.client_name = timeout_ms, client_name
        self._query, self._write = Wire(fspath(query_path)), Wire(fspath(write_path))
        self._ids = itertools.count(1)

    @classmethod
    def for_data_dir(cls, data_dir: Path, *, timeout_ms: int = 5_000, client_name: str = "flowkin") -> Self:
        base = fspath(data_dir).rstrip("/")
        query, write = f"{base}/{QUERY_SOCKET}", f"{base}/{WRITE_SOCKET}"
        return cls(query, write, timeout_ms=timeout_ms, client_name=client_name)

    def close(self) -> None:
        self._query.close()
        self._write.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- calls

    def call(self, make: Make, *, timeout_ms: int | None = None) -> Reply:
        """The reply to make(request_id, left_ms); a Failure is raised. A read is tried again once if its connection
        breaks."""
        deadline_s = self._deadline(timeout_ms)
        try:
            return self._once(make, deadline_s)
        except ConnectionLostError:
            if isinstance(make(0, 1), WRITES):
                raise
            return self._once(make, deadline_s)

    def pipeline(self, makes: Iterable[Make], *, window: int = 16, timeout_ms: int | None = None) -> Iterator[Reply]:
        """The replies in the order of the requests, of which up to `window` are under way; a Failure is yielded, not
        raised, and the others go on. Nothing is sent twice. The deadline is each request's own."""
        under_way: deque[tuple[Wire, int, float]] = deque()
        try:
            for make in makes:
                if len(under_way) >= window:
                    yield self._take(under_way)
                deadline_s = self._deadline(timeout_ms)
                request, wire = self._prepare(make, deadline_s)
                wire.connect(self.client_name, deadline_s)
                wire.expect(request.request_id)
                under_way.append((wire, request.request_id, deadline_s))
                wire.send(request, deadline_s + LATE_MS / 1_000)
            while under_way:
                yield self._take(under_way)
        finally:
            for wire, request_id, _ in under_way:
                wire.give_up(request_id)

    def _take(self, under_way: deque[tuple[Wire, int, float]]) -> Reply:
        wire, request_id, deadline_s = under_way[0]
        reply = wire.receive(request_id, deadline_s + LATE_MS / 1_000)
        wire.forget(request_id)
        under_way.popleft()
        return reply

    def _once(self, make: Make, deadline_s: float) -> Reply:
        request, wire = self._prepare(make, deadline_s)
        wire.connect(self.client_name, deadline_s)
        wire.expect(request.request_id)
        try:
            wire.send(request, deadline_s + LATE_MS / 1_000)
            reply = wire.receive(request.request_id, deadline_s + LATE_MS / 1_000)
        except BaseException:
            wire.give_up(request.request_id)
            raise
        wire.forget(request.request_id)
        if isinstance(reply, Failure):
            raise error_of(reply)
        return reply

    def _prepare(self, make: Make, deadline_s: float) -> tuple[Request, Wire]:
        left_ms = max(1, round((deadline_s - time.monotonic()) * 1_000))
        request = make(next(self._ids), left_ms)
        return request, self._write if isinstance(request, WRITES) else self._query

    def _deadline(self, timeout_ms: int | None) -> float:
        return time.monotonic() + (self.timeout_ms if timeout_ms is None else timeout_ms) / 1_000

    def _expect(self, kind: type[R], make: Make, timeout_ms: int | None) -> R:
        reply = self.call(make, timeout_ms=timeout_ms)
        if not isinstance(reply, kind):
            raise unexpected(reply, kind)
        return reply

    # ---- one method for each message

    def ping(self, *, timeout_ms: int | None = None) -> Pong:
        return self._expect(Pong, lambda i, ms: Ping(i), timeout_ms)

    def info(self, *, timeout_ms: int | None = None) -> Facts:
        return self._expect(Facts, lambda i, ms: Info(i), timeout_ms)

    def stats(self, *, features: Sequence[str] = (), timeout_ms: int | None = None) -> Facts:
        """features: sources whose every feature is asked for, at most 64."""
        return self._expect(Facts, lambda i, ms: Stats(i, list(features)), timeout_ms)

    def models(self, *, timeout_ms: int | None = None) -> Facts:
        return self._expect(Facts, lambda i, ms: Models(i), timeout_ms)

    def get(
        self,
        ids: Sequence[str],
        *,
        features: bool = False,
        raw: bool = False,
        min_generation: int = 0,
        timeout_ms: int | None = None,
    ) -> Found:
        wanted = builtins.list(ids)
        return self._expect(Found, lambda i, ms: Get(i, wanted, features, raw, min_generation, ms), timeout_ms)

    def list(
        self,
        *,
        filter: Filter | None = None,
        after_seq: int = -1,
        limit: int = 100,
        features: bool = False,
        raw: bool = False,
        min_generation: int = 0,
        timeout_ms: int | None = None,
    ) -> Found:
        return self._expect(
            Found, lambda i, ms: List(i, filter, after_seq, limit, features, raw, min_generation, ms), timeout_ms
        )

    def recent(
        self,
        *,
        limit: int = 20,
        filter: Filter | None = None,
        by_event_time: bool = False,
        min_generation: int = 0,
        timeout_ms: int | None = None,
    ) -> Found:
        return self._expect(
            Found, lambda i, ms: Recent(i, limit, filter, by_event_time, min_generation, ms), timeout_ms
        )

    def query_similar(self, id: str, *, options: Options = DEFAULT, timeout_ms: int | None = None) -> Answers:
        return self._expect(Answers, lambda i, ms: QuerySimilar(i, id, within(options, ms)), timeout_ms)

    def query_events(
        self,
        events: Sequence[FeaturedEvent],
        *,
        options: Options = DEFAULT,
        session: int = 0,
        timeout_ms: int | None = None,
    ) -> Answers:
        asked = builtins.list(events)
        return self._expect(Answers, lambda i, ms: QueryEvent(i, asked, within(options, ms), session), timeout_ms)

    def classify(
        self,
        ids: Sequence[str] = (),
        events: Sequence[FeaturedEvent] = (),
        *,
        options: Voting = VOTING,
        session: int = 0,
        timeout_ms: int | None = None,
    ) -> Classified:
        """Of stored events by id, then of events that are not stored."""
        names, asked = builtins.list(ids), builtins.list(events)
        return self._expect(
            Classified, lambda i, ms: Classify(i, names, asked, within(options, ms), session), timeout_ms
        )

    def query_vector(
        self, vector: bytes, model: str, *, options: Options = DEFAULT, timeout_ms: int | None = None
    ) -> Answers:
        """vector: little-endian float32 [dim] in options.space, from the model of that name."""
        return self._expect(Answers, lambda i, ms: QueryVector(i, vector, model, within(options, ms)), timeout_ms)

    def search_text(self, text: str, *, options: Options = TEXT, timeout_ms: int | None = None) -> Answers:
        return self._expect(Answers, lambda i, ms: SearchText(i, text, within(options, ms)), timeout_ms)

    def explain(self, query: str, hit: str, *, space: str = "attack", timeout_ms: int | None = None) -> Explained:
        return self._expect(Explained, lambda i, ms: Explain(i, query, hit, space, ms), timeout_ms)

    def label(self, id: str, label: str, *, by: str = "", timeout_ms: int | None = None) -> Done:
        return self._expect(Done, lambda i, ms: Label(i, id, label, by), timeout_ms)

    def ingest(
        self,
        format: str,
        events: Sequence[FeaturedEvent],
        *,
        rejects: Sequence[Reject] = (),
        source: str = "",
        actions: Sequence[FirewallAction] = (),
        timeout_ms: int | None = None,
    ) -> Ingested:
        """Durable and visible when this returns."""
        batch, refused, done = builtins.list(events), builtins.list(rejects), builtins.list(actions)
        return self._expect(Ingested, lambda i, ms: Ingest(i, format, batch, refused, source, done), timeout_ms)

    def use_model(self, version: str, *, timeout_ms: int | None = None) -> Done:
        return self._expect(Done, lambda i, ms: UseModel(i, version), timeout_ms)

    def add_model(self, version: str, files: dict[str, bytes], *, timeout_ms: int | None = None) -> Done:
        return self._expect(Done, lambda i, ms: AddModel(i, version, files), timeout_ms)

    def cancel(self, target: int, *, timeout_ms: int | None = None) -> bool:
        """Whether a request of that id was still under way on the query connection."""
        done = self._expect(Done, lambda i, ms: Cancel(i, target), timeout_ms)
        return bool(done.facts.get("cancelled"))

    def watch(self, *, after_generation: int = 0, timeout_ms: int | None = None) -> Iterator[int]:
        """Each new generation, on a connection of its own; connects again when its reader leaves. timeout_ms: to
        connect; between two generations it waits as long as it takes. Ends when the iterator is closed."""
        wire = Wire(self._query.path)
        newest = after_generation
        try:
            while True:
                wire.connect(self.client_name, self._deadline(timeout_ms))
                wire.expect(1)
                try:
                    wire.send(Watch(1, newest), self._deadline(timeout_ms))
                    while True:
                        reply = wire.receive(1, FOREVER)
                        if isinstance(reply, Failure):
                            raise error_of(reply)
                        if not isinstance(reply, Generation):
                            raise unexpected(reply, Generation)
                        if reply.generation > newest:
                            newest = reply.generation
                            yield newest
                except ConnectionLostError:
                    wire.close()
        finally:
            wire.close()


def within(options: How, left_ms: int) -> How:
    """The same options with the call's own deadline."""
    return replace(options, deadline_ms=left_ms)


def unexpected(reply: Reply, kind: type[object]) -> ClientError:
    return VersionError(ErrorCode.VERSION, f"{type(reply).__name__} came where {kind.__name__} was due")
