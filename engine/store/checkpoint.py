"""The state of the context tracker in the catalog.

Always true
  - It is stored in pieces of a page each, in one transaction. One value of megabytes would need as many free pages
    side by side, of which a file in use has ever fewer: the catalog would grow without end.
  - "checkpoint" -> u64 seq | the first piece; "checkpoint" NUL number u32 BE, how many u32 BE -> the others. An older
    flowkin stored all of it in the first.
"""

from __future__ import annotations

import struct

from engine.errors import CorruptionError
from engine.store.catalog import Batch, View, seq_key
from engine.store.manifest import Manifest

KEY = b"checkpoint"
PIECE_BYTES = 4_096 - 16 - 8  # of a value that takes one page: without LMDB's header of such a page, and the checksum
_PIECE = struct.Struct(">II")
# At most so many bytes for each event since the last one, unless so many row files are full since.
BYTES_MAX = 256
FILES_MAX = 4
# It is written down slice by slice, so that no batch waits for all of it: so many bytes a commit (1 to 2 ms), and so
# many more for each of its events that up to 16 MiB are done before the next row file is full.
SLICE_BYTES = 1 << 15
SLICE_EVENT_BYTES = 1 << 10


def due(manifest: Manifest, seq: int, nbytes: int) -> bool:
    """From the first commit after a full row file on; where the state is large, after more of them. seq, nbytes: of the
    last one."""
    full = manifest.count // manifest.row_file_rows - seq // manifest.row_file_rows
    return full >= FILES_MAX or (full > 0 and nbytes <= (manifest.count - seq) * BYTES_MAX)


def stored(view: View) -> tuple[int, bytes] | None:
    """(seq, state): as it was once it had seen the events before seq; None where there is none. Raises
    CorruptionError."""
    head = view.get("tracker", KEY)
    if head is None:
        return None
    seq, parts, complete = int.from_bytes(head[:8], "big"), [bytes(head[8:])], True
    for number, (key, payload) in enumerate(view.scan("tracker", prefix=KEY + b"\0")):
        parts.append(bytes(payload))
        complete = key[len(KEY) + 1 :] == _PIECE.pack(number, number + 1)
    if not complete:
        raise CorruptionError("catalog tracker", "a piece of the context's state is not there")
    return seq, b"".join(parts)


def put(batch: Batch, seq: int, state: bytes) -> None:
    """In the place of what is stored. Raises NoSpaceError."""
    for key in list(batch.keys("tracker")):
        batch.delete("tracker", key)
    first = PIECE_BYTES - 8
    batch.put("tracker", KEY, seq_key(seq) + state[:first])
    starts = range(first, len(state), PIECE_BYTES)
    for number, at in enumerate(starts):
        batch.put("tracker", KEY + b"\0" + _PIECE.pack(number, len(starts)), state[at : at + PIECE_BYTES])
