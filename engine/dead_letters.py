"""The dead letters: records that could not be read or were refused, with file, offset and reason.

Always true
  - One JSON object a line: at (ISO-8601 UTC), file, offset, reason, record (base64). 0600; written by ingest only.
  - A line is durable before the batch that it came with is acknowledged.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ipc.messages import Reject


def append(path: Path, rejects: Sequence[Reject]) -> None:
    """Raises OSError."""
    at = datetime.now(UTC).isoformat()
    lines = b"".join(
        msgspec.json.encode(
            {"at": at, "file": r.file, "offset": r.offset, "reason": r.reason,
             "record": base64.b64encode(r.record).decode()}
        ) + b"\n"
        for r in rejects
    )  # fmt: skip
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(lines)
        while view:
            view = view[os.write(fd, view) :]
        os.fdatasync(fd)
    finally:
        os.close(fd)
