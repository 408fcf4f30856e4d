"""What a reader has read of stored events and checked: the next answer that names them reads it no more.

Always true
  - A record never changes, so what was checked once stays right, whatever becomes of the file it came from. Vectors are
    not kept: they are read, and checked, whenever a distance is computed.
  - What a later snapshot has no more (removed, built again) is forgotten before that snapshot is asked.
  - At most about `bytes_max` are held; what was asked for least lately goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from engine.manifest import Manifest

ENTRY_BYTES = 280  # of Python's objects around the bytes


class Kept(NamedTuple):
    """head: the event as msgpack, as it goes into replies. family: its number in the columns."""

    head: bytes
    family: int


class KeptEvents:
    """By seq. Used on the reader's loop only."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max, self._bytes = bytes_max, 0
        self._kept: OrderedDict[int, Kept] = OrderedDict()
        self._of: object = None

    def follow(self, manifest: Manifest) -> None:
        """To be called with each snapshot's manifest before `get`."""
        of = (manifest.epoch, manifest.revisions, manifest.first, manifest.purges)
        if of != self._of:
            self._of, self._bytes = of, 0
            self._kept.clear()

    def get(self, seq: int) -> Kept | None:
        kept = self._kept.get(seq)
        if kept is not None:
            self._kept.move_to_end(seq)
        return kept

    def put(self, seq: int, kept: Kept) -> None:
        """Of a seq that is not held."""
        self._kept[seq] = kept
        self._bytes += len(kept.head) + ENTRY_BYTES
        while self._bytes > self._bytes_max:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= len(gone.head) + ENTRY_BYTES
