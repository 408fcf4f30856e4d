"""The value of a stored event, before it is sealed or has its checksum.

Always true
  - u32 LE length of head | head (msgpack Event) | 1 byte: features follow? | features (420 bytes) | raw record (zstd)
"""

from __future__ import annotations

import struct
import threading
from typing import NamedTuple

import zstandard

from ipc.event import FEATURE_BYTES

HEAD = struct.Struct("<I")


class Record(NamedTuple):
    """One stored event. head: msgpack Event; features: FEATURE_BYTES or empty; raw: the source record, verbatim."""

    head: bytes
    features: bytes
    compressed: bytes

    @property
    def size(self) -> int:
        """Bytes of it as stored, without the checksum."""
        return HEAD.size + len(self.head) + 1 + len(self.features) + len(self.compressed)

    @property
    def raw(self) -> bytes:
        return _own.decompress(self.compressed, max_output_size=1 << 21)


class _Own(threading.local):
    """Of this thread, as one is for one at a time; to make one takes several times as long as to use it."""

    def __init__(self) -> None:
        self.decompress = zstandard.ZstdDecompressor().decompress


_own = _Own()


def split_record(payload: memoryview) -> Record:
    end = 4 + HEAD.unpack(payload[:4])[0]
    has_features = payload[end] == 1
    middle = end + 1 + (FEATURE_BYTES if has_features else 0)
    return Record(bytes(payload[4:end]), bytes(payload[end + 1 : middle]), bytes(payload[middle:]))


def join_record(head: bytes, features: bytes, compressed: bytes) -> bytes:
    return b"".join((HEAD.pack(len(head)), head, b"\x01" if features else b"\x00", features, compressed))
