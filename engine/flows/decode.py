"""Headers of captured packets to columns: addresses, ports, flags, and the layer-4 payload by its length fields.

Always true
  - `payload` is the layer-4 payload by the length fields, never by what was captured; padding does not count.
  - No byte outside a packet's captured bytes decides anything. A packet whose headers were cut, contradict each other
    or claim more than the frame held is marked `bad` with the reason; frames that are no IP at all are NOT_IP.
  - One packet is one IP header here: what is in a tunnel is the work of tunnels.py, what makes fragments one datagram
    that of fragments.py, and packets.py puts the three together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.flows.capture import I64, PAD, Block

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Records = NDArray[Any]  # a structured array: one header a row

ICMP, TCP, UDP, ICMP6, SCTP = 1, 6, 17, 58, 132
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
HEADERS_MAX = 8  # tags, labels or extension headers that are followed in one packet
PADDING_MAX = 6  # bytes after an empty IPv6 packet in the shortest Ethernet frame
TUNNELS_MAX = 2  # tunnels in one another that are opened: the flow key has room for as many
DATAGRAM_BYTES_MAX = 65_535
FIRST_BYTES_MIN = 8  # of a datagram in its first fragment: all others begin at a multiple of it

NULL, ETHERNET, PPP, LOOP, COOKED, COOKED2 = 0, 1, 9, 108, 113, 276
RAW = (12, 14, 101, 228, 229)  # link types whose packets begin with the IP header
E_IPV4, E_IPV6, E_BRIDGE, E_PPPOE, E_FABRIC = 0x0800, 0x86DD, 0x6558, 0x8864, 0x8903
E_VLAN, E_MPLS = (0x8100, 0x88A8, 0x9100), (0x8847, 0x8848)
E_IP = 1 << 16  # not an ethertype: the first nibble of what follows says which IP
EXTENSIONS = (
    0,
    43,
    44,
    51,
    60,
    135,
    139,
    140,
)  # IPv6: hop by hop, routing, fragment, AH, destination, mobility, HIP, shim6
FRAGMENT, AUTHENTICATION = 44, 51

REASONS = (  # of a packet that is left out, and of one that is not what it should be
    "",
    "not IP",
    "the link header was cut",
    "the IP header was cut",
    "the IP header contradicts itself",
    "the IP length is beyond the frame",
    "too many headers before the transport",
    "the transport header was cut",
    "the transport header is longer than its packet",
    "a link type that is not read",
    "it overlaps another fragment of its datagram",
    "a first fragment too small for the transport header",
    "a fragment that ends beyond the largest datagram",
)
GOOD, NOT_IP, LINK_CUT, IP_CUT, IP_BAD, IP_LONG, TOO_MANY, L4_CUT, L4_LONG, NO_LINKTYPE = range(10)
OVERLAP, TINY, BEYOND = range(10, len(REASONS))


def layout(fields: str) -> np.dtype[Any]:
    """'name:type name:type ...' as a packed structure."""
    return np.dtype([(name, kind) for name, kind in (field.split(":") for field in fields.split())])


IPV4 = layout("first:u1 tos:u1 total:>u2 id:>u2 part:>u2 ttl:u1 proto:u1 sum:>u2 src:>u4 dst:>u4")
IPV6 = layout("first:>u4 size:>u2 next:u1 hops:u1 src_hi:>u8 src_lo:>u8 dst_hi:>u8 dst_lo:>u8")
EXTENSION = layout("next:u1 size:u1 part:>u2 id:>u4")
L4 = layout("src:>u2 dst:>u2 udp:>u2 rest:V6 offset:u1 flags:u1")
assert max(IPV4.itemsize, IPV6.itemsize, L4.itemsize) <= PAD


class Packets(NamedTuple):
    """The bytes of a block, and columns of its packets that could be read, in the order of the capture.

    src_port, dst_port: as on the wire; ICMP: type and code; else 0. length: payload bytes; payload: where the captured
    ones begin in `data` and how many they are."""

    data: bytearray
    ts: I64
    src_hi: U64
    src_lo: U64
    dst_hi: U64
    dst_lo: U64
    src_port: I64
    dst_port: I64
    proto: I64
    version: I64  # 4 or 6
    vlan: I64  # outermost id of the frame that the flow is in; -1: none
    tunnels: U64  # [n, TUNNELS_MAX], outermost first: tunnels.py says how; 0: none
    length: I64
    header: I64  # bytes of the layer-4 header
    flags: I64  # of TCP, else 0
    frame: I64  # bytes on the wire
    payload_at: I64
    payload_captured: I64
    interface: I64  # -1: the capture does not number them


class Work:
    """Columns that are filled step by step; `bad` is GOOD or says why a packet is out, `noted` is another REASON."""

    def __init__(self, block: Block, at: I64, end: I64, limit: I64) -> None:
        n = len(at)
        self.block = block
        self.l3 = at  # what is read next
        self.end = end  # of the captured bytes
        self.limit = limit  # where the frame or the tunnel's payload ends by the length fields
        self.bad, self.noted = np.zeros(n, np.int8), np.zeros(n, np.int8)
        self.kind = np.zeros(n, np.int64)  # ethertype
        self.vlan = np.full(n, -1, np.int64)
        self.version = np.zeros(n, np.int64)
        self.src_hi, self.src_lo = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
        self.dst_hi, self.dst_lo = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
        self.proto = np.zeros(n, np.int64)
        self.l4 = np.zeros(n, np.int64)
        self.l4_bytes = np.zeros(n, np.int64)  # by the IP header, L4 header and payload
        self.fragment = np.zeros(n, np.bool_)
        self.later = np.zeros(n, np.bool_)  # a fragment without L4 header
        self.fragment_id = np.zeros(n, np.int64)
        self.fragment_at = np.zeros(n, np.int64)  # in units of 8 bytes
        self.fragment_last = np.zeros(n, np.bool_)
        self.fragment_bytes = np.zeros(n, np.int64)
        self.src_port, self.dst_port = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.header, self.flags = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.payload = np.zeros(n, np.int64)
        self.tunnels = np.zeros((n, TUNNELS_MAX), np.uint64)

    def read(self, dtype: DTypeLike, at: I64) -> Records:
        """The header at each of the places, as one structured array."""
        size = np.dtype(dtype).itemsize
        rows: Records = np.ndarray((len(self.block.data) - size + 1,), f"V{size}", self.block.data, strides=(1,))
        return rows[at].view(dtype)

    def u16(self, at: I64) -> I64:
        return self.read(">u2", at).astype(np.int64)

    def fits(self, rows: I64, at: I64, size: int | I64, reason: int) -> I64:
        """Those rows whose captured bytes reach from at[row] over `size` bytes; the others are marked."""
        good = at[rows] + size <= self.end[rows]
        if good.all():
            return rows
        self.bad[rows[~good]] = reason
        return rows[good]

    def refuse(self, rows: I64, wrong: Bools, reason: int) -> I64:
        """Mark the wrong ones; the rows that remain."""
        if not wrong.any():
            return rows
        self.bad[rows[wrong]] = reason
        return rows[~wrong]

    def step(self, rows: I64, size: int, kind_at: int) -> None:
        """A header of `size` bytes with the next one's ethertype in it lies at l3: step over it."""
        rows = self.fits(rows, self.l3, size, LINK_CUT)
        self.kind[rows] = self.u16(self.l3[rows] + kind_at)
        self.l3[rows] += size

    def packets(self) -> Packets:
        block = self.block
        captured = np.clip(np.minimum(self.end, self.l4 + self.l4_bytes) - self.l4 - self.header, 0, None)
        columns: tuple[NDArray[Any], ...] = (
            block.ts, self.src_hi, self.src_lo, self.dst_hi, self.dst_lo, self.src_port, self.dst_port,
            self.proto, self.version, self.vlan, self.tunnels, self.payload, self.header, self.flags,
            np.maximum(block.original, block.captured), self.l4 + self.header, captured,
            block.interface if block.numbered else block.interface - 1,
        )  # fmt: skip
        good = self.bad == GOOD
        if not good.all():
            columns = tuple(column[good] for column in columns)
        return Packets(block.data, *columns)


def read_link(w: Work) -> None:
    """The link header of every frame of the block."""
    linktypes = np.array([i.linktype for i in w.block.interfaces], np.int64)
    kinds = np.unique(linktypes).tolist()
    for linktype in kinds:
        one = len(kinds) == 1
        rows = np.arange(len(w.bad)) if one else np.flatnonzero(linktypes[w.block.interface] == linktype)
        if linktype == ETHERNET:
            w.step(rows, 14, 12)
        elif linktype == COOKED:
            w.step(rows, 16, 14)
        elif linktype == COOKED2:
            w.step(rows, 20, 0)
        elif linktype in (NULL, LOOP):  # the address family is in the byte order of the machine: the IP header tells
            w.fits(rows, w.l3, 4, LINK_CUT)
            w.l3[rows] += 4
            w.kind[rows] = E_IP
        elif linktype == PPP:
            read_ppp(w, rows)
        elif linktype in RAW:
            w.kind[rows] = E_IP
        else:
            w.bad[rows] = NO_LINKTYPE


def read_headers(w: Work) -> None:
    """All that lies between `l3`, where a header of `kind` begins, and the payload."""
    for _ in range(HEADERS_MAX):
        rows = np.flatnonzero((w.kind != E_IPV4) & (w.kind != E_IPV6) & (w.bad == GOOD))
        if not len(rows):
            break
        _unwrap(w, rows)
    else:
        w.bad[(w.kind != E_IPV4) & (w.kind != E_IPV6) & (w.bad == GOOD)] = TOO_MANY
    _read_ipv4(w)
    _read_ipv6(w)
    fragments = np.flatnonzero(w.fragment & (w.bad == GOOD))
    ends = w.fragment_at[fragments] * 8 + w.fragment_bytes[fragments]
    w.refuse(fragments, ends > DATAGRAM_BYTES_MAX, BEYOND)
    _read_l4(w)


def read_ppp(w: Work, rows: I64) -> None:
    """A PPP header, both its parts compressed or not."""
    rows = w.fits(rows, w.l3, 4, LINK_CUT)
    w.l3[rows] += np.where(w.u16(w.l3[rows]) == 0xFF03, 2, 0)
    short = w.read("u1", w.l3[rows]) & 1 == 1
    ppp = np.where(short, w.read("u1", w.l3[rows]), w.u16(w.l3[rows]))
    w.l3[rows] += np.where(short, 1, 2)
    w.kind[rows] = np.where(ppp == 0x21, E_IPV4, E_IPV6)
    w.refuse(rows, (ppp != 0x21) & (ppp != 0x57), NOT_IP)


def _unwrap(w: Work, rows: I64) -> None:
    """One more header on the way to IP, for rows whose kind is not yet IPv4 or IPv6."""
    kind = w.kind[rows]
    vlan, mpls = np.isin(kind, E_VLAN), np.isin(kind, E_MPLS)
    tagged = w.fits(rows[vlan], w.l3, 4, LINK_CUT)
    w.vlan[tagged] = np.where(w.vlan[tagged] < 0, w.u16(w.l3[tagged]) & 0xFFF, w.vlan[tagged])
    w.step(tagged, 4, 2)
    labelled = w.fits(rows[mpls], w.l3, 4, LINK_CUT)
    bottom = w.read("u1", w.l3[labelled] + 2) & 1
    w.l3[labelled] += 4
    w.kind[labelled] = np.where(bottom == 1, E_IP, w.kind[labelled])
    fabric = w.fits(rows[kind == E_FABRIC], w.l3, 16, LINK_CUT)
    w.l3[fabric] += 2
    w.step(fabric, 14, 12)
    w.step(rows[kind == E_BRIDGE], 14, 12)
    pppoe = w.fits(rows[kind == E_PPPOE], w.l3, 6, LINK_CUT)
    w.l3[pppoe] += 6
    read_ppp(w, pppoe)
    bare = w.fits(rows[kind == E_IP], w.l3, 1, IP_CUT)
    version = w.read("u1", w.l3[bare]) >> 4
    w.kind[bare] = np.where(version == 4, E_IPV4, np.where(version == 6, E_IPV6, 0))
    w.bad[bare[(version != 4) & (version != 6)]] = NOT_IP
    known = vlan | mpls | np.isin(kind, (E_BRIDGE, E_FABRIC, E_PPPOE, E_IP))
    w.bad[rows[~known]] = NOT_IP


def _read_ipv4(w: Work) -> None:
    rows = w.fits(np.flatnonzero((w.kind == E_IPV4) & (w.bad == GOOD)), w.l3, 20, IP_CUT)
    ip = w.read(IPV4, w.l3[rows])
    header = (ip["first"] & 15).astype(np.int64) * 4
    total, part = ip["total"].astype(np.int64), ip["part"] & 0x3FFF  # more fragments, and this one's offset
    room = (w.limit - w.l3)[rows]
    total = np.where((total == 0) & (part == 0), room, total)  # segmentation offload: the card fills it in later
    wrong = (ip["first"] >> 4 != 4) | (header < 20) | (total < header)
    w.bad[rows[total > room]] = IP_LONG
    w.bad[rows[wrong]] = IP_BAD
    keep = ~wrong & (total <= room)
    if not keep.all():
        rows, ip, header, total, part = rows[keep], ip[keep], header[keep], total[keep], part[keep]
    w.version[rows] = 4
    w.src_lo[rows], w.dst_lo[rows] = ip["src"], ip["dst"]
    w.proto[rows] = ip["proto"]
    w.l4[rows] = w.l3[rows] + header
    w.l4_bytes[rows] = total - header
    if part.any():
        w.fragment[rows], w.later[rows], w.fragment_id[rows] = part != 0, part & 0x1FFF != 0, ip["id"]
        w.fragment_at[rows], w.fragment_last[rows] = part & 0x1FFF, part & 0x2000 == 0
        w.fragment_bytes[rows] = total - header


def _read_ipv6(w: Work) -> None:
    rows = np.flatnonzero((w.kind == E_IPV6) & (w.bad == GOOD))
    if not len(rows):
        return
    rows = w.fits(rows, w.l3, 40, IP_CUT)
    rows = w.refuse(rows, w.read(IPV6, w.l3[rows])["first"] >> 28 != 6, IP_BAD)
    ip = w.read(IPV6, w.l3[rows])
    room = (w.limit - w.l3)[rows] - 40
    size = ip["size"].astype(np.int64)
    size = np.where((size == 0) & (room > PADDING_MAX), room, size)  # a jumbogram, or segmentation offload
    w.version[rows] = 6
    w.src_hi[rows], w.src_lo[rows] = ip["src_hi"], ip["src_lo"]
    w.dst_hi[rows], w.dst_lo[rows] = ip["dst_hi"], ip["dst_lo"]
    w.proto[rows], w.l4[rows], w.l4_bytes[rows] = ip["next"], w.l3[rows] + 40, size
    rows = w.refuse(rows, size > room, IP_LONG)
    for _ in range(HEADERS_MAX):
        rows = rows[np.isin(w.proto[rows], EXTENSIONS) & ~w.later[rows]]
        if not len(rows):
            return
        rows = w.fits(rows, w.l4, 8, IP_CUT)
        proto, head = w.proto[rows], w.read(EXTENSION, w.l4[rows])
        size = head["size"].astype(np.int64)
        size = np.where(proto == FRAGMENT, 8, np.where(proto == AUTHENTICATION, size * 4 + 8, size * 8 + 8))
        part = (proto == FRAGMENT) & (head["part"] & 0xFFF9 != 0)
        w.fragment[rows] |= part
        w.later[rows] |= part & (head["part"] & 0xFFF8 != 0)
        w.fragment_id[rows] = np.where(part, head["id"], w.fragment_id[rows])
        w.proto[rows] = head["next"]
        w.l4[rows] += size
        w.l4_bytes[rows] -= size
        if part.any():
            mine, pieces = rows[part], head["part"][part]
            w.fragment_at[mine], w.fragment_last[mine] = pieces >> 3, pieces & 1 == 0
            w.fragment_bytes[mine] = w.l4_bytes[mine]
        wrong = part & (w.read(IPV6, w.l3[rows])["size"] == 0)  # no card fills in the length of a fragment
        rows = w.refuse(rows, wrong | (w.l4_bytes[rows] < 0), IP_BAD)
    w.bad[rows[np.isin(w.proto[rows], EXTENSIONS) & ~w.later[rows]]] = TOO_MANY


def _read_l4(w: Work) -> None:
    """Ports, flags, header and payload length. A later fragment is payload from its first byte on; a first one has the
    whole header and, where that is longer than it, a payload below 0, until fragments.py looks at both."""
    w.payload[:] = w.l4_bytes
    whole = (w.bad == GOOD) & ~w.later
    first = np.flatnonzero(w.fragment & whole)
    if len(first):
        first = w.refuse(first, w.l4_bytes[first] < FIRST_BYTES_MIN, L4_LONG)
        short = first[(w.proto[first] == TCP) & (w.l4_bytes[first] < 14)]  # they end before the flags
        _short_tcp(w, w.fits(short, w.l4, FIRST_BYTES_MIN, L4_CUT))
        whole &= w.bad == GOOD
        whole[short] = False
    tcp = w.fits(np.flatnonzero(whole & (w.proto == TCP)), w.l4, 14, L4_CUT)
    udp = w.fits(np.flatnonzero(whole & (w.proto == UDP)), w.l4, 8, L4_CUT)
    icmp = w.fits(np.flatnonzero(whole & ((w.proto == ICMP) | (w.proto == ICMP6))), w.l4, 2, L4_CUT)
    sctp = w.fits(np.flatnonzero(whole & (w.proto == SCTP)), w.l4, 4, L4_CUT)
    head = w.read(L4, w.l4[tcp])
    header = (head["offset"] >> 4).astype(np.int64) * 4
    _ports(w, tcp, head)
    w.flags[tcp] = head["flags"]
    _payload(w, tcp, header, w.l4_bytes[tcp])
    w.bad[tcp[header < 20]] = L4_LONG
    head = w.read(L4, w.l4[udp])
    size = head["udp"].astype(np.int64)
    _ports(w, udp, head)
    _payload(w, udp, 8, np.minimum(np.where(size == 0, w.l4_bytes[udp], size), w.l4_bytes[udp]))
    head = w.read(L4, w.l4[icmp])
    w.src_port[icmp], w.dst_port[icmp] = head["src"] >> 8, head["src"] & 255
    _payload(w, icmp, 8, w.l4_bytes[icmp])
    _ports(w, sctp, w.read(L4, w.l4[sctp]))
    _payload(w, sctp, 12, w.l4_bytes[sctp])


def _short_tcp(w: Work, rows: I64) -> None:
    """First fragments with the ports of TCP but not its flags; the header is taken for one without options."""
    _ports(w, rows, w.read(L4, w.l4[rows]))
    _payload(w, rows, 20, w.l4_bytes[rows])


def _ports(w: Work, rows: I64, head: Records) -> None:
    w.src_port[rows], w.dst_port[rows] = head["src"], head["dst"]


def _payload(w: Work, rows: I64, header: int | I64, size: I64) -> None:
    """size: of header and payload."""
    w.header[rows] = header
    w.l4_bytes[rows] = size
    w.payload[rows] = size - header
    wrong = rows[size < header]
    w.bad[wrong[~w.fragment[wrong]]] = L4_LONG
