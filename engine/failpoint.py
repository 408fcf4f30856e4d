"""Named places where a test lets a process die, or its disk fail. `failpoint("publish.committed")` does nothing unless
armed.

ENGINE_FAILPOINT="name" kills the process with SIGKILL the first time it comes by; "name:3" the third time;
"name=ENOSPC" and "name:3=EIO" raise that OSError there, once, as the call before it would.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import NamedTuple

DISK = ("EIO", "ENOSPC")


class Point(NamedTuple):
    """after: what a process that stands here has just done. errors: in which that may end instead, or, of what is
    committed, the call that follows."""

    after: str
    errors: tuple[str, ...] = ()


POINTS = {
    "letters.appended": Point("dead letters are durable, and not counted", DISK),
    "row_file.created": Point("a new row file is written and renamed, not yet in a manifest", DISK),
    "publish.appended": Point("rows written, not yet synced", DISK),
    "publish.synced": Point("rows durable, nothing committed", ("EIO",)),
    "publish.before_commit": Point("all puts done, transaction open", ("EIO",)),
    "publish.committed": Point("durable and visible to who looks; counter not bumped"),
    "publish.bumped": Point("counter bumped, in any commit with a generation; nothing acknowledged"),
    "label.committed": Point("a label or its change is durable; counter not bumped"),
    "index.built": Point("the child's files are in place, not yet in a manifest", DISK),
    "index.committed": Point("they are named; those that they replace are still there"),
    "rows.built": Point("a row file is there again, made from the records, not yet in a manifest", DISK),
    "rows.committed": Point("it is named; the damaged one is still there"),
    "leave.hidden": Point("the oldest row files are in no manifest any more, and still there", ("EIO",)),
    "leave.unlinked": Point("their records are still there", ("EIO",)),
    "leave.swept": Point("a slice of the records is gone", DISK),
    "compact.copied": Point("another catalog is there, as of when the copy began", DISK),
    "compact.opened": Point("every confined reader has it open; CURRENT names the old one", DISK),
    "compact.caught_up": Point("it has all that came since", DISK),
    "compact.named": Point("CURRENT names it; this process still has the old one open", ("EIO",)),
    "compact.followed": Point("the old one is still there", ("EIO",)),
    "compact.removed": Point("the old one is gone", ("EIO",)),
    "migrate.begun": Point("an empty catalog is there, which says what it is to be a copy of", DISK),
    "migrate.step": Point("some more values are in it", DISK),
    "migrate.letters": Point("the dead letters are written anew beside it", DISK),
    "migrate.copied": Point("it has all, the manifest too", DISK),
    "migrate.verified": Point("it is read back and compared", ("EIO",)),
    "migrate.placed": Point("it lies beside the catalog, its letters beside the letters, none of them in use", DISK),
    "migrate.named": Point("CURRENT names it; all of the old is still there", ("EIO",)),
    "migrate.settled": Point("its letters are in place, the old catalog is gone", ("EIO",)),
    "migrate.removed": Point("what it was made in is gone"),
    "purge.forgotten": Point("context, waiting actions and dead letters hold nothing of it; events are still there"),
    "purge.emptied": Point("a row file without the rows is there, in no manifest", DISK),
    "purge.committed": Point("these events are gone; the old row file is still there"),
    "model.begun": Point("a switch is in the manifest; from now on events are embedded by both versions"),
    "model.both": Point("an event's rows of both versions durable, nothing committed", DISK),
    "model.filled": Point("rows of stored events are written for the new version, not yet counted", DISK),
    "model.advanced": Point("they are counted"),
    "model.rows_ready": Point("all rows of the new version are there and counted, the old one is in use", ("EIO",)),
    "model.committed": Point("the new version is in use; what a second switch before it kept is still there"),
    "backup.catalog": Point("the copy of the catalog is there and read back, nothing else", DISK),
    "backup.file": Point("one more row file or index is there", DISK),
    "backup.described": Point("all of it is there and durable, under another name", DISK),
    "backup.renamed": Point("it has its name, which is not yet durable", ("EIO",)),
    "backup.doomed": Point("one that is deleted has lost its name, but not its files", ("EIO",)),
    "restore.file": Point("one more file is there, beside the data directory to be", DISK),
    "restore.renamed": Point("the data directory has its name, which is not yet durable", ("EIO",)),
}

_armed, _, _error = os.environ.get("ENGINE_FAILPOINT", "").partition("=")
_name, _, _nth = _armed.partition(":")
_left = int(_nth or 1)


def failpoint(name: str) -> None:
    """Die here if armed, or raise the OSError."""
    global _left
    if name == _name:
        _left -= 1
        if _left == 0:
            if _error:
                number = getattr(errno, _error)
                raise OSError(number, os.strerror(number))
            os.kill(os.getpid(), signal.SIGKILL)
