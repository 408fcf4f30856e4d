"""Packets to bidirectional flows: one global table, worked on a block at a time.

Always true
  - How conversations are cut into flows is said in split.py. Forward is from the sender of a flow's first packet; a
    first packet that is a SYN-ACK flips it.
  - Flows and what is held of their packets are bounded: past flows_max the closed ones go first, then those longest
    unseen; past stored_max those with most packets. An open flow that goes this way is 'evicted'. Both are decided once
    a block, so that they depend on the capture alone.
  - Flows that ended come back once their packets are more than half of those held, or they are more than FINISHED_MAX:
    no flow that goes on, however long, keeps many others waiting.
  - Packets of open flows are kept as small records, so that every feature is computed from all packets of its flow.
"""

from __future__ import annotations

import secrets
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.flows.capture import I64
from engine.flows.decode import ACK, FIN, RST, SYN, Bools, Packets
from engine.flows.split import KEY_BYTES, KEY_WORDS, NS, Limits, Segments, Sorted, by_conversation, segments

FINISHED_MAX = 32_768  # flows that wait for the harvest; what one more block ends comes on top
SAMPLE_BYTES = 1024  # of each direction's payload, for the entropy and for names


class EndReason(IntEnum):
    """Why a flow ended; the number is in the event's `extra`."""

    OPEN = 0
    FIN = 1  # of both sides
    RST = 2
    IDLE = 3
    ACTIVE = 4  # it was cut while it went on: active_s, packets_max, or a SYN though its own beginning was missed
    EVICTED = 5
    END = 6  # the capture ended


class TcpState(IntEnum):
    """How far a TCP flow came by its end; the number is in the event's `extra`, 0 and all others have none."""

    NEW = 1
    ESTABLISHED = 2  # each side acknowledged the other
    HALF_CLOSED = 3  # FIN of one side
    CLOSED = 4  # FIN of both
    RESET = 5


FLOW = np.dtype(
    [
        # Lower endpoint hi, lo; upper hi, lo; ports and protocol; VLAN, version and outer tunnel; inner tunnel.
        ("key", "u8", (KEY_WORDS,)),
        ("initiator", "u1"),  # 0: the lower endpoint
        ("icmp", "u2"),  # type and code of the first packet
        ("first", "i8"),  # ns, of the first packet
        ("start", "i8"),  # ns, the earliest
        ("end", "i8"),  # ns, the latest
        ("last", "i8"),  # ns, of the last packet
        ("seen", "i8"),  # number of the last packet in the capture
        ("packets", "i8"),
        ("sampled", "i8", (2,)),  # payload bytes of each endpoint so far
        ("fins", "u1"),  # bit of each endpoint
        ("reason", "u1"),
        ("syn", "?"),  # one was seen, with ACK or without
        ("closed", "u1"),  # EndReason.FIN or RST once it is, else 0
        ("cut", "?"),  # the capture cut into the sample
        ("open", "?"),
        ("interface", "i4"),  # of the first packet
    ]
)
PACKET = np.dtype(
    [("slot", "i4"), ("side", "u1"), ("flags", "u1"), ("header", "u2"), ("ts", "i8"), ("length", "u4"), ("frame", "u4")]
)


class Flows(NamedTuple):
    """Finished flows. packets: of all of them, sorted by flow and then as captured, `side` 0 being forward; counts: how
    many each flow has (never 0). samples: the first payload bytes, forward and backward."""

    flows: NDArray[Any]  # FLOW
    packets: NDArray[Any]  # PACKET
    counts: I64
    samples: list[tuple[bytes, bytes]]


class FlowTable:
    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.evicted = 0
        self._slot_of: dict[bytes, int] = {}
        self._flow = np.zeros(1024, FLOW)
        self._samples: list[bytes] = [b""] * 2048
        self._free = list(range(1023, -1, -1))
        self._chunks: list[NDArray[Any]] = []
        self._stored = 0
        self._finished: list[NDArray[np.int64]] = []  # slots whose packets wait for the harvest
        self._finished_flows = self._finished_packets = 0
        self._seen = 0
        self._now = 0  # ns, of the last packet
        self._mix = np.array([secrets.randbits(63) | 1 for _ in range(KEY_WORDS)], np.uint64)

    @property
    def open_flows(self) -> int:
        return len(self._slot_of)

    def add(self, p: Packets) -> Flows | None:
        """A block's packets. Flows that ended may come back now or later."""
        if len(p.ts):
            self._take(p)
            self._now = int(p.ts[-1])
            self._sweep(int(p.ts.min()))
            self._bound()
        many = self._finished_packets * 2 > self._stored or self._finished_flows > FINISHED_MAX
        return self._harvest() if many else None

    def finish(self) -> Flows:
        """All that is left: 'idle' where silent for more than idle_s when the capture ended, else 'end'."""
        slots = np.flatnonzero(self._flow["open"])
        late = np.abs(self._now - self._flow["last"][slots]) > self.limits.idle_s * NS
        self._end(slots, np.where(late, EndReason.IDLE, EndReason.END))
        return self._harvest()

    # ---- one block -------------------------------------------------------------------------------------------------

    def _take(self, p: Packets) -> None:
        s = by_conversation(p, self._mix)
        key_bytes = s.keys.tobytes()
        names = [key_bytes[i : i + KEY_BYTES] for i in range(0, len(key_bytes), KEY_BYTES)]
        known = np.array([self._slot_of.get(name, -1) for name in names], np.int64)
        g = segments(s, known >= 0, self._flow[known], self.limits)
        slot = np.where(g.fresh, 0, known[g.conversation])
        self._give_slots(slot, g.fresh)
        same = g.conversation[1:] == g.conversation[:-1]
        former = np.where(np.append(False, same), np.append(-1, slot[:-1]), known[g.conversation])
        self._begin(slot, s, g)
        self._follow(slot, s, g)
        over = g.fresh & (former >= 0)
        self._end(former[over], np.where(g.jump[over], EndReason.IDLE, EndReason.ACTIVE), forget=False)
        changed = g.fresh & np.append(~same, True)
        owners = [names[i] for i in g.conversation[changed].tolist()]
        self._slot_of.update(zip(owners, slot[changed].tolist(), strict=True))
        self._sample(slot, s, g, p.data)
        chunk = np.empty(len(s.ts), PACKET)
        chunk["slot"] = of_packet = np.repeat(slot, g.packets)
        chunk["side"] = s.side ^ self._flow["initiator"][of_packet]
        chunk["ts"], chunk["flags"], chunk["length"] = s.ts, s.flags, s.length
        chunk["header"], chunk["frame"] = s.header, s.frame
        self._chunks.append(chunk)
        self._stored += len(chunk)
        self._seen += len(chunk)

    def _give_slots(self, slot: I64, fresh: Bools) -> None:
        """Give every fresh segment a free slot."""
        count = int(np.count_nonzero(fresh))
        if count > len(self._free):
            size = len(self._flow)
            more = max(size, count)
            self._flow = np.concatenate([self._flow, np.zeros(more, FLOW)])
            self._samples += [b""] * (2 * more)
            self._free = [*range(size + more - 1, size - 1, -1), *self._free]
        if count:
            slot[fresh] = self._free[-count:]
            del self._free[-count:]

    def _begin(self, slot: I64, s: Sorted, g: Segments) -> None:
        """Fill the rows of new flows from their first packets."""
        first = g.first[g.fresh]
        rows = np.zeros(len(first), FLOW)
        synack = (s.flags[first] & (SYN | ACK)) == SYN | ACK
        rows["key"], rows["open"] = s.keys[g.conversation[g.fresh]], True
        rows["initiator"] = s.side[first] ^ synack
        rows["first"] = rows["start"] = rows["end"] = s.ts[first]
        rows["icmp"], rows["interface"] = s.icmp[first], s.interface[first]
        self._flow[slot[g.fresh]] = rows

    def _follow(self, slot: I64, s: Sorted, g: Segments) -> None:
        """Bring the rows of all flows of the block up to date."""
        flow, last = self._flow, g.first + g.packets - 1
        flow["last"][slot] = s.ts[last]
        flow["start"][slot] = np.minimum(flow["start"][slot], np.minimum.reduceat(s.ts, g.first))
        flow["end"][slot] = np.maximum(flow["end"][slot], np.maximum.reduceat(s.ts, g.first))
        flow["seen"][slot] = self._seen + s.place[last]
        flow["packets"][slot] += g.packets
        flags = np.bitwise_or.reduceat(s.flags, g.first)
        flow["syn"][slot] |= flags & SYN != 0
        ends = np.flatnonzero(flags & (FIN | RST))
        if not len(ends):
            return
        at, never = slot[ends], len(s.ts)

        def first_place(which: Bools) -> I64:
            places = np.where(which, np.arange(never), never)
            return np.minimum.reduceat(places, g.first)[ends]

        fin = s.flags & FIN != 0
        lower = np.where(flow["fins"][at] & 1, -1, first_place(fin & (s.side == 0)))
        upper = np.where(flow["fins"][at] & 2, -1, first_place(fin & (s.side == 1)))
        both, rst = np.maximum(lower, upper), first_place(s.flags & RST != 0)
        flow["fins"][at] = (lower < never) | (upper < never).astype(np.uint8) << 1
        closed = np.where(both < rst, EndReason.FIN, np.where(rst < never, EndReason.RST, 0))
        flow["closed"][at] = np.where(flow["closed"][at], flow["closed"][at], closed)

    def _sample(self, slot: I64, s: Sorted, g: Segments, data: bytearray) -> None:
        """Keep the first SAMPLE_BYTES of payload of each endpoint."""
        flow, samples = self._flow, self._samples
        segment = np.repeat(np.arange(len(slot)), g.packets)
        for side in (0, 1):
            mine = np.where(s.side == side, s.length, 0)
            upto = np.cumsum(mine)
            before = upto - mine
            had = flow["sampled"][slot, side] - before[g.first]
            flow["sampled"][slot, side] = had + upto[g.first + g.packets - 1]
            have = had[segment] + before
            rows = np.flatnonzero((mine > 0) & (have < SAMPLE_BYTES))
            want = np.minimum(mine[rows], SAMPLE_BYTES - have[rows])
            got = np.minimum(want, s.payload_captured[rows])
            of = slot[segment[rows]]
            flow["cut"][of[got < want]] = True
            begin = s.payload_at[rows]
            for i, a, b in zip((of * 2 + side).tolist(), begin.tolist(), (begin + got).tolist(), strict=True):
                samples[i] += data[a:b]

    # ---- the end of flows ------------------------------------------------------------------------------------------

    def _end(self, slots: I64, reason: NDArray[Any], forget: bool = True) -> None:
        """Those flows are over; closed ones keep how. forget: nothing follows in their conversation."""
        if not len(slots):
            return
        flow = self._flow
        flow["reason"][slots] = np.where(flow["closed"][slots], flow["closed"][slots], reason)
        flow["open"][slots] = False
        self.evicted += int(np.count_nonzero(flow["reason"][slots] == EndReason.EVICTED))
        if forget:
            keys = flow["key"][slots].tobytes()
            for i in range(0, len(keys), KEY_BYTES):
                del self._slot_of[keys[i : i + KEY_BYTES]]
        self._finished.append(slots)
        self._finished_flows += len(slots)
        self._finished_packets += int(flow["packets"][slots].sum())

    def _sweep(self, earliest: int) -> None:
        """End what was silent for idle_s before anything of this block. While no clock goes back by more than a block,
        a later packet would end it just so."""
        old = self._flow["open"] & (earliest - self._flow["last"] > self.limits.idle_s * NS)
        slots = np.flatnonzero(old)
        self._end(slots, np.full(len(slots), EndReason.IDLE))

    def _bound(self) -> None:
        flow, limits = self._flow, self.limits
        excess = len(self._slot_of) - limits.flows_max
        if excess > 0:
            slots = np.flatnonzero(flow["open"])
            order = np.lexsort((flow["seen"][slots], flow["closed"][slots] == 0))
            slots = slots[order[:excess]]
            self._end(slots, np.full(len(slots), EndReason.EVICTED))
        held = self._stored - self._finished_packets
        if held > limits.stored_max:
            slots = np.flatnonzero(flow["open"])
            slots = slots[np.lexsort((flow["seen"][slots], -flow["packets"][slots]))]
            enough = held - np.cumsum(flow["packets"][slots]) <= limits.stored_max * 3 // 4
            slots = slots[: int(np.argmax(enough)) + 1]
            self._end(slots, np.full(len(slots), EndReason.EVICTED))

    def _harvest(self) -> Flows:
        """Take the finished flows and their packets out of the store."""
        slots = np.sort(np.concatenate([*self._finished, np.zeros(0, np.int64)]))
        packets = np.concatenate([*self._chunks, np.zeros(0, PACKET)])
        of_packet = packets["slot"]
        done = ~self._flow["open"]
        mine = done[of_packet]
        rest = packets[~mine]
        place = np.flatnonzero(mine)
        order = np.sort(of_packet[place].astype(np.int64) << 32 | place) & 0xFFFFFFFF
        flows = self._flow[slots]
        samples: list[tuple[bytes, bytes]] = []
        for slot, swap in zip(slots.tolist(), flows["initiator"].tolist(), strict=True):
            samples.append((self._samples[slot * 2 + swap], self._samples[slot * 2 + 1 - swap]))
            self._samples[slot * 2] = self._samples[slot * 2 + 1] = b""
        self._free += slots.tolist()
        self._chunks, self._stored = [rest], len(rest)
        self._finished, self._finished_flows, self._finished_packets = [], 0, 0
        return Flows(flows, packets[order], flows["packets"].astype(np.int64), samples)


def tcp_state(flows: NDArray[Any], established: Bools) -> NDArray[Any]:
    """TcpState of flows, whatever their protocol."""
    closed = flows["closed"]
    known = (closed == EndReason.RST, closed == EndReason.FIN, flows["fins"] != 0, established)
    states = (TcpState.RESET, TcpState.CLOSED, TcpState.HALF_CLOSED, TcpState.ESTABLISHED)
    return np.select(known, [np.uint8(state) for state in states], np.uint8(TcpState.NEW))


def protocol(flows: NDArray[Any]) -> I64:
    """IANA numbers of flows."""
    numbers: I64 = (flows["key"][:, 4] & np.uint64(0xFFFF)).astype(np.int64)
    return numbers
