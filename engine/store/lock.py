"""One writer, whatever happens: writer.lock, held for life by the ingest worker.

Always true
  - The lock is a flock on the open file: it goes with its process, however that ends. The pid inside is for people.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from engine.errors import LockedError
from engine.files import open_ours

WAIT_S = 5.0  # a writer that was just killed may still be on its way out
POLL_S = 0.05


def hold(path: Path, alive: Callable[[], None] = lambda: None, wait_s: float = WAIT_S, *, unnamed: bool = False) -> int:
    """The fd that holds the lock; keep it open. unnamed: the file is left as it is, for who only looks. Raises
    LockedError naming the holder after wait_s, and with `unnamed` FileNotFoundError where nobody ever held it."""
    fd = open_ours(path, os.O_RDONLY if unnamed else os.O_RDWR | os.O_CREAT)
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(fd)
                raise LockedError(
                    f"{path} is held by another ingest worker, pid {holder}; nothing was changed; stop that engine"
                ) from None
            alive()
            time.sleep(POLL_S)
        else:
            if not unnamed:
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            return fd
