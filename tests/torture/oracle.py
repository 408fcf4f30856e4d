"""What was sent and what was acknowledged, known from outside of the engine.

Always true
  - Event `number` is the same in every process. A batch is [first, first + count), and no number is in two.
  - A batch that a purge was asked for may be gone, whole or in part; once that was acknowledged nothing of it is there.
    From the moment on that events leave by age or size, the oldest leave first.
  - The file has a line for each batch before it is sent ("S first count"), one more when it was acknowledged and that
    is synced ("A first count generation"), one before it is sent again ("W first count"), and one for each broken
    promise ("F text"). A last line without its end does not count: its writer was killed.
  - A second file beside it has a line before a batch is asked to be purged ("P first") or the oldest may leave ("R").
    What is gone would be stored anew if it was sent again, so each side writes its line first and then looks for the
    other's: either nothing is sent again, or nothing is claimed of what was.
"""

from __future__ import annotations

import os
import random
import threading
from bisect import bisect_left
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.normalize import complete
from ipc.event import FeaturedEvent
from ipc.messages import Stored
from tests.events import line, make

FOLLOWED = 10_000_000  # numbers from here on stand in the followed file
TORN = b" torn\n"  # ends a line whose writer was killed in the middle of it
OUT_OF_ORDER = (
    12 * 20
)  # events of batches sent at once (writer.py), which may be stored in another order than their own
MARKERS = (b" of the torture", b"signature ")  # in source records and dead letters; in texts of events (make)
SENT = 65  # features that are sent; the others are derived


def sent(number: int) -> FeaturedEvent:
    """As a client sends it, with a source record of its own; or as it stands in the followed file."""
    if number >= FOLLOWED:
        return make(number, source="followed")
    item = make(number, source="torture")
    item.raw = b"record %d%s. " % (number, MARKERS[0]) * (1 + number % 20)
    return item


def spoiled(number: int) -> bytes:
    """A line of the followed file that is no event."""
    return b'{"spoiled": "line %d%s"\n' % (number, MARKERS[0])


def number_of(event_id: str) -> int:
    return int(event_id[1:])


def difference(stored: Stored, *, whole: bool = False) -> str:
    """What is not as it was sent; "" where all is. whole: features and raw were asked for, too."""
    event = stored.event
    item = sent(number_of(event.event_id))  # type: ignore[union-attr]
    given, raw = np.frombuffer(item.features, "<f4")[:SENT], item.raw
    if not raw and whole:
        raw = line(item)[:-1]
    expected = complete(item, count=False)
    expected.coverage = event.coverage  # type: ignore[union-attr]
    if event != expected:
        return f"{event} instead of {expected}"
    if whole and bytes(stored.raw) != raw:
        return f"source record {bytes(stored.raw)[:80]!r} instead of {raw[:80]!r}"
    if whole and not np.array_equal(np.frombuffer(stored.features, "<f4")[:SENT], given, equal_nan=True):
        return f"features of {expected.event_id} are not as they were sent"
    return ""


class Batch(NamedTuple):
    first: int
    count: int
    generation: int = 0  # 0: not acknowledged

    @property
    def ids(self) -> list[str]:
        return [f"e{number:06d}" for number in range(self.first, self.first + self.count)]


class Oracle:
    """Reads the file as it grows. For several threads."""

    def __init__(self, path: Path) -> None:
        self.path, self.batches, self.findings = path, dict[int, Batch](), list[str]()
        self.acknowledged: list[Batch] = []
        # first numbers of batches: to be purged, purged, and sent again
        self.asked, self.purged, self.again = set[int](), set[int](), set[int]()
        self.retains = False
        self.generation = self.next = self.events = self._offset = 0
        self._lock = threading.Lock()

    def look(self) -> Oracle:
        """Take over what is new."""
        with self._lock:
            if not self.path.exists():
                return self
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            for text in whole.splitlines(keepends=True):
                if not text.endswith(TORN):
                    self._take(text.decode().rstrip("\n"))
            if self._going.exists():
                told = self._going.read_text().split("\n")[:-1]
                self.retains = "R" in told
                self.asked = {int(text[2:]) for text in told if text.startswith("P ")}
        return self

    @property
    def _going(self) -> Path:
        return self.path.with_name(f"{self.path.name}.going")

    def let_go(self, batch: Batch | None) -> None:
        """Before this batch is asked to be purged; None: before the oldest may leave."""
        with self._going.open("a") as file:
            file.write("R\n" if batch is None else f"P {batch.first}\n")
        self.look()

    def _take(self, text: str) -> None:
        kind, rest = text.split(" ", 1)
        if kind == "F":
            self.findings.append(rest)
            return
        batch = Batch(*map(int, rest.split()))
        if kind == "W":
            self.again.add(batch.first)
            return
        self.batches[batch.first] = batch
        self.next = max(self.next, batch.first + batch.count)
        if kind == "A":
            self.acknowledged.append(batch)
            self.generation = max(self.generation, batch.generation)
            self.events += batch.count

    def draw(self, chance: random.Random) -> Batch | None:
        """A batch that was acknowledged, half of the time one of the last."""
        known = self.acknowledged
        if not known:
            return None
        return known[-1 - chance.randrange(min(5, len(known)))] if chance.random() < 0.5 else chance.choice(known)

    def open(self) -> list[Batch]:
        """Batches sent whose acknowledgement has not come."""
        with self._lock:
            return [batch for batch in self.batches.values() if not batch.generation]

    def may_be_gone(self, batch: Batch) -> bool:
        return self.retains or batch.first in self.asked

    def batch_of(self, number: int) -> Batch:
        with self._lock:
            return self.batches[max(first for first in self.batches if first <= number)]

    def broken(
        self, numbers: set[int], acknowledged: Sequence[Batch], purged: Collection[int] = (), *, retains: bool = False
    ) -> list[str]:
        """What is wrong where exactly these events are stored, and these batches had been acknowledged before, and
        these purged. retains: some may have left because they were the oldest."""
        there = sorted(n for n in numbers if n < FOLLOWED)
        with self._lock:
            known, asked = list(self.batches.values()), set(self.asked)
        stored = {b: bisect_left(there, b.first + b.count) - bisect_left(there, b.first) for b in known}
        held = [b.first for b, n in stored.items() if n == b.count and b.first not in self.again]
        oldest = min(held, default=1 << 62) if retains else -1 << 62
        judged = [b for b in known if b.first not in asked and b.first > oldest + OUT_OF_ORDER]
        half = [f"half a batch: {stored[b]} of {b}" for b in judged if stored[b] not in (0, b.count)]
        lost = [f"lost: {b}" for b in set(acknowledged) & set(judged) if not stored[b]]
        return half + lost + [f"purged, and there: {b}" for b, n in stored.items() if n and b.first in purged]


class Book:
    """The writing end of the file."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if (size := os.fstat(self.fd).st_size) and Path(path).read_bytes()[size - 1 :] != b"\n":
            os.write(self.fd, TORN)

    def send(self, batch: Batch) -> None:
        os.write(self.fd, f"S {batch.first} {batch.count}\n".encode())

    def send_again(self, batch: Batch) -> None:
        os.write(self.fd, f"W {batch.first} {batch.count}\n".encode())

    def acknowledge(self, batch: Batch, generation: int) -> None:
        os.write(self.fd, f"A {batch.first} {batch.count} {generation}\n".encode())
        os.fsync(self.fd)

    def finding(self, text: str) -> None:
        os.write(self.fd, f"F {text!r}\n".encode())
