"""Tables: rows of cells under a header line, read by the names of their columns; what all table formats share.

Always true
  - Columns are found by normalised name, wherever they stand; a line is read by the header above it. Tables may be
    joined, each with its own header.
  - A row has as many cells as its header, and every number that is read is a number or empty; else it is a Reject.
  - Rows become features by the block; how rows are cut into blocks changes nothing.
"""

from __future__ import annotations

import csv
import re
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

from engine.errors import BadRecordError
from engine.sources.base import Parsed, SourceSpec
from engine.sources.lines import BOM, Line, LineAdapter
from ipc.event import Event

BLOCK_ROWS = 1_024
_WORD = re.compile(r"[^a-z0-9]+")


class Header(NamedTuple):
    names: tuple[str, ...]  # normalised
    dialect: str
    numbers: tuple[str, ...]  # what each number that is read is called by the format
    pick: Any  # itemgetter of their cells
    place: dict[str, int]  # where the other columns are


def normalised(name: str) -> str:
    return _WORD.sub("", name.lower())


class TableAdapter(LineAdapter):
    """A format says what its header is, what event a row is, and what features a block of rows has."""

    title: ClassVar[str]  # what a reject calls the format

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._header: Header | None = None

    @classmethod
    @abstractmethod
    def header_of(cls, record: bytes) -> Header | None:
        """The header that this line is, or None."""

    @abstractmethod
    def may_be_header(self, cells: list[str]) -> bool:
        """A quick look at a row below a header: is it worth asking `header_of`?"""

    @abstractmethod
    def event(self, header: Header, cells: list[str], line: Line) -> Event:
        """What the words of a row say. Raises BadRecordError."""

    @abstractmethod
    def emit(self, header: Header, events: list[tuple[Event, bytes]], numbers: list[list[float]], out: Parsed) -> None:
        """Append the events of a block with their features; numbers: [len(events)][len(header.numbers)]."""

    @classmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        return b"," in head and cls.header_of(first_line(head)) is not None

    def prime(self, head: bytes) -> None:
        self._header = self.header_of(first_line(head))

    def read(self, lines: list[Line], out: Parsed) -> None:
        for start in range(0, len(lines), BLOCK_ROWS):
            self._block(lines[start : start + BLOCK_ROWS], out)

    def _block(self, lines: list[Line], out: Parsed) -> None:
        events: list[tuple[Event, bytes]] = []
        numbers: list[list[float]] = []
        header = self._header
        for line in lines:
            try:
                cells = split(line.record.decode())
                if header is None or (len(cells) > 1 and self.may_be_header(cells)):
                    new = self.header_of(line.record)
                    if new is None and header is None:
                        raise BadRecordError(f"no {self.title} header above this line")
                    if new is not None and header is not None and new != header and events:
                        self.emit(header, events, numbers, out)  # tables were joined, each with its own header
                        events, numbers = [], []
                    if new is not None:
                        self._header = header = new
                        continue
                assert header is not None
                if len(cells) != len(header.names):
                    raise BadRecordError(f"{len(cells)} columns, the header has {len(header.names)}")
                event = self.event(header, cells, line)
                values = _floats(header, cells)
            except BadRecordError as e:
                out.rejects.append(self.reject(line.offset, e.reason, line.record))
                continue
            events.append((event, line.record))
            numbers.append(values)
        if header is not None and events:
            self.emit(header, events, numbers, out)


def first_line(head: bytes) -> bytes:
    return head.partition(b"\n")[0].removeprefix(BOM)


def split(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line]))
    except (csv.Error, StopIteration) as e:
        raise BadRecordError("a quoted column does not end") from e


def whole(name: str, cell: str, largest: int) -> int | None:
    """The whole number in a cell, None of an empty one; raises BadRecordError."""
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError as e:
        raise BadRecordError(f"{name} is not a number") from e
    if not (0.0 <= value <= largest and value.is_integer()):
        raise BadRecordError(f"{name} is not in 0..{largest}")
    return int(value)


def _floats(header: Header, cells: list[str]) -> list[float]:
    picked = header.pick(cells)
    try:
        return list(map(float, picked))
    except ValueError:
        return [_float(name, cell) for name, cell in zip(header.numbers, picked, strict=True)]


def _float(name: str, cell: str) -> float:
    try:
        return float(cell) if cell.strip() else float("nan")
    except ValueError as e:
        raise BadRecordError(f"the column of {name} is not a number") from e
