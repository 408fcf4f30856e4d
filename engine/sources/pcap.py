"""pcap and pcapng captures to events, one a flow.

Always true
  - The same capture gives the same events with the same ids, however its bytes are cut.
  - Events come in the order of (ts, event_id): all at the end of a capture of up to HELD_MAX flows; of a longer one all
    but the latest HELD_MAX/2 come out whenever HELD_MAX are held, so that memory is bounded: by them
    and what the flow table gives back at once.
  - A restart reads the capture from its beginning: flows reach back. Ids keep what was stored from being stored twice.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import lru_cache
from operator import attrgetter
from socket import AF_INET6, inet_ntoa, inet_ntop
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from engine.features import F32, INDEX
from engine.flows.capture import MAGICS, SECTION, Block, CaptureReader, Problem
from engine.flows.decode import ICMP, ICMP6, SCTP, TCP, UDP, Packets
from engine.flows.derived import derive
from engine.flows.features import compute, pieces, totals
from engine.flows.names import flow_text
from engine.flows.packets import Decoder
from engine.flows.split import TUNNEL_SHIFT, Limits
from engine.flows.table import EndReason, Flows, FlowTable, protocol, tcp_state
from engine.flows.tunnels import tunnel_name
from engine.sources.base import Adapter, Parsed, SourceSpec
from engine.sources.labels import LabelRules
from ipc.event import FEATURE_BYTES, Event, FeaturedEvent
from ipc.messages import Reject

HELD_MAX = 65_536  # events, about 1.5 KB each
REJECTS_MAX = 1000  # of a capture; the rest is one line

IFINDEX, MODE, COMPLETION = INDEX["source_ifindex"], INDEX["interface_mode"], INDEX["flow_completion_rate"]
REASON_WORDS = [r.name.lower() for r in EndReason]


class FlowRecord(Struct, frozen=True, omit_defaults=True):
    """The source record of a flow that we made ourselves; its JSON decides the event's identity."""

    src: str
    src_port: int | None
    dst: str
    dst_port: int | None
    proto: int
    vlan: int | None
    start_ns: int
    end_ns: int
    packets: list[int]  # forward, backward
    bytes: list[int]
    end_reason: str
    tunnel: str = ""


TS, EVENT_ID, RAW, FEATURES = map(attrgetter, ("event.ts", "event.event_id", "raw", "features"))
encode = msgspec.json.Encoder().encode


class PcapAdapter(Adapter):
    format = "pcap"
    binary = True

    def __init__(self, spec: SourceSpec, limits: Limits | None = None) -> None:
        super().__init__(spec)
        limits = limits or spec.flows or Limits()
        self._reader, self._decoder, self._table = CaptureReader(), Decoder(limits.tunnels), FlowTable(limits)
        self._labels = spec.labels if isinstance(spec.labels, LabelRules) else None
        self._held: list[FeaturedEvent] = []  # their ids still to be given
        self._before, self._ordinal = b"", 0  # the last record that got an id, and its number among equal ones
        self._rejected = 0
        self._read = 0
        self._done = False

    @classmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        return head[:4] in MAGICS or (head[:4] == SECTION and head[8:12] in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"))

    def feed(self, data: bytes, offset: int) -> Parsed:
        events: list[FeaturedEvent] = []
        for block in self._reader.feed(data):
            self._add(block)
            if len(self._held) >= HELD_MAX:
                events += self._release(len(self._held) - HELD_MAX // 2)
        self._read = offset + len(data)
        return Parsed(events, self._rejects())

    def finish(self) -> Parsed:
        for block in self._reader.finish():
            self._add(block)
        self._take(self._decoder.finish())
        self._hold(self._table.finish())
        self._done = True
        return Parsed(self._release(len(self._held)), self._rejects(), not_ip=self._decoder.not_ip)

    @property
    def resume_offset(self) -> int:
        return self._read if self._done else 0

    def _add(self, block: Block) -> None:
        self._take(self._decoder.decode(block, max(0, REJECTS_MAX - self._rejected - len(self._decoder.problems))))

    def _take(self, blocks: list[Packets]) -> None:
        for packets in blocks:
            finished = self._table.add(packets)
            if finished is not None:
                self._hold(finished)

    def _rejects(self) -> list[Reject]:
        problems: list[Problem] = sorted(self._decoder.problems + self._reader.problems)
        self._decoder.problems, self._reader.problems = [], []
        self._rejected += len(problems)
        return [Reject(self.spec.file, p.offset, p.reason, p.record) for p in problems]

    def _hold(self, batch: Flows) -> None:
        for flows in pieces(batch):
            features = compute(flows)
            derive(features)
            interface = flows.flows["interface"]
            features[:, IFINDEX] = np.where(interface >= 0, interface, given(self.spec.ifindex))
            features[:, MODE] = given(self.spec.interface_mode)
            for event in self._events(flows, features):
                if self._labels is not None:
                    self._labels.apply(event.event)
                self._held.append(event)

    def _events(self, flows: Flows, features: F32) -> Iterator[FeaturedEvent]:
        """Events without their id."""
        rows, packed = flows.flows, features.astype("<f4", copy=False).tobytes()
        states = tcp_state(rows, features[:, COMPLETION] >= 0.5).tolist()
        names = ("initiator", "end", "start", "icmp", "reason")
        columns = zip(*_endpoints(rows), protocol(rows).tolist(), *(rows[name].tolist() for name in names), states,
                      _vlans(rows), _tunnels(rows), totals(flows).tolist(), flows.samples, strict=True)  # fmt: skip
        for at, row in enumerate(columns):
            *ends, proto, swap, end, start, icmp, reason, state, vlan, tunnel, total, samples = row
            (src, src_port), (dst, dst_port) = reversed(ends) if swap else ends
            text = flow_text(proto, dst_port, *samples) if samples[0] or samples[1] else ""
            extra = {"end_reason": reason, "forward_frame_bytes": total[4], "backward_frame_bytes": total[5]}
            if proto == TCP:
                extra["tcp_state"] = state
            elif proto in (ICMP, ICMP6):
                src_port, dst_port = icmp >> 8, icmp & 255
            elif proto not in (UDP, SCTP):
                src_port = dst_port = None
            record = FlowRecord(src, src_port, dst, dst_port, proto, vlan, start, end, total[0:2], total[2:4],
                                REASON_WORDS[reason], tunnel)  # fmt: skip
            event = Event(
                event_id="-", source=self.spec.name, sensor=self.spec.sensor, ts=end, ts_start=start,
                src_ip=src, dst_ip=dst, src_port=src_port, dst_port=dst_port, proto=proto, vlan=vlan, tunnel=tunnel,
                text=text, extra=extra,
            )  # fmt: skip
            yield FeaturedEvent(event, packed[at * FEATURE_BYTES : (at + 1) * FEATURE_BYTES], encode(record))

    def _release(self, count: int) -> list[FeaturedEvent]:
        """The earliest `count` events, with their ids."""
        for key in (FEATURES, RAW, TS):  # by (ts, raw, features): sorts are stable, and tuples would take longer
            self._held.sort(key=key)
        out, self._held = self._held[:count], self._held[count:]
        head = f"{self.spec.sensor}\0flow\0".encode()
        for event in out:
            self._ordinal = self._ordinal + 1 if event.raw == self._before else 0
            self._before = event.raw
            event.event.event_id = hashlib.sha256(head + event.raw + b"\0%d" % self._ordinal).hexdigest()[:32]
        for key in (EVENT_ID, TS):
            out.sort(key=key)
        return out


def given(number: int | None) -> float:
    return math.nan if number is None else number


def _endpoints(rows: NDArray[Any]) -> Iterator[Iterator[tuple[str, int]]]:
    """Address and port of the lower and of the upper endpoint of each flow."""
    keys = rows["key"]
    version = (keys[:, 5] >> np.uint64(16) & np.uint64(0xF)).tolist()
    for word, shift in ((0, 32), (2, 16)):
        port = keys[:, 4] >> np.uint64(shift) & np.uint64(0xFFFF)
        addresses = map(_address, version, keys[:, word].tolist(), keys[:, word + 1].tolist())
        yield zip(addresses, port.tolist(), strict=True)


def _vlans(rows: NDArray[Any]) -> list[int | None]:
    return [vlan - 1 if vlan else None for vlan in (rows["key"][:, 5] & np.uint64(0xFFFF)).tolist()]


def _tunnels(rows: NDArray[Any]) -> list[str]:
    outer, inner = rows["key"][:, 5] >> np.uint64(TUNNEL_SHIFT), rows["key"][:, 6]
    return list(map(tunnel_name, outer.tolist(), inner.tolist()))


@lru_cache(maxsize=65_536)
def _address(version: int, hi: int, lo: int) -> str:
    return (
        inet_ntoa(lo.to_bytes(4, "big")) if version == 4 else inet_ntop(AF_INET6, (hi << 64 | lo).to_bytes(16, "big"))
    )
