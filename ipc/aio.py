"""The asyncio client: the same methods as ipc/client.py, any number of calls at once on one connection a socket.

Always true
  - A reply goes to the call with its id; a broken connection fails every call that waits on it, at once.
  - A read is sent again, once, when its connection breaks; a write never is.
  - What was refused as OVERLOADED is sent again after retry_after_ms, within the same deadline.
  - A call that is cancelled or late sends Cancel, and its answer, if it still comes, is dropped.
  - A client that was closed connects no more: its calls end with ConnectError, its watches end.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from os import fspath
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, cast

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

P = ParamSpec("P")
Sink = Callable[[Reply | Exception], None]


class Wire(asyncio.Protocol):
    """One connection. `sinks`: who gets the replies of an id; each also gets the exception that ends the connection.
    Once ended, also before it was connected, it stays so."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.sinks: dict[int, Sink] = {}
        self._ended: Exception | None = None
        self._frames = FrameReader(FRAME_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    async def connect(self, client_name: str) -> None:
        """Connect and be welcomed; raises what ended it first."""
        welcome: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.sinks[0] = into(welcome)  # before connecting: a refusal may come at once
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, self.path)
            self.post(Hello(PROTOCOL_VERSION, client_name))
            reply = await welcome
        except OSError as e:
            error = ConnectError(self.path, f"no engine at {self.path} ({e.strerror or e}); is it started?")
            self.end(error)
            raise self._ended or error from e
        except BaseException as e:
            self.end(ConnectionLostError(self.path, str(e)))
            raise
        if not isinstance(reply, Welcome):
            self.end(error_of(reply) if isinstance(reply, Failure) else unexpected(reply, Welcome))
        if self._ended is not None:  # maybe since the Welcome came
            raise self._ended
        del self.sinks[0]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._ended is not None:
            cast(asyncio.Transport, transport).abort()
            return
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        try:
            while (body := self._frames.next_frame()) is not None:
                reply = decode_reply(body)
                if (sink := self.sinks.get(reply.request_id)) is not None:
                    sink(reply)
                elif reply.request_id == 0 and isinstance(reply, Failure):
                    self.end(error_of(reply))
        except (FrameError, ValueError, RecursionError) as e:
            self.end(VersionError(ErrorCode.VERSION, f"what answers at {self.path} does not speak our protocol: {e}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(ConnectionLostError(self.path, f"the connection to {self.path} broke before the answer came"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    @property
    def open(self) -> bool:
        return self._transport is not None

    async def send(self, request: Request) -> None:
        """Hand a request to the kernel; waits while the engine does not read."""
        self.post(request)
        await self._writable.wait()

    def post(self, request: Request) -> None:
        if self._transport is not None:
            self._transport.write(frame(encode(request)))

    def end(self, why: Exception) -> None:
        self._ended = self._ended or why
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._writable.set()
        sinks, self.sinks = self.sinks, {}
        for sink in sinks.values():
            sink(why)


def _method(of: Callable[P, Call[R]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]:
    @wraps(of)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self.ask(of(*args, **kwargs))

    return method


class AsyncClient:
    """See ipc.client.Client. Use it on one loop."""

    def __init__(
        self, query_path: Path, write_path: Path = "", *, timeout_ms: int = 5_000, client_name: str = "flowkin"
    ) -> None:
        self.timeout_ms, self.client_name = timeout_ms, client_name
        self._paths = {False: fspath(query_path), True: fspath(write_path)}
        self._wires: dict[bool, Wire] = {}
        self._locks = {False: asyncio.Lock(), True: asyncio.Lock()}
        self._closed = False
        self._ids = itertools.count(1)

    @classmethod
    def for_data_dir(cls, data_dir: Path, *, timeout_ms: int = 5_000, client_name: str = "flowkin") -> Self:
        base = fspath(data_dir).rstrip("/")
        query, write = f"{base}/{QUERY_SOCKET}", f"{base}/{WRITE_SOCKET}"
        return cls(query, write, timeout_ms=timeout_ms, client_name=client_name)

    def close(self) -> None:
        """For good; what is under way ends with ConnectError."""
        self._closed = True
        for wire in self._wires.values():
            wire.end(self._no_more(wire.path))

    def _no_more(self, path: str) -> ConnectError:
        """No ConnectionLostError: nothing is sent again."""
        return ConnectError(path, "the client was closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    # ---- calls

    async def ask(self, call: Call[R]) -> R:
        return call.checked(await self.call(call.make, timeout_ms=call.timeout_ms))

    async def call(self, make: Make, *, timeout_ms: int | None = None) -> Reply:
        """The reply to make(request_id, left_ms); a Failure is raised. A read is tried again once if its connection
        breaks, and what was refused for want of room when the engine says, as long as there is time."""
        deadline_s = time.monotonic() + (self.timeout_ms if timeout_ms is None else timeout_ms) / 1_000
        refused = Refused(deadline_s)
        while True:
            try:
                return await self._twice(make, deadline_s)
            except OverloadedError as e:
                await asyncio.sleep(refused.pause_s(e))

    async def _twice(self, make: Make, deadline_s: float) -> Reply:
        try:
            return await self._once(make, deadline_s)
        except ConnectionLostError:
            if isinstance(make(0, 1), WRITES):
                raise
            return await self._once(make, deadline_s)

    async def _once(self, make: Make, deadline_s: float) -> Reply:
        request_id = next(self._ids)
        left_ms = max(1, round((deadline_s - time.monotonic()) * 1_000))
        request = make(request_id, min(left_ms, DEADLINE_MS_MAX))
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        wire: Wire | None = None
        try:
            async with asyncio.timeout(deadline_s - time.monotonic() + LATE_MS / 1_000):
                wire = await self._wire(isinstance(request, WRITES))
                wire.sinks[request_id] = into(reply)
                await wire.send(request)
                answer = await reply
        except BaseException as e:
            if wire is not None and request_id in wire.sinks and not reply.done():
                wire.post(Cancel(0, request_id))
            if isinstance(e, TimeoutError):
                raise DeadlineError(ErrorCode.DEADLINE, "no answer from the engine in time") from e
            raise
        finally:
            if wire is not None:
                wire.sinks.pop(request_id, None)
        if isinstance(answer, Failure):
            raise error_of(answer)
        return answer

    async def _wire(self, write: bool) -> Wire:
        async with self._locks[write]:
            if write not in self._wires or not self._wires[write].open:
                try:
                    await self._connect(write)
                except ConnectionLostError:  # a worker may leave between accept and welcome; then once more
                    await self._connect(write)
            return self._wires[write]

    async def _connect(self, write: bool) -> None:
        if self._closed:
            raise self._no_more(self._paths[write])
        self._wires[write] = Wire(self._paths[write])
        await self._wires[write].connect(self.client_name)

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

    async def watch(self, *, after_generation: int = 0) -> AsyncIterator[int]:
        """Each new generation; connects again when its reader leaves. Ends when the iterator or the client is
        closed."""
        newest = after_generation
        while not self._closed:
            try:
                async with asyncio.timeout(self.timeout_ms / 1_000):
                    wire = await self._wire(False)
            except TimeoutError as e:
                raise DeadlineError(ErrorCode.DEADLINE, "no answer from the engine in time") from e
            except ConnectError:
                if self._closed:
                    return
                raise
            request_id = next(self._ids)
            replies: asyncio.Queue[Reply | Exception] = asyncio.Queue()
            wire.sinks[request_id] = replies.put_nowait
            try:
                await wire.send(Watch(request_id, newest))
                while not isinstance(reply := await replies.get(), ConnectError):  # broken, or closed by us
                    if isinstance(reply, Exception):
                        raise reply
                    if isinstance(reply, Failure):
                        raise error_of(reply)
                    if isinstance(reply, Generation) and reply.generation > newest:
                        newest = reply.generation
                        yield newest
            finally:
                if wire.sinks.pop(request_id, None) is not None:
                    wire.post(Cancel(0, request_id))


def into(future: asyncio.Future[Reply]) -> Sink:
    """A sink for one reply."""

    def sink(reply: Reply | Exception) -> None:
        if future.done():
            return
        if isinstance(reply, Exception):
            future.set_exception(reply)
            future.exception()  # seen, should who waits for it be cancelled first
        else:
            future.set_result(reply)

    return sink
