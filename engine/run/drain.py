"""The process that reads one listening socket, so that nothing the ingest worker does can keep a detector waiting.

Always true
  - It does nothing but take what was written, hold it, and hand it on when the worker asks: a thread of the worker got
    its turn 400 ms late while the worker stored 10,000 records a second, and after 10 ms of those a socket is full.
  - At most bytes_max wait to be stored, and a line under way of each connection. Each piece is charged PIECE_BYTES
    besides its data, so that no writer can make small ones cost memory that is not counted. Beyond that whole records
    are dropped and counted.
  - It takes a turn every TURN_S and counts it: the worker ends a process that counts no more (engine/run/listen.py).
  - A piece holds whole lines of one connection; only the last of a connection may end without a line end.
  - It dies with the worker: by PR_SET_PDEATHSIG, by comparing getppid() after that, and by EOF on its channel. SIGINT
    and SIGTERM are the worker's business.

The channel: the worker sends MORE for each piece that it wants (the one before is stored then) and STOP once; a piece
comes as HEAD and data, and connection 0 is the end.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from engine.limits import LISTEN_BYTES_MAX, LISTEN_CONNECTIONS_MAX, LISTEN_READ_BYTES, RECORD_BYTES_MAX
from engine.run.access import Allowed
from engine.run.audit import Audit, File
from engine.run.heartbeat import Page
from engine.run.process import PARENT_GONE, die_with_parent, name_process, set_up_log

log = logging.getLogger("engine.run.drain")

MORE, STOP = b"M", b"S"
HEAD = struct.Struct("<IQII?")  # connection, offset, bytes of data, records, last
END = HEAD.pack(0, 0, 0, 0, True)
TURN_S = 1.0
LOG_EVERY_S = 60.0  # of records that are dropped, of connections that cannot be accepted
ACCEPT_AGAIN_S = 1.0  # after one could not be: it stays in the backlog, and would wake every turn
PIECE_BYTES = 256  # what a piece costs besides its data
READS_IN_A_TURN = 4  # of one connection, before the others get theirs
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Counts(NamedTuple):
    """connections: so far; open: of them now. gaps: times that records went missing or may have: runs of dropped ones,
    connections that were cut. The worker writes stored and lost, this process the others."""

    connections: int = 0
    open: int = 0
    records: int = 0  # lines that were read
    stored: int = 0  # of them durable, as events, as text of events, as dead letters, or of a kind that is passed over
    dropped: int = 0  # because too much waited
    lost: int = 0  # read, and not stored when a worker was killed
    gaps: int = 0


SLOTS = (*Counts._fields, "turns")  # of the page; turns: of this process, 0 until the first


def counts_of(page: Page) -> Counts:
    return Counts(*map(page.values().__getitem__, Counts._fields))


class Bounds(Struct):
    bytes_max: int = LISTEN_BYTES_MAX
    read_bytes: int = LISTEN_READ_BYTES
    connections_max: int = LISTEN_CONNECTIONS_MAX


class Job(Struct):
    """The one argument. sock, channel: file descriptors; counts: the file of the page; allowed: who may write; audit:
    the file of the audit log."""

    sock: int
    channel: int
    parent: int
    path: str
    counts: str
    allowed: Allowed
    audit: str
    log_level: str
    bounds: Bounds


class Piece:
    """Lines of one connection. offset: of the first byte in all that it wrote; last: it has ended."""

    __slots__ = ("connection", "data", "last", "offset", "records")

    def __init__(self, connection: int, offset: int, data: bytearray, records: int, last: bool) -> None:
        self.connection, self.offset, self.data, self.records, self.last = connection, offset, data, records, last


class Peer:
    """A connection. tail: its line under way, at most RECORD_BYTES_MAX and some; passed: bytes of it beyond that."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock, self.number = sock, number
        self.offset = 0  # of the line under way
        self.tail = bytearray()
        self.passed = 0
        self.known = False  # the worker got, or will get, something of it


class Drain:
    """Reads, and hands on."""

    def __init__(
        self, path: str, sock: socket.socket, channel: socket.socket, page: Page, allowed: Allowed, audit: Audit,
        bounds: Bounds,
    ) -> None:  # fmt: skip
        self._path, self._sock, self._channel, self._page = path, sock, channel, page
        self._allowed, self._audit, self._bounds = allowed, audit, bounds
        self._pieces: deque[Piece] = deque()
        self._held = 0  # bytes read and not stored, and PIECE_BYTES for each piece
        self._handed = 0  # of them, for the piece that the worker has
        self._asked = self._stopping = self._ended = False
        self._out = memoryview(b"")  # on its way to the worker
        self._dropping, self._logged_s = False, -LOG_EVERY_S
        self._accept_s, self._unaccepted_s = 0.0, -LOG_EVERY_S  # when to listen again; when it was last said
        self._peers: set[Peer] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ, self._accept)
        self._selector.register(channel, selectors.EVENT_READ, self._hear)

    def run(self) -> int:
        """Until the end was handed on, or the worker is gone."""
        try:
            while not (self._ended and not self._pieces and self._asked and not self._out):
                for key, _ in self._selector.select(TURN_S):
                    key.data()
                self._page.add("turns")
                self._audit.flush()
                self._listen_again()
                if self._stopping and not self._ended:
                    self._stop()
                self._hand_on()
            self._audit.flush(all=True)  # who hears of the end kills this process
            self._channel.setblocking(True)
            self._channel.sendall(END)
        except ConnectionError:
            return PARENT_GONE
        return 0

    # ---- the worker ---------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        try:
            said = self._channel.recv(64)
        except BlockingIOError:  # it can be written to
            return
        if not said:
            raise ConnectionResetError
        if MORE in said:
            self._held -= self._handed
            self._handed, self._asked = 0, True
        self._stopping |= STOP in said  # later: what was selected with it is still open

    def _hand_on(self) -> None:
        """What was asked for, as far as the channel takes it."""
        if self._asked and self._pieces:
            piece, self._asked = self._pieces.popleft(), False
            size = len(piece.data)
            self._handed = size + PIECE_BYTES
            head = HEAD.pack(piece.connection, piece.offset, size, piece.records, piece.last)
            self._out = memoryview(head + piece.data)
        elif not self._out:
            return
        try:
            self._out = self._out[self._channel.send(self._out) :]
        except BlockingIOError:
            pass
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if self._selector.get_key(self._channel).events != wanted:
            self._selector.modify(self._channel, wanted, self._hear)

    def _stop(self) -> None:
        """Read what there is, of those who have just connected, too, and close the connections; what was read can
        still be asked for."""
        while self._accept():
            pass
        if not self._accept_s:
            self._selector.unregister(self._sock)
        self._accept_s = 0.0
        self._sock.close()
        for peer in list(self._peers):
            self._read(peer)
            if peer in self._peers:
                self._page.add("gaps")
                self._end(peer)
        self._ended = True

    # ---- detectors ----------------------------------------------------------------------------------------------

    def _accept(self) -> bool:
        """Take one connection. False: there is none, or none can be taken for now."""
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True
        except OSError as e:  # no file descriptor, no memory
            self._accept_later(e)
            return False
        sock.setblocking(False)
        pid, uid, gid = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        refused = ""
        if not self._allowed.has(uid, gid):
            refused = "may not write here; access.ingest names who may (sockets.writers, where it does not)"
            self._audit.add(uid, pid, "ingest", f"connect to {Path(self._path).name}", "DENIED")
        elif len(self._peers) >= self._bounds.connections_max:
            refused = f"is one too many: {self._bounds.connections_max} are connected"
        if refused:
            log.warning("%s: uid %d pid %d %s", self._path, uid, pid, refused)
            sock.close()
            return True
        self._page.add("connections")
        self._page.add("open")
        peer = Peer(sock, self._page.values()["connections"])
        self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._read(peer))
        log.info("%s: connection %d by uid %d pid %d", self._path, peer.number, uid, pid)
        return True

    def _accept_later(self, error: OSError) -> None:
        now_s = time.monotonic()
        if not self._accept_s:
            self._selector.unregister(self._sock)
        self._accept_s = now_s + ACCEPT_AGAIN_S
        if now_s - self._unaccepted_s >= LOG_EVERY_S:
            self._unaccepted_s = now_s
            log.error(
                "%s: a connection cannot be accepted: %s; tried again every %.0f s", self._path, error, ACCEPT_AGAIN_S
            )

    def _listen_again(self) -> None:
        if self._accept_s and time.monotonic() >= self._accept_s:
            self._accept_s = 0.0
            self._selector.register(self._sock, selectors.EVENT_READ, self._accept)

    def _read(self, peer: Peer) -> None:
        for _ in range(READS_IN_A_TURN):
            try:
                data = peer.sock.recv(self._bounds.read_bytes)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._end(peer)
                return
            self._split(peer, data)

    def _split(self, peer: Peer, data: bytes) -> None:
        """Put whole lines; of a line that is too long only so much that the adapter sees it."""
        end = data.rfind(b"\n") + 1
        start = 0
        if end and peer.passed:
            start = data.index(b"\n") + 1
            size = len(peer.tail) + peer.passed + start
            self._put(peer, peer.tail + b"\n", 1)
            peer.offset += size
            peer.tail, peer.passed = bytearray(), 0
        if start < end:
            whole = peer.tail + data[start:end]
            self._put(peer, whole, whole.count(b"\n"))
            peer.offset += len(whole)
            peer.tail = bytearray()
        room = RECORD_BYTES_MAX + 2 - len(peer.tail)
        peer.tail += data[end : end + room]
        peer.passed += max(0, len(data) - end - room)

    def _end(self, peer: Peer) -> None:
        self._selector.unregister(peer.sock)
        peer.sock.close()
        self._peers.discard(peer)
        self._put(peer, peer.tail, int(bool(peer.tail)), last=True)
        self._page.add("open", -1)
        log.info("%s: connection %d has ended", self._path, peer.number)

    def _put(self, peer: Peer, data: bytearray, records: int, *, last: bool = False) -> None:
        """The end of a connection that is known is told even where nothing fits: those are few, others are nothing."""
        self._page.add("records", records)
        fits = self._held + len(data) + PIECE_BYTES <= self._bounds.bytes_max
        if data and fits:
            self._append(Piece(peer.number, peer.offset, data, records, last))
            peer.known, self._dropping = True, False
        elif last and peer.known:
            self._append(Piece(peer.number, peer.offset, bytearray(), 0, last))
        if data and not fits:
            self._drop(records)

    def _append(self, piece: Piece) -> None:
        """Small pieces that follow each other become one."""
        before = self._pieces[-1] if self._pieces else None
        self._held += len(piece.data)
        if (
            before is not None
            and before.connection == piece.connection
            and before.offset + len(before.data) == piece.offset
            and len(before.data) + len(piece.data) <= self._bounds.read_bytes
        ):
            before.data += piece.data
            before.records += piece.records
            before.last = piece.last
        else:
            self._held += PIECE_BYTES
            self._pieces.append(piece)

    def _drop(self, records: int) -> None:
        self._page.add("dropped", records)
        if not self._dropping:
            self._dropping = True
            self._page.add("gaps")
        if (now_s := time.monotonic()) - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            counts = counts_of(self._page)
            log.error("%s: records are dropped, they come faster than they are stored: %s", self._path, counts)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach a whole group; the worker says when to stop
        signal.signal(number, signal.SIG_IGN)
    job = msgspec.json.decode(sys.argv[1], type=Job)
    die_with_parent(job.parent)
    name_process("listen")
    set_up_log("listen", job.log_level)
    sock, channel = socket.socket(fileno=job.sock), socket.socket(fileno=job.channel)
    page = Page(job.counts, SLOTS, write=True)
    audit = Audit("listen", File(Path(job.audit)).write)
    try:
        return Drain(job.path, sock, channel, page, job.allowed, audit, job.bounds).run()
    finally:
        audit.flush(all=True)


if __name__ == "__main__":
    sys.exit(main())
