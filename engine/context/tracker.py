"""What the tracker answers: the definitions of the 26 context features, over windows, histories and streams.

Always true
  - A sum runs over the flows of the window that state the value; where none does the feature is NaN, never 0. A flow
    of TCP, UDP or SCTP without a port gets NaN where a port is needed; other protocols have "no port" as their port.
  - service_discovery_patterns: a (D, port) is silent when none of its flows in the window had a packet back.
  - A flow more than CONTEXT_LATE_MAX_S behind its stream's maximum gets NaN, is counted and changes nothing.
    LATE_RUN_MAX of them in a row mean that the stream went back (an older file, one wrong clock): it begins anew.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import exp, inf, log1p, log2, log10, nan
from struct import Struct as Layout
from typing import TypeAlias

import numpy as np

from engine.context.history import (
    BUCKET_NS,
    NO_PAIR,
    NO_PORT,
    PAIR_FLOWS,
    TCP,
    UDP,
    regularity,
    starts_of,
    with_flow,
)
from engine.context.state import LATE_NS, State
from engine.context.streams import SLICE_NS, Stream
from engine.context.windows import (
    FIX,
    IS_ANSWERED,
    IS_FILE,
    IS_INTERNAL,
    IS_LATERAL,
    IS_STATED,
    IS_TCP,
    IS_UDP,
    KIND_BITS,
    KIND_MAX,
    WINDOW_NS,
    Source,
    Target,
    entropy,
    spread,
)  # fmt: skip
from engine.features import CONTEXT_INDEXES, F32, INDEX, NAMES
from engine.limits import CONTEXT_WINDOW_S
from ipc.event import FEATURE_COUNT, Event

LATE_RUN_MAX = 32  # too late flows in a row before a stream begins anew
FILE_PORTS = frozenset({20, 21, 111, 137, 138, 139, 445, 548, 873, 2049, 3260})
LATERAL_PORTS = frozenset({22, 23, 135, 139, 445, 3389, 5985, 5986})
PORT_PROTOCOLS = frozenset({TCP, UDP, 33, 132, 136})  # and DCCP, SCTP, UDP-Lite
NO_PROTO = -1
BYTES_MAX = float(1 << 44)  # of one flow; more is a source's mistake and counts as not stated

INPUTS = [INDEX[name] for name in (
    "flow_duration", "total_forward_packets", "total_backward_packets", "total_forward_bytes", "total_backward_bytes",
    "average_packet_size",
)]  # fmt: skip
HISTORY_OUTPUTS = (
    "process_anomaly", "temporal_pattern", "behavior_consistency", "protocol_regularity", "connection_duration_std",
    "temporal_anomaly_score",
)  # fmt: skip
SOURCE_OUTPUTS = (
    "io_intensity", "resource_usage", "file_operations", "access_frequency", "connection_rate", "tcp_udp_ratio",
    "port_entropy", "flow_duration_std", "dst_ip_concentration", "protocol_variety", "internal_connection_rate",
    "service_port_consistency", "lateral_movement_score", "service_discovery_patterns", "access_pattern_entropy",
)  # fmt: skip
TARGET_OUTPUTS = (
    "source_ip_dispersion", "geographical_concentration", "traffic_escalation_rate", "resource_saturation_score",
    "src_ip_entropy",
)  # fmt: skip
OUTPUTS = [INDEX[name] for name in HISTORY_OUTPUTS + SOURCE_OUTPUTS + TARGET_OUTPUTS]
assert sorted(OUTPUTS) == sorted(CONTEXT_INDEXES)
CAPPED = frozenset({
    "io_intensity", "resource_usage", "file_operations", "access_frequency", "connection_rate", "protocol_variety",
    "internal_connection_rate", "lateral_movement_score",
})  # fmt: skip
CEILING = np.array([1.0 if NAMES[c] in CAPPED else np.inf for c in OUTPUTS])
PACK = Layout(f"{len(OUTPUTS)}d").pack
Row: TypeAlias = tuple[float, ...]
NO_HISTORY, NO_SOURCE, NO_TARGET = ((nan,) * len(names) for names in (HISTORY_OUTPUTS, SOURCE_OUTPUTS, TARGET_OUTPUTS))
NO_HISTORY_SOURCE = NO_HISTORY + NO_SOURCE
NO_CONTEXT = NO_HISTORY_SOURCE + NO_TARGET
# what a port alone says of a flow's kind; IS_LATERAL only where the destination is internal, too. The last: NO_PORT
_kinds = bytearray(65_537)
for _port in FILE_PORTS:
    _kinds[_port] |= IS_FILE
for _port in LATERAL_PORTS:
    _kinds[_port] |= IS_LATERAL
PORT_KINDS = bytes(_kinds)
UDP_AT, INTERNAL_AT, FILE_AT, STATED_AT = (
    KIND_BITS * (kind.bit_length() - 1) for kind in (IS_UDP, IS_INTERNAL, IS_FILE, IS_STATED)
)
PROTO_KINDS = {TCP: IS_TCP, UDP: IS_UDP}


class Tracker(State):
    """The state of all streams, and what it says of an event."""

    def observe(self, events: Sequence[Event], features: F32) -> None:
        """Fill the missing context columns of features (float32 [n, 105], in place) and take the flows in, in order."""
        if features.shape != (len(events), FEATURE_COUNT):
            raise ValueError(f"features are {features.shape}, {(len(events), FEATURE_COUNT)} are needed")
        self.version += 1
        given = features[:, INPUTS].astype(np.float64).tolist()
        packed = [PACK(*self._observe(e, *inputs)) for e, inputs in zip(events, given, strict=True)]
        rows = np.minimum(np.frombuffer(b"".join(packed)).reshape(-1, len(OUTPUTS)), CEILING)
        block = features[:, OUTPUTS]
        features[:, OUTPUTS] = np.where(np.isnan(block), rows, block)
        if self.parent is None:
            self._sweep(2 * len(events))

    def _observe(
        self,
        e: Event,
        seconds: float,
        forward_packets: float,
        backward_packets: float,
        forward_bytes: float,
        backward_bytes: float,
        packet_size: float,
    ) -> Row:
        """The context features of one event, in order of OUTPUTS, those of CAPPED before they are cut to 1."""
        ts, src, dst, is_flow = e.ts, e.src_ip, e.dst_ip, e.kind == "flow"
        if not ts or not (src or dst):  # without a time there is no window
            return NO_CONTEXT
        stream = self._stream((e.source, e.sensor), ts, is_flow)
        if stream is None:
            return NO_CONTEXT

        if is_flow:
            if self.room <= 0:
                self.make_room()
            self.room -= 1
        nbytes = int(b) if 0.0 <= (b := forward_bytes + backward_bytes) < BYTES_MAX else -1
        packets = forward_packets + backward_packets
        if not packet_size >= 0.0:
            packet_size = nbytes / packets if nbytes >= 0 and packets > 0.0 else nan
        if is_flow and nbytes > 0:
            stream.add(ts, nbytes)
        source = self._source(stream, e, seconds, nbytes, backward_packets) if src else NO_HISTORY_SOURCE
        return source + (self._target(stream, e, forward_packets, packet_size) if dst else NO_TARGET)

    def _stream(self, key: tuple[str, str], ts: int, is_flow: bool) -> Stream | None:
        """The stream, its time moved on; None: the event is too late, or an alert of a stream without flows."""
        if not is_flow:
            found = self.streams.get(key)  # nothing in it moves for an alert
            return None if found is None or ts < found.ts_max - LATE_NS else found
        stream = self.streams.mine(key) or self.streams.begin(key, self._begin(ts))
        if ts >= stream.ts_max - LATE_NS:
            stream.late_run = 0
            if ts > stream.ts_max:
                stream.ts_max = ts
            return stream
        stream.late_run += 1
        if stream.late_run <= LATE_RUN_MAX:
            self.late += 1
            return None
        stream = self._begin(ts)
        self.streams.put(key, stream)
        return stream

    def _begin(self, ts: int) -> Stream:
        self.next_id += 1
        return Stream(id=self.next_id, ts_max=ts, head=ts // SLICE_NS)

    def _target(self, stream: Stream, e: Event, packets: float, packet_size: float) -> Row:
        ts, src, key = e.ts, e.src_ip, (stream.id, e.dst_ip)
        placed = False
        if e.kind == "flow":
            stated = int(packets) if 0.0 <= packets < BYTES_MAX else -1
            target = self.targets.mine(key) or self.targets.begin(key, Target())
            placed = target.add((ts, src, self.classify(src)[1] if src else -1, stated))
        elif (found := self.targets.look(key)) is not None:
            target = found
        else:
            return NO_TARGET
        if not placed and not target.place(ts):
            self.unplaced += e.kind == "flow"
            return NO_TARGET
        n = target.hi - target.lo
        middle = bisect_left(target.entries, (target.at - WINDOW_NS // 2 + 1,), target.lo, target.hi)
        load = min(1.0, target.packets / CONTEXT_WINDOW_S / 10_000) if target.packets_stated else nan
        return (
            target.sources / n,
            target.prefix_squares / (n * n),
            (target.hi - middle + 1) / (n + 2),  # r/(1+r) with r = (later + 1)/(earlier + 1)
            (exp(-packet_size / 100) + load) / 2,
            entropy(target.source_plogp, n * log2(n)),
        )

    def _source(self, stream: Stream, e: Event, seconds: float, nbytes: int, backward_packets: float) -> Row:
        ts, src, dst, is_flow, proto, port = e.ts, e.src_ip, e.dst_ip, e.kind == "flow", e.proto, e.dst_port
        if proto is None:
            proto = NO_PROTO
        if port is None:
            port, has_port = NO_PORT, proto != NO_PROTO and proto not in PORT_PROTOCOLS
        else:
            has_port = True
        service = proto << 17 | port + 1 if has_port and proto != NO_PROTO else NO_PORT
        size = log1p(nbytes) if nbytes >= 0 else nan
        duration = round(log1p(seconds * 1000.0) * FIX) if 0.0 <= seconds < inf else -1
        key = (stream.id, src)
        if is_flow:
            source = self.sources.mine(key) or self.sources.begin(key, Source())
        elif (found := self.sources.look(key)) is not None:
            source = found
        else:
            return NO_HISTORY_SOURCE

        past = source.history
        pair_key = (stream.id, src, dst)
        old = self.pairs.get(pair_key)
        together = old or NO_PAIR
        starts, durations = starts_of(together, port), together[0]
        if is_flow:
            starts = (*starts, e.ts_start) if len(starts) < PAIR_FLOWS else (*starts[1:], e.ts_start)
        bucket = ts // BUCKET_NS
        anomaly = source.anomaly if bucket <= past.bucket else past.temporal_anomaly(bucket)
        history = (
            past.process_anomaly(service) if service != NO_PORT else nan,
            nan if not dst or not has_port else regularity(starts) if len(starts) > 2 else 0.0,
            past.behavior_consistency(size) if nbytes >= 0 else nan,
            past.protocol_regularity(),
            nan if not dst else spread(len(durations), sum(durations), sum([d * d for d in durations])),
            anomaly,
        )
        placed, pair = False, (dst, port)
        if is_flow:
            past.remember(ts, service, proto, size)
            source.anomaly = anomaly
            self.pairs.put(pair_key, old, with_flow(together, port, starts, duration))
            kind = PORT_KINDS[port] | PROTO_KINDS.get(proto, 0)
            if dst and self.classify(dst)[0]:
                kind |= IS_INTERNAL
            else:
                kind &= ~IS_LATERAL
            if backward_packets >= 0.0:
                kind |= IS_STATED | IS_ANSWERED if backward_packets > 0.0 else IS_STATED
            class_ = (1 << 20) + (proto + 1 << 11) + (port if port < 1024 else 1024) + 1
            placed = source.add((ts, dst, pair, port, class_, kind, nbytes, duration))

        if not placed and not source.place(ts):
            self.unplaced += is_flow
            return history + NO_SOURCE
        n = source.hi - source.lo
        whole = n * log2(n)
        sensor_bytes = stream.bytes_at(ts)
        kinds = source.kinds
        tcp, udp, stated = kinds & KIND_MAX, kinds >> UDP_AT & KIND_MAX, kinds >> STATED_AT & KIND_MAX
        internal, file = kinds >> INTERNAL_AT & KIND_MAX, kinds >> FILE_AT & KIND_MAX
        bytes_known = source.bytes_stated > 0
        lateral = source.lateral if source.lateral and self.classify(src)[0] else 0
        to_port = dst and has_port
        return (
            *history,
            log10(1.0 + source.file_bytes / CONTEXT_WINDOW_S) / 8 if bytes_known and has_port else nan,
            source.bytes / sensor_bytes if bytes_known and sensor_bytes else nan,
            log2(1 + file) / 10 if has_port else nan,
            log2(1 + (source.counts[pair] & 0xFFFFF)) / 10 if to_port else nan,
            log2(1.0 + n / CONTEXT_WINDOW_S) / 10,
            nan if proto == NO_PROTO else tcp / (tcp + udp) if tcp or udp else 0.5,
            entropy(source.port_plogp, whole) if has_port else nan,
            spread(source.durations, source.duration_sum, source.duration_squares),
            source.dst_squares / (n * n) if dst else nan,
            source.classes / 8 if service != NO_PORT else nan,
            log2(1.0 + internal / CONTEXT_WINDOW_S) / 10 if dst else nan,
            source.port_top / n if has_port else nan,
            log2(1 + lateral) / 6 if to_port else nan,
            source.silent / stated if to_port and stated else nan,
            entropy(source.pair_plogp, whole) if to_port else nan,
        )
