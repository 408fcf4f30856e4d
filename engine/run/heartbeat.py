"""One mapped page a worker: signs of life and a few figures, written by the worker, read by supervisor and stats.

Always true
  - A slot is written whole (an 8-byte store), so no half number is ever seen; two slots may be of different times.
  - stamp_ns is the worker's time.monotonic_ns() (one clock for all processes), written from the loop that works.
  - It is the truth about nothing: losing the page loses figures, no data.
"""

from __future__ import annotations

import mmap
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from engine.files import open_ours

PAGE_BYTES = 4096
TEXT_AT = 2048
TEXT_BYTES_MAX = 255


class Beat(NamedTuple):
    """A copy of a page. questions: events asked about without a filter; novel: those that had no close precedent.
    damage: bytes met that disagreed with their checksums.
    private_bytes, pss_bytes: of memory, as the supervisor last measured for a worker that may not look at others.
    landlock: the ABI that confines it, 0 none; seccomp: 1 where that does; confine: 1 where both were wanted.
    searching: the space and file under search, "" when none."""

    stamp_ns: int = 0
    pid: int = 0
    started_ns: int = 0
    restarts: int = 0
    generation: int = 0
    connections: int = 0
    requests: int = 0
    errors: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    questions: int = 0
    novel: int = 0
    damage: int = 0
    private_bytes: int = 0
    pss_bytes: int = 0
    confine: int = 0
    landlock: int = 0
    seccomp: int = 0
    searching: str = ""


SLOTS = Beat._fields[:-1]


class Page:
    """A mapped page of named 8-byte slots, which outlives the process that writes it. Raises OSError when it cannot be
    opened; what somebody planted in its place is refused."""

    def __init__(self, path: Path | str, names: Sequence[str], *, write: bool = False, create: bool = False) -> None:
        if write or create:
            fd = open_ours(path, os.O_RDWR | (os.O_CREAT if create else 0))
        else:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(f"{path} is not a file")
            if create:
                os.posix_fallocate(fd, 0, PAGE_BYTES)
            self._map = mmap.mmap(fd, PAGE_BYTES, access=mmap.ACCESS_WRITE if write or create else mmap.ACCESS_READ)
        finally:
            os.close(fd)
        self._slots = memoryview(self._map).cast("Q")
        self._numbers = {name: number for number, name in enumerate(names)}

    def put(self, **values: int) -> None:
        """put(generation=7, requests=12): slots by their names."""
        for name, value in values.items():
            self._slots[self._numbers[name]] = value

    def add(self, name: str, value: int = 1) -> None:
        """For the one process that writes this slot."""
        self._slots[self._numbers[name]] += value

    def values(self) -> dict[str, int]:
        return {name: self._slots[slot] for name, slot in self._numbers.items()}

    def close(self) -> None:
        self._slots.release()
        self._map.close()


class Heartbeat(Page):
    """The page of one worker."""

    def __init__(self, path: Path, *, write: bool = False, create: bool = False) -> None:
        super().__init__(path, SLOTS, write=write, create=create)

    def stamp(self) -> None:
        self._slots[0] = time.monotonic_ns()

    def searching(self, text: str) -> None:
        """What a crash from now on should be blamed on."""
        data = text.encode()[:TEXT_BYTES_MAX]
        self._map[TEXT_AT] = 0
        self._map[TEXT_AT + 1 : TEXT_AT + 1 + len(data)] = data
        self._map[TEXT_AT] = len(data)  # last, so that a length never vouches for old bytes

    def start(self, restarts: int) -> None:
        """By the supervisor, before it spawns: a clean page, stamped now."""
        now_ns = time.monotonic_ns()
        self.put(**dict.fromkeys(self._numbers, 0))
        self.searching("")
        self.put(stamp_ns=now_ns, started_ns=now_ns, restarts=restarts)

    @property
    def stamp_ns(self) -> int:
        return self._slots[0]

    def read(self) -> Beat:
        size = self._map[TEXT_AT]
        text = self._map[TEXT_AT + 1 : TEXT_AT + 1 + size].decode("utf-8", "replace")
        return Beat(**self.values(), searching=text)


def read(path: Path) -> Beat | None:
    """The page at path, None where there is none."""
    try:
        page = Heartbeat(path)
    except (OSError, ValueError):
        return None
    try:
        return page.read()
    finally:
        page.close()
