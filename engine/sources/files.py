"""Files in: found, decompressed within bounds, read by their adapter, and sorted by time.

Always true
  - Compression is known by its magic bytes, never by a name. What comes out of an archive is bounded by
    DECOMPRESS_RATIO_MAX and DECOMPRESS_BYTES_MAX a member; a damaged one gives what was read, then one Reject; one
    that gives nothing has no format that could be found, which is an error.
  - What is no regular file is opened once, and every byte of it reaches its adapter, looked at before or not.
  - A directory is walked in sorted order; only regular files beneath it are opened, symbolic links are not followed.
  - `sorted_by_time` gives the same order whether or not it had to use the disk.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from struct import Struct as Layout
from typing import BinaryIO

import msgspec

from engine.errors import SourceError
from engine.limits import DECOMPRESS_BYTES_MAX, DECOMPRESS_RATIO_MAX
from engine.sources import adapter_for, detect
from engine.sources.base import Adapter, Parsed, SourceSpec
from ipc.event import FeaturedEvent
from ipc.messages import EVENTS_PER_MESSAGE_MAX, Reject

CHUNK_BYTES = 1 << 18
HEAD_BYTES = 1 << 16
FINGERPRINT_BYTES_MAX = 1 << 10
RATIO_FREE_BYTES = 1 << 20  # so much may come out of a member before its ratio counts
ZSTD_PIECE_BYTES = 1 << 10  # a few bytes of zstd can be megabytes
ZSTD_WINDOW_BYTES_MAX = 128 << 20
SORT_EVENTS_MAX = 50_000  # in memory; more are sorted through temporary files
MERGE_RUNS_MAX = 64  # temporary files open at once

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class ArchiveError(SourceError):
    """An archive that cannot be read on; what came out before is good."""


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The decompressed bytes of a stream. Raises ArchiveError after what could be read."""
    head = _read(stream, 4)
    if head.startswith(GZIP_MAGIC):
        yield from _gunzip(stream, head)
    elif head.startswith(ZSTD_MAGIC):
        yield from _unzstd(stream, head)
    else:
        data = head + stream.read(CHUNK_BYTES - len(head))
        while data:
            yield data
            data = stream.read(CHUNK_BYTES)


def open_path(path: str | Path) -> BinaryIO:
    """The file, or standard input for '-'. Raises SourceError."""
    if str(path) == "-":
        return sys.stdin.buffer
    try:
        file = Path(path).open("rb")  # noqa: SIM115  (the caller closes it)
        if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
            raise IsADirectoryError(21, "it is a directory", str(path))
        return file
    except OSError as e:
        raise SourceError(f"{path} cannot be read: {e.strerror}") from e


def walk(path: str | Path, pattern: str = "*") -> list[Path]:
    """The file itself, or all regular files beneath a directory that match, in sorted order. Raises SourceError for a
    directory that cannot be read."""
    root = Path(path)
    if not root.is_dir():
        return [root]

    def refuse(e: OSError) -> None:
        if isinstance(e, PermissionError):  # one that is gone since it was listed is none
            raise SourceError(f"{e.filename} cannot be read: {e.strerror}; name what is to be read of {root}") from e

    found = []
    for directory, names, files in os.walk(root, onerror=refuse, followlinks=False):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in files:
            file = Path(directory) / name
            if not name.startswith(".") and file.match(pattern) and _is_file(file):
                found.append(file)
    return sorted(found)


def _is_file(path: Path) -> bool:
    """Itself a regular file, not a link to one; one that is gone since it was listed is none."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def fingerprint(head: bytes, length: int = FINGERPRINT_BYTES_MAX) -> str:
    """Names a file by its first `length` decompressed bytes."""
    return hashlib.sha256(head[:length]).hexdigest()[:32]


class Inputs(ExitStack):
    """Files, or standard input for '-': looked at, then read, each from its beginning.

    A regular file is opened for either. Anything else (a pipe, a device, '-') may give its bytes but once: it is opened
    once, what was looked at is kept to be read, and it stays open until the end of the `with`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._once: dict[str, _Begun] = {}

    def head(self, path: str | Path) -> bytes:
        """Up to HEAD_BYTES of the decompressed beginning. Raises SourceError where it cannot be opened."""
        with self._begun(path) as begun:
            return begun.head[:HEAD_BYTES]

    def format(self, path: str | Path) -> str:
        """What reads it; '' where it is empty. Raises SourceError where nothing does, or it cannot be read at all."""
        with self._begun(path) as begun:
            if not begun.head and begun.failed:
                raise SourceError(f"{path}: {begun.failed[0].reason}")
            return detect(begun.head[:HEAD_BYTES], str(path)) if begun.head else ""

    def read(self, path: str | Path, spec: SourceSpec, format: str = "auto") -> Iterator[Parsed]:
        """All of it, decompressed, by the adapter of that format or the one that is detected; rejects name the path.

        Raises SourceError where it cannot be opened or nothing reads it; what is wrong inside it is a Reject.
        """
        with self._begun(path) as begun:
            yield from begun.read(spec._replace(file=str(path)), format)

    @contextmanager
    def _begun(self, path: str | Path) -> Iterator[_Begun]:
        name = str(path)
        if name in self._once:
            yield self._once[name]
            return
        stream = open_path(path)
        if name != "-" and stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            with stream:
                yield _Begun(stream, name)
            return
        if name != "-":
            self.enter_context(stream)
        self._once[name] = _Begun(stream, name)
        yield self._once[name]


class _Begun:
    """An open stream and its beginning. head: HEAD_BYTES decompressed or some more, fewer only where there are no more;
    failed: why it cannot be read on, once that is known."""

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self.head = b""
        self.failed: list[Reject] = []
        self._rest = _until_damaged(stream, file, self.failed)
        for data in self._rest:
            self.head += data
            if len(self.head) >= HEAD_BYTES:
                break

    def read(self, spec: SourceSpec, format: str) -> Iterator[Parsed]:
        """All of it, once."""
        head, self.head = self.head, b""
        if head:
            adapter, offset = _adapter(head, spec, format), 0
            for data in chain((head,), self._rest):
                yield adapter.feed(data, offset)
                offset += len(data)
            yield adapter.finish()
        if self.failed:
            yield Parsed([], self.failed)


def _until_damaged(stream: BinaryIO, file: str, failed: list[Reject]) -> Iterator[bytes]:
    """The decompressed bytes; where they cannot be read on they end, and `failed` says why."""
    offset = 0
    try:
        for data in chunks(stream):
            yield data
            offset += len(data)
    except ArchiveError as e:
        failed.append(Reject(file, offset, str(e)[:512]))
    except OSError as e:
        failed.append(Reject(file, offset, f"read failed: {e.strerror}"[:512]))


def _adapter(head: bytes, spec: SourceSpec, format: str) -> Adapter:
    name = detect(head[:HEAD_BYTES], spec.file) if format in ("", "auto") else format
    if not spec.fingerprint:
        spec = spec._replace(fingerprint=fingerprint(head))
    return adapter_for(name)(spec)


def _read(stream: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes, fewer only at the end."""
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


class _Bound:
    """What may come out of one member."""

    def __init__(self) -> None:
        self.taken = self.given = 0

    def check(self, taken: int, given: int) -> None:
        self.taken, self.given = self.taken + taken, self.given + given
        if self.given > DECOMPRESS_BYTES_MAX:
            raise ArchiveError(f"archive member of more than {DECOMPRESS_BYTES_MAX} bytes; decompress it first")
        if self.given > RATIO_FREE_BYTES and self.given > DECOMPRESS_RATIO_MAX * self.taken:
            raise ArchiveError(f"archive member expands more than {DECOMPRESS_RATIO_MAX} times; decompress it first")


def _gunzip(stream: BinaryIO, data: bytes) -> Iterator[bytes]:
    members = 0
    while True:
        # Between members: zero padding is allowed, anything else is not.
        data = data.lstrip(b"\0")
        while len(data) < 2 and (more := stream.read(CHUNK_BYTES)):
            data = (data + more).lstrip(b"\0")
        if not data:
            return
        if not data.startswith(GZIP_MAGIC):
            raise ArchiveError(f"gzip: something else follows after {members} members")
        member, bound = zlib.decompressobj(wbits=31), _Bound()
        while not member.eof:
            try:
                out = member.decompress(data, CHUNK_BYTES)
            except zlib.error as e:
                raise ArchiveError(f"gzip is damaged: {e}") from e
            bound.check(len(data) - len(member.unconsumed_tail) - len(member.unused_data), len(out))
            if out:
                yield out
            data = member.unconsumed_tail
            if not data and not member.eof and not (data := stream.read(CHUNK_BYTES)):
                if out := member.flush():
                    yield out
                raise ArchiveError("gzip is cut short")
        data = member.unused_data
        members += 1


def _unzstd(stream: BinaryIO, data: bytes) -> Iterator[bytes]:
    import zstandard

    pieces = _pieces(stream, data)
    data = next(pieces, b"")
    while data:
        frame, bound = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX).decompressobj(), _Bound()
        while not frame.eof:
            try:
                out = frame.decompress(data)
            except zstandard.ZstdError as e:
                raise ArchiveError(f"zstd is damaged: {e}") from e
            bound.check(len(data) - len(frame.unused_data), len(out))
            if out:
                yield out
            if not frame.eof and not (data := next(pieces, b"")):
                raise ArchiveError("zstd is cut short")
        data = frame.unused_data or next(pieces, b"")


def _pieces(stream: BinaryIO, data: bytes) -> Iterator[bytes]:
    while data:
        for start in range(0, len(data), ZSTD_PIECE_BYTES):
            yield data[start : start + ZSTD_PIECE_BYTES]
        data = stream.read(CHUNK_BYTES)


# ---- order of time ------------------------------------------------------------------------------------------------

_LENGTH = Layout("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(FeaturedEvent).decode


def _by_time(item: FeaturedEvent) -> tuple[int, str]:
    return item.event.ts, item.event.event_id


def sorted_by_time(parsed: Iterable[Parsed], memory_events: int = SORT_EVENTS_MAX) -> Iterator[Parsed]:
    """All but events as it comes, then all events by (ts, event_id), at most EVENTS_PER_MESSAGE_MAX at a time.

    More than memory_events go through temporary files (unlinked at once, so that a crash leaves none).
    """
    held: list[FeaturedEvent] = []
    runs: list[BinaryIO] = []
    try:
        for batch in parsed:
            if batch.rejects or batch.actions or batch.not_ip:
                yield Parsed([], batch.rejects, batch.actions, batch.not_ip)
            held += batch.events
            if len(held) >= memory_events:
                held.sort(key=_by_time)
                runs.append(_run(held))
                held = []
            if len(runs) >= MERGE_RUNS_MAX:
                merged = _run(_merged(runs))
                _close(runs)
                runs = [merged]
        held.sort(key=_by_time)
        yield from _batches(_merged(runs, held))
    finally:
        _close(runs)


def _run(items: Iterable[FeaturedEvent]) -> BinaryIO:
    file = tempfile.TemporaryFile(prefix="flowkin-sort-")  # noqa: SIM115  (closed by sorted_by_time)
    for item in items:
        blob = _encode(item)
        file.write(_LENGTH.pack(len(blob)) + blob)
    file.flush()
    return file


def _items(run: BinaryIO) -> Iterator[FeaturedEvent]:
    run.seek(0)
    while size := run.read(_LENGTH.size):
        yield _decode(run.read(_LENGTH.unpack(size)[0]))


def _merged(runs: list[BinaryIO], held: Iterable[FeaturedEvent] = ()) -> Iterator[FeaturedEvent]:
    """Earlier runs first among equals, so that the order is that of one stable sort."""
    return heapq.merge(*map(_items, runs), held, key=_by_time)


def _batches(items: Iterator[FeaturedEvent]) -> Iterator[Parsed]:
    batch: list[FeaturedEvent] = []
    for item in items:
        batch.append(item)
        if len(batch) == EVENTS_PER_MESSAGE_MAX:
            yield Parsed(batch, [])
            batch = []
    if batch:
        yield Parsed(batch, [])


def _close(files: Iterable[BinaryIO]) -> None:
    for file in files:
        file.close()
