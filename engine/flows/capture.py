"""Bytes of a pcap or pcapng file, cut anywhere, to blocks of packets.

Always true
  - What is in a block depends on the capture alone, never on how its bytes were cut: a block ends after BLOCK_PACKETS
    packets or BLOCK_BYTES bytes, before a new pcapng section, and at the end. Whatever is decided once a block (the
    flow table does) is therefore the same for every cut.
  - No more than one block and one record are held, whatever lengths the file claims.
  - The first record that cannot be one ends the reading: there is nothing to synchronise on after it. What was read
    before it stands, and one problem says where and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

BLOCK_PACKETS = 1 << 15  # at most 1 << 16: the flow table packs a packet's place in its block into 16 bits
BLOCK_BYTES = 16 << 20
CAPTURED_MAX = 1 << 18  # libpcap's own largest snaplen
ORIGINAL_MAX = 1 << 20  # bytes on the wire that a record is believed: Linux hands a card up to 512 KiB (BIG TCP)
RECORD_MAX = CAPTURED_MAX + 4096  # with header and options
INTERFACES_MAX = 4096
SHOWN_BYTES = 12  # of a record that cannot be one: as many as are always there when that is found out
PAD = 64  # zero bytes after a block, so that a header can be read at any packet's last byte
TS_NS_MAX = (1 << 63) - 1

MAGICS = {  # first four bytes -> byte order, ns per tick, bytes of a record header
    b"\xd4\xc3\xb2\xa1": ("<", 1000, 16),
    b"\xa1\xb2\xc3\xd4": (">", 1000, 16),
    b"\x4d\x3c\xb2\xa1": ("<", 1, 16),
    b"\xa1\xb2\x3c\x4d": (">", 1, 16),
    b"\x34\xcd\xb2\xa1": ("<", 1000, 24),  # Kuznetzov's patched libpcap
    b"\xa1\xb2\xcd\x34": (">", 1000, 24),
}
SECTION = b"\x0a\x0d\x0d\x0a"
INTERFACE, OLD_PACKET, SIMPLE_PACKET, PACKET = 1, 2, 3, 6  # pcapng block types
TSRESOL, TSOFFSET = 9, 14  # pcapng interface options


class Problem(NamedTuple):
    """Something that could not be read: its offset in the decompressed capture, one line, and the bytes to show."""

    offset: int
    reason: str
    record: bytes = b""


class Interface(NamedTuple):
    linktype: int
    snaplen: int = 0  # 0: no limit
    resolution: int = 1_000_000  # ticks a second
    offset_ns: int = 0


class Block(NamedTuple):
    """Packets in the order of the file. data ends with PAD zero bytes; `at` is where a packet's bytes begin in it."""

    data: bytearray
    offset: int  # of data[0] in the capture
    at: I64
    captured: I64
    original: I64  # at most ORIGINAL_MAX
    ts: I64  # ns since 1970
    interface: I64  # number in the capture, over all sections
    interfaces: tuple[Interface, ...]
    numbered: bool  # the file itself numbers its interfaces (pcapng)


class CaptureReader:
    """Push parser: `feed` bytes, take blocks; `problems` grows beside them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._buffer = bytearray()  # from the first record of the block under way
        self._offset = 0  # of _buffer[0] in the capture
        self._pos = 0  # first byte not yet understood
        self._skip = 0  # bytes to pass over unread
        self._dead = False
        self._order = ""  # of the file or the section; "": nothing is known yet
        self._pcapng = False
        self._ns_per_tick = 0
        self._header = 16
        self._length = Struct("<I")
        self._two = Struct("<II")
        self._places: list[int] = []  # of the records of the block under way
        self._owners: list[int] = []  # interface of each, pcapng only
        self._interfaces: list[Interface] = []
        self._section_first = 0  # number of the section's first interface
        self._ts_last = 0

    def feed(self, data: bytes) -> Iterator[Block]:
        """Blocks that became whole. The iterator must be used up before the next feed."""
        if self._dead:
            return
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            self._offset += skipped
            data = data[skipped:]
        self._buffer += data
        while not self._dead:
            block = self._step()
            if block is None:
                return
            if len(block.at):
                yield block

    def finish(self) -> Iterator[Block]:
        """The last block."""
        if not self._dead and (len(self._buffer) > self._pos or self._skip):
            self._problem(self._pos, "the capture ends inside a record")
        elif not self._dead and not self._order:
            self._problem(0, "the capture is empty")
        if self._places:
            yield self._cut()
        self._dead = True

    def _problem(self, pos: int, reason: str) -> None:
        """The rest is not read."""
        self.problems.append(Problem(self._offset + pos, reason, bytes(self._buffer[pos : pos + SHOWN_BYTES])))
        self._dead = True

    def _step(self) -> Block | None:
        """Walk on; a block (maybe an empty one, meaning: again) or None when more bytes are needed."""
        if not self._order and not self._begin():
            return None
        full = self._walk_pcapng() if self._pcapng else self._walk_pcap()
        if self._dead and self._places:
            return self._cut()
        return self._cut() if full else None

    def _begin(self) -> bool:
        """The file header; False: more bytes are needed."""
        head = bytes(self._buffer[:24])
        if len(head) < 4:
            return False
        if head[:4] == SECTION:
            self._pcapng = True
            self._order = "<"  # until the section header says
            return True
        if head[:4] not in MAGICS:
            del self._buffer[4:]
            self._problem(0, "not a pcap or pcapng file: the first four bytes are no magic number of either")
            return False
        if len(head) < 24:
            return False
        self._order, self._ns_per_tick, self._header = MAGICS[head[:4]]
        self._length = Struct(self._order + "I")
        _, snaplen, linktype = Struct(self._order + "12xIII").unpack(head)
        self._interfaces = [Interface(linktype & 0xFFFF, snaplen)]
        self._drop(24)
        return True

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._offset += count
        self._pos = 0

    def _walk_pcap(self) -> bool:
        """Find records until the block is full (True) or the bytes end."""
        buffer, pos, places, header = self._buffer, self._pos, self._places, self._header
        length, append, end, size = self._length.unpack_from, places.append, len(self._buffer), 0
        last = min(end - header, BLOCK_BYTES - 1)  # where a record may begin
        for _ in range(BLOCK_PACKETS - len(places)):
            if pos > last:
                break
            size = length(buffer, pos + 8)[0]
            after = pos + header + size
            if after > end or size > CAPTURED_MAX:
                break
            append(pos)
            pos = after
        self._pos = pos
        if size > CAPTURED_MAX:
            self._problem(pos, f"a record says it is {size} bytes long, at most {CAPTURED_MAX} can be")
        return len(places) == BLOCK_PACKETS or pos >= BLOCK_BYTES

    def _walk_pcapng(self) -> bool:
        buffer, end = self._buffer, len(self._buffer)
        while self._pos < BLOCK_BYTES and len(self._places) < BLOCK_PACKETS:
            pos = self._pos
            if pos + 12 > end:
                return False
            if buffer[pos : pos + 4] == SECTION:
                if self._places:
                    return True  # a section may turn the byte order: it begins a block
                mark = bytes(buffer[pos + 8 : pos + 12])
                if mark not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
                    self._problem(pos, "a pcapng section without its byte-order mark")
                    return False
                self._order = "<" if mark[0] == 0x4D else ">"
                self._length, self._two = Struct(self._order + "I"), Struct(self._order + "II")
                self._section_first = len(self._interfaces)
            kind, size = self._two.unpack_from(buffer, pos)
            if size < 12 or size % 4:
                self._problem(pos, f"a pcapng block says it is {size} bytes long")
                return False
            known = kind in (INTERFACE, OLD_PACKET, SIMPLE_PACKET, PACKET)
            if size > RECORD_MAX:
                if known:
                    self._problem(pos, f"a pcapng block says it is {size} bytes long, at most {RECORD_MAX} can be")
                    return False
                if self._places:
                    return True
                self._drop(pos)
                self._skip = max(0, size - len(self._buffer))
                self._drop(min(size, len(self._buffer)))
                return not self._skip
            if pos + size > end:
                return False
            if known and not self._understand(kind, pos, size):
                return False
            self._pos = pos + size
        return True

    def _understand(self, kind: int, pos: int, size: int) -> bool:
        """One whole pcapng block that matters. False: it cannot be one, and the reading has ended."""
        if kind == INTERFACE:
            if len(self._interfaces) >= INTERFACES_MAX:
                self._problem(pos, f"more than {INTERFACES_MAX} interfaces")
                return False
            self._interfaces.append(self._interface(bytes(self._buffer[pos + 8 : pos + size - 4])))
            return True
        number, fixed = 0, 16
        if kind != SIMPLE_PACKET:
            fixed = 32
            if size >= fixed:
                unpack = Struct(self._order + ("I" if kind == PACKET else "H")).unpack_from
                number = unpack(self._buffer, pos + 8)[0]
        number += self._section_first
        if size < fixed or number >= len(self._interfaces):
            self._problem(pos, "a pcapng packet of no known interface")
            return False
        if kind != SIMPLE_PACKET and self._length.unpack_from(self._buffer, pos + 20)[0] > size - fixed:
            self._problem(pos, "a pcapng packet is longer than its block")
            return False
        self._places.append(pos)
        self._owners.append(number)
        return True

    def _interface(self, body: bytes) -> Interface:
        linktype, snaplen = Struct(self._order + "HxxI").unpack_from(body.ljust(8, b"\0"))
        resolution, offset_ns, pos = 1_000_000, 0, 8
        option = Struct(self._order + "HH")
        while pos + 4 <= len(body):
            code, size = option.unpack_from(body, pos)
            value = body[pos + 4 : pos + 4 + size]
            if code == TSRESOL and value:
                exponent = value[0] & 0x7F
                resolution = 1 << min(exponent, 62) if value[0] & 0x80 else 10 ** min(exponent, 18)
            elif code == TSOFFSET and len(value) >= 8:
                seconds = int.from_bytes(value[:8], "little" if self._order == "<" else "big", signed=True)
                offset_ns = max(-TS_NS_MAX, min(TS_NS_MAX, seconds * 1_000_000_000))
            elif code == 0:
                break
            pos += 4 + (size + 3 & ~3)
        return Interface(linktype, snaplen, resolution, offset_ns)

    def _cut(self) -> Block:
        """The block under way; the next one begins where it ends."""
        data, self._buffer = self._buffer, self._buffer[self._pos :]  # handed over, not copied
        del data[self._pos :]
        data += bytes(PAD)
        place = np.array(self._places, np.int64)
        read = self._read_pcapng if self._pcapng else self._read_pcap
        block = read(data, place)
        if len(block.ts):
            self._ts_last = int(block.ts[-1])
        self._offset += self._pos
        self._pos, self._places, self._owners = 0, [], []
        return block

    def _read_pcap(self, data: bytearray, place: I64) -> Block:
        seconds, fraction, captured, original = (self._u32(data, place + 4 * i) for i in range(4))
        ts = seconds * 1_000_000_000 + fraction * self._ns_per_tick
        owner = np.zeros(len(place), np.int64)
        return self._block(data, place + self._header, captured, original, ts, owner)

    def _read_pcapng(self, data: bytearray, place: I64) -> Block:
        owner = np.array(self._owners, np.int64)
        kind = self._u32(data, place)
        simple = kind == SIMPLE_PACKET
        captured, original = self._u32(data, place + 20), self._u32(data, place + 24)
        high, low = self._u32(data, place + 12).astype(np.uint64), self._u32(data, place + 16).astype(np.uint64)
        ticks = (high << np.uint64(32)) | low
        ts = np.zeros(len(place), np.int64)
        for number in np.unique(owner):
            mine = owner == number
            ts[mine] = to_ns(ticks[mine], self._interfaces[int(number)])
        if simple.any():  # they have no time and no captured length: the time is that of the packet before
            original[simple] = self._u32(data, place[simple] + 8)
            room = self._u32(data, place[simple] + 4) - 16
            snaplen = np.array([self._interfaces[int(i)].snaplen or CAPTURED_MAX for i in owner[simple]], np.int64)
            captured[simple] = np.minimum(np.minimum(original[simple], room), snaplen)
            known = np.maximum.accumulate(np.where(simple, -1, np.arange(len(place))))
            ts = np.where(known >= 0, ts[known], self._ts_last)
        return self._block(data, place + np.where(simple, 12, 28), captured, original, ts, owner)

    def _block(self, data: bytearray, at: I64, captured: I64, original: I64, ts: I64, owner: I64) -> Block:
        interfaces, original = tuple(self._interfaces), np.minimum(original, ORIGINAL_MAX)
        return Block(data, self._offset, at, captured, original, ts, owner, interfaces, self._pcapng)

    def _u32(self, data: bytearray, at: I64) -> I64:
        """Unsigned 32-bit numbers at any byte."""
        view: NDArray[np.uint32] = np.ndarray((len(data) - 3,), self._order + "u4", data, strides=(1,))
        return view[at].astype(np.int64)


def to_ns(ticks: NDArray[np.uint64], interface: Interface) -> I64:
    """Nanoseconds since 1970, kept within 0..2^63-1 whatever the ticks say."""
    per_s, ns = np.uint64(interface.resolution), np.uint64(1_000_000_000)
    seconds = np.minimum(ticks // per_s, np.uint64(TS_NS_MAX // 1_000_000_000 - 1))
    rest = ticks % per_s
    if interface.resolution > 1 << 33:  # rest x 10^9 would not fit: a sub-nanosecond clock can spare its last digits
        spare = np.uint64(interface.resolution // (1 << 33))
        rest, per_s = rest // spare, per_s // spare
    out: I64 = (seconds * ns + rest * ns // per_s).astype(np.int64)
    if interface.offset_ns:
        out = np.maximum(np.minimum(out, TS_NS_MAX - max(0, interface.offset_ns)) + interface.offset_ns, 0)
    return out
