"""No room: which errors mean that, of the system and of LMDB.

Always true
  - Without room nothing was stored, and the same may be tried again; any other error of a write means that nothing may
    be assumed any more.
  - To LMDB it is EIO where a disk took a part of a write, also where it became full: so the disk is asked. What such a
    commit wrote belongs to nobody, and the next one writes it anew.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import lmdb

from engine.errors import NoSpaceError

COMMIT_BYTES = 1 << 20  # where there is not so much room, a write that failed found none


def is_full(e: OSError) -> bool:
    """No room on the disk, in a quota, or below the largest size that a file may have."""
    return e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def has_room(folder: Path, at: int, size: int) -> bool:
    """May a file in folder have `size` more bytes behind its first `at`? Tried with one that has no name. True where
    that cannot be told."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as e:
        return not is_full(e)
    try:
        os.posix_fallocate(fd, at, size)
    except OSError as e:
        return not is_full(e)
    finally:
        os.close(fd)
    return True


def refused(error: lmdb.Error, file: Path) -> NoSpaceError | OSError:
    """Why LMDB did not commit to `file`: NoSpaceError, or OSError (EIO) where the disk does not keep its word."""
    if isinstance(error, lmdb.MapFullError):
        return NoSpaceError("the catalog's map is full; the batch was not stored")
    full = isinstance(error, lmdb.DiskError)
    if not full and not isinstance(error, lmdb.PanicError):
        full = not has_room(file.parent, file.stat().st_size, COMMIT_BYTES)
    if full:
        return NoSpaceError(f"the disk of the catalog is full ({error}); the batch was not stored; free some space")
    return OSError(errno.EIO, f"catalog: {error}")
