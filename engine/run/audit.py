"""Who did what: run/audit.ndjson, one JSON object a line.

Always true
  - What was written, labelled, switched, ordered or refused has a line: when, who (uid and pid, as the kernel says),
    in which role, what, how it ended. Never the text of an event, nor anything of it but its id.
  - The same of the same user within SUM_S is one line at once and one for the rest, with `times`: neither a busy writer
    nor who knocks in a loop pushes out what others did. At most SUMS_MAX of these are told apart.
  - 0600, and at most BYTES_MAX and KEPT older files of that size. Lines of several processes do not mix: each is one
    write at the end of the file.
  - A line that cannot be written is said in the log, and stops nothing. Lines are not synced: a power failure may lose
    the last ones.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from engine.files import open_ours

log = logging.getLogger(__name__)

BYTES_MAX = 8 << 20
KEPT = 4
SUM_S = 60.0
SUMS_MAX = 64
LINE_BYTES_MAX = 2_048

Short = Annotated[str, Meta(max_length=256)]


class Line(Struct, kw_only=True, omit_defaults=True):
    """process: of the engine, that saw it; times: how often, where it is a sum; events: so many were stored."""

    at: Short
    process: Short
    uid: int
    pid: int
    role: Short
    what: Short
    outcome: Short
    detail: Short = ""
    times: int = 1
    events: int = 0


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Line).decode
Key = tuple[int, str, str, str]


class _Sum:
    """What came since the line that was written at once."""

    def __init__(self, line: Line, until_s: float) -> None:
        self.line, self.until_s, self.times, self.events = line, until_s, 0, 0


class Audit:
    """One process's. write: takes an encoded line, without its end."""

    def __init__(self, process: str, write: Callable[[bytes], None]) -> None:
        self.process, self._write = process, write
        self._sums: dict[Key, _Sum] = {}

    def add(
        self, uid: int, pid: int, role: str, what: str, outcome: str, detail: str = "", *, events: int = 0,
        alone: bool = False,
    ) -> None:  # fmt: skip
        """alone: has a line of its own, whatever came before."""
        line = Line(
            at=_now(), process=self.process, uid=uid, pid=pid, role=role, what=what[:256], outcome=outcome[:256],
            detail=detail[:256], events=events,
        )  # fmt: skip
        if alone:
            self._write(encode(line))
            return
        self.flush()
        key = (uid, role, line.what, line.outcome)
        if key not in self._sums and len(self._sums) >= SUMS_MAX:
            key, line.uid, line.pid, line.what, line.detail = (-1, role, "(other)", ""), -1, 0, "(other)", ""
        found = self._sums.get(key)
        if found is None:
            self._sums[key] = _Sum(line, time.monotonic() + SUM_S)
            self._write(encode(line))
        else:
            found.times += 1
            found.events += events

    def flush(self, *, all: bool = False) -> None:
        """Write the sums whose time is over; to be called now and then. all: at the end."""
        now_s = time.monotonic()
        for key, found in list(self._sums.items()):
            if all or found.until_s <= now_s:
                del self._sums[key]
                if found.times:
                    found.line.at, found.line.times, found.line.events = _now(), found.times, found.events
                    self._write(encode(found.line))


class File:
    """Appends lines; may be open in several processes."""

    def __init__(self, path: Path) -> None:
        self.path, self._fd, self._failed = path, -1, False
        self._torn = False  # the last line has no end

    def write(self, line: bytes) -> None:
        data = (b"\n" if self._torn else b"") + line + b"\n"
        try:
            self._open()
            if written := os.write(self._fd, data):
                self._torn = written < len(data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._failed = False
        except OSError as e:
            if not self._failed:
                log.error("the audit log cannot be written: %s", e)
            self._failed = True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        """The file that has the name now, and room."""
        if self._fd >= 0 and not self._current():
            self.close()
        if self._fd < 0:
            self._fd = open_ours(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        if os.fstat(self._fd).st_size >= BYTES_MAX:
            self._rotate()

    def _current(self) -> bool:
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        """By the first process that comes to it; the others find a new file in its place."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            if self._current():
                for n in range(KEPT, 0, -1):
                    with contextlib.suppress(FileNotFoundError):
                        (self._older(n - 1) if n > 1 else self.path).replace(self._older(n))
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self.close()
        self._fd = open_ours(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def _older(self, n: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{n}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
