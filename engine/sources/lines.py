"""Bytes into lines, cut anywhere, and ids for records that have none.

Always true
  - The same bytes cut otherwise give the same lines, offsets, ordinals and rejects.
  - A line is at most RECORD_BYTES_MAX, valid UTF-8 (where its format asks for it) and free of NUL; anything else is one
    Reject, and stops nothing.
  - An ordinal counts identical lines before this one in the file, so identical records have ids of their own and a
    replay makes the same ones. `skip` counts a part that is not read again.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import ClassVar, NamedTuple

from xxhash import xxh3_64_intdigest

from engine.limits import RECORD_BYTES_MAX
from engine.sources.base import Adapter, Parsed, SourceSpec
from ipc.messages import Reject

ORDINALS_MAX = 131_072  # distinct lines remembered, twice: the current ones and those before them
REJECT_RECORD_BYTES_MAX = 1 << 16
REJECT_REASON_MAX = 512
BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    offset: int  # of its first byte
    record: bytes  # without the end of line
    ordinal: int  # identical lines before it


def event_id(sensor: str, kind: str, record: bytes, ordinal: int) -> str:
    """32 hex digits, the same for every replay of the same file."""
    seed = b"\0".join((sensor.encode("utf-8", "replace"), kind.encode(), record, b"%d" % ordinal))
    return hashlib.sha256(seed).digest()[:16].hex()


def event_id_at(fingerprint: str, offset: int) -> str:
    """The id of a record without a time: its place in the file."""
    return hashlib.sha256(f"{fingerprint}\0{offset}".encode()).digest()[:16].hex()


class LineAdapter(Adapter):
    """Splits what it is fed; a format implements `read` for whole lines, in order."""

    is_utf8: ClassVar[bool] = True  # else `decoded` reads what is none

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._tail: list[bytes] = []  # pieces of the line under way
        self._tail_size = 0
        self._line_offset = 0  # where the line under way begins
        self._too_long = False  # it was rejected already; its rest is passed over
        self._seen: dict[int, int] = {}
        self._seen_before: dict[int, int] = {}

    @abstractmethod
    def read(self, lines: list[Line], out: Parsed) -> None:
        """Append what these lines say to `out`."""

    def end(self, out: Parsed) -> None:
        """The source has ended: append what is pending."""

    def feed(self, data: bytes, offset: int) -> Parsed:
        out = Parsed([], [])
        lines = self._split(data, offset, out.rejects)
        if lines:
            self.read(lines, out)
        out.rejects.sort(key=lambda reject: reject.offset)
        return out

    def finish(self) -> Parsed:
        out = Parsed([], [])
        last: list[Line] = []
        if self._tail and not self._too_long:
            self._take(b"".join(self._tail), self._line_offset, last, out.rejects)
        self._line_offset += self._tail_size
        self._tail, self._tail_size, self._too_long = [], 0, False
        self._seen, self._seen_before = {}, {}  # no line comes after it, and what waits in a file may stay for long
        if last:
            self.read(last, out)
        self.end(out)
        return out

    def skip(self, data: bytes, offset: int) -> None:
        """Pass over bytes that were read before a restart; only their lines are counted."""
        self._split(data, offset, [])

    @property
    def resume_offset(self) -> int:
        return self._line_offset

    def reject(self, offset: int, reason: str, record: bytes) -> Reject:
        return Reject(self.spec.file, offset, reason[:REJECT_REASON_MAX], record[:REJECT_RECORD_BYTES_MAX])

    def _split(self, data: bytes, offset: int, rejects: list[Reject]) -> list[Line]:
        lines: list[Line] = []
        if not self._tail:
            self._line_offset = offset
        *whole, rest = data.split(b"\n")
        for piece in whole:
            size = self._tail_size + len(piece)
            if self._tail:
                piece = b"".join((*self._tail, piece))
                self._tail, self._tail_size = [], 0
            if self._too_long:
                self._too_long = False
            else:
                self._take(piece, self._line_offset, lines, rejects)
            self._line_offset += size + 1
        if rest:
            self._tail_size += len(rest)
            # Of a line that is too long only its beginning is kept, for the reject.
            kept = self._tail_size <= RECORD_BYTES_MAX + 1
            if not self._too_long:
                self._tail.append(rest)
            if not kept and not self._too_long:
                head = b"".join(self._tail)[: RECORD_BYTES_MAX + 2]
                self._too_long, self._tail = True, [b"-"]
                self._take(head, self._line_offset, lines, rejects)
        return lines

    def _take(self, record: bytes, offset: int, lines: list[Line], rejects: list[Reject]) -> None:
        if offset == 0:
            record = record.removeprefix(BOM)
        record = record.removesuffix(b"\r")
        if len(record) > RECORD_BYTES_MAX:
            rejects.append(self.reject(offset, f"line is longer than {RECORD_BYTES_MAX} bytes", record))
        elif b"\0" in record:
            rejects.append(self.reject(offset, "line has a NUL byte", record))
        elif self.is_utf8 and not record.isascii() and (bad := _not_utf8(record)) is not None:
            rejects.append(self.reject(offset, f"line is not UTF-8 at byte {bad}", record))
        elif record and not record.isspace():
            lines.append(Line(offset, record, self._ordinal(record)))

    def _ordinal(self, record: bytes) -> int:
        key = xxh3_64_intdigest(record)
        count = self._seen.get(key)
        if count is None:
            count = self._seen_before.get(key, 0)
        self._seen[key] = count + 1
        if len(self._seen) >= ORDINALS_MAX:
            self._seen, self._seen_before = {}, self._seen
        return count


def decoded(record: bytes) -> str:
    """A line as text; one that is no UTF-8 as Windows wrote it."""
    try:
        return record.decode()
    except UnicodeDecodeError:
        return record.decode("cp1252", "replace")


def _not_utf8(record: bytes) -> int | None:
    try:
        record.decode()
    except UnicodeDecodeError as e:
        return e.start
    return None
