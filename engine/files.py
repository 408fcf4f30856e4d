"""Write a file so that it is there whole or not at all.

Always true
  - A file appears under its name only after its bytes are durable: tmp with a unique name, fdatasync every 8 MiB (one
    fsync of 600 MiB stalls everybody else's), fsync, rename, fsync of the directory.
  - A mapped file is never truncated or overwritten; a new content is a new file.
  - What is opened to be written to is a plain file of ours with one name (`open_ours`): a link, a pipe or a second name
    of another file that somebody planted in its place is refused, and not waited for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from engine.errors import DeniedError

SYNC_EVERY_BYTES = 8 << 20
TMP_SUFFIX = ".tmp"


def sync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """With those above it, private to their owner; durable on return. What is there stays as it is. Raises OSError."""
    for new in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        new.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(PermissionError):  # what may not be read cannot be synced
            sync_directory(new.parent)


def as_owner(folder: Path, task: str) -> None:
    """Raises DeniedError where a directory belongs to somebody else, whose engine could not read what we write."""
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        raise DeniedError(
            f"{folder} belongs to uid {owner}, and its engine could not read what uid {os.geteuid()} wrote; "
            f"nothing was changed; {task} it as its owner"
        )


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def disk_bytes(folder: Path) -> int:
    """Bytes that the files below a folder take on disk."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(path, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def open_ours(path: Path | str, flags: int) -> int:
    """The fd of a file that is written to by its name; created 0600 with O_CREAT. Raises OSError, also for what is no
    plain file, has a second name, or belongs to somebody else (neither to us nor to its directory's owner)."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        why = "it is no plain file"
    elif found.st_uid not in (os.geteuid(), Path(path).parent.stat().st_uid):
        why = f"it belongs to uid {found.st_uid}"
    elif found.st_nlink > 1:
        why = "it has a second name (a hard link)"
    else:
        return fd
    os.close(fd)
    raise OSError(errno.EPERM, f"{why}; it is left alone, remove it yourself", str(path))


def write_new(path: Path, chunks: Iterable[bytes | memoryview], *, mode: int = 0o600) -> None:
    """Create `path` with these bytes; durable on return. An existing file of that name is replaced, not overwritten.

    Raises OSError; then `path` is as it was and the temporary file is gone.
    """
    tmp = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TMP_SUFFIX}")
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            unsynced = 0
            for chunk in chunks:
                view = memoryview(chunk).cast("B")
                while view:
                    done = os.write(fd, view[:SYNC_EVERY_BYTES])
                    view, unsynced = view[done:], unsynced + done
                    if unsynced >= SYNC_EVERY_BYTES:
                        os.fdatasync(fd)
                        unsynced = 0
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        tmp.rename(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def replace(path: Path, data: bytes) -> None:
    """As write_new, but not durable: for what is only told, and told again. One process writes it. Raises OSError."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    new.replace(path)
