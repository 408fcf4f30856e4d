"""The engine's side of a connection: frames in, typed requests to a handler, replies out in any order.

Always true
  - Nothing is handled before a Hello of a version spoken here by a peer that `admit` lets in; it must come within
    Bounds.hello_s.
  - A request handed to the handler is `pending` until its last reply, its Cancel, or the end of the connection. A reply
    to a request that is not pending is dropped, so a handler never has to check.
  - Everything a peer can make us hold is bounded: half a frame (in bytes and seconds), pending requests, unread replies
    (in bytes and seconds), and so is what all hold together. While a peer does not read its replies, its requests are
    not read; one that takes none of them for write_s is closed.
  - What is refused for want of room is refused before it is decoded: a refusal must cost little, or an overload would
    live on refusals.
  - Bytes that are a frame but no request cost one Failure; bytes that are no frame cost the connection.
  - EOF from the peer ends the connection; what it still had pending is not wanted any more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, cast, get_args

from msgspec import Meta, Struct
from msgspec.msgpack import Decoder

from ipc.frames import FrameError, FrameReader, frame
from ipc.messages import (
    FRAME_BYTES_HELLO,
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
    TOP_K_MAX,
    Cancel,
    Done,
    ErrorCode,
    Failure,
    Hello,
    Info,
    Ingest,
    Ping,
    Reply,
    Request,
    RequestId,
    Stats,
    Watch,
    Welcome,
    Write,
    decode_request,
    encode,
)

log = logging.getLogger(__name__)

Role = Literal["read", "write"]
WRITES: frozenset[type] = frozenset(get_args(Write))
UNDONE = WRITES - {Ingest}  # a worker that drains has ended the tasks of these; what was brought is still stored
ANYWHERE: frozenset[type] = frozenset({Hello, Ping, Info, Stats, Cancel})  # welcome on both sockets
UNREAD_SHARE = 1.25  # of write_bytes_max: refusals, too, are read by nobody
RETRY_AFTER_MS = 100
STOPS_RETRY_AFTER_MS = 1_000  # the next one must have started
REFUSALS_MAX = 256  # connections beyond the most that are kept until their Hello, to be answered OVERLOADED
STOPS = "the engine stops before this is done; ask again when it has started (a switch of models goes on by itself)"
TURN_S = 0.05  # one read may hold thousands of requests that are answered at once, by a label's commit each
CANCELLED_MAX = 256  # ids of a connection that are not taken again, the last ones
DETAIL_CHARS_MAX = 500  # of an error's text; it may quote what the peer sent


class Bounds(NamedTuple):
    """What one peer, and all together, may cost."""

    connections_max: int = 12_000
    pending_max: int = 256  # requests under way on one connection
    hello_s: float = 5.0
    frame_s: float = 10.0  # from a frame's first byte to its last
    write_s: float = 10.0  # how long a peer may leave its replies unread
    write_high_bytes: int = 1 << 20  # unread replies above this: its requests are not read
    write_bytes_max: int = 32 << 20  # unread replies above this: no answer joins them; far above it: closed at once
    held_bytes_max: int = 128 << 20  # half frames, requests under way and unread replies of all connections together


@dataclass(slots=True)
class Counters:
    accepted: int = 0
    refused: int = 0
    requests: int = 0
    errors: int = 0  # failures answered and connections closed for what they sent or did not read
    bytes_in: int = 0
    bytes_out: int = 0


class _Head(Struct, array_like=True, gc=False):
    """The start of any request but Hello; the rest is skipped, not built."""

    tag: Annotated[int, Meta(ge=1)]
    request_id: RequestId


_decode_head = Decoder(_Head).decode
_CANCEL = Cancel.__struct_config__.tag


def request_id_of(body: bytes) -> int:
    """The request id in a body that is no valid request; 0 where none can be read."""
    try:
        return _decode_head(body).request_id
    except (ValueError, RecursionError):
        return 0


class Server:
    """All connections of one worker. `handle` is called on the loop for every request and must not block."""

    def __init__(
        self,
        *,
        role: Role,
        handle: Handler,
        generation: Callable[[], int],
        name: str,
        version: str,
        other_socket: str = "",
        bounds: Bounds = Bounds(),  # noqa: B008 - immutable
        on_close: Callable[[], None] = lambda: None,
        admit: Callable[[Connection], str] = lambda connection: "",
        places: Callable[[], int] = lambda: 1 << 30,
    ) -> None:
        """admit: why a peer is refused (DENIED), once it has said Hello; "": it is not. It may set connection.roles.
        places: how many requests one connection may have under way just now (bounds.pending_max at any time)."""
        self.role, self.handle, self.generation = role, handle, generation
        self.name, self.version, self.other_socket = name, version, other_socket
        self.bounds, self.on_close, self.admit, self.places = bounds, on_close, admit, places
        self.held_bytes = 0
        self.connections: set[Connection] = set()
        self.counters = Counters()
        self.draining = False
        self._open_count = 0  # those that are being opened included
        self._opening: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()

    def adopt(self, sock: socket.socket) -> None:
        """Serve an accepted socket. `on_close` is called once for each, whatever becomes of it."""
        self.counters.accepted += 1
        self._open_count += 1
        most = self.bounds.connections_max
        refusal = f"all {most} connections are in use" if self._open_count > most else ""
        self.counters.refused += bool(refusal)
        if self.draining or self._open_count > most + REFUSALS_MAX:  # not welcomed yet: a client connects again
            sock.close()
            self._closed()
            return
        task = asyncio.get_running_loop().create_task(self._open(sock, refusal))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket, refusal: str) -> None:
        connection = Connection(self, sock, refusal)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError as e:
            log.warning("a connection was lost while it was opened: %s", e)
            sock.close()
            self._closed()

    async def drain(self) -> None:
        """Stop reading, finish what is pending, close. Returns when no connection is left."""
        self.draining = True
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in list(self.connections):
            connection.drain()
        if self.connections:
            await self._empty.wait()

    def close(self) -> None:
        """Close all connections now, pending or not."""
        self.draining = True
        for connection in list(self.connections):
            connection.abort()

    def _let_go(self) -> None:
        """All together hold too much: close who holds the most, one after the other."""
        for connection in self.connections:
            connection.count_held()
        while self.held_bytes > self.bounds.held_bytes_max and self.connections:
            most = max(self.connections, key=lambda connection: connection.held_bytes)
            log.warning(
                "closed: client %r pid %d makes this worker hold %d bytes, all together %d",
                most.client, most.pid, most.held_bytes, self.held_bytes,
            )  # fmt: skip
            self.counters.errors += 1
            most.abort()

    def _opened(self, connection: Connection) -> None:
        self.connections.add(connection)
        self._empty.clear()

    def _lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()
        self._closed()

    def _closed(self) -> None:
        self._open_count -= 1
        self.on_close()


class Connection(asyncio.Protocol):
    """One peer. uid, gid and pid are the kernel's word (SO_PEERCRED), read once; -1 where it has none. roles: what
    `admit` made of them."""

    def __init__(self, server: Server, sock: socket.socket, refusal: str = "") -> None:
        self.server = server
        self._refusal = refusal
        self.client = ""
        self.roles: frozenset[str] = frozenset()
        try:
            cred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            self.pid, self.uid, self.gid = struct.unpack("iII", cred)
        except OSError:
            self.pid = self.uid = self.gid = -1
        self._transport: asyncio.Transport | None = None
        self._frames = FrameReader(FRAME_BYTES_HELLO)
        self._pending: dict[int, tuple[type, int]] = {}  # kind, bytes
        self._resting = False  # frames are left for the next turn of the loop
        self._full = False  # too much is unread by the peer
        self._cancelled: dict[int, None] = {}  # ids whose handler may answer yet, the oldest first
        self._pending_bytes = self._written_bytes = 0
        self._taken_bytes = -1  # by the peer, when the write timer began; -1: it does not read at all
        self.held_bytes = 0  # as of the last count_held()
        self._greeted = self._closing = self._draining = False
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # ---- for the handler

    def wants(self, request_id: int) -> bool:
        """False once the request is answered, cancelled, or its peer gone: skip the work."""
        return request_id in self._pending

    def reply(self, message: Reply, *, more: bool = False) -> None:
        """Answer message.request_id; `more`: it stays pending (watch)."""
        self.reply_raw(message.request_id, encode(message), more=more)

    def reply_raw(self, request_id: int, body: bytes, *, more: bool = False) -> None:
        """Answer with a Reply the handler encoded itself."""
        if request_id not in self._pending:
            return
        if len(body) > FRAME_BYTES_MAX:
            detail = f"the answer has {len(body)} bytes, a frame at most {FRAME_BYTES_MAX}: ask for less"
            self.fail(request_id, ErrorCode.BAD_REQUEST, f"{detail} (a smaller top_k or limit, no features, no raw)")
            return
        if self.server.role == "read" and self._unwritten() + len(body) > self.server.bounds.write_bytes_max:
            detail = "more answers came at once than this connection may hold; read those first"  # faster than any peer
            self.fail(request_id, ErrorCode.OVERLOADED, detail, RETRY_AFTER_MS)
            return
        if not more:
            self._pending_bytes -= self._pending.pop(request_id)[1]
        self._write(body)
        self._close_if_drained()

    def fail(self, request_id: int, error: Exception | ErrorCode, detail: str = "", retry_after_ms: int = 0) -> None:
        """Answer with a Failure: an ErrorCode and detail, or an exception with a `code` of its own (else INTERNAL)."""
        if (found := self._pending.pop(request_id, None)) is not None:
            self._pending_bytes -= found[1]
            if isinstance(error, ErrorCode):
                self._failure(request_id, error, detail, retry_after_ms)
            elif isinstance(code := getattr(error, "code", None), ErrorCode):
                self._failure(request_id, code, detail or str(error), retry_after_ms)
            else:
                log.error("request failed: %r", error, exc_info=error)
                self._failure(request_id, ErrorCode.INTERNAL, f"{type(error).__name__}; the engine's log says more", 0)
            self._close_if_drained()

    def close(self) -> None:
        """Send what is written, then close; what is pending is not wanted any more."""
        if not self._closing and self._transport is not None:
            self._forget()
            self._cancel_read_timer()
            self._cancel_write_timer()
            self._write_timer = asyncio.get_running_loop().call_later(self.server.bounds.write_s, self.abort)
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._forget()
        self._frames = FrameReader(0)
        if self._transport is not None:
            self._transport.abort()
        self.server.held_bytes -= self.held_bytes
        self.held_bytes = 0

    def drain(self) -> None:
        """Read no more, answer what is pending, close. What would not end is not waited for: a watch is left, what
        nobody works on any more is NOT_READY."""
        self._draining = True
        self._cancel_read_timer()
        self._pending = {i: found for i, found in self._pending.items() if found[0] is not Watch}
        self._stop_reading()
        for request_id in [i for i, (kind, _) in self._pending.items() if kind in UNDONE]:
            self.fail(request_id, ErrorCode.NOT_READY, STOPS, STOPS_RETRY_AFTER_MS)
        self._close_if_drained()

    # ---- for the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass
        high = self.server.bounds.write_high_bytes
        self._transport.set_write_buffer_limits(high=high, low=high // 4)
        self.server._opened(self)
        self._start_read_timer(self.server.bounds.hello_s, "no Hello came")

    def data_received(self, data: bytes) -> None:
        self.server.counters.bytes_in += len(data)
        if self._closing:
            return
        self._frames.feed(data)
        if not self._resting:
            self._take()

    def _take(self) -> None:
        """Handle the frames that are there, for TURN_S at most: others are answered before the rest."""
        until_s = time.monotonic() + TURN_S
        began_new = False
        while not self._closing:
            try:
                body = self._frames.next_frame()
            except FrameError as e:
                self._end(ErrorCode.BAD_REQUEST if self._greeted else ErrorCode.VERSION, str(e))
                return
            if body is None:
                break
            began_new = True
            if self._greeted:
                self._on_request(body)
            else:
                self._on_hello(body)
            if time.monotonic() >= until_s:
                self._resting = True
                self._stop_reading()
                asyncio.get_running_loop().call_soon(self._go_on)
                break
        if self._greeted and not self._closing and not self._draining:
            if began_new or not self._frames.partial:
                self._cancel_read_timer()
            if self._frames.partial and self._read_timer is None and self._reads():
                self._start_read_timer(self.server.bounds.frame_s, "half a frame came")
        self._hold()

    def _go_on(self) -> None:
        self._resting = False
        if self._closing or self._draining:  # what was not begun is as if it had not been read
            return
        self._take()
        if not (self._resting or self._full or self._closing) and self._transport is not None:
            self._transport.resume_reading()
            if self._greeted and self._frames.partial:
                self._start_read_timer(self.server.bounds.frame_s, "half a frame came")

    def eof_received(self) -> None:
        if self._frames.partial:
            self.server.counters.errors += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._cancel_read_timer()
        self._cancel_write_timer()
        self._transport = None
        self.server.held_bytes -= self.held_bytes
        self.held_bytes = 0
        self.server._lost(self)

    def pause_writing(self) -> None:
        self._full = True
        self._stop_reading()
        self._cancel_read_timer()
        if not self._closing:
            self._start_write_timer(-1)

    def resume_writing(self) -> None:
        self._full = False
        if self._closing or self._transport is None:
            return
        self._start_write_timer(self._taken())
        if not self._draining and not self._resting:
            self._transport.resume_reading()
            if self._frames.partial:
                self._start_read_timer(self.server.bounds.frame_s, "half a frame came")

    # ---- inside

    def _on_hello(self, body: bytes) -> None:
        spoken = f"this engine speaks protocol {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}"
        try:
            hello = decode_request(body)
        except (ValueError, RecursionError):
            hello = None
        if not isinstance(hello, Hello):
            self._end(ErrorCode.VERSION, f"the first message is not a Hello; {spoken}", request_id_of(body))
        elif not PROTOCOL_VERSION_MIN <= hello.protocol <= PROTOCOL_VERSION:
            self._end(ErrorCode.VERSION, f"protocol {hello.protocol} is not spoken; {spoken}", hello.request_id)
        elif self._refusal:
            self._end(ErrorCode.OVERLOADED, self._refusal, hello.request_id)
        elif why := self.server.admit(self):
            self._end(ErrorCode.DENIED, why, hello.request_id)
        else:
            self._greeted = True
            self._cancel_read_timer()
            self._frames.limit = FRAME_BYTES_MAX
            self.client = hello.client
            server = self.server
            welcome = Welcome(
                hello.request_id,
                protocol=hello.protocol,
                protocol_min=PROTOCOL_VERSION_MIN,
                server=server.name,
                version=server.version,
                generation=server.generation(),
                frame_bytes_max=FRAME_BYTES_MAX,
                top_k_max=TOP_K_MAX,
            )
            self._write(encode(welcome))

    def _on_request(self, body: bytes) -> None:
        server = self.server
        server.counters.requests += 1
        most = min(server.bounds.pending_max, server.places())
        full = len(self._pending) >= most or server.held_bytes + len(body) > server.bounds.held_bytes_max
        if (full or self._draining) and self._refused(body, most):
            return
        try:
            request: Request = decode_request(body)
        except (ValueError, RecursionError) as e:
            self._failure(request_id_of(body), ErrorCode.BAD_REQUEST, f"not a request of this protocol: {e}")
            return
        request_id, kind = request.request_id, type(request)
        if isinstance(request, Cancel):
            self._cancel(request)
        elif kind is Hello:
            self._failure(request_id, ErrorCode.BAD_REQUEST, "Hello comes once, first")
        elif kind not in ANYWHERE and (kind in WRITES) != (server.role == "write"):
            right = "write" if kind in WRITES else "query"
            where = f" ({server.other_socket})" if server.other_socket else ""
            self._failure(request_id, ErrorCode.WRONG_SOCKET, f"{kind.__name__} belongs to the {right} socket{where}")
        elif request_id in self._pending:
            self._failure(request_id, ErrorCode.BAD_REQUEST, f"request id {request_id} is still under way")
        elif request_id in self._cancelled:  # else the answer of the one that was cancelled would be its answer
            self._failure(request_id, ErrorCode.BAD_REQUEST, f"request id {request_id} was cancelled; take another")
        else:
            self._pending[request_id] = kind, len(body)
            self._pending_bytes += len(body)
            try:
                server.handle(self, request)
            except Exception as e:  # one request's trouble is one Failure
                self.fail(request_id, e)

    def _refused(self, body: bytes, most: int) -> bool:
        """Answer OVERLOADED; False: it is to be decoded all the same, a Cancel, or in error."""
        try:
            head = _decode_head(body)
        except (ValueError, RecursionError):
            return False
        if head.tag == _CANCEL or head.request_id in self._pending:
            return False
        if self._draining:
            why = "this worker leaves"
        elif len(self._pending) >= self.server.bounds.pending_max:
            why = f"{len(self._pending)} requests are under way on this connection"
        elif len(self._pending) >= most:
            why = "too many requests wait in this worker"
        else:
            why = "this worker holds as many bytes as it may"
        self._failure(head.request_id, ErrorCode.OVERLOADED, why, RETRY_AFTER_MS)
        return True

    def _cancel(self, cancel: Cancel) -> None:
        if known := cancel.target in self._pending:
            self._cancelled[cancel.target] = None
            if len(self._cancelled) > CANCELLED_MAX:
                del self._cancelled[next(iter(self._cancelled))]
        self.fail(cancel.target, ErrorCode.CANCELLED, "cancelled by the client")
        self._write(encode(Done(cancel.request_id, self.server.generation(), {"cancelled": known})))

    def _failure(self, request_id: int, code: ErrorCode, detail: str, retry_after_ms: int = 0) -> None:
        self.server.counters.errors += 1
        self._write(encode(Failure(request_id, code, detail[:DETAIL_CHARS_MAX], retry_after_ms)))

    def _end(self, code: ErrorCode, detail: str, request_id: int = 0) -> None:
        """A last Failure, then close."""
        self._failure(request_id, code, detail, RETRY_AFTER_MS if code == ErrorCode.OVERLOADED else 0)
        self.close()

    def _unread(self) -> None:
        self.server.counters.errors += 1
        log.warning("closed: client %r pid %d does not read its replies", self.client, self.pid)
        self.abort()

    def _write(self, body: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self.server.counters.bytes_out += len(body)
        self._written_bytes += 4 + len(body)
        self._transport.write(frame(body))
        if self._unwritten() > self.server.bounds.write_bytes_max * UNREAD_SHARE:
            self._unread()
            return
        if self._write_timer is None:
            self._start_write_timer(self._taken())
        self._hold()

    def _unwritten(self) -> int:
        """Bytes of replies that the kernel did not take yet."""
        return int(self._transport.get_write_buffer_size()) if self._transport is not None else 0

    def _taken(self) -> int:
        """Those that it took from us."""
        return self._written_bytes - self._unwritten()

    def _start_write_timer(self, taken_bytes: int) -> None:
        self._cancel_write_timer()
        self._taken_bytes = taken_bytes
        self._write_timer = asyncio.get_running_loop().call_later(self.server.bounds.write_s, self._look_unread)

    def _look_unread(self) -> None:
        self._write_timer = None
        taken_bytes = self._taken()
        if taken_bytes == self._written_bytes:
            return
        if self._taken_bytes in (-1, taken_bytes):
            self._unread()
        else:
            self._start_write_timer(taken_bytes)

    def count_held(self) -> None:
        """See server.held_bytes; what the peer read meanwhile is seen at the next call only."""
        held_bytes = self._frames.held_bytes + self._pending_bytes + self._written_bytes - self._taken()
        self.server.held_bytes += held_bytes - self.held_bytes
        self.held_bytes = held_bytes

    def _hold(self) -> None:
        if not self._closing:
            self.count_held()
            if self.server.held_bytes > self.server.bounds.held_bytes_max:
                self.server._let_go()

    def _forget(self) -> None:
        """Nothing more is read or answered."""
        self._closing = True
        self._pending.clear()
        self._pending_bytes = 0

    def _reads(self) -> bool:
        """False while the peer does not read its replies; its time for half a frame does not run then."""
        return self._transport is not None and not self._transport.is_closing() and self._transport.is_reading()

    def _stop_reading(self) -> None:
        if self._transport is not None and self._reads():
            self._transport.pause_reading()

    def _close_if_drained(self) -> None:
        if self._draining and not self._pending:
            self.close()

    def _start_read_timer(self, after_s: float, what: str) -> None:
        self._cancel_read_timer()
        detail = f"{what} within {after_s:g} s"
        code = ErrorCode.BAD_REQUEST if self._greeted else ErrorCode.VERSION
        self._read_timer = asyncio.get_running_loop().call_later(after_s, self._end, code, detail)

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _cancel_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None


Handler = Callable[[Connection, Request], None]
