"""A Unix stream socket that a detector connects to and writes lines (Suricata's eve-log, filetype unix_stream).

Always true
  - What the detector wrote is never left for a commit: a process of its own takes it (engine/run/drain.py). (Suricata
    throws a record away when its socket would block, which is after some 100 to 200 records, and only it counts those.)
  - records = stored + dropped + lost + those that wait; the counts outlive a killed worker, whose successor counts
    what it had read and not stored as lost. Each count has one process that writes it.
  - The socket goes with its reader: a worker that is killed takes the process along, one without its process closes
    the socket and says why. A process that takes no more turns is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from engine.errors import SourceError
from engine.run.access import Allowed
from engine.run.drain import HEAD, MORE, SLOTS, STOP, Bounds, Counts, Job, Piece, counts_of
from engine.run.heartbeat import Page
from engine.run.sockets import bind, check_private, remove
from engine.sources import adapter_for
from engine.sources.base import Adapter, Parsed, SourceSpec

log = logging.getLogger(__name__)

SILENT_LOOKS_MAX = 10  # so often the process has taken no turn since the look before: it is stuck
START_PATIENCE = 6  # before its first turn, so many times as often


class Listener:
    """The socket and its process. Raises BootError, ConfigError where it cannot be bound, OSError."""

    def __init__(
        self,
        path: Path,
        mode: int,
        group: str,
        counts: Path,
        allowed: Allowed,
        audit: Path,
        bounds: Bounds | None = None,
    ) -> None:
        """counts: the file of its Page; allowed: who may write; audit: the file that says who was refused."""
        self.path = path
        check_private(path.parent)
        with contextlib.ExitStack() as undo:
            self._page = Page(counts, SLOTS, create=True)
            undo.callback(self._page.close)
            self._sock = bind(path, mode, group)
            self._inode = path.lstat().st_ino
            undo.callback(remove, self._sock, path, self._inode)
            self._recover()
            self._channel, theirs = socket.socketpair()
            undo.callback(self._channel.close)
            self._channel.setblocking(False)
            theirs.setblocking(False)
            job = Job(
                self._sock.fileno(), theirs.fileno(), os.getpid(), str(path), str(counts), allowed, str(audit),
                logging.getLevelName(log.getEffectiveLevel()), bounds or Bounds(),
            )  # fmt: skip
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "engine.run.drain", msgspec.json.encode(job).decode()],
                    stdin=subprocess.DEVNULL, pass_fds=[job.sock, job.channel],
                )  # fmt: skip
            undo.pop_all()
        self._stopping = False
        self._turns = self._silent_looks = 0

    def _recover(self) -> None:
        """What a worker that was killed had read and not stored is lost, and each of its connections was cut."""
        old = self.counts()
        waiting = old.records - old.stored - old.dropped - old.lost
        self._page.put(turns=0, open=0, lost=old.lost + max(0, waiting), gaps=old.gaps + old.open)

    def counts(self) -> Counts:
        return counts_of(self._page)

    def look(self) -> None:
        """Called every drain.TURN_S or more rarely: kills a process that is stuck; take() fails then. It counts looks,
        not seconds: where all processes stood still together nobody was silent."""
        turns = self._page.values()["turns"]
        self._silent_looks = self._silent_looks + 1 if turns == self._turns else 0
        self._turns = turns
        if self._silent_looks > SILENT_LOOKS_MAX * (1 if turns else START_PATIENCE):
            log.error("the process that reads %s gave no sign of life: killed", self.path)
            self._process.kill()

    async def take(self) -> Piece | None:
        """The next piece once there is one, to be given to stored() before the next is taken; None after the last.
        Raises SourceError where the process has died."""
        try:
            self._channel.send(MORE)
            connection, offset, size, records, last = HEAD.unpack(await self._receive(HEAD.size))
            data = await self._receive(size)
        except ConnectionError as e:
            raise SourceError(f"the process that reads {self.path} has died") from e
        return Piece(connection, offset, data, records, last) if connection else None

    async def _receive(self, size: int) -> bytearray:
        data, got = bytearray(size), 0
        while got < size:
            more = await asyncio.get_running_loop().sock_recv_into(self._channel, memoryview(data)[got:])
            if not more:
                raise ConnectionResetError
            got += more
        return data

    def stored(self, piece: Piece) -> None:
        self._page.add("stored", piece.records)

    def stop(self) -> None:
        """Unlink the socket, read what there is, close the connections. What was read can still be taken."""
        if not self._stopping:
            self._stopping = True
            remove(self._sock, self.path, self._inode)
            try:
                self._channel.send(STOP)
            except ConnectionError:
                pass  # take() says so

    def close(self) -> None:
        """What was not taken by now is counted by the next one."""
        remove(self._sock, self.path, self._inode)
        self._channel.close()
        self._process.kill()
        self._process.wait()
        self._page.close()


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
