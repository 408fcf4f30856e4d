"""Goes through the states of a recording and collects what is wrong with them.

Always true
  - What is explored depends on the recording and the seed alone. A state that was seen with the same promise is not
    checked twice, and not counted twice.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import NamedTuple

from tests.power.disk import Disk, Picture, fingerprint
from tests.power.oracle import Oracle, Promise, promises
from tests.power.trace import Create, Operation, Sync, SyncRange
from tests.power.workload import SMALL_PUBLISH, Recording


class Explored(NamedTuple):
    """states: distinct ones, of which `exhaustive` by going through all of some windows. findings: state and what is
    wrong with it, not all of them where there are many."""

    states: int
    exhaustive: int
    findings: list[str]


def without(operations: Iterable[Operation], kind: type[Sync | SyncRange], pattern: str) -> list[Operation]:
    """As if what matches `pattern` was never synced in that way."""
    return [o for o in operations if not (isinstance(o, kind) and fnmatch(o.path, pattern))]


def birth_window(recording: Recording) -> range:
    """Places of the operations before the first row file."""
    operations = recording.operations
    return range(next(i for i, o in enumerate(operations) if isinstance(o, Create) and fnmatch(o.path, "data/rows/?*")))


def publish_window(recording: Recording) -> range:
    """Places of the operations of the small publish."""
    steps = [promise.steps for _, promise in promises(recording)]
    return range(steps.index(SMALL_PUBLISH), steps.index(SMALL_PUBLISH + 1) + 1)


def rows_written(recording: Recording) -> range:
    """The place in the small publish where the rows are written, and not synced."""
    at = next(i for i in publish_window(recording) if isinstance(recording.operations[i], Sync))
    return range(at - 1, at)


def swap_window(operations: Sequence[Operation]) -> range:
    """Places of the operations of the first index swap: from its first file to the end of its commit."""
    first = next(i for i, o in enumerate(operations) if isinstance(o, Create) and fnmatch(o.path, "data/indexes/?*"))
    pages = next(i for i in range(first, len(operations)) if operations[i] == Sync("data/catalog/catalog.0"))
    return range(first, pages + 2 + isinstance(operations[pages + 2], SyncRange))  # the meta page is written after that


def windows(recording: Recording) -> set[int]:
    """Of one publish and one index swap."""
    return {*publish_window(recording), *swap_window(recording.operations)}


def explore(
    recording: Recording, oracle: Oracle, states: int, seed: int, *,
    exhaustive: Collection[int] = (), drawn: Collection[int] | None = None, findings_max: int = 20,
) -> Explored:  # fmt: skip
    """All states after the operations at these places, then drawn ones until `states` are there, or so many findings;
    drawn: after these operations only."""
    seen: set[tuple[int, int, int]] = set()
    findings: list[str] = []
    of_all = 0

    def look(place: int, picture: Picture, promise: Promise) -> None:
        key = fingerprint(picture), promise.steps, promise.migrations
        if key not in seen:
            seen.add(key)
            for finding in oracle.check(picture, promise)[: findings_max - len(findings)]:
                findings.append(f"power failure after operation {place}: {finding}")

    if exhaustive:
        for place, disk, promise in failures(recording):
            if place in exhaustive:
                for picture in disk.states():
                    look(place, picture, promise)
        of_all = len(seen)
    for turn in range(1 << 30):
        before = len(seen)
        for place, disk, promise in failures(recording):
            if drawn is None or place in drawn:
                look(place, disk.draw(random.Random(f"{seed} {turn} {place}")), promise)
            if len(seen) >= states or len(findings) >= findings_max:
                return Explored(len(seen), of_all, findings)
        if len(seen) == before:
            break
    return Explored(len(seen), of_all, findings)


def failures(recording: Recording) -> Iterator[tuple[int, Disk, Promise]]:
    """Where the power may fail: the disk before the first operation (place -1) and after each."""
    disk = Disk(recording.left)
    yield -1, disk, Promise(recording.generations)
    for place, (operation, promise) in enumerate(promises(recording)):
        disk.apply(operation)
        yield place, disk, promise
