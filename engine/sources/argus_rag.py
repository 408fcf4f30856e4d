"""aRGus RAG log: JSON lines, one for each detection that was worth a second look.

Always true
  - A line is a detection with its flow: `detection` and `network` must be there, the rest may be missing.
  - A number is a feature only where it is the same thing by definition; totals of both directions that cannot be split,
    and what is no feature, go to event.extra, words to event.text.
  - detection_timestamp is the end of the flow: ISO 8601, or a number since 1970 whose size tells its unit (UNITS).
  - Two voices, or none: the fast detector (its score, and whether it was triggered) and level 1 (label and
    confidence). Where one of them is missing, the discrepancy is that of the two scores.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct, field
from msgspec.json import Decoder

from engine.errors import BadRecordError
from engine.families import canonical
from engine.features import INDEX, empty, pack
from engine.flows.derived import DURATION_US_MAX, FLOAT32_MAX, derive
from engine.normalize import TEXT_MAX, address, score
from engine.sources.argus import THREATS, judged
from engine.sources.base import Parsed, SourceSpec
from engine.sources.eve import protocol
from engine.sources.lines import BOM, Line, LineAdapter, event_id
from engine.sources.times import fraction_ns, iso_ns, zone
from ipc.event import Event, FeaturedEvent, Verdict

BLOCK_ROWS = 1_024
SENSOR_MAX = 128
# A number below the first figure is in units of so many ns; each unit's figures begin in 1973.
UNITS = ((10**11, 1_000_000_000), (10**14, 1_000_000), (10**17, 1_000), (1 << 63, 1))
_NUMBER = re.compile(r"(\d{1,19})(?:\.(\d{1,18}))?", re.ASCII)
MODES = {"": None, "unknown": 0, "disabled": 0, "host": 1, "host-based": 1, "gateway": 2}

Number = float | None


class Metadata(Struct):
    logged_at: Raw = field(default_factory=Raw)
    deployment_id: str = ""
    node_id: str = ""


class Scores(Struct):
    fast_detector: Number = None
    ml_detector: Number = None
    final_score: Number = None
    divergence: Number = None


class Class(Struct):
    authoritative_source: str = ""
    attack_family: str = ""
    level_1_label: str = ""
    final_class: str = ""
    threat_category: str = ""
    confidence: Number = None


class Reasons(Struct):
    fast_detector_triggered: bool | None = None
    fast_detector_reason: str = ""
    requires_rag_analysis: bool | None = None
    investigation_priority: str = ""


class Decided(Struct):
    confidence_level: Number = None
    divergence_reason: str = ""


class Detection(Struct):
    detection_timestamp: Raw = field(default_factory=Raw)
    scores: Scores = field(default_factory=Scores)
    classification: Class = field(default_factory=Class)
    reasons: Reasons = field(default_factory=Reasons)
    decision: Decided = field(default_factory=Decided)


class FiveTuple(Struct):
    src_ip: str = ""
    src_port: int | None = None
    dst_ip: str = ""
    dst_port: int | None = None
    protocol: str | int = ""


class Flow(Struct):
    duration_us: Number = None
    total_packets: Number = None
    total_bytes: Number = None
    bytes_per_sec: Number = None
    packets_per_sec: Number = None


class Network(Struct):
    five_tuple: FiveTuple = field(default_factory=FiveTuple)
    interface: str = ""
    interface_mode: str | int | None = None
    is_wan_facing: bool | None = None
    flow: Flow = field(default_factory=Flow)


class BasicStats(Struct):
    forward_packets: Number = None
    backward_packets: Number = None
    forward_bytes: Number = None
    backward_bytes: Number = None
    avg_packet_size: Number = None


class TcpFlags(Struct):
    syn: Number = None
    ack: Number = None
    fin: Number = None
    rst: Number = None
    psh: Number = None


class Timing(Struct):
    flow_iat_mean: Number = None
    flow_iat_std: Number = None
    forward_iat_mean: Number = None
    backward_iat_mean: Number = None


class Features(Struct):
    basic_stats: BasicStats = field(default_factory=BasicStats)
    tcp_flags: TcpFlags = field(default_factory=TcpFlags)
    timing: Timing = field(default_factory=Timing)


class Record(Struct):
    """What is read of a line; everything else is passed over."""

    detection: Detection
    network: Network
    rag_metadata: Metadata = field(default_factory=Metadata)
    features: Features = field(default_factory=Features)


class ArgusRagAdapter(LineAdapter):
    format = "argus-rag"

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._zone = zone(spec.timezone)
        self._decode = Decoder(Record).decode

    @classmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        first = head.removeprefix(BOM).lstrip().partition(b"\n")[0]
        return first[:1] == b"{" and b'"detection"' in first and b'"network"' in first

    def read(self, lines: list[Line], out: Parsed) -> None:
        for start in range(0, len(lines), BLOCK_ROWS):
            self._block(lines[start : start + BLOCK_ROWS], out)

    def _block(self, lines: list[Line], out: Parsed) -> None:
        items: list[FeaturedEvent] = []
        rows: list[dict[str, float]] = []
        for line in lines:
            try:
                record = self._decode(line.record)
                event = self._event(record, line)
            except BadRecordError as e:
                out.rejects.append(self.reject(line.offset, e.reason, line.record))
                continue
            except (msgspec.MsgspecError, RecursionError) as e:
                out.rejects.append(self.reject(line.offset, f"not a record of the RAG log: {e}", line.record))
                continue
            items.append(FeaturedEvent(event, raw=line.record))
            rows.append(_numbers(record, event.proto))
        if not items:
            return
        features = empty(len(items))
        for row, numbers in zip(features, rows, strict=True):
            for name, value in numbers.items():
                row[INDEX[name]] = value
        with np.errstate(over="ignore"):
            derive(features)
        for item, row in zip(items, features, strict=True):
            item.features = pack(row)
        out.events.extend(items)

    def _event(self, record: Record, line: Line) -> Event:
        spec, said, network = self.spec, record.detection, record.network
        ends = network.five_tuple
        ts = self._time(said.detection_timestamp, record.rag_metadata.logged_at)
        duration_us = _duration_us(network)
        node = "/".join(filter(None, (record.rag_metadata.deployment_id, record.rag_metadata.node_id)))
        sensor = spec.sensor or node[:SENSOR_MAX]
        for port in (ends.src_port, ends.dst_port):
            if port is not None and not 0 <= port <= 65_535:
                raise BadRecordError("port is not in 0..65535")
        words, reasons = said.classification, said.reasons
        family = words.attack_family if canonical(words.attack_family) in THREATS else words.threat_category
        fast, ml = score("fast_detector", said.scores.fast_detector), score("ml_detector", said.scores.ml_detector)
        return Event(
            event_id=event_id(spec.sensor, "flow", line.record, line.ordinal),
            source=spec.name,
            sensor=sensor,
            ts=ts,
            ts_start=ts if duration_us is None else max(0, ts - round(duration_us * 1_000)),
            src_ip=address(ends.src_ip)[0],
            dst_ip=address(ends.dst_ip)[0],
            src_port=ends.src_port,
            dst_port=ends.dst_port,
            proto=protocol(ends.protocol),
            classification=judged(words.final_class or words.level_1_label),
            family_raw=family or words.attack_family,
            fast_score=fast,
            ml_score=ml,
            final_score=score("final_score", said.scores.final_score),
            verdicts=_verdicts(fast, reasons.fast_detector_triggered, words),
            text=_text(said, network),
            extra=_extra(said, network),
        )

    def _time(self, detected: Raw, logged: Raw) -> int:
        given = bytes(detected) or bytes(logged)
        if given in (b"", b"null"):
            raise BadRecordError("no detection_timestamp")
        if given[:1] == b'"':
            text = msgspec.json.decode(given, type=str).strip()
            return _since_1970(text) if _NUMBER.fullmatch(text) else iso_ns(text, self._zone)
        return _since_1970(given.decode())


def _since_1970(text: str) -> int:
    """ns of a number whose size tells its unit; read digit by digit."""
    found = _NUMBER.fullmatch(text)
    if found is not None:
        units, digits = int(found[1]), found[2]
        for below, unit_ns in UNITS:
            if units < below:
                ns = units * unit_ns + fraction_ns(digits) * unit_ns // UNITS[0][1]
                if ns < 1 << 63:
                    return ns
                break
    raise BadRecordError("detection_timestamp is neither a date nor a number since 1970")


def _verdicts(fast: float | None, triggered: bool | None, words: Class) -> list[Verdict]:
    confidence, label = score("confidence", words.confidence), judged(words.level_1_label)
    if fast is None or triggered is None or confidence is None or label == "UNKNOWN":
        return []
    seen = Verdict("fast", "MALICIOUS", fast, "SIG_MATCH") if triggered else Verdict("fast", "BENIGN", 1.0 - fast)
    return [seen, Verdict("level1", label, confidence, "UNKNOWN" if label == "BENIGN" else "STAT_ANOMALY")]


def _text(said: Detection, network: Network) -> str:
    words = (
        ("", said.reasons.fast_detector_reason),
        ("", said.decision.divergence_reason),
        ("priority ", said.reasons.investigation_priority),
        ("decided by ", said.classification.authoritative_source),
        ("interface ", network.interface),
    )
    return " | ".join(what + word for what, word in words if word)[:TEXT_MAX]


def _extra(said: Detection, network: Network) -> dict[str, float]:
    numbers: dict[str, Any] = {
        "divergence": said.scores.divergence,
        "confidence": said.classification.confidence,
        "confidence_level": said.decision.confidence_level,
        "fast_detector_triggered": said.reasons.fast_detector_triggered,
        "requires_rag_analysis": said.reasons.requires_rag_analysis,
        "is_wan_facing": network.is_wan_facing,
        "total_packets": network.flow.total_packets,
        "total_bytes": network.flow.total_bytes,
    }
    return {name: float(value) for name, value in numbers.items() if value is not None and value != -9999.0}


def _numbers(record: Record, proto: int | None) -> dict[str, float]:
    """Features by name, missing ones left out."""
    network, given = record.network, record.features
    stats, flags, timing = given.basic_stats, given.tcp_flags, given.timing
    forward, backward = _measured(stats.forward_packets), _measured(stats.backward_packets)
    duration_us = _duration_us(network)
    both = None if forward is None or backward is None else forward + backward
    found = {
        "protocol_number": None if proto is None else float(proto),
        "interface_mode": _mode(network.interface_mode),
        "flow_duration": None if duration_us is None else duration_us / 1e6,
        "total_forward_packets": forward,
        "total_backward_packets": backward,
        "total_forward_bytes": _measured(stats.forward_bytes),
        "total_backward_bytes": _measured(stats.backward_bytes),
        "average_packet_size": _measured(stats.avg_packet_size),
        "flow_bytes_per_second": _measured(network.flow.bytes_per_sec),
        "flow_packets_per_second": _measured(network.flow.packets_per_sec),
        "syn_flag_count": _measured(flags.syn),
        "ack_flag_count": _measured(flags.ack),
        "fin_flag_count": _measured(flags.fin),
        "rst_flag_count": _measured(flags.rst),
        "psh_flag_count": _measured(flags.psh),
        "flow_inter_arrival_time_mean": _gap(timing.flow_iat_mean, both),
        "flow_inter_arrival_time_std": _gap(timing.flow_iat_std, both),
        "forward_inter_arrival_time_mean": _gap(timing.forward_iat_mean, forward),
        "backward_inter_arrival_time_mean": _gap(timing.backward_iat_mean, backward),
    }
    return {name: value for name, value in found.items() if value is not None}


def _measured(value: Number) -> Number:
    """A count, size or time; None where there is none (they cannot be negative)."""
    return value if value is not None and 0.0 <= value <= FLOAT32_MAX else None


def _duration_us(network: Network) -> Number:
    """None where it cannot be one."""
    value = _measured(network.flow.duration_us)
    return value if value is not None and value <= DURATION_US_MAX else None


def _gap(value: Number, packets: Number) -> Number:
    """The mean of nothing is missing, not 0."""
    return None if packets is not None and packets < 2 else _measured(value)


def _mode(value: str | int | None) -> Number:
    mode = MODES.get(value.lower()) if isinstance(value, str) else value
    return float(mode) if mode in (0, 1, 2) else None
