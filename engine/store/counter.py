"""The mapped generation counter: a hint to look again, never the truth.

Always true
  - One u64 at offset 0 of the file `generation`, written by the ingest worker only, after the commit it announces.
  - It is written whole by one store (`memoryview.cast("Q")[0] = n`); struct.pack_into zeroes first and readers saw it.
  - Losing an update makes a reader late, nothing else: the manifest in the catalog is the truth.
  - A second u64 holds its complement, so that a start knows a damaged page from one that was told a later generation.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from engine.files import open_ours

PAGE_BYTES = 4096
_ALL = (1 << 64) - 1


class Counter:
    """The page of one data directory, mapped; the owner closes it."""

    def __init__(self, path: Path, *, write: bool) -> None:
        """Raises OSError (a reader where the file is not there yet)."""
        fd = open_ours(path, os.O_RDWR | os.O_CREAT if write else os.O_RDONLY)
        try:
            if write and os.fstat(fd).st_size < PAGE_BYTES:
                os.posix_fallocate(fd, 0, PAGE_BYTES)
            self._map = mmap.mmap(fd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))
        finally:
            os.close(fd)
        self._cells = memoryview(self._map).cast("Q")

    @property
    def value(self) -> int:
        return self._cells[0]

    @value.setter
    def value(self, generation: int) -> None:
        self._cells[0] = generation
        self._cells[1] = generation ^ _ALL

    @property
    def told(self) -> int:
        """The generation last written, 0 where the page does not agree with itself (or its writer died within)."""
        return self._cells[0] if self._cells[1] == self._cells[0] ^ _ALL else 0

    def close(self) -> None:
        self._cells.release()
        self._map.close()
