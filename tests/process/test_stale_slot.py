"""A reader killed in the middle of a read transaction: what its slot pins is bounded by when it is freed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from engine.ingest import READER_CHECK_S
from tests.engine_fixture import environment
from tests.events import several
from tests.store_fixture import Store

COMMITS = 600
FREED_AT = 60  # so many commits until the ingest worker looks at the slots, as it does every READER_CHECK_S

READER = """
import os, signal, sys
from pathlib import Path
from engine.store.catalog import Catalog
view = Catalog(Path(sys.argv[1]), write=False, map_size=1 << 30).read()
view.manifest()
os.kill(os.getpid(), signal.SIGKILL)
"""


def left_stale(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", READER, str(store.layout.catalog)], env=environment(), capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def sizes(data_dir: Path, *, stale: bool, freed_at: int = -1) -> tuple[int, int]:
    """Bytes of the catalog's file after half of the commits, and after all of them."""
    found = []
    with Store(data_dir) as store:
        store.publish(several(100))
        if stale:
            left_stale(store)
        for n in range(COMMITS):
            if n == freed_at:
                assert store.catalog.env.reader_check() == 1
            store.publisher.annotate(f"e{n % 100:06d}", f"label {n % 7}", "test")
            if n + 1 in (COMMITS // 2, COMMITS):
                found.append(store.catalog.path.stat().st_size)
    return found[0], found[1]


def test_what_a_killed_reader_pins_is_bounded_once_its_slot_is_freed(tmp_path: Path) -> None:
    """The same commits without one, with one that is freed, and with one that is not, which shows that it matters."""
    none = sizes(tmp_path / "none", stale=False)
    freed = sizes(tmp_path / "freed", stale=True, freed_at=FREED_AT)
    pinned = sizes(tmp_path / "pinned", stale=True)
    each = (pinned[1] - pinned[0]) / (COMMITS / 2)  # bytes that a commit takes while nothing may be used again
    assert pinned[1] - pinned[0] > 10 * (none[1] - none[0])
    assert freed[0] == freed[1] <= none[1] + FREED_AT * each, (none, freed, pinned)


def test_slots_are_looked_at_often_enough() -> None:
    assert READER_CHECK_S <= 5
