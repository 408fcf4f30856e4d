"""Bytes changed at random, the same for the same seed and number."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63,
            (1 << 64) - 1)  # fmt: skip
TEXT = (
    b"nan", b"-inf", b"Infinity", b"1e999", b"-1", b"0", b"18446744073709551616", b"9223372036854775808", b"1e-320",
    b"-0", b'"', b"'", b",", b"\t", b"\n", b"\r\n", b"\0", b"{", b"}", b"[", b"]", b":", b"null", b"true", b"\\ud800",
    b"\\u0000", b"\xff\xfe", b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80", b"\xe2\x80\xae", b"\x1b[2J", b"::", b"999.1.1.1",
    b"/129",
    b"1970", b"9999-12-31T23:59:60Z", b"0001-01-01T00:00:00+23:59", b"x" * 600, b"9" * 400, b"[" * 3000,
    b'{"a":' * 1500,
)  # fmt: skip
MSGPACK = (
    b"\xc0", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdd\x00\x10\x00\x00", b"\xdc\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xd8\x00", b"\xd6\xff\x00\x00\x00\x00",
    b"\xa1\xff",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", b"\xcb\xff\xf0\x00\x00\x00\x00\x00\x00", b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\x91" * 3000, b"\x81\xa1a" * 1500, b"\x90" * 500, b"\x80" * 500,
)  # fmt: skip
CHANGES_MAX = 4
BYTES_MAX = 1 << 16


def mutated(random: Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One of `seeds`, changed 1 to CHANGES_MAX times; at most BYTES_MAX where the seed is no longer."""
    data = bytearray(seeds[int(random.random() * len(seeds))])
    most = max(BYTES_MAX, len(data))
    for _ in range(1 + int(random.random() * CHANGES_MAX)):
        _change(random, data, seeds, words)
    return bytes(data[:most])


def _change(random: Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    way, at = int(random.random() * 10), int(random.random() * (len(data) + 1))
    if way == 0 and data:
        data[at % len(data)] ^= 1 << int(random.random() * 8)
    elif way == 1 and data:
        data[at % len(data)] = int(random.random() * 256)
    elif way == 2:
        data[at:at] = random.randbytes(1 + int(random.random() * 8))
    elif way == 3:
        del data[at : at + 1 + int(random.random() ** 3 * 64)]
    elif way == 4:
        del data[at:]
    elif way == 5:  # a part once more, elsewhere
        part = data[at : at + 1 + int(random.random() ** 2 * 200)]
        to = int(random.random() * (len(data) + 1))
        data[to:to] = part
    elif way == 6:  # the end of another
        other = seeds[int(random.random() * len(seeds))]
        data[at:] = other[int(random.random() * (len(other) + 1)) :]
    elif way == 7:
        size = 1 << int(random.random() * 4)
        number = INTEGERS[int(random.random() * len(INTEGERS))] & (1 << 8 * size) - 1
        data[at : at + size] = number.to_bytes(size, "little" if random.random() < 0.5 else "big")
    else:
        word = words[int(random.random() * len(words))]
        data[at : at + (len(word) if random.random() < 0.5 else 0)] = word
