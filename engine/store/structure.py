"""The structure of a catalog's file: do its pages, keys, counts and list of free pages agree?

Always true
  - It reads bytes, and never opens the file as LMDB does: a damaged one cannot crash it.
  - Nobody may write to the file meanwhile: before the ingest worker opens it, or a copy of it.

It is what `python -m lmdb verify` looks at, and what a single bit can change beside that: the nodes of a page lie one
behind the other (LMDB deletes and moves by their sizes), the two heads are of neighbouring transactions (of a damaged
number the other, older one would be taken), and say the same of what never changes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from lmdb.verify import VerifyError, verify

FOUND_MAX = 20
HEAD_BYTES = 16  # of every page: number (8), padding (2), flags (2), then where its free space begins and ends (2, 2)
BRANCH, LEAF = 1, 2  # flags of a page
BIG, TREE = 1, 2  # flags of a node: its value lies in pages of its own; it is the root of a table
_ENDS = struct.Struct("<HHH")  # at 10
_NODE = struct.Struct("<HHHH")  # size of the value or number of a page (low, high), flags, size of the key
# A head, behind what every page has: magic, version, address, size of the map (24); the trees of free pages and of
# tables (48 each, the first begins with the size of a page, both end with their root); last page (8); transaction
_NEVER_CHANGED = (slice(40, 46), slice(88, 94))  # sizes and flags of the two trees
_PAGE_BYTES_AT, _FREE_ROOT_AT, _MAIN_ROOT_AT, _TRANSACTION_AT = 40, 80, 128, 144
_ROOT_IN_TREE = 40
_NO_PAGE = (1 << 64) - 1


def check(path: Path) -> list[str]:
    """What is wrong, the first FOUND_MAX; nothing for a file that is whole."""
    try:
        found: list[str] = verify(str(path), subdir=False)
        if not found:  # else there are no pages to be gone through safely
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                found = list(_gaps(data))
    except (VerifyError, OSError, struct.error, IndexError, ValueError, OverflowError, MemoryError) as e:
        found = [str(e)]
    return found[:FOUND_MAX]


def _gaps(data: mmap.mmap) -> Iterator[str]:
    size = int.from_bytes(data[_PAGE_BYTES_AT : _PAGE_BYTES_AT + 4], "little")
    first, second = (_word(data, head + _TRANSACTION_AT) for head in (0, size))
    if abs(first - second) > 1:
        yield f"its heads are of transactions {first} and {second}"
    heads = data[:size], data[size : 2 * size]
    if any(heads[0][part] != heads[1][part] for part in _NEVER_CHANGED):
        yield "its heads disagree on the flags of their trees"
    head = 0 if first > second else size
    pages = [_word(data, head + at) for at in (_FREE_ROOT_AT, _MAIN_ROOT_AT)]
    while pages:
        number = pages.pop()
        if number == _NO_PAGE:
            continue
        start = number * size
        flags, lower, upper = _ENDS.unpack_from(data, start + 10)
        end = upper
        for place in sorted(struct.unpack_from(f"<{(lower - HEAD_BYTES) // 2}H", data, start + HEAD_BYTES)):
            if place != end:
                yield f"page {number}: a node begins at {place}, not at {end}"
                break
            low, high, kind, key = _NODE.unpack_from(data, start + place)
            end += 8 + key
            if flags & BRANCH:
                pages.append(low | high << 16 | kind << 32)
            elif kind & BIG:
                end += 8
            else:
                if kind & TREE:
                    pages.append(_word(data, start + end + _ROOT_IN_TREE))
                end += low | high << 16
            end += end & 1
        else:
            if end != size:
                yield f"page {number}: its last node ends at {end}"


def _word(data: mmap.mmap, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")
