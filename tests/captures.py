"""Captures taken apart: their flows with all packets, before anything is computed from them."""

from __future__ import annotations

import numpy as np

from engine.flows.features import totals
from engine.flows.split import Limits
from engine.flows.table import Flows, protocol
from engine.sources.base import SourceSpec
from engine.sources.pcap import PcapAdapter


class Kept(PcapAdapter):
    """Keeps what it would make events of."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(SourceSpec("test"), limits)
        self.batches: list[Flows] = []

    def _hold(self, batch: Flows) -> None:
        self.batches.append(batch)


def flows_of(data: bytes, tunnels: str = "inner") -> list[Flows]:
    adapter = Kept(Limits(tunnels=tunnels))
    adapter.feed(data, 0)
    adapter.finish()
    return adapter.batches


def flow_keys(batch: Flows, tick_ns: int) -> list[tuple[int, ...]]:
    """Of each flow: source address as a number, port, destination, port (0 of ICMP), protocol, tick of its first
    packet, packets forward and backward."""
    rows, keys = batch.flows, batch.flows["key"]
    ports = keys[:, 4] >> np.uint64(32) & np.uint64(0xFFFF), keys[:, 4] >> np.uint64(16) & np.uint64(0xFFFF)
    columns = (*keys[:, :4].T, *ports, protocol(rows), rows["first"] // tick_ns, rows["initiator"])
    flows, out = zip(*(column.tolist() for column in columns), strict=True), []
    for row, (forward, backward, *_) in zip(flows, totals(batch).tolist(), strict=True):
        hi, lo, upper_hi, upper_lo, port, upper_port, proto, first, swap = row
        ends = [(hi << 64 | lo, port), (upper_hi << 64 | upper_lo, upper_port)]
        out.append((*ends[swap], *ends[1 - swap], proto, first, forward, backward))
    return out
