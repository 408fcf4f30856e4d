"""The older system's files, as it writes them: its CSV, its RAG log, its firewall CSV."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.features import NAMES
from tests.events import T0, S

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
MS = 1_000_000

# Names of the columns, written out as the format's description has them.
HEAD = [
    "timestamp_ns", "event_id", "src_ip", "dst_ip", "src_port", "dst_port", "protocol", "final_class", "confidence",
    "threat_category", "fast_score", "ml_score", "divergence", "final_decision",
]  # fmt: skip
SIDES = ("forward", "backward")
MEASURED = [
    *(f"total_{side}_packets" for side in SIDES),
    *(f"total_{side}_bytes" for side in SIDES),
    *(f"{side}_packet_length_{stat}" for side in SIDES for stat in ("max", "min", "mean", "std")),
    "flow_bytes_per_second", "flow_packets_per_second", "forward_packets_per_second", "backward_packets_per_second",
    "download_upload_ratio", "average_packet_size", "average_forward_segment_size", "average_backward_segment_size",
    *(f"flow_inter_arrival_time_{stat}" for stat in ("mean", "std", "max", "min")),
    *(f"{side}_inter_arrival_time_{stat}" for side in SIDES for stat in ("total", "mean", "std", "max", "min")),
    *(f"{flag}_flag_count" for flag in ("fin", "syn", "rst", "psh", "ack", "urg", "cwr", "ece")),
    *(f"{side}_{flag}_flags" for flag in ("psh", "urg") for side in SIDES),
    *(f"{side}_header_length" for side in SIDES),
    *(f"{side}_average_{what}" for side in SIDES for what in ("bytes_bulk", "packets_bulk", "bulk_rate")),
    "minimum_packet_length", "maximum_packet_length", "packet_length_mean", "packet_length_std",
    "packet_length_variance", "active_mean", "idle_mean", "flow_duration_us",
]  # fmt: skip
GROUPS = list(NAMES[65:])
MODELS = [f"{model}_{what}" for model in ("level1", "ddos", "ransomware", "traffic", "internal")
          for what in ("prediction", "confidence")]  # fmt: skip
COLUMNS = [*HEAD, *MEASURED, *GROUPS, *MODELS]


def sign(text: str, key: bytes = KEY) -> str:
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def cells(number: int = 0, **more: object) -> dict[str, object]:
    """A DDoS of 1.5 s with 10 packets there and 4 back; `number` moves it in time and makes an id of its own."""
    row: dict[str, object] = dict.fromkeys(COLUMNS, 0)
    row |= {
        "timestamp_ns": T0 + number * S, "event_id": f"argus-{number}", "src_ip": "192.168.1.10", "dst_ip": "8.8.8.8",
        "src_port": 54_321, "dst_port": 80, "protocol": "TCP", "final_class": "MALICIOUS", "confidence": "0.880000",
        "threat_category": "DDOS", "fast_score": "0.700000", "ml_score": "0.850000", "divergence": "0.150000",
        "final_decision": "BLOCK",
        "total_forward_packets": 10, "total_backward_packets": 4, "total_forward_bytes": 500,
        "total_backward_bytes": 4_000, "forward_packet_length_max": 100, "forward_packet_length_mean": "50.0",
        "backward_packet_length_max": 1_000, "backward_packet_length_min": 1_000,
        "backward_packet_length_mean": "1000.0",
        "flow_inter_arrival_time_mean": "115384.6", "flow_inter_arrival_time_max": 500_000,
        "forward_inter_arrival_time_total": 1_500_000, "syn_flag_count": 1, "ack_flag_count": 13,
        "flow_duration_us": 1_500_000,
        "syn_ack_ratio": "0.1", "source_ip_dispersion": "0.9", "entropy": "-9999.0000", "packet_rate": "0.6",
        "access_pattern_entropy": "0.3",
        "level1_prediction": "ATTACK", "level1_confidence": "0.88", "ddos_prediction": "DDoS",
        "ddos_confidence": "0.92", "ransomware_prediction": "BENIGN", "ransomware_confidence": "0.90",
        "traffic_prediction": "EXTERNAL_WEB", "traffic_confidence": "0.75", "internal_prediction": "",
        "internal_confidence": "0.0",
    }  # fmt: skip
    unknown = more.keys() - row.keys()
    assert not unknown, unknown
    return row | more


def row(number: int = 0, key: bytes = KEY, **more: object) -> str:
    text = ",".join(str(value) for value in cells(number, **more).values())
    return f"{text},{sign(text, key)}"


def csv(rows: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in rows).encode()


def action(
    number: int = 0, *, after_ms: int = 0, key: bytes = KEY, src: str = "192.168.1.10", dst: str = "8.8.8.8",
    threat: str = "DDOS_ATTACK", what: str = "BLOCK", confidence: str = "0.95",
) -> str:  # fmt: skip
    """What the firewall did about row `number`."""
    text = f"{(T0 + number * S) // MS + after_ms},{src},{dst},{threat},{what},{confidence}"
    return f"{text},{sign(text, key)}"


def rag(number: int = 0, **detection: Any) -> dict[str, Any]:
    return {
        "rag_metadata": {
            "logged_at": "2023-11-14T22:13:25.000Z", "deployment_id": "lab", "node_id": "node-7",
            "log_version": "1.0.0",
        },
        "detection": {
            "detection_timestamp": T0 // S + number,
            "scores": {"fast_detector": 0.7, "ml_detector": 0.2, "final_score": 0.7, "divergence": 0.5},
            "classification": {
                "authoritative_source": "DETECTOR_SOURCE_DIVERGENCE", "attack_family": "RANSOMWARE",
                "level_1_label": "BENIGN", "final_class": "SUSPICIOUS", "threat_category": "ATTACK",
                "confidence": 0.8,
            },
            "reasons": {
                "fast_detector_triggered": True, "fast_detector_reason": "external ips above threshold",
                "requires_rag_analysis": True, "investigation_priority": "HIGH",
            },
            "decision": {"confidence_level": 0.2, "divergence_reason": "models disagree"},
            **detection,
        },
        "network": {
            "five_tuple": {"src_ip": "10.0.0.5", "src_port": 4444, "dst_ip": "203.0.113.9", "dst_port": 443,
                           "protocol": "TCP"},
            "interface": "eth1", "interface_mode": 2, "is_wan_facing": True,
            "flow": {"duration_us": 2_000_000, "total_packets": 14, "total_bytes": 4_500, "bytes_per_sec": 2_250.0,
                     "packets_per_sec": 7.0},
        },
        "features": {
            "basic_stats": {"forward_packets": 10, "backward_packets": 1, "forward_bytes": 500,
                            "backward_bytes": 4_000, "avg_packet_size": 409.0},
            "tcp_flags": {"syn": 1, "ack": 12, "fin": 2, "rst": 0, "psh": 3},
            "timing": {"flow_iat_mean": 200_000.0, "flow_iat_std": 10.5, "forward_iat_mean": 220_000.0,
                       "backward_iat_mean": 0.0},
        },
        "system_state": {"uptime_seconds": 1},
    }  # fmt: skip


def jsonl(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def key_file(path: Path, key: bytes = KEY) -> Path:
    path.write_text(key.hex() + "\n")
    path.chmod(0o600)
    return path
