"""Which files were unlinked without a sync of their directory after it: those a power failure may bring back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch


@contextlib.contextmanager
def unsynced() -> Iterator[set[str]]:
    """The set, kept as this process unlinks and syncs."""
    unlink, fsync = os.unlink, os.fsync
    left: set[str] = set()

    def unlinked(path: Any, **more: Any) -> None:
        unlink(path, **more)
        left.add(os.fspath(path))

    def synced(fd: int) -> None:
        fsync(fd)
        folder = Path(os.readlink(f"/proc/self/fd/{fd}"))
        left.difference_update([path for path in left if Path(path).parent == folder])

    with patch("os.unlink", unlinked), patch("os.fsync", synced):
        yield left
