"""quarantine/: damaged files, kept for who wants to know what happened to them.

Always true
  - A file comes here by a rename, after the commit that no longer names it: mappings of it survive.
  - At most FILES_MAX files of BYTES_MAX together, the newest; none where the disk is nearly full. It is a courtesy:
    what does not come here is removed, and nothing is ever read from here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from pathlib import Path

from engine.files import free_bytes, sync_directory
from engine.layout import Layout

log = logging.getLogger(__name__)

FILES_MAX = 16
BYTES_MAX = 512 << 20
FREE_BYTES_MIN = 1 << 30  # with less on the disk a damaged file is better gone


def put(layout: Layout, path: Path) -> Path | None:
    """Move a damaged file, or directory, here; where it is then. None where it is gone, or removed for want of room."""
    if not os.path.lexists(path):
        return None
    to = layout.quarantine / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{path.name}"
    try:
        layout.quarantine.mkdir(mode=0o700, exist_ok=True)
        if _size(path) > BYTES_MAX or free_bytes(layout.data_dir) < FREE_BYTES_MIN or to.exists():
            _remove(path)
            return None
        path.rename(to)
        sync_directory(layout.quarantine)
        held = listed(layout)
        while len(held) > FILES_MAX or sum(size for _, size in held) > BYTES_MAX:
            _remove(held.pop(0)[0])
    except OSError as e:
        log.warning("%s is not kept in quarantine: %s", path, e)
        return None
    return to


def listed(layout: Layout) -> list[tuple[Path, int]]:
    """What is here with its bytes, the oldest first."""
    with contextlib.suppress(FileNotFoundError):
        return [(path, _size(path)) for path in sorted(layout.quarantine.iterdir())]
    return []


def clear(layout: Layout) -> None:
    """Remove all that is here. Raises OSError."""
    for path, _ in listed(layout):
        _remove(path)


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.iterdir()) if path.is_dir() else path.stat().st_size


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
