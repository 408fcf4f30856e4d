"""The dead letters: records that could not be read or were refused, with file, offset and reason; and their count.

Always true
  - One JSON object a line: at (ISO-8601 UTC), file, offset, reason, record (base64), sum (xxh3_64 of the line without
    it; lines of older versions have none). 0600; written by ingest only. A line that disagrees with it is not shown.
  - In an encrypted directory `sealed` stands in the place of reason and record, which may quote one: both, sealed for
    this at, file and offset (engine/store/cipher.py). The sum is compared without the key.
  - A line is durable before the commit that counts it and that moves its source on. What lies past the committed size
    came with a batch that was not stored: the next append overwrites it, so each letter is there once.
  - Letters are counted by source and by what their reasons have in common, REASONS_MAX of them for a source (meta,
    "letters" NUL source): how many there are is known without reading the file.
"""

from __future__ import annotations

import base64
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from engine.errors import CorruptionError, KeyFileError
from engine.files import open_ours, sync_directory, write_new
from engine.store.catalog import Batch, View
from engine.store.cipher import Cipher, NoKey
from engine.store.counters import Counters
from ipc.messages import Reject

log = logging.getLogger(__name__)

REASONS_MAX = 32  # of one source; what comes after is counted as OTHER
OTHER = "(other)"
LISTED_MAX = 100  # reasons in one answer
REASON_CHARS_MAX = 120
FILE_CHARS_MAX = 200  # of the file that is named beside a count
BLOCK_BYTES = 1 << 18
LOOK_BYTES_MAX = 64 << 20  # read from the end of the file in one look for the newest
_encode = msgspec.msgpack.Encoder().encode


class Tally(msgspec.Struct, array_like=True, frozen=True):
    """Letters with one reason. at: ns, when the newest of them came; file and offset: where that one was."""

    count: int
    at: int
    file: str
    offset: int


class Line(msgspec.Struct):
    """What a line of the file says in the clear."""

    at: str
    file: str
    offset: int

    def line(self) -> bytes:
        body = msgspec.json.encode(self)[:-1]
        return b'%s,"sum":"%016x"}\n' % (body, xxhash.xxh3_64_intdigest(body))

    @property
    def at_ns(self) -> int:
        return round(datetime.fromisoformat(self.at).timestamp() * 1e6) * 1_000


class Letter(Line):
    reason: str
    record: str = ""

    @property
    def data(self) -> bytes:
        return base64.b64decode(self.record)

    def sealed(self, cipher: Cipher | NoKey) -> Sealed:
        payload = _encode((self.reason, self.record))
        value = cipher.seal("dead_letters", _place(self), payload)
        return Sealed(self.at, self.file, self.offset, base64.b64encode(value).decode())


class Sealed(Line):
    sealed: str

    def opened(self, cipher: Cipher | NoKey | None) -> Letter:
        """Raises CorruptionError for what is no letter of this place, KeyFileError."""
        if cipher is None:
            raise KeyFileError(
                "the dead letters are encrypted and no key is given; nothing was changed; set store.key_file to the "
                "file that holds it"
            )
        try:
            value = base64.b64decode(self.sealed)
        except ValueError:
            value = b""
        reason, record = _decode_sealed(cipher.open("dead_letters", _place(self), value))
        return Letter(self.at, self.file, self.offset, reason, record)


def _place(line: Line) -> bytes:
    return f"{line.at}\0{line.file}\0{line.offset}".encode()


Tallies = dict[str, Tally]
_decode = msgspec.msgpack.Decoder(Tallies).decode
_decode_sealed = msgspec.msgpack.Decoder(tuple[str, str]).decode
_lines: tuple[Callable[[bytes], Letter | Sealed], ...] = (
    msgspec.json.Decoder(Letter).decode, msgspec.json.Decoder(Sealed).decode,
)  # fmt: skip

# ---- what reasons have in common ----------------------------------------------------------------------------------
# A quoted text (its end may have been cut off), a range such as 0..65535, a number. An apostrophe within a word, and a
# digit that belongs to one (utf-8, sha256), are neither.
_VARYING = re.compile(
    r"""(?<!\w)(?:'(?:\\.|[^'\\])*(?:'|$)|"(?:\\.|[^"\\])*(?:"|$))"""
    r"|(?<![\w.-])(?P<range>-?\d+\.\.-?\d+)(?![\w.])"
    r"|(?<![\w-])[-+]?(?:0x[0-9a-fA-F]+|\d+(?:[.,_]\d+)*(?:[eE][-+]?\d+)?)"
)


def common(reason: str) -> str:
    """The reason without what it says of one record: quoted texts become '...', numbers N; ranges stay."""

    def plain(match: re.Match[str]) -> str:
        return match["range"] or ("'...'" if match[0][0] in "'\"" else "N")

    return " ".join(_VARYING.sub(plain, reason).split())[:REASON_CHARS_MAX] or "(none)"


def tallied(tallies: Mapping[str, Tally], rejects: Sequence[Reject], at: int) -> Tallies:
    """The tallies of a source with these rejects, which came at `at` (ns), added."""
    out = dict(tallies)
    for r in rejects:
        reason = common(r.reason)
        if reason not in out and len(out) >= REASONS_MAX:
            reason = OTHER
        file = r.file if len(r.file) <= FILE_CHARS_MAX else "..." + r.file[-FILE_CHARS_MAX:]
        out[reason] = Tally(out[reason].count + 1 if reason in out else 1, at, file, r.offset)
    return out


# ---- in the catalog -----------------------------------------------------------------------------------------------
def put(batch: Batch, source: str, tallies: Tallies) -> None:
    batch.put("meta", f"letters\0{source}".encode(), _encode(tallies))


def load(view: View, counters: Counters) -> dict[str, Tallies]:
    """By source; a damaged value counts as none."""
    found = {}
    for source in counters.sources:
        try:
            blob = view.get("meta", f"letters\0{source}".encode())
        except CorruptionError as e:
            log.error("%s", e)
            continue
        if blob is not None:
            found[source] = _decode(blob)
    return found


def facts(found: Mapping[str, Tallies]) -> dict[str, Any]:
    """How many there are, and the most frequent reasons of each source; times are ns."""
    rows = [(source, reason, tally) for source, tallies in found.items() for reason, tally in tallies.items()]
    rows.sort(key=lambda row: (-row[2].count, row[0], row[1]))
    return {
        "count": sum(tally.count for _, _, tally in rows),
        "reasons": [
            {"reason": reason, "count": t.count, "source": source, "latest_at": t.at, "file": t.file,
             "offset": t.offset}
            for source, reason, t in rows[:LISTED_MAX]
        ],
        "reasons_more": max(0, len(rows) - LISTED_MAX),
    }  # fmt: skip


# ---- the file -----------------------------------------------------------------------------------------------------
def append(
    path: Path, rejects: Sequence[Reject], at: int, committed: int = -1, cipher: Cipher | NoKey | None = None
) -> int:
    """Write the letters, which came at `at` (ns), sealed where there is a cipher, behind the `committed` first bytes of
    the file, or behind all of it where it is not known how many belong to commits; durable on return. The size then.
    Raises OSError."""
    when = datetime.fromtimestamp(at / 1e9, UTC).isoformat()
    letters = (Letter(when, r.file, r.offset, r.reason, base64.b64encode(r.record).decode()) for r in rejects)
    lines = b"".join((letter if cipher is None else letter.sealed(cipher)).line() for letter in letters)
    fd = open_ours(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        size = os.fstat(fd).st_size
        if 0 <= committed < size:
            os.ftruncate(fd, committed)
        elif 0 < size < committed and os.pread(fd, 1, size - 1) != b"\n":  # cut by somebody: a line of its own
            lines = b"\n" + lines
        view = memoryview(lines)
        while view:
            view = view[os.write(fd, view) :]
        os.fdatasync(fd)
        if not size:  # it may be new: its name is to be durable, too
            sync_directory(path.parent)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def rewritten(
    path: Path, goes: Callable[[Letter], bool] | None, alive: Callable[[], None], cipher: Cipher | NoKey | None = None
) -> tuple[int, int, int]:
    """The file without the letters that go, in its place; (letters removed, letters left, its size). A line that is
    none goes, too, where anything is looked for. alive: called at times. Raises OSError; then the file is as it was."""
    removed = left = size = 0

    def lines() -> Iterator[bytes]:
        nonlocal removed, left, size
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if not number % 1_000:
                    alive()
                if goes is not None:
                    letter = next(_opened(line.strip(), cipher), None)
                    if letter is None or goes(letter):
                        removed += 1
                        continue
                left, size = left + 1, size + len(line)
                yield line

    if goes is None:
        for _ in lines():
            pass
        return 0, left, size
    write_new(path, lines())
    return removed, left, size


def copied(path: Path, committed: int, new: Path, given: Cipher | NoKey | None, wanted: Cipher | NoKey | None) -> int:
    """The letters in the first `committed` bytes of a file into a new one, opened with one cipher and sealed with
    another; durable on return. How many lines were no letter, or could not be opened: they are left out. Raises
    OSError."""
    lost = 0

    def lines() -> Iterator[bytes]:
        nonlocal lost
        read = 0
        with path.open("rb") as file:
            while read < committed and (line := file.readline()):
                read += len(line)
                letter = next(_opened(line.rstrip(b"\n"), given), None)
                if letter is not None:
                    yield (letter if wanted is None else letter.sealed(wanted)).line()
                elif line != b"\n":
                    lost += 1

    write_new(new, lines())
    return lost


def newest(path: Path, cipher: Cipher | NoKey | None = None) -> Iterator[Letter]:
    """The letters, the newest first, as far as LOOK_BYTES_MAX from the end reach. A line that is none is left out, and
    so is a last one that is not yet whole. Raises OSError, and KeyFileError at one that is sealed for want of a key."""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        stop = max(0, at - LOOK_BYTES_MAX)
        tail: list[bytes] = []  # pieces of the line that begins before `at`, the last first
        ended = False  # a newline was seen: what stands before it is whole
        while at > stop:
            size = min(BLOCK_BYTES, at - stop)
            at -= size
            file.seek(at)
            first, *lines = file.read(size).split(b"\n")
            if not lines:
                tail.append(first)
                continue
            if ended:
                yield from _opened(b"".join([lines[-1], *reversed(tail)]), cipher)
            for line in reversed(lines[:-1]):
                yield from _opened(line, cipher)
            tail, ended = [first], True
        if at == 0 and ended:
            yield from _opened(b"".join(reversed(tail)), cipher)


def damaged(path: Path, committed: int) -> int:
    """How many of the lines in its first `committed` bytes are not what was written, and 1 where the file ends before;
    an empty one was rotated. Raises OSError."""
    if committed <= 0 or not path.stat().st_size:
        return 0
    bad, read = 0, 0
    with path.open("rb") as file:
        while read < committed and (line := file.readline()):
            read += len(line)
            bad += line != b"\n" and next(_read(line.rstrip(b"\n")), None) is None
    return bad + (read < committed)


def _opened(line: bytes, cipher: Cipher | NoKey | None) -> Iterator[Letter]:
    """The letter of a line, if it is one."""
    for found in _read(line):
        try:
            yield found.opened(cipher) if isinstance(found, Sealed) else found
        except (CorruptionError, msgspec.MsgspecError) as e:
            log.error("dead letter of %s, %s at %d: %s", found.at, found.file, found.offset, e)


def _read(line: bytes) -> Iterator[Letter | Sealed]:
    """The line, if it is whole; that is known without a key."""
    for decode in _lines if line else ():
        try:
            found = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if line + b"\n" == found.line() or line == msgspec.json.encode(found):
            yield found
