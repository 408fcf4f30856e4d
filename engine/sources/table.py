"""Tables: rows of cells under a header line, read by the names of their columns; what all table formats share.

Always true
  - Columns are found by normalised name, wherever they stand; a line is read by the header above it. Tables may be
    joined, each with its own header, and a restart finds them again.
  - A row has as many cells as its header. A number that is read is a number, or missing ("", "-", not finite); else the
    row is a Reject.
  - Rows become features by the block; how rows are cut into blocks changes nothing.
"""

from __future__ import annotations

import csv
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np

from engine.errors import BadRecordError
from engine.flows.derived import F64
from engine.sources.base import Parsed, SourceSpec
from engine.sources.lines import BOM, Line, LineAdapter
from ipc.event import Event

BLOCK_ROWS = 1_024
MISSING = ("", "-")
NAN = float("nan")
_WORD = re.compile(r"[^a-z0-9]+")
_decode = msgspec.json.Decoder(list[float]).decode
Names = Sequence[str]  # the normalised names that a column has in one dialect or another


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

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._header: Header | None = None

    @classmethod
    @abstractmethod
    def header_of(cls, record: bytes) -> Header | None:
        """The header that this line is, or None. It reads at least two words and two numbers."""

    @abstractmethod
    def event(self, header: Header, words: tuple[str, ...], line: Line) -> Event:
        """What the words of a row say. Raises BadRecordError."""

    @abstractmethod
    def emit(self, header: Header, events: list[Event], numbers: F64, records: list[bytes], out: Parsed) -> None:
        """Append a block of events with their features; numbers: [len(events), len(header.numbers)], NaN = missing."""

    @classmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        return cls.header_of(first_line(head)) is not None

    def prime(self, head: bytes) -> None:
        self._header = self.header_of(first_line(head))

    def skip(self, data: bytes, offset: int) -> None:
        for line in self._split(data, offset, []):
            header = self._header
            if header is None or not _is_row(header, line.record):
                self._header = self.header_of(line.record) or header

    def read(self, lines: list[Line], out: Parsed) -> None:
        for start in range(0, len(lines), BLOCK_ROWS):
            self._block(lines[start : start + BLOCK_ROWS], out)

    def _block(self, lines: list[Line], out: Parsed) -> None:
        events: list[Event] = []
        numbers: list[list[float]] = []
        records: list[bytes] = []
        for line in lines:
            header = self._header
            try:
                if header is None:
                    raise BadRecordError(f"no {self.title} header above this line")
                cells = split(line.record.decode(), header.delimiter)
                if len(cells) != len(header.names):
                    raise BadRecordError(f"{len(cells)} columns, the header has {len(header.names)}")
                values = _floats(header, cells)
                cells.append("")  # the word that has no column
                event = self.event(header, header.words(cells), line)
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
            table = np.fromiter(chain.from_iterable(numbers), np.float64, len(events) * len(header.numbers))
            table[~np.isfinite(table)] = np.nan
            self.emit(header, events, table.reshape(len(events), -1), records, out)


def first_line(head: bytes) -> bytes:
    return head.partition(b"\n")[0].removeprefix(BOM).removesuffix(b"\r")


def split(line: str, delimiter: str = ",") -> list[str]:
    """The cells of a line; raises BadRecordError."""
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except (csv.Error, StopIteration) as e:
        raise BadRecordError("a quoted column does not end") from e


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
        cells = split(record.decode(), header.delimiter)
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
