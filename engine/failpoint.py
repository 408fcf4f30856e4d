"""Named places where a test lets a process die. `failpoint("publish.committed")` does nothing unless armed.

ENGINE_FAILPOINT="name" kills the process with SIGKILL the first time it comes by; "name:3" the third time.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "publish.appended",  # rows written, not yet synced
    "publish.synced",  # rows durable, nothing committed
    "publish.before_commit",  # all puts done, transaction open
    "publish.committed",  # durable and visible to who looks; counter not bumped
    "publish.bumped",
    "row_file.created",  # a new row file is written and renamed, not yet in a manifest
    "index.built",  # the child's files are in place, not yet in a manifest
    "index.committed",
    "leave.hidden",  # the oldest row files are in no manifest any more, and still there
    "leave.unlinked",  # their records are still there
    "leave.swept",  # a slice of the records is gone
    "compact.copied",  # another catalog is there, as of when the copy began
    "compact.opened",  # every confined reader has it open; CURRENT names the old one
    "compact.caught_up",  # it has all that came since
    "compact.named",  # CURRENT names it; this process still has the old one open
    "compact.followed",  # the old one is still there
    "compact.removed",
    "purge.forgotten",  # the context, waiting actions and dead letters hold nothing of it; events are still there
    "purge.emptied",  # a row file without the rows is there, in no manifest
    "purge.committed",  # these events are gone; the old row file is still there
    "model.begun",  # a switch is in the manifest; from now on events are embedded by both versions
    "model.both",  # an event's rows of both versions durable, nothing committed
    "model.filled",  # rows of stored events are written for the new version, not yet counted
    "model.advanced",
    "model.rows_ready",  # all rows of the new version are there and counted, the old one is in use
    "model.committed",
    "backup.catalog",  # the copy of the catalog is there and read back, nothing else
    "backup.file",  # one more row file or index is there
    "backup.described",  # all of it is there and durable, under another name
    "backup.renamed",
    "backup.doomed",  # one that is deleted has lost its name, but not its files
    "restore.file",  # one more file is there, beside the data directory to be
    "restore.renamed",
)

_name, _, _nth = os.environ.get("ENGINE_FAILPOINT", "").partition(":")
_left = int(_nth or 1)


def failpoint(name: str) -> None:
    """Die here if armed."""
    global _left
    if name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
