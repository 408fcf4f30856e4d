"""A real engine on a disk of 8 MiB that fills up: python -m tests.process.small_disk FOLDER

To be run behind tests.mounts.UNSHARE. Raises AssertionError where a promise is broken.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from ipc.errors import NoSpaceError
from ipc.messages import Filter
from tests.engine_fixture import Engine, ask, shape, stored_ids
from tests.events import T0, S, ids, several
from tests.mounts import mount_small

SIZE = 8 << 20
BATCH = 50
EARLY = Filter(until=T0 + 100 * S)  # the events that were there before


def fill(path: Path) -> None:
    """All that is free, to the last page."""
    with path.open("wb") as file:
        at, step = 0, SIZE
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), at, step)
                at += step
            except OSError:
                step //= 2


def store_until_full(engine: Engine, first: int) -> int:
    """The number of the first event that was refused; those before were acknowledged."""
    while first < 10_000:
        try:
            assert engine.ingest(several(BATCH, first)).accepted == BATCH
        except NoSpaceError:
            return first
        first += BATCH
    raise AssertionError("a full disk took 10,000 events")


def main(folder: Path) -> None:
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    mount_small(data_dir, SIZE)
    engine = Engine(data_dir, readers=2)
    try:
        engine.start()
        engine.ingest(several(100))
        (data_dir / "ballast").write_bytes(bytes(2 << 20))
        expected, first = shape(ask(engine.client(), "e000003", filter=EARLY)), 100
        for _ in range(2):  # it fills by itself, and by what others put there
            pids = [engine.pid("ingest"), *engine.pids()]
            if first > 100:
                fill(data_dir / "rest")
            first = store_until_full(engine, first)
            stored = ids(several(first))
            assert stored_ids(engine.client()) == stored
            assert len(ask(engine.client(), "e000003", top_k=5).hits) == 5
            assert engine.client().get(ids(several(BATCH, first))).missing == ids(several(BATCH, first))
            assert [engine.pid("ingest"), *engine.pids()] == pids
            os.kill(pids[1], signal.SIGKILL)  # another takes its place, on the full disk
            engine.replaced("reader-0", pids[1])
            assert stored_ids(engine.client()) == stored
        for name in ("ballast", "rest"):
            (data_dir / name).unlink()
        assert engine.ingest(several(BATCH, first)).accepted == BATCH
        assert stored_ids(engine.client()) == stored + ids(several(BATCH, first))
        assert shape(ask(engine.client(), "e000003", filter=EARLY)) == expected
        assert [engine.pid("ingest"), engine.pid("reader-1")] == [pids[0], pids[2]]
        assert engine.stop() == 0
        engine.start()
        assert stored_ids(engine.client()) == stored + ids(several(BATCH, first))
        print(f"{first + BATCH} events stored")
    finally:
        engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
