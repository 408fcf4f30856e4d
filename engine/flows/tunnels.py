"""Tunnels: a packet in a packet counts for the flow inside.

Always true
  - What is opened is opened for certain: the tunnel's own header is whole, has no flag or version that is not known
    here, and what follows is a packet that decode.py has nothing to say against and that ends within the tunnel's
    payload by the length fields. Anything else (a fragment, control messages, compressed or encrypted payload, a
    capture that cut the inner headers) leaves the packet what it is without this file: one of the outer flow.
  - A tunnel is its kind and the number that both directions of it carry: GRE's key, VXLAN's and Geneve's network,
    ERSPAN's session. GTP's TEID and PPTP's call id are chosen by the receiver, so that each direction has its own:
    they are no part of it. Neither are the outer endpoints: they change along the path, on a handover and from one
    gateway of a pair to the other, while the flow inside remains one.
  - At most TUNNELS_MAX are opened in one packet, the outermost first; a further one counts as what is in the last.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.flows.capture import I64
from engine.flows.decode import (
    E_BRIDGE,
    E_IP,
    E_IPV4,
    E_IPV6,
    GOOD,
    HEADERS_MAX,
    LINK_CUT,
    NOT_IP,
    TUNNELS_MAX,
    UDP,
    Work,
    layout,
    read_headers,
    read_ppp,
)


class Tunnel(IntEnum):
    GRE = 1
    PPTP = 2
    ERSPAN = 3
    IPIP = 4
    SIX_IN_FOUR = 5
    FOUR_IN_SIX = 6
    SIX_IN_SIX = 7
    VXLAN = 8
    GENEVE = 9
    TEREDO = 10
    GTP = 11


NAMES = ("", "gre", "pptp", "erspan", "ipip", "6in4", "4in6", "6in6", "vxlan", "geneve", "teredo", "gtp")
NUMBERED, KIND_SHIFT = 1 << 32, 33  # a tunnel in a word: its number, whether it has one, and its kind
CAPTURED_MIN = 20  # of what is looked into: IP, or GRE at its longest, or UDP and the longest fixed header in it

# What a packet may carry, by protocol number and by port; IP in IP is told apart by the version outside.
P_IPV4, P_IPV6, P_GRE = 4, 41, 47
BY_PROTO = np.zeros(256, np.uint8)
BY_PROTO[[P_IPV4, P_IPV6, P_GRE]] = Tunnel.IPIP, Tunnel.IPIP, Tunnel.GRE
TEREDO_PORT = 3544
BY_PORT = np.zeros(1 << 16, np.uint8)
BY_PORT[[4789, 8472]] = Tunnel.VXLAN  # by its number, and where Linux had it before it got one
BY_PORT[6081], BY_PORT[2152], BY_PORT[TEREDO_PORT] = Tunnel.GENEVE, Tunnel.GTP, Tunnel.TEREDO

GRE = layout("flags:>u2 kind:>u2")
G_CHECKSUM, G_KEY, G_SEQUENCE, G_ACK = 0x8000, 0x2000, 0x1000, 0x0080
G_PPP, G_ERSPAN2, G_ERSPAN3 = 0x880B, 0x88BE, 0x22EB
VIRTUAL = layout("first:u1 second:u1 kind:>u2 network:>u4")  # VXLAN and Geneve: the network is 24 bits of the last
GTP = layout("flags:u1 message:u1 size:>u2 teid:>u4")
GTP_DATA, GTP_EXTENDED = 255, 4


def open_tunnels(w: Work, depth: int = 0) -> None:
    """Give packets in a tunnel the columns of the packet inside. w: as read_headers left it."""
    rows, kinds = _candidates(w)
    if not len(rows):
        return
    udp = w.proto[rows] == UDP
    limit = (w.l4 + w.l4_bytes)[rows]
    inner = Work(w.block, w.l4[rows] + np.where(udp, 8, 0), np.minimum(w.end[rows], limit), limit)
    inner.tunnels[:] = w.tunnels[rows]
    level = inner.tunnels[:, depth]  # a view
    for kind in np.unique(kinds).tolist():
        mine = np.flatnonzero(kinds == kind)
        if kind == Tunnel.IPIP:
            level[mine] = _ip_in_ip(inner, mine, w.version[rows[mine]], w.proto[rows[mine]])
        else:
            level[mine] = OPENERS[kind](inner, mine)
    read_headers(inner)
    if depth + 1 < TUNNELS_MAX:
        open_tunnels(inner, depth + 1)
    good = inner.bad == GOOD
    inner.vlan = np.where(inner.vlan < 0, w.vlan[rows], inner.vlan)
    for column in COLUMNS:
        getattr(w, column)[rows[good]] = getattr(inner, column)[good]


COLUMNS = (
    "vlan", "version", "src_hi", "src_lo", "dst_hi", "dst_lo", "proto", "l4", "l4_bytes", "fragment", "later",
    "fragment_id", "fragment_at", "fragment_last", "fragment_bytes", "src_port", "dst_port", "header", "flags",
    "payload", "tunnels",
)  # fmt: skip


def _candidates(w: Work) -> tuple[I64, NDArray[np.uint8]]:
    """Rows that may carry a tunnel, and which kind."""
    kinds = BY_PROTO[w.proto]
    udp = np.flatnonzero(w.proto == UDP)
    by_port = BY_PORT[w.dst_port[udp]]
    by_port[(by_port == 0) & (w.src_port[udp] == TEREDO_PORT)] = Tunnel.TEREDO
    kinds[udp] = by_port
    rows = np.flatnonzero(kinds)
    if len(rows):
        enough = w.l4[rows] + CAPTURED_MIN <= np.minimum(w.end[rows], w.l4[rows] + w.l4_bytes[rows])
        rows = rows[enough & (w.bad[rows] == GOOD) & ~w.fragment[rows]]
    return rows, kinds[rows]


def _ip_in_ip(w: Work, rows: I64, outside: I64, proto: I64) -> I64:
    six = proto == P_IPV6
    w.kind[rows] = np.where(six, E_IPV6, E_IPV4)
    kinds = np.where(outside == 4, np.where(six, Tunnel.SIX_IN_FOUR, Tunnel.IPIP),
                     np.where(six, Tunnel.SIX_IN_SIX, Tunnel.FOUR_IN_SIX))  # fmt: skip
    return kinds << KIND_SHIFT


def _gre(w: Work, rows: I64) -> I64:
    """Version 0 with checksum, key and sequence; ERSPAN in it; and version 1 as PPTP has it."""
    head = w.read(GRE, w.l3[rows])
    flags, kind = head["flags"].astype(np.int64), head["kind"].astype(np.int64)
    words = np.full(len(rows), Tunnel.GRE << KIND_SHIFT, np.int64)
    keyed = flags & G_KEY != 0
    key_at = w.l3[rows] + np.where(flags & G_CHECKSUM, 8, 4)
    words[keyed] |= NUMBERED | w.read(">u4", key_at[keyed]).astype(np.int64)
    plain = flags & ~(G_CHECKSUM | G_KEY | G_SEQUENCE) == 0
    pptp = (flags & ~(G_SEQUENCE | G_ACK) == G_KEY | 1) & (flags & G_SEQUENCE != 0) & (kind == G_PPP)
    w.refuse(rows, ~(plain | pptp), NOT_IP)
    words[pptp] = _pptp(w, rows[pptp], flags[pptp])
    size = 4 + sum(np.where(flags & bit, 4, 0) for bit in (G_CHECKSUM, G_KEY, G_SEQUENCE))
    w.l3[rows] += np.where(pptp, 0, size)
    w.kind[rows] = np.where(pptp, w.kind[rows], kind)
    mirrored = plain & ((kind == G_ERSPAN2) | (kind == G_ERSPAN3))
    words[mirrored] = _erspan(w, rows[mirrored], flags[mirrored], kind[mirrored])
    return words


def _pptp(w: Work, rows: I64, flags: I64) -> int:
    """Enhanced GRE with a PPP frame of a length of its own."""
    w.l3[rows] += np.where(flags & G_ACK, 16, 12)
    after = w.l3[rows] + w.u16(w.l3[rows] - np.where(flags & G_ACK, 12, 8))
    w.refuse(rows, after > w.limit[rows], NOT_IP)
    w.limit[rows], w.end[rows] = after, np.minimum(w.end[rows], after)
    read_ppp(w, rows)
    return Tunnel.PPTP << KIND_SHIFT


def _erspan(w: Work, rows: I64, flags: I64, kind: I64) -> I64:
    """Types I (no header of its own, no sequence), II and III, all with an Ethernet frame inside."""
    words = np.full(len(rows), Tunnel.ERSPAN << KIND_SHIFT, np.int64)
    third = kind == G_ERSPAN3
    headed = third | (flags & G_SEQUENCE != 0)
    mine = rows[headed]
    w.fits(mine, w.l3, 12, LINK_CUT)  # PAD bytes follow what is cut: reading goes on, the row is marked
    first, session = w.u16(w.l3[mine]), w.u16(w.l3[mine] + 2) & 0x3FF
    last = w.u16(w.l3[mine] + 10)
    wrong = first >> 12 != np.where(third, 2, 1)[headed]
    wrong |= third[headed] & (last & 0x7C00 != 0)  # not an Ethernet frame
    w.refuse(mine, wrong, NOT_IP)
    w.l3[mine] += np.where(third[headed], np.where(last & 1, 20, 12), 8)
    words[headed] |= NUMBERED | session
    w.kind[rows] = E_BRIDGE
    return words


def _vxlan(w: Work, rows: I64) -> I64:
    """Eight bytes and an Ethernet frame. Of the flags only that the network is valid, and that of group policies."""
    return _virtual(w, rows, Tunnel.VXLAN)


def _geneve(w: Work, rows: I64) -> I64:
    return _virtual(w, rows, Tunnel.GENEVE)


def _virtual(w: Work, rows: I64, kind: Tunnel) -> I64:
    head = w.read(VIRTUAL, w.l3[rows])
    first, network = head["first"].astype(np.int64), head["network"].astype(np.int64)
    if kind == Tunnel.VXLAN:
        wrong = first & 0x7F != 0x08
        w.l3[rows] += 8
        w.kind[rows] = E_BRIDGE
    else:
        wrong = (first >> 6 != 0) | (head["second"] & 0xBF != 0)  # version 0, no control packet
        w.l3[rows] += 8 + (first & 63) * 4
        w.kind[rows] = head["kind"]
    w.refuse(rows, wrong | (network & 0xFF != 0), NOT_IP)
    return int(kind) << KIND_SHIFT | NUMBERED | network >> 8


def _teredo(w: Work, rows: I64) -> I64:
    """Authentication and origin may come before an IPv6 packet that fills the rest to its last byte."""
    words = np.full(len(rows), Tunnel.TEREDO << KIND_SHIFT, np.int64)
    signed, sizes = w.u16(w.l3[rows]) == 1, w.read("2u1", w.l3[rows] + 2)
    w.l3[rows] += np.where(signed, 13 + sizes.astype(np.int64).sum(1), 0)
    rows = w.fits(rows, w.l3, 2, LINK_CUT)
    w.l3[rows] += np.where(w.u16(w.l3[rows]) == 0, 8, 0)
    rows = w.fits(rows, w.l3, 40, LINK_CUT)
    w.refuse(rows, w.l3[rows] + 40 + w.u16(w.l3[rows] + 4) != w.limit[rows], NOT_IP)
    w.kind[rows] = E_IPV6
    return words


def _gtp(w: Work, rows: I64) -> I64:
    """Version 1 of the user plane, extension headers and all."""
    words = np.full(len(rows), Tunnel.GTP << KIND_SHIFT, np.int64)
    head = w.read(GTP, w.l3[rows])
    wrong = (head["flags"] & 0xF8 != 0x30) | (head["message"] != GTP_DATA)
    rows = w.refuse(rows, wrong | (w.l3[rows] + 8 + head["size"] != w.limit[rows]), NOT_IP)
    flags = w.read("u1", w.l3[rows])
    w.l3[rows] += np.where(flags & 7, 12, 8)
    extended = rows[(flags & GTP_EXTENDED) != 0]
    for _ in range(HEADERS_MAX):
        extended = extended[w.read("u1", w.l3[extended] - 1) != 0]  # what the header before says of the next
        extended = w.fits(extended, w.l3, 4, LINK_CUT)
        size = w.read("u1", w.l3[extended]).astype(np.int64) * 4
        w.refuse(extended, size == 0, NOT_IP)
        w.l3[extended] += size
        extended = w.fits(extended, w.l3, 1, LINK_CUT)
    w.refuse(extended, w.read("u1", w.l3[extended] - 1) != 0, NOT_IP)
    w.kind[rows] = E_IP
    return words


OPENERS: dict[int, Callable[[Work, I64], I64]] = {
    Tunnel.GRE: _gre,
    Tunnel.VXLAN: _vxlan,
    Tunnel.GENEVE: _geneve,
    Tunnel.TEREDO: _teredo,
    Tunnel.GTP: _gtp,
}


@lru_cache(maxsize=4096)
def tunnel_name(*words: int) -> str:
    """'' or 'vxlan:5/gre': kind and number of each, the outermost first."""
    said = (NAMES[word >> KIND_SHIFT] + (f":{word & 0xFFFFFFFF}" if word & NUMBERED else "") for word in words if word)
    return "/".join(said)
