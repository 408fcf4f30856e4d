"""Appends rows to the row files of one model version. Used by the ingest worker only.

Always true
  - Rows are durable when `append` returns; nothing counts before the commit that says so (engine/publish.py).
  - A row file is there whole, full of zeros, before its first row is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from engine.failpoint import failpoint
from engine.layout import Layout
from engine.manifest import Embedded, Manifest
from engine.rows import Rows, RowWriter


class Extent(NamedTuple):
    """Rows written at once. sums: xxh3_64 of each region's bytes."""

    first: int
    rows: int
    sums: tuple[int, ...]


class RowAppender:
    def __init__(self, layout: Layout, lap: Callable[[str], None]) -> None:
        """lap: told what the time went into (engine/stages.py)."""
        self.layout, self.lap = layout, lap
        self._writer: RowWriter | None = None

    def append(self, of: Manifest | Embedded, file_rows: int, first: int, rows: Rows) -> list[Extent]:
        """Write the rows from seq `first` on into the files that `of` names, `file_rows` rows each. Raises OSError,
        CorruptionError."""
        extents, done, total = [], 0, len(rows.columns)
        while done < total:
            number, row = divmod(first + done, file_rows)
            writer = self.open(of, file_rows, number)
            n = min(total - done, file_rows - row)
            part = Rows(
                {s: v[done : done + n] for s, v in rows.vectors.items()},
                rows.features[done : done + n], rows.columns[done : done + n],
            )  # fmt: skip
            extents.append(Extent(first + done, n, writer.write(row, part)))
            failpoint("publish.appended")
            self.lap("append")
            writer.sync()
            self.lap("sync")
            done += n
        return extents

    def open(self, of: Manifest | Embedded, file_rows: int, number: int) -> RowWriter:
        """Row file `number`, made where it is not there yet."""
        path = self.layout.row_file(*of.row_file(number))
        if self._writer is None or self._writer.path != path:
            self.close()
            self._writer = RowWriter(path, number, file_rows)
            failpoint("row_file.created")
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
