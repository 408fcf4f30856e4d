"""A block of captured packets to columns: addresses, ports, flags, and the layer-4 payload by its length fields.

Always true
  - `length` is the layer-4 payload by the length fields, never by what was captured; padding does not count.
  - No byte outside a packet's captured bytes decides anything. A packet whose headers were cut, contradict each other
    or claim more than the frame held is left out and named; frames that are no IP at all are only counted.
  - Tunnels are not opened yet: GRE, IP in IP and VXLAN count as their outer flow. Opening one means to find the inner
    IP header in `_find_ip` once more and to number the tunnel in the key's last word.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.flows.capture import I64, PAD, Block, Problem

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Records = NDArray[Any]  # a structured array: one header a row

ICMP, TCP, UDP, ICMP6, SCTP = 1, 6, 17, 58, 132
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
HEADERS_MAX = 8  # tags, labels or extension headers that are followed in one packet
FRAGMENTS_MAX = 4096  # datagrams whose ports are remembered for their later fragments
PADDING_MAX = 6  # bytes after an empty IPv6 packet in the shortest Ethernet frame
SHOWN_BYTES = 64  # of a packet that could not be read

NULL, ETHERNET, LOOP, COOKED, COOKED2 = 0, 1, 108, 113, 276
RAW = (12, 14, 101, 228, 229)  # link types whose packets begin with the IP header
E_IPV4, E_IPV6, E_PPPOE, E_FABRIC = 0x0800, 0x86DD, 0x8864, 0x8903
E_VLAN, E_MPLS = (0x8100, 0x88A8, 0x9100), (0x8847, 0x8848)
E_IP = 1  # not an ethertype: the first nibble of what follows says which IP
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

REASONS = (  # of a packet that is left out
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
)
GOOD, NOT_IP, LINK_CUT, IP_CUT, IP_BAD, IP_LONG, TOO_MANY, L4_CUT, L4_LONG, NO_LINKTYPE = range(10)


def layout(fields: str) -> np.dtype[Any]:
    """'name:type name:type ...' as a packed structure."""
    return np.dtype([(name, kind) for name, kind in (field.split(":") for field in fields.split())])


IPV4 = layout("first:u1 tos:u1 total:>u2 id:>u2 part:>u2 ttl:u1 proto:u1 sum:>u2 src:>u4 dst:>u4")
IPV6 = layout("first:>u4 size:>u2 next:u1 hops:u1 src_hi:>u8 src_lo:>u8 dst_hi:>u8 dst_lo:>u8")
EXTENSION = layout("next:u1 size:u1 part:>u2 id:>u4")
L4 = layout("src:>u2 dst:>u2 udp:>u2 rest:V6 offset:u1 flags:u1")
assert max(IPV4.itemsize, IPV6.itemsize, L4.itemsize) <= PAD


class Packets(NamedTuple):
    """Columns of the packets that could be read, in the order of the capture.

    src_port, dst_port: as on the wire; ICMP: type and code; else 0. length: payload bytes; payload: where the captured
    ones begin in the block's data and how many they are."""

    ts: I64
    src_hi: U64
    src_lo: U64
    dst_hi: U64
    dst_lo: U64
    src_port: I64
    dst_port: I64
    proto: I64
    version: I64  # 4 or 6
    vlan: I64  # outer id; -1: none
    length: I64
    header: I64  # bytes of the layer-4 header
    flags: I64  # of TCP, else 0
    frame: I64  # bytes on the wire
    payload_at: I64
    payload_captured: I64
    interface: I64  # -1: the capture does not number them


class Decoder:
    """Decodes blocks in order; remembers only the ports of fragmented datagrams."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.not_ip = 0
        self._ports: OrderedDict[tuple[int, ...], tuple[int, int]] = OrderedDict()

    def decode(self, block: Block, problems_max: int) -> Packets:
        """At most problems_max of the packets that cannot be read are listed in `problems`."""
        work = _Work(block)
        _find_ip(work)
        _read_ipv4(work)
        _read_ipv6(work)
        _read_l4(work)
        self._join_fragments(work)
        self._report(work, problems_max)
        return work.packets()

    def _join_fragments(self, w: _Work) -> None:
        """Later fragments get the ports of their first one, where it came before them."""
        for i in np.flatnonzero(w.fragment & (w.bad == GOOD)).tolist():
            key = tuple(int(c[i]) for c in (w.src_hi, w.src_lo, w.dst_hi, w.dst_lo, w.fragment_id, w.proto, w.vlan))
            if w.later[i]:
                w.src_port[i], w.dst_port[i] = self._ports.get(key, (0, 0))
            else:
                self._ports[key] = int(w.src_port[i]), int(w.dst_port[i])
                if len(self._ports) > FRAGMENTS_MAX:
                    self._ports.popitem(last=False)

    def _report(self, w: _Work, problems_max: int) -> None:
        wrong = np.flatnonzero(w.bad > NOT_IP)
        self.not_ip += int(np.count_nonzero(w.bad == NOT_IP))
        for i in wrong[:problems_max].tolist():
            at = int(w.at[i])
            record = bytes(w.block.data[at : at + min(int(w.block.captured[i]), SHOWN_BYTES)])
            self.problems.append(Problem(w.block.offset + at, f"a packet is left out: {REASONS[w.bad[i]]}", record))
        if len(wrong) > problems_max >= 0:
            where = w.block.offset + int(w.at[wrong[problems_max]])
            self.problems.append(Problem(where, f"{len(wrong) - problems_max} more packets are left out"))


class _Work:
    """Columns that are filled step by step; `bad` is GOOD or says why a packet is out."""

    def __init__(self, block: Block) -> None:
        n = len(block.at)
        self.block = block
        self.at = block.at
        self.end = block.at + block.captured  # of the captured bytes
        self.bad = np.zeros(n, np.int8)
        self.l3 = block.at.copy()
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
        self.src_port, self.dst_port = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.header, self.flags = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.payload = np.zeros(n, np.int64)

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

    def packets(self) -> Packets:
        captured = np.clip(np.minimum(self.end, self.l4 + self.l4_bytes) - self.l4 - self.header, 0, None)
        frame = np.maximum(self.block.original, self.block.captured)
        columns = Packets(
            self.block.ts, self.src_hi, self.src_lo, self.dst_hi, self.dst_lo, self.src_port, self.dst_port,
            self.proto, self.version, self.vlan, self.payload, self.header, self.flags, frame,
            self.l4 + self.header, captured, self.block.interface if self.block.numbered else self.block.interface - 1,
        )  # fmt: skip
        good = self.bad == GOOD
        return columns if good.all() else Packets(*(c[good] for c in columns))


def _find_ip(w: _Work) -> None:
    """Set l3, kind and vlan: where the IP header begins, after link header, tags and labels."""
    linktypes = np.array([i.linktype for i in w.block.interfaces], np.int64)[w.block.interface]
    for linktype in np.unique(linktypes).tolist():
        rows = np.flatnonzero(linktypes == linktype)
        if linktype == ETHERNET:
            _step(w, rows, 14, 12)
        elif linktype == COOKED:
            _step(w, rows, 16, 14)
        elif linktype == COOKED2:
            _step(w, rows, 20, 0)
        elif linktype in (NULL, LOOP):  # the address family is in the byte order of the machine: the IP header tells
            w.fits(rows, w.l3, 4, LINK_CUT)
            w.l3[rows] += 4
            w.kind[rows] = E_IP
        elif linktype in RAW:
            w.kind[rows] = E_IP
        else:
            w.bad[rows] = NO_LINKTYPE
    for _ in range(HEADERS_MAX):
        rows = np.flatnonzero((w.kind != E_IPV4) & (w.kind != E_IPV6) & (w.bad == GOOD))
        if not len(rows):
            return
        _unwrap(w, rows)
    w.bad[(w.kind != E_IPV4) & (w.kind != E_IPV6) & (w.bad == GOOD)] = TOO_MANY


def _step(w: _Work, rows: I64, size: int, kind_at: int) -> None:
    """A header of `size` bytes with the next one's ethertype in it lies at l3: step over it."""
    rows = w.fits(rows, w.l3, size, LINK_CUT)
    w.kind[rows] = w.u16(w.l3[rows] + kind_at)
    w.l3[rows] += size


def _unwrap(w: _Work, rows: I64) -> None:
    """One more header on the way to IP, for rows whose kind is not yet IPv4 or IPv6."""
    kind = w.kind[rows]
    vlan, mpls = np.isin(kind, E_VLAN), np.isin(kind, E_MPLS)
    tagged = w.fits(rows[vlan], w.l3, 4, LINK_CUT)
    w.vlan[tagged] = np.where(w.vlan[tagged] < 0, w.u16(w.l3[tagged]) & 0xFFF, w.vlan[tagged])
    _step(w, tagged, 4, 2)
    labelled = w.fits(rows[mpls], w.l3, 4, LINK_CUT)
    bottom = w.read("u1", w.l3[labelled] + 2) & 1
    w.l3[labelled] += 4
    w.kind[labelled] = np.where(bottom == 1, E_IP, w.kind[labelled])
    fabric = w.fits(rows[kind == E_FABRIC], w.l3, 16, LINK_CUT)
    w.l3[fabric] += 2
    _step(w, fabric, 14, 12)
    pppoe = w.fits(rows[kind == E_PPPOE], w.l3, 8, LINK_CUT)
    ppp = w.u16(w.l3[pppoe] + 6)
    w.l3[pppoe] += 8
    w.kind[pppoe] = np.where(ppp == 0x21, E_IPV4, np.where(ppp == 0x57, E_IPV6, 0))
    w.bad[pppoe[(ppp != 0x21) & (ppp != 0x57)]] = NOT_IP
    bare = w.fits(rows[kind == E_IP], w.l3, 1, IP_CUT)
    version = w.read("u1", w.l3[bare]) >> 4
    w.kind[bare] = np.where(version == 4, E_IPV4, np.where(version == 6, E_IPV6, 0))
    w.bad[bare[(version != 4) & (version != 6)]] = NOT_IP
    known = vlan | mpls | (kind == E_FABRIC) | (kind == E_PPPOE) | (kind == E_IP)
    w.bad[rows[~known]] = NOT_IP


def _read_ipv4(w: _Work) -> None:
    rows = w.fits(np.flatnonzero((w.kind == E_IPV4) & (w.bad == GOOD)), w.l3, 20, IP_CUT)
    ip = w.read(IPV4, w.l3[rows])
    header = (ip["first"] & 15).astype(np.int64) * 4
    total = ip["total"].astype(np.int64)
    room = np.maximum(w.block.original, w.block.captured)[rows] - (w.l3 - w.at)[rows]
    total = np.where(total == 0, room, total)  # segmentation offload: the card fills it in later
    wrong = (ip["first"] >> 4 != 4) | (header < 20) | (total < header)
    w.bad[rows[total > room]] = IP_LONG
    w.bad[rows[wrong]] = IP_BAD
    keep = ~wrong & (total <= room)
    if not keep.all():
        rows, ip, header, total = rows[keep], ip[keep], header[keep], total[keep]
    w.version[rows] = 4
    w.src_lo[rows], w.dst_lo[rows] = ip["src"], ip["dst"]
    w.proto[rows] = ip["proto"]
    w.l4[rows] = w.l3[rows] + header
    w.l4_bytes[rows] = total - header
    part = ip["part"] & 0x3FFF  # more fragments, and this one's offset
    if part.any():
        w.fragment[rows], w.later[rows], w.fragment_id[rows] = part != 0, part & 0x1FFF != 0, ip["id"]


def _read_ipv6(w: _Work) -> None:
    rows = np.flatnonzero((w.kind == E_IPV6) & (w.bad == GOOD))
    if not len(rows):
        return
    rows = w.fits(rows, w.l3, 40, IP_CUT)
    rows = w.refuse(rows, w.read(IPV6, w.l3[rows])["first"] >> 28 != 6, IP_BAD)
    ip = w.read(IPV6, w.l3[rows])
    room = np.maximum(w.block.original, w.block.captured)[rows] - (w.l3 - w.at)[rows] - 40
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
        rows = w.refuse(rows, w.l4_bytes[rows] < 0, IP_BAD)
    w.bad[rows[np.isin(w.proto[rows], EXTENSIONS) & ~w.later[rows]]] = TOO_MANY


def _read_l4(w: _Work) -> None:
    """Ports, flags, header and payload length. A later fragment is payload from its first byte on."""
    w.payload[:] = w.l4_bytes
    whole = (w.bad == GOOD) & ~w.later
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


def _ports(w: _Work, rows: I64, head: Records) -> None:
    w.src_port[rows], w.dst_port[rows] = head["src"], head["dst"]


def _payload(w: _Work, rows: I64, header: int | I64, size: I64) -> None:
    """size: of header and payload."""
    w.header[rows] = header
    w.l4_bytes[rows] = size
    w.payload[rows] = size - header
    w.bad[rows[size < header]] = L4_LONG
