"""The columns of an event that filters look at: one fixed-size cell beside its row.

Always true
  - A cell is made from the event and the dictionary alone, so it can be made again from the record.
  - A row without an event is zeros but for its kind, GONE.
  - An address is 128 bits, IPv4 as ::ffff:a.b.c.d, in two u64; 0 is none.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import lru_cache
from math import nan
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from engine.store.counters import Names
from ipc.event import Event

COLUMNS = np.dtype(
    [
        ("ts", "<i8"), ("ts_start", "<i8"),
        ("src_hi", "<u8"), ("src_lo", "<u8"), ("dst_hi", "<u8"), ("dst_lo", "<u8"),
        ("content", "<u8"),  # first half of the source record's hash: equal records are equal here
        ("fast_score", "<f4"), ("ml_score", "<f4"), ("final_score", "<f4"), ("discrepancy", "<f4"),  # NaN = missing
        ("family", "<u2"), ("source", "<u2"),  # numbers of Names
        ("src_port", "<i4"), ("dst_port", "<i4"), ("proto", "<i2"),  # -1 = none
        ("classification", "u1"), ("kind", "u1"), ("decision", "u1"), ("coverage", "u1"),
    ]
)  # fmt: skip
_pack = Struct("<2q5Q4f2H2ih4B").pack  # one cell, field after field
CLASSIFICATIONS = ("UNKNOWN", "BENIGN", "SUSPICIOUS", "MALICIOUS")
KINDS = ("flow", "alert", "notice")
DECISIONS = ("", "ALLOW", "DROP", "ALERT")
GONE = 255  # in the place of a kind: there is no event in this row any more, or none that could be read
_CLASSIFICATION, _KIND, _DECISION = (
    {word: number for number, word in enumerate(words)} for words in (CLASSIFICATIONS, KINDS, DECISIONS)
)

Columns = NDArray[np.void]


@lru_cache(65_536)
def address(text: str) -> tuple[int, int]:
    """(high, low) 64 bits of an address; (0, 0) for "". Raises OSError for anything else."""
    if not text:
        return 0, 0
    if ":" in text:
        packed = socket.inet_pton(socket.AF_INET6, text)
    else:
        packed = b"\0" * 10 + b"\xff\xff" + socket.inet_pton(socket.AF_INET, text)
    return int.from_bytes(packed[:8], "big"), int.from_bytes(packed[8:], "big")


def empty(n: int) -> Columns:
    """COLUMNS [n] of rows without an event."""
    out = np.zeros(n, COLUMNS)
    out["kind"] = GONE
    return out


def to_columns(events: Sequence[Event], contents: Sequence[bytes], names: Names) -> Columns:
    """COLUMNS [n], read-only. contents: the hash of each source record. Every source must be in `names`; a family that
    is not is number 0."""
    family = {word: i for i, word in enumerate(names.families)}
    source = {name: i for i, (name, _) in enumerate(names.sources)}

    def cell(e: Event, content: bytes) -> bytes:
        return _pack(
            e.ts, e.ts_start, *address(e.src_ip), *address(e.dst_ip), int.from_bytes(content[:8], "little"),
            nan if e.fast_score is None else e.fast_score, nan if e.ml_score is None else e.ml_score,
            nan if e.final_score is None else e.final_score, e.discrepancy,
            family.get(e.family, 0), source[e.source],
            -1 if e.src_port is None else e.src_port, -1 if e.dst_port is None else e.dst_port,
            -1 if e.proto is None else e.proto,
            _CLASSIFICATION[e.classification], _KIND[e.kind], _DECISION[e.decision], e.coverage,
        )  # fmt: skip

    return np.frombuffer(b"".join([cell(e, c) for e, c in zip(events, contents, strict=True)]), COLUMNS)
