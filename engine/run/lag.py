"""How far the ingest worker is with the files it follows and the sockets it listens on.

Always true
  - The ingest worker writes it to run/sources.json, replaced whole, when something changed; stats of either socket and
    the doctor read it there. It is the truth about nothing: losing it loses figures, no data.
  - Of thousands of files FILES_SHOWN_MAX are told of, those that lag most first; the sums are of all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from engine.config import Config, Source
from engine.files import replace
from engine.layout import Layout
from engine.run.drain import Counts
from engine.run.listen import Listener
from engine.sources.follow import Batch, Follower

log = logging.getLogger(__name__)

FILES_SHOWN_MAX = 64
STUCK_S = 60  # bytes that wait so long without any progress are a problem


class SourceLag(Struct):
    """A followed source. error: why nothing can be read at the moment."""

    name: str
    path: str
    files: int = 0
    lag_bytes: int = 0
    error: str = ""


class FileLag(Struct):
    """offset: where a restart would read again from, decompressed; lag_bytes: not stored yet (of an archive: compressed
    ones); read_at, event_at: when something of it was last stored, and the time of the latest event then."""

    source: str
    path: str
    size: int
    offset: int
    lag_bytes: int
    read_at: int | None
    event_at: int | None
    done: bool
    waits_since_at: int | None  # for which there are bytes, and no progress
    waits_since_ns: int | None = None  # the same by the monotonic clock, which all processes share: how long it is


class SocketLag(Struct):
    """A listening source; the counts are engine/run/drain.py's."""

    source: str
    path: str
    connections: int = 0
    open: int = 0
    records: int = 0
    stored: int = 0
    dropped: int = 0
    lost: int = 0
    gaps: int = 0
    error: str = ""


class Report(Struct):
    followed: list[SourceLag] = []
    files: list[FileLag] = []
    listening: list[SocketLag] = []


def listen_path(layout: Layout, source: Source) -> Path:
    """Where a listening source's socket is; a relative path is beneath run/."""
    return layout.run / source.listen


def read(layout: Layout) -> Report | None:
    """What was last written; None where there is nothing to be read."""
    try:
        return msgspec.json.decode(layout.sources.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def facts(layout: Layout) -> dict[str, Any]:
    """As stats show it."""
    found: dict[str, Any] = msgspec.to_builtins(read(layout) or Report())
    return {"followed": found["followed"], "followed_files": found["files"], "listening": found["listening"]}


class _Time(NamedTuple):
    """A moment: monotonic, which compares, and by the clock on the wall, which is told."""

    ns: int
    at: int


def _now() -> _Time:
    return _Time(time.monotonic_ns(), time.time_ns())


class Book:
    """Kept by the ingest worker."""

    def __init__(self, layout: Layout, config: Config) -> None:
        self._layout, self._sources = layout, config.sources
        self._errors: dict[str, str] = {}
        self._troubles: dict[str, str] = {}
        self._stored: dict[tuple[str, str], tuple[_Time, int | None]] = {}  # source and key: when, event_at
        self._waits: dict[tuple[str, str], tuple[int, _Time]] = {}  # source and path: lag_bytes, since
        self._written = b""

    def stored(self, source: str, batch: Batch) -> None:
        """A batch of a followed file is durable."""
        if batch.state is None:
            self._stored.pop((source, batch.key), None)
            return
        _, before = self._stored.get((source, batch.key), (None, None))
        latest = max((item.event.ts for item in batch.parsed.events), default=before)
        self._stored[source, batch.key] = (_now(), latest)

    def error(self, source: str, error: str = "") -> bool:
        """Why nothing can be read; "": it can. False where that was known."""
        known, self._errors[source] = self._errors.get(source, ""), error
        return error != known

    def write(self, followers: Mapping[str, Follower], listeners: Mapping[str, Listener]) -> None:
        report = Report()
        waits: dict[tuple[str, str], tuple[int, _Time]] = {}
        for name, source in self._sources.items():
            error = self._errors.get(name, "")
            if source.listen:
                counts = listeners[name].counts() if name in listeners else Counts()
                path = str(listen_path(self._layout, source))
                report.listening.append(SocketLag(name, path, *counts, error=error))
                continue
            follower = followers.get(name)
            files = list(self._files(name, follower)) if follower else []
            error = error or self._trouble(name, follower)
            lag = sum(file.lag_bytes for file in files)
            report.followed.append(SourceLag(name, source.path, len(files), lag, error))
            report.files += files
            for f in files:
                if f.waits_since_ns is not None and f.waits_since_at is not None:
                    waits[name, f.path] = (f.lag_bytes, _Time(f.waits_since_ns, f.waits_since_at))
        self._waits = waits
        report.files.sort(key=lambda file: (-file.lag_bytes, -(file.read_at or 0), file.source, file.path))
        del report.files[FILES_SHOWN_MAX:]
        data = msgspec.json.encode(report)
        if data != self._written:
            replace(self._layout.sources, data)
            self._written = data

    def _trouble(self, name: str, follower: Follower | None) -> str:
        """Why nothing is read, though the directory can be; the log says it when it begins."""
        trouble = follower.trouble() if follower else ""
        if trouble and trouble != self._troubles.get(name):
            log.warning("source %s: %s; looking again and again", name, trouble)
        self._troubles[name] = trouble
        return trouble

    def _files(self, source: str, follower: Follower) -> Iterator[FileLag]:
        now = _now()
        for file in follower.readings():
            read, event_at = self._stored.get((source, file.key), (None, None))
            lag, since = self._waits.get((source, file.path), (0, now))
            if file.lag_bytes < lag:
                since = now
            since = max(since, read or since)
            yield FileLag(
                source, file.path, file.size, file.offset, file.lag_bytes, read.at if read else None, event_at,
                file.done, *((since.at, since.ns) if file.lag_bytes else (None, None)),
            )  # fmt: skip


def troubles(report: Report, now_ns: int) -> Iterator[tuple[str, str, str]]:
    """(severity, object, what is wrong and what to do) of a running engine. now_ns: monotonic."""
    for source in report.followed:
        if source.error:
            yield (
                "problem",
                f"source {source.name}",
                f"{source.error}; it is tried again and again; look at path, owner, mode",
            )
    for file in report.files:
        if file.waits_since_ns is not None and now_ns - file.waits_since_ns > STUCK_S * 10**9:
            waited_s = (now_ns - file.waits_since_ns) // 10**9
            yield (
                "problem", f"source {file.source}",
                f"{file.path}: {file.lag_bytes} bytes wait, and nothing was stored for {waited_s} s; the engine's log"
                " says why; is the file readable, the disk full?",
            )  # fmt: skip
    for socket in report.listening:
        if socket.error:
            yield "problem", f"source {socket.source}", f"{socket.error}; detectors cannot connect until that is mended"
        elif socket.dropped or socket.gaps:
            yield (
                "note", f"source {socket.source}",
                f"{socket.dropped} records were dropped because they came faster than they were stored, {socket.lost}"
                f" lost with a killed process, in {socket.gaps} gaps; a file that is followed loses none",
            )  # fmt: skip
