"""aRGus CSV: every column, what is missing, what is refused, and who signed it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.features import FEATURES, INDEX, NAMES, unpack
from engine.normalize import complete
from engine.sources import detect
from engine.sources.argus import COLUMN_COUNT, ArgusAdapter, judged
from engine.sources.base import Parsed, SourceSpec
from ipc.event import Verdict
from tests import argus
from tests.argus import COLUMNS, KEY, OTHER_KEY, cells, csv, row
from tests.events import T0


def read(data: bytes, key: bytes = b"") -> Parsed:
    adapter = ArgusAdapter(SourceSpec("t", "day.csv", hmac_key=key))
    first, last = adapter.feed(data, 0), adapter.finish()
    return Parsed(first.events + last.events, first.rejects + last.rejects)


def one(**more: Any) -> Any:
    """The event of one row, completed."""
    got = read(csv([row(**more)]))
    assert not got.rejects, got.rejects
    complete(got.events[0])
    return got.events[0]


def values(item: Any) -> dict[str, float]:
    return dict(zip(NAMES, unpack([item.features])[0].tolist(), strict=True))


def test_one_row_by_hand() -> None:
    item = one()
    event = item.event
    assert (event.event_id, event.source, event.kind) == ("argus-0", "t", "flow")
    assert (event.ts, event.ts - event.ts_start) == (T0, 1_500_000_000)
    assert (event.src_ip, event.dst_ip, event.src_port, event.dst_port, event.proto) == (
        "192.168.1.10", "8.8.8.8", 54_321, 80, 6,
    )  # fmt: skip
    assert (event.classification, event.family, event.family_raw, event.decision) == (
        "MALICIOUS", "DDoS", "DDOS", "DROP",
    )  # fmt: skip
    assert (event.fast_score, event.ml_score, event.final_score) == (0.7, 0.85, 0.85)
    assert event.verdicts == [
        Verdict("level1", "MALICIOUS", 0.88, "STAT_ANOMALY"),
        Verdict("ddos", "MALICIOUS", 0.92, "STAT_ANOMALY"),
        Verdict("ransomware", "BENIGN", 0.9),
        Verdict("traffic", "UNKNOWN", 0.75),
    ]
    assert event.discrepancy == pytest.approx(0.82)  # of the verdicts, not the row's own 0.15
    assert event.extra == {"confidence": 0.88, "divergence": 0.15}
    assert item.raw.decode() == row()
    f = values(item)
    expected = {
        "protocol_number": 6, "flow_duration": 1.5, "total_forward_packets": 10, "total_backward_bytes": 4_000,
        "flow_inter_arrival_time_max": 500_000, "forward_inter_arrival_time_total": 1_500_000, "syn_flag_count": 1,
        "syn_ack_ratio": 0.1, "source_ip_dispersion": 0.9, "packet_rate": 0.6, "access_pattern_entropy": 0.3,
        "active_mean": 1_500_000,
    }  # fmt: skip
    assert {name: f[name] for name in expected} == pytest.approx(expected)
    for name in ("entropy", "interface_mode", "source_ifindex", "idle_mean"):
        assert np.isnan(f[name]), name


def test_every_number_goes_to_the_feature_of_its_name() -> None:
    """Each of the 102 columns alone: a value of its own comes out under its name, and nowhere else it was given."""
    assert len(COLUMNS) == COLUMN_COUNT - 1
    plain = values(one())
    for name in [*argus.MEASURED, *argus.GROUPS]:
        feature = "flow_duration" if name == "flow_duration_us" else name
        given = 7_654_321 if name in ("idle_mean", "flow_duration_us") else 77
        f = values(one(**{name: given}))
        assert f[feature] == pytest.approx(7.654321 if name == "flow_duration_us" else given), name
        assert f[feature] != plain[feature]
    assert {*argus.MEASURED[:-1], "flow_duration", *argus.GROUPS} == {f.name for f in FEATURES[3:]}


@pytest.mark.parametrize(
    "cell", ["-9999", "-9999.0", "-9999.000000", "", " ", "nan", "NaN", "inf", "-Infinity", "1e39"]
)
def test_what_is_no_number_of_a_measurement_is_missing(cell: str) -> None:
    names = ("backward_packet_length_std", "urg_flag_count", "entropy", "port_entropy")
    f = values(one(**dict.fromkeys(names, cell)))
    assert [name for name in names if not np.isnan(f[name])] == []
    if cell == "1e39":
        return  # finite: a score of that size is refused
    item = one(fast_score=cell, ml_score=cell, divergence=cell, level1_confidence=cell)
    assert (item.event.fast_score, item.event.final_score) == (None, None)
    assert "divergence" not in item.event.extra
    assert item.event.verdicts[0].engine == "ddos"


def test_the_mean_of_nothing_is_missing_and_nothing_measured_is_negative() -> None:
    f = values(one(total_forward_packets=1, total_backward_packets=0, rst_flag_count=-1))
    for name in NAMES:
        if "_inter_arrival" in name or name.endswith("_bulk"):
            assert np.isnan(f[name]), name
    assert f["forward_average_bulk_rate"] == 0.0
    assert np.isnan(f["rst_flag_count"])
    one_way = values(one(total_backward_packets=1))
    assert np.isnan(one_way["backward_inter_arrival_time_mean"])
    assert one_way["flow_inter_arrival_time_max"] == 500_000


def test_a_duration_of_centuries_is_missing() -> None:
    item = one(flow_duration_us=3.4e38)
    assert np.isnan(values(item)["flow_duration"]) and item.event.ts_start == item.event.ts


def test_what_follows_from_the_others_is_filled() -> None:
    f = values(one(flow_bytes_per_second=-9999, average_packet_size="", packet_length_mean="nan", data_volume=-9999))
    assert f["flow_bytes_per_second"] == 3_000.0
    assert f["average_packet_size"] == pytest.approx(4_500 / 14)
    assert f["data_volume"] == pytest.approx(np.log10(4_501) / 9)


# ---- who signed it


def test_a_key_lets_only_signed_rows_in() -> None:
    good, other = row(0), row(1, key=OTHER_KEY)
    unsigned = row(2).rpartition(",")[0] + ","
    changed = row(3).replace("192.168.1.10", "192.168.1.11")
    upper = row(4)[:-64] + row(4)[-64:].upper()
    quoted = row(5).rpartition(",")[0].replace("DDOS", '"DD,OS"')
    got = read(csv([good, other, unsigned, changed, upper, f"{quoted},{argus.sign(quoted)}"]), KEY)
    assert [item.event.event_id for item in got.events] == ["argus-0", "argus-4", "argus-5"]
    assert [(r.reason, r.record.decode()) for r in got.rejects] == [
        ("its HMAC does not match", text) for text in (other, unsigned, changed)
    ]
    without = read(csv([good, other, unsigned, changed]))
    assert len(without.events) == 4 and not without.rejects


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (row().rpartition(",")[0], "126 columns, a row has 127"),
        (row() + ",", "128 columns, a row has 127"),
        (row(timestamp_ns="yesterday"), "timestamp is not a whole number"),
        (row(timestamp_ns=""), "no timestamp"),
        (row(timestamp_ns=1 << 63), "timestamp is not a whole number in 0..9223372036854775807"),
        (row(timestamp_ns=-1), "timestamp is not a whole number"),
        (row(src_ip="300.1.1.1"), "is not an address"),
        (row(src_port=65_536), "source port is not a whole number in 0..65535"),
        (row(dst_port="http"), "destination port is not a whole number"),
        (row(fast_score="1.5"), "fast_score is not in 0..1"),
        (row(ml_score="high"), "the column of ml_score is not a number"),
        (row(level1_confidence="88"), "confidence is not in 0..1"),
        (row(syn_flag_count="one"), "the column of syn_flag_count is not a number"),
        (row(access_pattern_entropy="x"), "the column of access_pattern_entropy is not a number"),
        (row(threat_category='"DDOS'), "a quoted column does not end"),
        ("hello", "1 columns, a row has 127"),
    ],
)
def test_a_bad_row_says_why_and_stops_nothing(text: str, reason: str) -> None:
    got = read(csv([row(1), text, row(2)]))
    assert [item.event.event_id for item in got.events] == ["argus-1", "argus-2"]
    assert reason in got.rejects[0].reason
    assert got.rejects[0].offset == len(row(1)) + 1 and got.rejects[0].file == "day.csv"


# ---- words


@pytest.mark.parametrize(
    ("word", "opinion"),
    [
        ("BENIGN", "BENIGN"), ("normal", "BENIGN"), ("0", "BENIGN"), ("0.000000", "BENIGN"), ("NO_PRESSURE", "BENIGN"),
        ("SUSPICIOUS", "SUSPICIOUS"), ("POTENTIAL_ATTACK", "SUSPICIOUS"), ("MALICIOUS", "MALICIOUS"),
        ("ATTACK", "MALICIOUS"), ("1", "MALICIOUS"), ("DDoS", "MALICIOUS"), ("ransomware", "MALICIOUS"),
        ("EXTERNAL_WEB", "UNKNOWN"), ("INTERNET", "UNKNOWN"), ("", "UNKNOWN"), ("UNCATEGORIZED", "UNKNOWN"),
        ("2", "UNKNOWN"),
    ],
)  # fmt: skip
def test_words_and_the_verdict_in_them(word: str, opinion: str) -> None:
    assert judged(word) == opinion


@pytest.mark.parametrize(
    ("word", "decision"),
    [("ALLOW", "ALLOW"), ("BLOCK", "DROP"), ("Quarantine", "DROP"), ("ALERT", "ALERT"), ("MONITOR", "ALERT"),
     ("", ""), ("PENDING_REVIEW", "")],
)  # fmt: skip
def test_decisions(word: str, decision: str) -> None:
    assert one(final_decision=word).event.decision == decision


def test_a_category_that_names_no_threat_is_no_family() -> None:
    assert one(threat_category="ATTACK").event.family == "Unknown"
    event = one(threat_category="NORMAL", final_class="BENIGN").event
    assert (event.family, event.classification) == ("Normal", "BENIGN")


def test_models_that_did_not_run_have_no_verdict() -> None:
    item = one(level1_prediction="", ddos_prediction="-9999", ransomware_confidence=-9999, traffic_prediction="1")
    assert item.event.verdicts == [Verdict("traffic", "UNKNOWN", 0.75)]
    assert item.event.discrepancy == 0.0
    names = [name for name in argus.MODELS if name.endswith("prediction")]
    scores_only = one(**dict.fromkeys(names, ""))
    assert scores_only.event.discrepancy == pytest.approx(0.15)


def test_ids_of_rows_without_one_are_their_content_and_ordinal() -> None:
    same = row(event_id="")
    got = read(csv([same, same, row(1, event_id="")]))
    again = read(csv([same, same, row(1, event_id="")]))
    ids = [item.event.event_id for item in got.events]
    assert len(set(ids)) == 3 and all(len(text) == 32 for text in ids)
    assert ids == [item.event.event_id for item in again.events]


def test_icmp_has_no_ports_where_both_are_0() -> None:
    event = one(protocol="ICMP", src_port=0, dst_port=0).event
    assert (event.proto, event.src_port, event.dst_port) == (1, None, None)
    assert one(protocol="ICMPv6", src_port=128, dst_port=0).event.src_port == 128
    assert one(protocol="UNKNOWN").event.proto is None


# ---- looking


def test_it_is_found_by_looking_and_leaves_others_alone() -> None:
    assert detect(csv([row(), row(1)]), "2025-11-14.csv") == "argus"
    assert detect(csv(["broken", row()]), "x") == "argus"
    assert detect(row().encode()[:-64], "x") == "argus"
    for other in (
        csv([row().rpartition(",")[0]]),
        csv([",".join(COLUMNS) + ",hmac"]),
        b"1," * 126 + b"x",
        b"a,b,c\n1,2,3\n",
        b"",
        b"\xff" * 300,
    ):
        assert not ArgusAdapter.sniff(other, "2025-11-14.csv")


def test_columns_of_the_test_are_those_of_the_table() -> None:
    assert INDEX[argus.MEASURED[0]] == 4 and len(argus.MEASURED) == 62 and len(argus.GROUPS) == 40
    assert list(cells())[75] == "flow_duration_us" and list(cells())[116] == "level1_prediction"
