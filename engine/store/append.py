"""Appends rows to the row files of one model version. Used by the ingest worker only.

Always true
  - Rows are durable when `append` returns; nothing counts before the commit that says so (engine/store/publish.py).
  - A row file is there whole, full of zeros, before its first row is written. It is made ahead, in a thread, once the
    one before it is AHEAD_SHARE full: writing and syncing it would hold up the batch that needs it for 0.1 s and more.
    The batch makes it where that failed or is not done in time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from engine.failpoint import failpoint
from engine.layout import Layout
from engine.store.manifest import Embedded, Manifest
from engine.store.rows import Rows, RowWriter, create

log = logging.getLogger(__name__)

AHEAD_SHARE = 0.75


class Extent(NamedTuple):
    """Rows written at once. sums: xxh3_64 of each region's bytes."""

    first: int
    rows: int
    sums: tuple[int, ...]


class RowAppender:
    def __init__(self, layout: Layout, lap: Callable[[str], None]) -> None:
        """lap: told what the time went into (engine/store/stages.py)."""
        self.layout, self.lap = layout, lap
        self._writer: RowWriter | None = None
        self._ahead: tuple[Path, Thread] | None = None

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
            if row + n >= file_rows * AHEAD_SHARE:
                self._make_ahead(self.layout.row_file(*of.row_file(number + 1)), file_rows)
        return extents

    def open(self, of: Manifest | Embedded, file_rows: int, number: int) -> RowWriter:
        """Row file `number`, made where it is not there yet."""
        path = self.layout.row_file(*of.row_file(number))
        if self._writer is None or self._writer.path != path:
            self.close()
            self._writer = RowWriter(path, number, file_rows)
            failpoint("row_file.created")
        return self._writer

    def _make_ahead(self, path: Path, file_rows: int) -> None:
        if self._ahead is None or self._ahead[0] != path:
            self._settle()
            thread = Thread(target=_make, args=(path, file_rows), name="row-file")
            thread.start()
            self._ahead = path, thread

    def _settle(self) -> None:
        """Nothing is being made any more."""
        if self._ahead is not None:
            self._ahead[1].join()

    def close(self) -> None:
        self._settle()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _make(path: Path, file_rows: int) -> None:
    """In a thread, which writes and syncs without Python's lock."""
    try:
        if not path.exists():
            create(path, file_rows)
    except OSError as e:  # the batch that needs it makes it, and hears of a full disk
        log.warning("%s was not made ahead: %s", path, e)
