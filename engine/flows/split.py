"""A block's packets sorted by conversation, and where one flow ends and the next begins.

Always true
  - A conversation is (both endpoints, protocol, VLAN, IP version, tunnels), the same for both directions.
  - Its packets, in the order of the capture, are cut into flows before one that comes more than idle_s after the one
    ahead of it (or, the clock having gone back, before it); before one that comes more than active_s after the flow's
    first; before one that would be the flow's packets_max + 1st; and before a SYN without ACK once the flow is closed,
    by RST or by FIN of both sides, or where it had no SYN at all: then its beginning was missed, and this is another's.
    What trails after the close (the last ACK, more RSTs) belongs to the flow it closes.
  - A hash groups packets, the keys themselves are compared: no collision can join two conversations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.flows.capture import I64
from engine.flows.decode import ACK, FIN, ICMP, ICMP6, RST, SYN, U8, U64, Bools, Packets

NS = 1_000_000_000
KEY_WORDS = 7
KEY_BYTES = KEY_WORDS * 8
TUNNEL_SHIFT = 20  # of the outer tunnel in the last word but one
BOTH_FIN = 3


class Limits(NamedTuple):
    idle_s: int = 120
    active_s: int = 3600
    flows_max: int = 160_000  # open ones
    packets_max: int = 1 << 20  # of one flow
    stored_max: int = 1 << 22  # packets of open flows, 28 bytes each
    tunnels: str = "inner"  # or "outer": what a packet in a tunnel counts for


class Sorted(NamedTuple):
    """Packets of one block by conversation, within one in the order of the capture."""

    keys: NDArray[np.uint64]  # [conversations, KEY_WORDS]
    starts: I64  # where each conversation begins
    place: I64  # of each packet in the block
    side: U8  # 1: the sender is the upper endpoint of its conversation
    ts: I64
    flags: I64
    icmp: I64  # type and code, else 0
    length: I64
    header: I64
    frame: I64
    payload_at: I64
    payload_captured: I64
    interface: I64


class Segments(NamedTuple):
    """Stretches of Sorted that are of one flow each: a new one, or the rest of one that an earlier block began."""

    first: I64  # where it begins
    packets: I64  # how many it has
    conversation: I64
    fresh: Bools  # a new flow
    jump: Bools  # it begins because the clock jumped


def by_conversation(p: Packets, mix: U64) -> Sorted:
    """mix: KEY_WORDS odd secret multipliers."""
    keys, side = canonical_keys(p)
    order, starts = group(keys, mix)
    icmp = np.where((p.proto == ICMP) | (p.proto == ICMP6), p.src_port << 8 | p.dst_port, 0)
    return Sorted(
        keys=keys[order[starts]],
        starts=starts,
        place=order,
        side=side[order],
        ts=p.ts[order],
        flags=p.flags[order],
        icmp=icmp[order],
        length=p.length[order],
        header=p.header[order],
        frame=p.frame[order],
        payload_at=p.payload_at[order],
        payload_captured=p.payload_captured[order],
        interface=p.interface[order],
    )


def segments(s: Sorted, known: Bools, carried: NDArray[Any], limits: Limits) -> Segments:
    """known: has the conversation an open flow? carried: its row of the flow table where it has."""
    n = len(s.ts)
    begins = np.zeros(n, np.bool_)
    begins[s.starts] = True
    before = np.empty(n, np.int64)
    before[1:] = s.ts[:-1]
    before[s.starts] = np.where(known, carried["last"], s.ts[s.starts])
    jump = np.abs(s.ts - before) > limits.idle_s * NS
    new = jump.copy()
    new[s.starts[~known]] = True
    _split_on(s, new, begins, carried, limits)
    first = np.flatnonzero(new | begins)
    return Segments(first, np.diff(first, append=n), np.cumsum(begins)[first] - 1, new[first], jump[first])


def _split_on(s: Sorted, new: Bools, begins: Bools, carried: NDArray[Any], limits: Limits) -> None:
    """Mark in `new` the boundaries that depend on what came before in the flow: active time, packets, and a SYN after
    the close or after a beginning without one. Whether a stretch between idle gaps can have one at all is told for all
    at once; those few that can are walked packet by packet."""
    active, most = limits.active_s * NS, limits.packets_max
    first = np.flatnonzero(new | begins)
    count = np.diff(first, append=len(s.ts))
    goes_on = ~new[first]
    state = carried[np.cumsum(begins)[first] - 1]
    began = np.where(goes_on, state["first"], s.ts[first])
    had = np.where(goes_on, state["packets"], 0)
    syn = (s.flags & (SYN | ACK)) == SYN
    syn[new] = False  # the flow's own first packet
    closing = np.bitwise_or.reduceat(s.flags, first) & (FIN | RST) != 0
    closing |= goes_on & ((state["closed"] != 0) | (state["fins"] != 0))
    opened = np.where(goes_on, state["syn"], s.flags[first] & SYN != 0)
    hard = np.bitwise_or.reduceat(syn, first) & (closing | ~opened)
    hard |= np.maximum.reduceat(s.ts, first) - began > active
    hard |= had + count > most
    for i in np.flatnonzero(hard).tolist():
        rows = slice(int(first[i]), int(first[i] + count[i]))
        fins, shut = (int(state["fins"][i]), bool(state["closed"][i])) if goes_on[i] else (0, False)
        since, packets, opened_by = int(began[i]), int(had[i]), int(opened[i]) * SYN
        columns = (column[rows].tolist() for column in (s.ts, s.flags, s.side, syn))
        for at, (now, flag, sender, opens) in enumerate(zip(*columns, strict=True), rows.start):
            if (opens and (shut or not opened_by)) or now - since > active or packets >= most:
                new[at] = True
                fins, shut, since, packets, opened_by = 0, False, now, 0, 0
            packets += 1
            opened_by |= flag & SYN
            if flag & FIN:
                fins |= 1 << sender
            shut = shut or bool(flag & RST) or fins == BOTH_FIN


def canonical_keys(p: Packets) -> tuple[U64, NDArray[np.uint8]]:
    """u64 [n, KEY_WORDS], the same for both directions; and for each packet, is its sender the upper endpoint?"""
    portless = (p.proto == ICMP) | (p.proto == ICMP6)  # their type and code are no endpoints
    src_port, dst_port = np.where(portless, 0, p.src_port), np.where(portless, 0, p.dst_port)
    upper = p.src_hi > p.dst_hi
    same = p.src_hi == p.dst_hi
    upper |= same & (p.src_lo > p.dst_lo)
    upper |= same & (p.src_lo == p.dst_lo) & (src_port > dst_port)
    keys = np.empty((len(p.ts), KEY_WORDS), np.uint64)
    keys[:, 0], keys[:, 1] = np.where(upper, p.dst_hi, p.src_hi), np.where(upper, p.dst_lo, p.src_lo)
    keys[:, 2], keys[:, 3] = np.where(upper, p.src_hi, p.dst_hi), np.where(upper, p.src_lo, p.dst_lo)
    low, high = np.where(upper, dst_port, src_port), np.where(upper, src_port, dst_port)
    keys[:, 4] = low << 32 | high << 16 | p.proto
    keys[:, 5] = p.version << 16 | (p.vlan + 1)
    keys[:, 5] |= p.tunnels[:, 0] << np.uint64(TUNNEL_SHIFT)
    keys[:, 6] = p.tunnels[:, 1]
    return keys, upper.astype(np.uint8)


def group(keys: U64, mix: U64) -> tuple[I64, I64]:
    """(order, starts): packets sorted so that equal keys are together, each in its former order, and where they begin.

    At most 65,536 packets: place and hash share a word. mix: odd secret multipliers."""
    n = len(keys)
    h = np.zeros(n, np.uint64)
    for word in range(KEY_WORDS):
        h = (h ^ keys[:, word]) * mix[word]
        h ^= h >> np.uint64(29)
    packed = np.sort(h & np.uint64(0xFFFF_FFFF_FFFF_0000) | np.arange(n, dtype=np.uint64))
    order = (packed & np.uint64(0xFFFF)).astype(np.int64)
    ordered = keys[order]
    differs = (ordered[1:] != ordered[:-1]).any(axis=1)
    if (differs & (packed[1:] >> np.uint64(16) == packed[:-1] >> np.uint64(16))).any():
        order = np.lexsort(keys.T)  # two conversations with one hash; lexsort keeps the order of equals
        ordered = keys[order]
        differs = (ordered[1:] != ordered[:-1]).any(axis=1)
    return order, np.flatnonzero(np.append(True, differs))
