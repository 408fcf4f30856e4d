"""A Unix stream socket that a detector connects to and writes lines (Suricata's eve-log, filetype unix_stream).

Always true
  - What the detector wrote is never left for a commit: a thread takes it as soon as it gets its turn. (Suricata throws
    a record away when its socket would block, which is after some 200 KiB; on a machine short of processors the turn
    can come later than that, and only Suricata counts those.)
  - At most LISTEN_BYTES_MAX wait to be stored. Beyond that whole records are dropped and counted.
  - A piece holds whole lines of one connection; only the last of a connection may end without a line end.
  - records = stored + dropped + lost + those that wait; the counts outlive a killed worker, whose successor counts
    what it had read and not stored as lost. Each count has one thread that writes it.
"""

from __future__ import annotations

import logging
import selectors
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from engine.errors import EngineError, SourceError
from engine.heartbeat import Page
from engine.limits import LISTEN_BYTES_MAX, LISTEN_CONNECTIONS_MAX, LISTEN_READ_BYTES, RECORD_BYTES_MAX
from engine.sockets import bind, check_private, remove
from engine.sources import adapter_for
from engine.sources.base import Adapter, Parsed, SourceSpec

log = logging.getLogger(__name__)

LOG_EVERY_S = 60.0  # of records that are dropped
SWITCH_S = 0.0005  # the longest that other Python code keeps the thread from reading; by default ten times as long
READS_IN_A_TURN = 4  # of one connection, before the others get theirs
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Counts(NamedTuple):
    """connections: so far; open: of them now. gaps: times that records went missing or may have: runs of dropped ones,
    connections that were cut."""

    connections: int = 0
    open: int = 0
    records: int = 0  # lines that were read
    stored: int = 0  # of them durable, as events, as text of events, as dead letters, or of a kind that is passed over
    dropped: int = 0  # because too much waited
    lost: int = 0  # read, and not stored when a worker was killed
    gaps: int = 0


class Piece:
    """Lines of one connection. offset: of the first byte in all that it wrote; last: it has ended."""

    __slots__ = ("connection", "data", "last", "offset", "records")

    def __init__(self, connection: int, offset: int, data: bytearray, records: int, last: bool) -> None:
        self.connection, self.offset, self.data, self.records, self.last = connection, offset, data, records, last


class _Peer:
    """A connection. tail: its line under way, at most RECORD_BYTES_MAX and some; passed: bytes of it beyond that."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock, self.number = sock, number
        self.offset = 0  # of the line under way
        self.tail = bytearray()
        self.passed = 0


class Listener:
    """The socket and its thread. Raises BootError, ConfigError where it cannot be bound, OSError."""

    def __init__(
        self, path: Path, mode: int, group: str, counts: Path, may_write: Callable[[int], bool],
        on_data: Callable[[], None],
    ) -> None:  # fmt: skip
        """counts: the file of its Page. on_data: called by the thread when there is something to take."""
        self.path, self._may_write, self._on_data = path, may_write, on_data
        check_private(path.parent)
        self._page = Page(counts, Counts._fields, create=True)
        try:
            self._sock = bind(path, mode, group)
        except EngineError:
            self._page.close()
            raise
        self._inode = path.lstat().st_ino
        self._recover()
        self._lock = threading.Lock()
        self._pieces: deque[Piece] = deque()
        self._held = 0  # bytes read and not stored
        self._dropping, self._logged_s = False, -LOG_EVERY_S
        self.failure: Exception | None = None
        self._stopping = self._ended = False
        self._peers: set[_Peer] = set()
        self._selector = selectors.DefaultSelector()
        self._wake, self._wake_w = socket.socketpair()
        self._selector.register(self._sock, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, lambda: None)
        self._thread = threading.Thread(target=self._run, name=f"listen {path}", daemon=True)
        self._thread.start()

    def _recover(self) -> None:
        """What a worker that was killed had read and not stored is lost, and each of its connections was cut."""
        old = self.counts()
        waiting = old.records - old.stored - old.dropped - old.lost
        self._page.put(open=0, lost=old.lost + max(0, waiting), gaps=old.gaps + old.open)

    def counts(self) -> Counts:
        return Counts(**self._page.values())

    def take(self) -> Piece | None:
        """The next piece, to be given to stored() afterwards."""
        with self._lock:
            return self._pieces.popleft() if self._pieces else None

    def stored(self, piece: Piece) -> None:
        with self._lock:
            self._held -= len(piece.data)
        self._page.add("stored", piece.records)

    @property
    def over(self) -> bool:
        """Nothing more will come, and everything was taken."""
        return self._ended and not self._pieces

    def stop(self) -> None:
        """Read what there is, close the connections, unlink the socket. What was read can still be taken."""
        if not self._stopping:
            self._stopping = True
            self._wake_w.send(b"\0")
            self._thread.join()

    def close(self) -> None:
        self.stop()
        self._wake.close()
        self._wake_w.close()
        self._page.close()

    # ---- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        sys.setswitchinterval(SWITCH_S)
        try:
            while not self._stopping:
                for key, _ in self._selector.select():
                    key.data()
        except Exception as e:
            self.failure = e
        finally:
            remove(self._sock, self.path, self._inode)
            for peer in list(self._peers):
                self._read(peer)
                if peer in self._peers:
                    self._page.add("gaps")
                    self._end(peer)
            self._selector.close()
            self._ended = True
            self._on_data()

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        sock.setblocking(False)
        pid, uid, _ = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        refused = ""
        if not self._may_write(uid):
            refused = "may not write here; add it to sockets.writers or to the group sockets.write_group"
        elif len(self._peers) >= LISTEN_CONNECTIONS_MAX:
            refused = f"is one too many: {LISTEN_CONNECTIONS_MAX} are connected"
        if refused:
            log.warning("%s: uid %d pid %d %s", self.path, uid, pid, refused)
            sock.close()
            return
        self._page.add("connections")
        self._page.add("open")
        peer = _Peer(sock, self.counts().connections)
        self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._read(peer))
        log.info("%s: connection %d by uid %d pid %d", self.path, peer.number, uid, pid)

    def _read(self, peer: _Peer) -> None:
        for _ in range(READS_IN_A_TURN):
            try:
                data = peer.sock.recv(LISTEN_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._end(peer)
                return
            self._split(peer, data)

    def _split(self, peer: _Peer, data: bytes) -> None:
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

    def _end(self, peer: _Peer) -> None:
        self._selector.unregister(peer.sock)
        peer.sock.close()
        self._peers.discard(peer)
        self._put(peer, peer.tail, int(bool(peer.tail)), last=True)
        self._page.add("open", -1)
        log.info("%s: connection %d has ended", self.path, peer.number)

    def _put(self, peer: _Peer, data: bytearray, records: int, *, last: bool = False) -> None:
        self._page.add("records", records)
        with self._lock:
            fits = not data or self._held + len(data) <= LISTEN_BYTES_MAX
            if fits:
                self._held += len(data)
            if fits or last:
                self._append(Piece(peer.number, peer.offset, data if fits else bytearray(), records * fits, last))
            first = len(self._pieces) == 1
        if not fits:
            self._drop(records)
        elif data:
            self._dropping = False
        if first:
            self._on_data()

    def _append(self, piece: Piece) -> None:
        """Small pieces that follow each other become one."""
        before = self._pieces[-1] if self._pieces else None
        if (
            before is not None
            and before.connection == piece.connection
            and before.offset + len(before.data) == piece.offset
            and len(before.data) + len(piece.data) <= LISTEN_READ_BYTES
        ):
            before.data += piece.data
            before.records += piece.records
            before.last = piece.last
        else:
            self._pieces.append(piece)

    def _drop(self, records: int) -> None:
        self._page.add("dropped", records)
        if not self._dropping:
            self._dropping = True
            self._page.add("gaps")
        if (now_s := time.monotonic()) - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            log.error("%s: records are dropped, they come faster than they are stored: %s", self.path, self.counts())


class Intake:
    """What comes over one listening socket, read by an adapter for each connection."""

    def __init__(self, spec: SourceSpec, format_name: str) -> None:
        """Raises SourceError for a format that is no lines."""
        self._spec, self._adapter = spec, adapter_for(format_name)
        if self._adapter.binary:
            raise SourceError(f"{format_name} cannot be listened to: it is no lines")
        self._adapters: dict[int, Adapter] = {}

    def parse(self, piece: Piece) -> Parsed:
        adapter = self._adapters.get(piece.connection)
        if adapter is None:
            adapter = self._adapters[piece.connection] = self._adapter(self._spec)
        out = adapter.feed(bytes(piece.data), piece.offset) if piece.data else Parsed([], [])
        if piece.last:
            out.add(self._adapters.pop(piece.connection).finish())
        return out
