"""The channel between the supervisor and one worker: accepted connections one way, signs the other.

Always true
  - One SOCK_SEQPACKET socketpair a worker; neither side ever blocks on it. Its end is the end of the other process.
  - A connection is in one process only: offer() closes the supervisor's copy as soon as the kernel took it.
  - At most HANDOFF_BACKLOG_MAX connections are on the way. Counts are running totals, so a report that could not be
    sent is made good by the next: open = sent - closed, on the way = sent - taken.
  - A worker without a free file descriptor leaves connections in the channel until it has one: the kernel would drop
    what it cannot deliver, and the peer would see EOF.
  - A worker that dies takes its connections along; the supervisor forgets the channel with its counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable

from engine.limits import HANDOFF_BACKLOG_MAX

log = logging.getLogger(__name__)

MESSAGES_AT_ONCE = 64  # of one worker
MESSAGE_BYTES_MAX = 1 << 17
JOB, CONNECTION, SUSPECT, MEASURED, ROLLED = b"J", b"C", b"S", b"M", b"D"  # to the worker
READY, COUNTS, CHECKED, REPORT, MEASURE, ROLL = b"R", b"N", b"K", b"A", b"W", b"L"  # from the worker
LEAVING = b"V"  # from the worker, too: it takes no more connections
FD = struct.Struct("=i")
FD_SPACE = socket.CMSG_SPACE(FD.size)
TOTALS = struct.Struct("<QQ")  # taken, closed
REPORT_AGAIN_S = 0.02
TAKE_AGAIN_S = 0.1  # without a free file descriptor


def channel() -> tuple[socket.socket, socket.socket]:
    """(supervisor's end, worker's end), both closed on exec."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    ours.setblocking(False)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES_MAX * 2)
    return ours, theirs


class Sender:
    """The supervisor's end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sent = self.taken = self.closed = 0
        self.ready = self.checked = self.leaving = False
        self.on_report: Callable[[bytes], None] = lambda line: None
        self.on_measure: Callable[[], None] = lambda: None
        self.on_roll: Callable[[], None] = lambda: None

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def open(self) -> int:
        """Connections the worker has, those on the way included."""
        return self.sent - self.closed

    @property
    def full(self) -> bool:
        return self.sent - self.taken >= HANDOFF_BACKLOG_MAX

    def offer(self, connection: socket.socket) -> bool:
        """Hand a connection over and close it here; False: the channel is full or its worker gone, keep it."""
        if self.full:
            return False
        try:
            socket.send_fds(self.sock, [CONNECTION], [connection.fileno()])
        except OSError:  # full (EAGAIN, ETOOMANYREFS), or the worker is gone
            return False
        self.sent += 1
        connection.close()
        return True

    def send(self, kind: bytes, body: bytes = b"") -> bool:
        """False: full or gone. Raises OSError when it is too large to be received."""
        if len(body) >= MESSAGE_BYTES_MAX:
            raise OSError(errno.EMSGSIZE, f"a message of {len(body)} bytes does not fit the worker's channel")
        try:
            self.sock.send(kind + body)
        except OSError:
            return False
        return True

    def receive(self) -> bool:
        """Take what the worker reported, MESSAGES_AT_ONCE at most: one that floods holds nobody up. False once its end
        is closed. Raises ValueError for what no worker says: a reader may have been taken over."""
        for _ in range(MESSAGES_AT_ONCE):
            try:
                message = self.sock.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                return True
            except OSError:
                return False
            kind, body = message[:1], message[1:]
            if kind == COUNTS:
                if len(body) != TOTALS.size:
                    raise ValueError(f"counts of {len(body)} bytes")
                self.taken, self.closed = TOTALS.unpack(body)
            elif kind == READY:
                self.ready = True
            elif kind == LEAVING:
                self.leaving = True
            elif kind == CHECKED:
                self.checked = True
            elif kind == REPORT:
                self.on_report(body)
            elif kind == MEASURE:
                self.on_measure()
            elif kind == ROLL:
                self.on_roll()
            elif not message:
                return False
            else:
                raise ValueError(f"a message of kind {kind!r}")
        return True

    def close(self) -> None:
        self.sock.close()


class Receiver:
    """The worker's end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.taken = self.closed = 0
        self.on_connection: Callable[[socket.socket], None] | None = None
        self.on_suspect: Callable[[str], None] | None = None
        self.on_measured: Callable[[], None] = lambda: None
        self.on_rolled: Callable[[bool], None] = lambda all_of_them: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_end: Callable[[], None] = lambda: None
        self._reading = self._reporting = self._short = self._stopped = False

    def job(self) -> bytes:
        """The first message, before the loop runs; blocks. Empty when the supervisor is gone."""
        message = self.sock.recv(MESSAGE_BYTES_MAX)
        return message[1:] if message[:1] == JOB else b""

    def attach(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[], None]) -> None:
        """Serve the channel on this loop; on_end once the supervisor is gone."""
        self._loop, self._on_end = loop, on_end
        self.sock.setblocking(False)
        self._read()

    def leave(self) -> None:
        """Take no more connections, and have none dealt. What is on the way, and what comes before the supervisor has
        heard, is closed: its peers were not welcomed yet, and connect again."""
        self.on_connection = None
        self.send(LEAVING)

    def stop(self) -> None:
        """Read nothing more. Connections that are on the way are closed."""
        self.on_connection, self._stopped = None, True
        if self._ignore():
            self._receive()

    def send(self, kind: bytes) -> None:
        """READY, CHECKED and LEAVING: sent once, and the channel is as good as empty then; where it is not, what leaves
        is dealt connections until it is gone."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            self.sock.send(kind)

    def measure(self) -> bool:
        """Ask for the workers' memory; on_measured comes then. False: the channel is full, or its other end gone."""
        return self._ask(MEASURE)

    def roll(self) -> bool:
        """Ask for new readers in the place of confined ones; on_rolled comes then. False: as measure()."""
        return self._ask(ROLL)

    def _ask(self, kind: bytes) -> bool:
        try:
            self.sock.send(kind)
        except OSError:
            return False
        return True

    def report(self, line: bytes) -> None:
        """For the supervisor's audit log; lost, and said so, where the channel is full."""
        try:
            self.sock.send(REPORT + line)
        except OSError as e:
            log.warning("the supervisor takes no line for its audit log: %s", e)

    def closed_one(self) -> None:
        """A connection that on_connection got is closed."""
        self.closed += 1
        self._report_soon()

    def _receive(self) -> None:
        for _ in range(HANDOFF_BACKLOG_MAX):
            if not self._has_room():
                return
            try:
                # not socket.recv_fds(): in Python 3.11 it forgets its flags, and a child would inherit the connection
                message, ancillary, _, _ = self.sock.recvmsg(MESSAGE_BYTES_MAX, FD_SPACE, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                message, ancillary = b"", []
            if message == CONNECTION:
                self._take([FD.unpack(data)[0] for _, _, data in ancillary])
            elif message[:1] == SUSPECT:
                if self.on_suspect is None:
                    self.send(CHECKED)
                else:
                    self.on_suspect(message[1:].decode("utf-8", "replace"))
            elif message == MEASURED:
                self.on_measured()
            elif message[:1] == ROLLED:
                self.on_rolled(message[1:] != b"")
            elif not message:
                self._end()
                return

    def _has_room(self) -> bool:
        """Could a descriptor be received now? If not, the channel is left alone for TAKE_AGAIN_S."""
        try:
            os.close(os.dup(self.sock.fileno()))
        except OSError as e:
            if not self._short:
                log.error("no connection can be taken: %s; tried again every %g s", e, TAKE_AGAIN_S)
            self._short = True
            if self._ignore() and self._loop is not None:
                self._loop.call_later(TAKE_AGAIN_S, self._read)
            return False
        if self._short:
            log.warning("connections are taken again")
            self._short = False
        return True

    def _read(self) -> None:
        if self._loop is not None and not self._stopped:
            self._loop.add_reader(self.sock, self._receive)
            self._reading = True

    def _ignore(self) -> bool:
        """Was the channel read until now? (remove_reader() of uvloop does not tell.)"""
        was, self._reading = self._reading, False
        if was and self._loop is not None:
            self._loop.remove_reader(self.sock)
        return was

    def _end(self) -> None:
        if self._ignore():
            self._on_end()

    def _take(self, fds: list[int]) -> None:
        self.taken += 1
        self._report_soon()
        if not fds:  # the kernel dropped it, its peer sees EOF
            log.error("a connection was dropped: no free file descriptor")
            self.closed += 1
        elif self.on_connection is None:
            os.close(fds[0])
            self.closed += 1
        else:
            connection = socket.socket(fileno=fds[0])
            connection.setblocking(False)
            self.on_connection(connection)

    def _report_soon(self) -> None:
        """One report for all that changes in this turn of the loop."""
        if not self._reporting and self._loop is not None and not self._loop.is_closed():
            self._reporting = True
            self._loop.call_soon(self._report)

    def _report(self) -> None:
        assert self._loop is not None
        self._reporting = False
        try:
            self.sock.send(COUNTS + TOTALS.pack(self.taken, self.closed))
        except BlockingIOError:
            self._reporting = True
            self._loop.call_later(REPORT_AGAIN_S, self._report)
        except OSError:
            pass  # the supervisor is gone; on_end says so
