"""Fragments of IP datagrams: whose ports they have, and that no byte of a datagram counts twice.

Always true
  - Every fragment that was captured is a packet of its own (as CICFlowMeter has it; Zeek counts the datagram it puts
    together, NFStream leaves later fragments out). Over all of them the layer-4 header counts once and the payload is
    what is left: so the sum over a datagram is that of the datagram.
  - A later fragment has the ports of its datagram's first one, though that may come after it: as far as the next block
    of the capture. One whose first is not found there is of a flow with the ports 0 and 0.
  - Bytes that an earlier fragment brought do not count again; the overlap is noted. A datagram that is whole, or
    HOLD_S old, is over: the next fragment of its number begins another one.
  - Nothing is put together: a layer-4 header that lies in two fragments is read as far as the first one has it, and
    TCP's flags where they are.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from engine.flows.decode import GOOD, OVERLAP, SCTP, TCP, TINY, UDP, Work

DATAGRAMS_MAX = 4096  # under way
HOLD_S = 30  # as Linux waits for what is missing
FLAGS_UNIT = 1 << 1  # the unit of 8 bytes that TCP's flags are in
HEADERS = {TCP: 20, UDP: 8, SCTP: 12}  # bytes without options; ICMP has 8
NS = 1_000_000_000


class Datagram:
    __slots__ = ("had", "header", "ports", "ts", "waiting", "whole")

    def __init__(self, ts: int) -> None:
        self.ts = ts  # of its first packet
        self.had = 0  # a bit for every 8 bytes that came: up to 8,192
        self.whole = 0  # all of those bits, once the last fragment came
        self.header = 0  # bytes of layer 4; 0: not known
        self.ports: tuple[int, int] | None = None
        self.waiting: list[tuple[Work, int]] = []  # later fragments before the first

    @property
    def over(self) -> bool:
        return self.whole != 0 and self.had & self.whole == self.whole


class Fragments:
    def __init__(self) -> None:
        self._datagrams: OrderedDict[tuple[int, ...], Datagram] = OrderedDict()
        self._waiting: set[Datagram] = set()  # those in which any fragment waits

    @property
    def waiting(self) -> bool:
        """Does any fragment wait for the first one of its datagram?"""
        return bool(self._waiting)

    def join(self, w: Work) -> None:
        """Give the fragments of the next block their ports and lengths, and those that waited for them theirs."""
        for i in np.flatnonzero(w.fragment & (w.bad == GOOD)).tolist():
            datagram = self._datagram(w, i)
            again = self._again(w, i, datagram)
            at, part = int(w.fragment_at[i]) * 8, int(w.fragment_bytes[i])
            if w.later[i]:
                self._later(w, i, datagram)
            else:
                self._first(w, i, datagram)
            size = datagram.header or HEADERS.get(int(w.proto[i]), 0)
            header = max(0, min(size - at, part))
            payload = max(0, min(int(w.payload[i]), part - header))
            if again:
                w.noted[i] = OVERLAP
                of_header = min(header, bytes_below(again, size))
                header, payload = header - of_header, max(0, payload - bytes_below(again, at + part) + of_header)
                w.l4_bytes[i] = header  # which bytes are new is not looked for: none goes into the sample
                if w.proto[i] == TCP and again & FLAGS_UNIT:
                    w.flags[i] = 0
            w.header[i], w.payload[i] = header, payload

    def forget(self, w: Work) -> None:
        """That block goes on its way: nothing in it waits any more."""
        for datagram in self._waiting:
            datagram.waiting = [(work, i) for work, i in datagram.waiting if work is not w]
        self._waiting = {datagram for datagram in self._waiting if datagram.waiting}

    def _again(self, w: Work, i: int, datagram: Datagram) -> int:
        """Which of its units came before."""
        at, units = int(w.fragment_at[i]), -(-int(w.fragment_bytes[i]) // 8)
        mine = ((1 << units) - 1) << at
        again = datagram.had & mine
        datagram.had |= mine
        if w.fragment_last[i]:
            datagram.whole = (1 << at + units) - 1
        return again

    def _first(self, w: Work, i: int, datagram: Datagram) -> None:
        datagram.ports = ports = int(w.src_port[i]), int(w.dst_port[i])
        datagram.header = int(w.header[i])
        if w.payload[i] < 0:
            w.noted[i] = TINY
        for work, row in datagram.waiting:
            work.src_port[row], work.dst_port[row] = ports
        datagram.waiting = []
        self._waiting.discard(datagram)

    def _later(self, w: Work, i: int, datagram: Datagram) -> None:
        if datagram.ports is not None:
            w.src_port[i], w.dst_port[i] = datagram.ports
        else:
            datagram.waiting.append((w, i))
            self._waiting.add(datagram)
        at = int(w.l4[i])
        if w.proto[i] == TCP and w.fragment_at[i] == 1 and at + 6 <= min(w.end[i], at + w.l4_bytes[i]):
            datagram.header = datagram.header or max(20, (w.block.data[at + 4] >> 4) * 4)
            w.flags[i] = w.block.data[at + 5]

    def _datagram(self, w: Work, i: int) -> Datagram:
        columns = (w.src_hi, w.src_lo, w.dst_hi, w.dst_lo, w.fragment_id, w.proto, w.vlan)
        key = (*(int(column[i]) for column in columns), *w.tunnels[i].tolist())
        now, former = int(w.block.ts[i]), self._datagrams.get(key)
        recent = former is not None and abs(now - former.ts) <= HOLD_S * NS
        if former is not None and recent and not former.over:
            return former
        datagram = Datagram(now)
        if former is not None and recent:  # until its own first fragment says
            datagram.ports, datagram.header = former.ports, former.header
        self._datagrams[key] = datagram
        self._datagrams.move_to_end(key)
        if len(self._datagrams) > DATAGRAMS_MAX:
            self._datagrams.popitem(last=False)
        return datagram


def bytes_below(units: int, end: int) -> int:
    """How many bytes of those units lie before the byte `end` of the datagram."""
    whole = units & ((1 << end // 8) - 1)
    return whole.bit_count() * 8 + (end % 8 if units >> end // 8 & 1 else 0)
