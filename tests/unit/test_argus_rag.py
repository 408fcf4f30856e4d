"""aRGus RAG log: each field, the forms of a time, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.features import NAMES, unpack
from engine.normalize import complete
from engine.sources import detect
from engine.sources.argus_rag import ArgusRagAdapter
from engine.sources.base import Parsed, SourceSpec
from ipc.event import Verdict
from tests.argus import jsonl, rag
from tests.events import T0, S


def read(data: bytes, **spec: str) -> Parsed:
    adapter = ArgusRagAdapter(SourceSpec("t", "rag.jsonl", **spec))  # type: ignore[arg-type]
    first, last = adapter.feed(data, 0), adapter.finish()
    return Parsed(first.events + last.events, first.rejects + last.rejects)


def one(record: dict[str, Any], **spec: str) -> Any:
    got = read(jsonl(record), **spec)
    assert not got.rejects, got.rejects
    complete(got.events[0])
    return got.events[0]


def values(item: Any) -> dict[str, float]:
    return dict(zip(NAMES, unpack([item.features])[0].tolist(), strict=True))


def test_one_line_by_hand() -> None:
    item = one(rag())
    event = item.event
    assert (event.ts, event.ts_start, event.sensor, event.kind) == (T0, T0 - 2 * S, "lab/node-7", "flow")
    assert (event.src_ip, event.src_port, event.dst_ip, event.dst_port, event.proto) == (
        "10.0.0.5", 4444, "203.0.113.9", 443, 6,
    )  # fmt: skip
    assert (event.classification, event.family, event.family_raw) == ("SUSPICIOUS", "Ransomware", "RANSOMWARE")
    assert (event.fast_score, event.ml_score, event.final_score) == (0.7, 0.2, 0.7)
    assert event.verdicts == [Verdict("fast", "MALICIOUS", 0.7, "SIG_MATCH"), Verdict("level1", "BENIGN", 0.8)]
    assert event.discrepancy == pytest.approx(0.5)
    assert event.text == (
        "external ips above threshold | models disagree | priority HIGH | decided by DETECTOR_SOURCE_DIVERGENCE"
        " | interface eth1"
    )
    assert event.extra == {
        "divergence": 0.5, "confidence": 0.8, "confidence_level": 0.2, "fast_detector_triggered": 1.0,
        "requires_rag_analysis": 1.0, "is_wan_facing": 1.0, "total_packets": 14.0, "total_bytes": 4_500.0,
    }  # fmt: skip
    f = values(item)
    expected = {
        "protocol_number": 6, "interface_mode": 2, "flow_duration": 2.0, "total_forward_packets": 10,
        "total_backward_packets": 1, "total_forward_bytes": 500, "total_backward_bytes": 4_000,
        "average_packet_size": 409, "flow_bytes_per_second": 2_250, "flow_packets_per_second": 7,
        "syn_flag_count": 1, "ack_flag_count": 12, "fin_flag_count": 2, "rst_flag_count": 0, "psh_flag_count": 3,
        "flow_inter_arrival_time_mean": 200_000, "flow_inter_arrival_time_std": 10.5,
        "forward_inter_arrival_time_mean": 220_000,
    }  # fmt: skip
    assert {name: f[name] for name in expected} == expected
    assert f["forward_packet_length_mean"] == 50.0  # follows
    for name in ("backward_inter_arrival_time_mean", "urg_flag_count", "source_ifindex", "forward_packet_length_max"):
        assert np.isnan(f[name]), name


def test_a_given_sensor_comes_first_and_ids_are_the_content() -> None:
    assert one(rag(), sensor="dmz").event.sensor == "dmz"
    got = read(jsonl(rag(), rag(), rag(1)))
    assert len({item.event.event_id for item in got.events}) == 3
    again = read(jsonl(rag(), rag(), rag(1)))
    assert [i.event.event_id for i in got.events] == [i.event.event_id for i in again.events]


@pytest.mark.parametrize(
    ("given", "ns"),
    [
        (1_700_000_000, T0),
        (1_700_000_000.125, T0 + 125_000_000),
        (1_700_000_000_125, T0 + 125_000_000),
        (1_700_000_000_125_001, T0 + 125_001_000),
        (1_700_000_000_125_001_007, T0 + 125_001_007),
        ("1700000000", T0),
        ("1700000000.000000001", T0 + 1),
        ("2023-11-14T22:13:20Z", T0),
        ("2023-11-14 23:13:20.5+01:00", T0 + S // 2),
        (0, 0),
        (99_999_999_999, None),  # the year 5138: no i64 of ns holds it
    ],
)
def test_forms_of_a_time(given: object, ns: int | None) -> None:
    record = rag(detection_timestamp=given)
    record["network"]["flow"] = {}
    if ns is None:
        assert "neither a date nor a number" in read(jsonl(record)).rejects[0].reason
        return
    event = one(record).event
    assert (event.ts, event.ts_start) == (ns, ns)


def test_without_a_detection_time_the_time_of_logging_counts() -> None:
    record = rag()
    del record["detection"]["detection_timestamp"]
    assert one(record).event.ts == T0 + 5 * S
    del record["rag_metadata"]
    assert read(jsonl(record)).rejects[0].reason == "no detection_timestamp"


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        (("detection", "detection_timestamp"), "yesterday", "is not a date and time"),
        (("detection", "detection_timestamp"), -5, "neither a date nor a number"),
        (("detection", "detection_timestamp"), 1.7e30, "neither a date nor a number"),
        (("detection", "detection_timestamp"), {"s": 1}, "neither a date nor a number"),
        (("detection", "scores", "fast_detector"), 1.5, "fast_detector is not in 0..1"),
        (("detection", "scores", "ml_detector"), "0.5", "not a record of the RAG log"),
        (("detection", "classification", "confidence"), 80, "confidence is not in 0..1"),
        (("network", "five_tuple", "src_ip"), "10.0.0", "is not an address"),
        (("network", "five_tuple", "dst_port"), 70_000, "port is not in 0..65535"),
        (("network", "five_tuple", "src_port"), "443", "not a record of the RAG log"),
        (("features", "tcp_flags", "syn"), "one", "not a record of the RAG log"),
        (("features",), None, "not a record of the RAG log"),
    ],
)
def test_a_bad_line_says_why_and_stops_nothing(where: tuple[str, ...], value: object, reason: str) -> None:
    record: Any = rag(7)
    inner = record
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    got = read(jsonl(rag(), record, rag(1)) + b'{"detection": {"scores": {"fast_detector": NaN}}}\n[1]\n')
    assert len(got.events) == 2
    assert reason in got.rejects[0].reason
    assert len(got.rejects) == 3


def test_sentinels_and_nonsense_are_missing() -> None:
    record = rag(scores={"fast_detector": -9999.0, "ml_detector": 0.2})
    record["network"]["interface_mode"] = "router"
    record["network"]["flow"]["total_packets"] = -9999
    record["features"]["tcp_flags"] = {"syn": -1, "ack": 1e300}
    item = one(record)
    f = values(item)
    assert (item.event.fast_score, item.event.verdicts, item.event.discrepancy) == (None, [], 0.0)
    assert "total_packets" not in item.event.extra
    assert all(np.isnan(f[name]) for name in ("interface_mode", "syn_flag_count", "ack_flag_count", "fin_flag_count"))
    scores_only = rag()
    scores_only["detection"]["classification"]["level_1_label"] = ""
    assert one(scores_only).event.discrepancy == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("mode", "feature"), [(0, 0), (1, 1), (2, 2), ("gateway", 2), ("Host", 1), (3, None), ("", None), (None, None)]
)
def test_the_mode_of_the_interface(mode: object, feature: int | None) -> None:
    record = rag()
    record["network"]["interface_mode"] = mode
    found = values(one(record))["interface_mode"]
    assert np.isnan(found) if feature is None else found == feature


def test_it_is_found_by_looking_and_leaves_others_alone() -> None:
    assert detect(jsonl(rag()), "rag.jsonl") == "argus-rag"
    for other in (b'{"ts": 1}\n', b'{"detection": 1}\n', b"[]", b"", b'{"event_type":"flow","timestamp":"x"}\n'):
        assert not ArgusRagAdapter.sniff(other, "rag.jsonl")
