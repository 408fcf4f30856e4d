"""LMDB as the catalog uses it: how a file is opened, whether it is whole, and its copy.

Always true
  - A file is opened with the same settings everywhere; its lock file has READERS_MAX places.
  - A page that the map promises and the file does not have is a SIGBUS: that is known before anything is read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from engine.errors import CorruptionError

READERS_MAX = 510


def environment(path: Path, map_size: int, tables: int, *, write: bool, durability: str, lock: bool = True) -> Any:
    """A file opened as all are. tables: how many it has. Raises lmdb.Error."""
    return lmdb.Environment(
        str(path), map_size=map_size, subdir=False, readonly=not write, metasync=durability == "full", mode=0o600,
        create=write, max_readers=READERS_MAX, max_dbs=tables, max_spare_txns=4, readahead=False, lib_version=0,
        lock=lock,
    )  # fmt: skip


def cut(path: Path, env: Any) -> int:
    """How many bytes the file should have, where it has fewer; else 0."""
    wanted = int((env.info()["last_pgno"] + 1) * env.stat()["psize"])
    return wanted if path.stat().st_size < wanted else 0


def copied(env: Any, txn: Any, path: Path) -> Iterator[bytes]:
    """A compacted copy of what `txn` sees, in blocks; it may not be used meanwhile. Raises CorruptionError."""
    failed: list[lmdb.Error] = []
    read_end, write_end = os.pipe()

    def copy() -> None:
        try:
            env.copyfd(write_end, compact=True, txn=txn)
        except lmdb.Error as e:
            failed.append(e)
        finally:
            os.close(write_end)

    thread = threading.Thread(target=copy, name="catalog copy")
    thread.start()
    try:
        while block := os.read(read_end, 1 << 20):
            yield block
    finally:  # closed first: a copy whose reader gave up ends by that
        os.close(read_end)
        thread.join()
    if failed:
        raise CorruptionError(
            f"catalog {path}", f"cannot be copied: {failed[0]}; `flowkin doctor --deep` looks at every value"
        ) from failed[0]
