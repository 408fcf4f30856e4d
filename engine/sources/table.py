"""Tables: rows of cells under a header line, read by the names of their columns; what all table formats share.

Always true
  - Columns are found by normalised name, wherever they stand; a line is read by the header above it. Tables may be
    joined, each with its own header, and a restart finds them again.
  - A row has as many cells as its header. A number that is read is a number, or missing ("", "-", not finite, beyond
    NUMBER_MAX); else the row is a Reject.
  - A row of which every cell is empty says nothing and is passed over, as an empty line is.
  - Rows become features by the block; how rows are cut into blocks changes nothing.
"""

from __future__ import annotations

import csv
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np

from engine.errors import BadRecordError
from engine.families import NORMAL, UNKNOWN, canonical
from engine.flows.derived import F64
from engine.sources.base import Parsed, SourceSpec
from engine.sources.lines import BOM, Line, LineAdapter, decoded, event_id, event_id_at
from ipc.event import Classification, Event

BLOCK_ROWS = 1_024
MISSING = ("", "-")
NOTHING = b", \t;\"\r"  # a row of these alone is as an empty line; spreadsheets leave hundreds of thousands of them
NUMBER_MAX = 1e18  # no count, size or time of one flow is larger, and its multiples still are float32
BAD = ("malicious", "attack", "anomaly")
NAN = float("nan")
_WORD = re.compile(r"[^a-z0-9]+")
_decode = msgspec.json.Decoder(list[float]).decode
Names = Sequence[str]  # the normalised names that a column has in one dialect or another
End = tuple[str, int | None]  # address and port


class Header(NamedTuple):
    """numbers: what the format calls each number that is read. words, floats: itemgetters of their cells."""

    names: tuple[str, ...]  # normalised
    dialect: str
    numbers: tuple[str, ...]
    words: Any
    floats: Any
    delimiter: str = ","


def normalised(name: str) -> str:
    return _WORD.sub("", name.lower())


def header(
    names: tuple[str, ...], dialect: str, columns: Mapping[str, Names], words: Sequence[Names], delimiter: str = ","
) -> Header | None:
    """None where fewer than two numbers have a column. columns: numbers by the format's name; words: "" without one."""
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    found = {column: first[name] for column, known in columns.items() for name in known if name in first}
    places = [next((first[name] for name in known if name in first), len(names)) for known in words]
    if len(found) < 2:
        return None
    return Header(names, dialect, tuple(found), itemgetter(*places), itemgetter(*found.values()), delimiter)


class TableAdapter(LineAdapter):
    """A format says what its header is, what event the words of a row are, and what features a block of rows has."""

    title: ClassVar[str]  # what a reject calls the format
    worded: ClassVar[tuple[str, ...]] = ()  # numbers that follow from the words of a row; `event` appends them

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._header: Header | None = None

    @classmethod
    @abstractmethod
    def header_of(cls, record: bytes) -> Header | None:
        """The header that this line is, or None. It reads at least two words and two numbers."""

    @classmethod
    def implied(cls, record: bytes) -> Header | None:
        """The header that this row, the first of a file without one, goes without for certain; or None."""
        return None

    @abstractmethod
    def event(self, header: Header, words: tuple[str, ...], numbers: list[float], line: Line) -> Event:
        """What the words of a row say; those of `worded` are appended to its numbers. Raises BadRecordError."""

    @abstractmethod
    def emit(self, header: Header, events: list[Event], numbers: F64, records: list[bytes], out: Parsed) -> None:
        """Append a block of events with their features; numbers: [n, len(header.numbers + worded)], NaN = missing."""

    def id_of(self, line: Line, has_time: bool) -> str:
        """By its content; a row without a time by its place in the file, as equal rows are common there."""
        if has_time:
            return event_id(self.spec.sensor, "flow", line.record, line.ordinal)
        return event_id_at(self.spec.fingerprint, line.offset)

    def flow(
        self,
        event_id: str,
        times: tuple[int, int],
        src: End,
        dst: End,
        proto: int | None,
        said: tuple[str, Classification],
        family: str = "",
        text: str = "",
    ) -> Event:
        """The event of a row. times: start and end; said: the source's word and its verdict, as `judged` has them."""
        spec = self.spec
        return Event(
            event_id=event_id, source=spec.name, sensor=spec.sensor, ts=times[1], ts_start=times[0], src_ip=src[0],
            dst_ip=dst[0], src_port=src[1], dst_port=dst[1], proto=proto, classification=said[1], family=family,
            family_raw=said[0], text=text,
        )  # fmt: skip

    @classmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        return cls._begins(first_line(head)) is not None

    def prime(self, head: bytes) -> None:
        self._header = self._begins(first_line(head))

    @classmethod
    def _begins(cls, record: bytes) -> Header | None:
        return cls.header_of(record) or cls.implied(record)

    def skip(self, data: bytes, offset: int) -> None:
        for line in self._split(data, offset, []):
            header = self._header
            if header is None:
                self._header = self._begins(line.record)
            elif not _is_row(header, line.record):
                self._header = self.header_of(line.record) or header

    def read(self, lines: list[Line], out: Parsed) -> None:
        for start in range(0, len(lines), BLOCK_ROWS):
            self._block(lines[start : start + BLOCK_ROWS], out)

    def _block(self, lines: list[Line], out: Parsed) -> None:
        events: list[Event] = []
        numbers: list[list[float]] = []
        records: list[bytes] = []
        for line in lines:
            if not line.record.strip(NOTHING):
                continue
            if self._header is None:
                self._header = self.implied(line.record)
            header = self._header
            try:
                if header is None:
                    raise BadRecordError(f"no {self.title} header above this line")
                cells = split(decoded(line.record), header.delimiter)
                if len(cells) != len(header.names):
                    raise BadRecordError(f"{len(cells)} columns, the header has {len(header.names)}")
                values = _floats(header, cells)
                cells.append("")  # the word that has no column
                event = self.event(header, header.words(cells), values, line)
            except BadRecordError as e:
                # No header is a row: the names of its numbers are no numbers.
                new = self.header_of(line.record)
                if new is None:
                    out.rejects.append(self.reject(line.offset, e.reason, line.record))
                    continue
                self._emit(header, events, numbers, records, out)
                self._header = new
                events, numbers, records = [], [], []
                continue
            events.append(event)
            numbers.append(values)
            records.append(line.record)
        self._emit(self._header, events, numbers, records, out)

    def _emit(
        self,
        header: Header | None,
        events: list[Event],
        numbers: list[list[float]],
        records: list[bytes],
        out: Parsed,
    ) -> None:
        if header is not None and events:
            width = len(header.numbers) + len(self.worded)
            table = np.fromiter(chain.from_iterable(numbers), np.float64, len(events) * width)
            table[~(np.abs(table) <= NUMBER_MAX)] = np.nan
            self.emit(header, events, table.reshape(-1, width), records, out)


def columns(names: Sequence[str], numbers: F64) -> dict[str, F64]:
    """The columns of a block by name; below 0 is missing: a sentinel, or a count that overflowed."""
    with np.errstate(invalid="ignore"):
        return dict(zip(names, np.where(numbers >= 0.0, numbers, np.nan).T, strict=True))


def sized(n: int, column: F64 | None) -> F64:
    """The column, or one of missing cells."""
    return np.full(n, np.nan) if column is None else column


@lru_cache(maxsize=4096)
def judged(attack: str, label: str) -> tuple[str, Classification]:
    """The source's word and the verdict, of a column that names the attack and one that says whether it is one."""
    attack, label = attack.strip(), label.strip()
    if attack in MISSING:
        attack = ""
    word = label.lower()
    if attack.lower() in BAD:  # it names no attack
        attack, word = "", "1"
    bad = word == "1" or word in BAD
    if not word and canonical(attack) == UNKNOWN:
        return attack, "UNKNOWN"
    if bad or (word not in ("0", "benign", "normal") and attack and canonical(attack) != NORMAL):
        return attack, "MALICIOUS"
    if attack or word:
        return attack or ("" if word == "0" else label), "BENIGN"
    return "", "UNKNOWN"


def first_line(head: bytes) -> bytes:
    return head.partition(b"\n")[0].removeprefix(BOM).removesuffix(b"\r")


def split(line: str, delimiter: str = ",") -> list[str]:
    """The cells of a line; raises BadRecordError."""
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration) as e:
        raise BadRecordError("a quoted column does not end") from e


def cells_of(record: bytes, delimiter: str = ",") -> list[str]:
    """The cells of what may be a header, or the first row; none where it cannot be read."""
    try:
        return split(record.decode("utf-8", "replace"), delimiter)
    except BadRecordError:
        return []


def whole(name: str, cell: str, largest: int) -> int | None:
    """The whole number in a cell, None of an empty one; raises BadRecordError."""
    if cell.isdigit() and cell.isascii() and len(cell) < 10:
        number = int(cell)
    elif cell in MISSING:
        return None
    else:
        value = _float(name, cell)
        if not value.is_integer():
            raise BadRecordError(f"{name} is not in 0..{largest}")
        number = int(value)
    if not 0 <= number <= largest:
        raise BadRecordError(f"{name} is not in 0..{largest}")
    return number


def _is_row(header: Header, record: bytes) -> bool:
    try:
        cells = split(decoded(record), header.delimiter)
        return len(cells) == len(header.names) and bool(_floats(header, cells))
    except BadRecordError:
        return False


def _floats(header: Header, cells: list[str]) -> list[float]:
    picked: tuple[str, ...] = header.floats(cells)
    try:
        # Most rows are numbers as JSON has them, and its parser is the fastest there is.
        values = _decode(f"[{','.join(picked)}]")
        if len(values) == len(picked):  # else a quoted cell has a comma
            return values
    except (msgspec.MsgspecError, UnicodeEncodeError):
        pass
    return [_float(name, cell) for name, cell in zip(header.numbers, picked, strict=True)]


def _float(name: str, cell: str) -> float:
    cell = cell.strip()
    if cell in MISSING:
        return NAN
    if "_" not in cell and cell.isascii():  # Python reads 1_000, and the digits of every script
        try:
            return float(cell)
        except ValueError:
            pass
    raise BadRecordError(f"the column of {name} is not a number")
