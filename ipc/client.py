"""The blocking client: one deadline per call, one named error per way to fail.

Always true
  - A call ends by its deadline plus LATE_MS, whatever the engine does. The same deadline travels in the request.
  - A read is sent again, once, when its connection breaks; a write never is. An idle connection that the engine closed
    meanwhile is noticed before a request is sent.
  - What was refused as OVERLOADED is sent again after retry_after_ms, within the same deadline; in a pipeline the
    refusal is yielded instead.
  - A call that is interrupted (Ctrl-C, or any exception while waiting) leaves no connection with an answer under way:
    it is cancelled and closed, and the next call connects anew. So does one after close(), but nothing that was under
    way: a pipeline ends with ConnectionLostError, a watch ends.
  - One thread at a time. Nothing of ours is imported but ipc, so a client needs msgspec and nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from os import fspath
from types import TracebackType
from typing import Concatenate, ParamSpec, Self

from ipc import calls
from ipc.calls import LATE_MS, QUERY_SOCKET, WRITE_SOCKET, WRITES, Call, Make, Path, R, Refused, unexpected
from ipc.errors import ConnectError, ConnectionLostError, DeadlineError, OverloadedError, VersionError, error_of
from ipc.frames import FrameError, FrameReader, frame
from ipc.messages import (
    DEADLINE_MS_MAX,
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    Cancel,
    ErrorCode,
    Failure,
    Generation,
    Hello,
    Reply,
    Request,
    Watch,
    Welcome,
    decode_reply,
    encode,
)

READ_BYTES = 1 << 18
FOREVER = float("inf")
P = ParamSpec("P")


class Wire:
    """One connection: requests out, replies in by their id. Sends and receives at once, so that neither side can
    block the other."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.welcome: Welcome | None = None
        self._socket: socket.socket | None = None
        self._frames = FrameReader(FRAME_BYTES_MAX)
        self._replies: dict[int, deque[Reply]] = {}  # by id; an id is here while its replies are awaited
        self._pid = 0  # of the process that connected

    def connect(self, client_name: str, deadline_s: float) -> None:
        """Connect and say hello, if that is not done or the engine closed meanwhile."""
        if self._socket is not None and self._pid != os.getpid():  # forked: what comes here is for the parent
            self.close()
        if self._socket is not None and (self._replies or not self._gone()):
            return
        for last in (False, True):  # a worker may leave between accept and welcome; nothing was asked yet, so once more
            self.close()
            self._pid = os.getpid()
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
        waiting = self._replies.get(request_id)
        if waiting is None:  # closed since
            raise self._lost()
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


def _method(of: Callable[P, Call[R]]) -> Callable[Concatenate[Client, P], R]:
    @wraps(of)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.ask(of(*args, **kwargs))

    return method


class Client:
    """Reads go to the query socket, writes to the write socket; either is connected when first needed.

    Every method may raise ClientError (ipc/errors.py) and takes `timeout_ms`, its one deadline (default: the client's).
    """

    def __init__(
        self, query_path: Path, write_path: Path = "", *, timeout_ms: int = 5_000, client_name: str = "flowkin"
    ) -> None:
        self.timeout_ms, self.client_name = timeout_ms, client_name
        self._query, self._write = Wire(fspath(query_path)), Wire(fspath(write_path))
        self._watching: set[Wire] = set()
        self._ids = itertools.count(1)

    @classmethod
    def for_data_dir(cls, data_dir: Path, *, timeout_ms: int = 5_000, client_name: str = "flowkin") -> Self:
        base = fspath(data_dir).rstrip("/")
        query, write = f"{base}/{QUERY_SOCKET}", f"{base}/{WRITE_SOCKET}"
        return cls(query, write, timeout_ms=timeout_ms, client_name=client_name)

    def close(self) -> None:
        for wire in (self._query, self._write, *self._watching):
            wire.close()
        self._watching.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- calls

    def ask(self, call: Call[R]) -> R:
        return call.checked(self.call(call.make, timeout_ms=call.timeout_ms))

    def call(self, make: Make, *, timeout_ms: int | None = None) -> Reply:
        """The reply to make(request_id, left_ms); a Failure is raised. A read is tried again once if its connection
        breaks, and what was refused for want of room when the engine says, as long as there is time."""
        deadline_s = self._deadline(timeout_ms)
        refused = Refused(deadline_s)
        while True:
            try:
                return self._twice(make, deadline_s)
            except OverloadedError as e:
                time.sleep(refused.pause_s(e))

    def _twice(self, make: Make, deadline_s: float) -> Reply:
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
                if all(of is not wire for of, _, _ in under_way):  # what is under way belongs to its connection
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
        request = make(next(self._ids), min(left_ms, DEADLINE_MS_MAX))
        return request, self._write if isinstance(request, WRITES) else self._query

    def _deadline(self, timeout_ms: int | None) -> float:
        return time.monotonic() + (self.timeout_ms if timeout_ms is None else timeout_ms) / 1_000

    # ---- one method for each message (ipc/calls.py)

    ping = _method(calls.ping)
    info = _method(calls.info)
    stats = _method(calls.stats)
    models = _method(calls.models)
    get = _method(calls.get)
    list = _method(calls.listed)
    recent = _method(calls.recent)
    query_similar = _method(calls.query_similar)
    query_events = _method(calls.query_events)
    classify = _method(calls.classify)
    query_vector = _method(calls.query_vector)
    search_text = _method(calls.search_text)
    explain = _method(calls.explain)
    label = _method(calls.label)
    ingest = _method(calls.ingest)
    use_model = _method(calls.use_model)
    add_model = _method(calls.add_model)
    rollback_model = _method(calls.rollback_model)
    forget_model = _method(calls.forget_model)
    measure = _method(calls.measure)
    compact = _method(calls.compact)
    purge = _method(calls.purge)
    scrub = _method(calls.scrub)
    cancel = _method(calls.cancel)

    def watch(self, *, after_generation: int = 0, timeout_ms: int | None = None) -> Iterator[int]:
        """Each new generation, on a connection of its own; connects again when its reader leaves. timeout_ms: to
        connect; between two generations it waits as long as it takes. Ends when the iterator or the client is
        closed."""
        wire = Wire(self._query.path)
        self._watching.add(wire)
        newest = after_generation
        try:
            while wire in self._watching:
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
            self._watching.discard(wire)
            wire.close()
