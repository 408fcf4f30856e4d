"""NetFlow tables: nProbe's names, nfdump's CSV; what bytes of IP packets say of payload."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from engine.features import FEATURES, unpack
from engine.normalize import complete
from engine.sources.base import Parsed, SourceSpec
from engine.sources.netflow import NetflowAdapter
from tests.data import content

S = 1_000_000_000
CELLS = {
    "IPV4_SRC_ADDR": "10.0.0.1", "L4_SRC_PORT": "5000", "IPV4_DST_ADDR": "10.0.0.2", "L4_DST_PORT": "53",
    "PROTOCOL": "17", "L7_PROTO": "5.126", "IN_BYTES": "60", "IN_PKTS": "1", "OUT_BYTES": "200", "OUT_PKTS": "2",
    "TCP_FLAGS": "0", "CLIENT_TCP_FLAGS": "0", "SERVER_TCP_FLAGS": "0", "FLOW_DURATION_MILLISECONDS": "500",
    "LONGEST_FLOW_PKT": "120", "SHORTEST_FLOW_PKT": "60", "ICMP_TYPE": "0", "DNS_QUERY_TYPE": "1", "Label": "0",
    "Attack": "Benign",
}  # fmt: skip
HEADER, ROW = ",".join(CELLS), ",".join(CELLS.values())
NFDUMP = "ts,te,td,sa,da,sp,dp,pr,flg,fwd,stos,ipkt,ibyt,opkt,obyt,in,out"
NFDUMP_ROW = "2018-01-12 15:37:30,2018-01-12 15:37:32,1.500,10.0.0.1,10.0.0.2,52324,902,TCP,......S.,0,0,3,180,0,0,0,0"


def read(data: bytes | str, spec: SourceSpec | None = None) -> Parsed:
    adapter = NetflowAdapter(spec or SourceSpec("t", "f.csv", fingerprint="f"))
    first, last = adapter.feed(data.encode() if isinstance(data, str) else data, 0), adapter.finish()
    return Parsed(first.events + last.events, first.rejects + last.rejects)


def present(parsed: Parsed) -> dict[str, float]:
    row = unpack([parsed.events[0].features])[0]
    return {f.name: float(row[f.column]) for f in FEATURES if np.isfinite(row[f.column])}


def one(**cells: str) -> tuple[Any, dict[str, float]]:
    row = CELLS | cells
    got = read(f"{','.join(row)}\n{','.join(row.values())}\n")
    assert not got.rejects
    return got.events[0].event, present(got)


def test_one_row_by_hand() -> None:
    event, f = one()
    assert (event.src_ip, event.src_port, event.dst_ip, event.dst_port, event.proto) == (
        "10.0.0.1", 5000, "10.0.0.2", 53, 17,
    )  # fmt: skip
    assert (event.ts, event.ts_start, event.classification, event.family_raw) == (0, 0, "BENIGN", "Benign")
    assert event.extra == {
        "ip_bytes_toserver": 60.0, "ip_bytes_toclient": 200.0, "l7_protocol": 5.126, "dns_query_type": 1.0,
    }  # fmt: skip
    expected = {
        "total_forward_bytes": 32, "total_backward_bytes": 144, "flow_duration": 0.5, "flow_bytes_per_second": 352,
        "forward_packet_length_max": 32, "forward_packet_length_std": 0, "maximum_packet_length": 92,
        "minimum_packet_length": 32, "forward_header_length": 8, "backward_header_length": 16, "syn_flag_count": 0,
        "flow_completion_rate": 1, "average_packet_size": 176 / 3,
    }  # fmt: skip
    for name, value in expected.items():
        assert f[name] == pytest.approx(value, rel=1e-6), name
    assert "backward_packet_length_max" not in f


def test_bytes_become_payload_only_where_the_headers_are_certain() -> None:
    assert "maximum_packet_length" not in one(LONGEST_FLOW_PKT="1500")[1]  # perhaps a fragment
    assert one(LONGEST_FLOW_PKT="1500", IN_BYTES="60")[1].get("total_forward_bytes") == 32  # a single packet is none
    assert "total_backward_bytes" not in one(LONGEST_FLOW_PKT="1500")[1]
    assert "total_backward_bytes" not in one(OUT_BYTES="20")[1]  # less than headers have
    ipv6 = one(IPV4_SRC_ADDR="fe80::1", IPV4_DST_ADDR="fe80::2")[1]
    assert "total_forward_bytes" not in ipv6 and "forward_header_length" not in ipv6
    f = one(PROTOCOL="6", IN_BYTES="44", OUT_BYTES="80", TCP_FLAGS="22", CLIENT_TCP_FLAGS="2", SERVER_TCP_FLAGS="20")[1]
    assert "total_forward_bytes" not in f  # options, or 4 bytes of data?
    assert (f["total_backward_bytes"], f["backward_packet_length_max"], f["backward_header_length"]) == (0, 0, 40)
    assert f["flow_completion_rate"] == 0 and f["fin_flag_count"] == 0 and "syn_flag_count" not in f


def test_flags_without_sides() -> None:
    row = {
        k: v for k, v in (CELLS | {"PROTOCOL": "6", "TCP_FLAGS": "27"}).items() if "R_TCP" not in k and "T_TCP" not in k
    }
    f = present(read(f"{','.join(row)}\n{','.join(row.values())}\n"))
    assert f["rst_flag_count"] == 0 and f["forward_urg_flags"] == 0 and "forward_psh_flags" not in f


@pytest.mark.parametrize(("ms", "seconds"), [("0", 0.0), ("120000", 120.0), ("4293435", 1.532), ("4294967", 0.0)])
def test_a_wrapped_duration_is_unwrapped(ms: str, seconds: float) -> None:
    assert one(FLOW_DURATION_MILLISECONDS=ms)[1]["flow_duration"] == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("first", "last", "start_s", "duration_s"),
    [
        ("1424242193040", "1424242193790", 1_424_242_193.04, 0.75), ("1424242193", "1424242195", 1_424_242_193, 2),
        ("1424242193", "", 1_424_242_193, 0.5), ("123456", "123999", 0, 0),
    ],
)  # fmt: skip
def test_times(first: str, last: str, start_s: float, duration_s: float) -> None:
    event, _ = one(FLOW_START_MILLISECONDS=first, FLOW_END_MILLISECONDS=last)
    assert event.ts_start == round(start_s * 1_000) * 1_000_000 and event.ts - event.ts_start == round(duration_s * S)


def test_a_duration_that_contradicts_the_times_is_kept_beside_them() -> None:
    event, f = one(
        FLOW_START_MILLISECONDS="1424242193000", FLOW_END_MILLISECONDS="1424242195000", FLOW_DURATION_MILLISECONDS="500"
    )
    assert (event.ts_start, event.ts) == (1_424_242_193 * S, 1_424_242_195 * S)
    assert f["flow_duration"] == 0.5 and f["flow_bytes_per_second"] == 352


def test_icmp() -> None:
    event, _ = one(PROTOCOL="1", ICMP_TYPE="771", L4_SRC_PORT="0", L4_DST_PORT="0")
    assert (event.src_port, event.dst_port) == (3, 3)


@pytest.mark.parametrize(
    ("flags", "answered", "expected"),
    [("2", "2", 0.0), ("16", "0", 0.0), ("17", "0", 0.0), ("24", "0", 0.0), ("17", "3", None), ("27", "3", None)],
)
def test_flags_of_both_sides_in_one_column_do_not_say_who_had_which(
    flags: str, answered: str, expected: float | None
) -> None:
    """NF-*-v1, older exporters: an ACK or a FIN of one side would be one of each."""
    row = {name: cell for name, cell in CELLS.items() if name not in ("CLIENT_TCP_FLAGS", "SERVER_TCP_FLAGS")}
    row |= {"PROTOCOL": "6", "TCP_FLAGS": flags, "IN_PKTS": "5", "OUT_PKTS": answered, "OUT_BYTES": "0"}
    got = read(f"{','.join(row)}\n{','.join(row.values())}\n")
    assert present(got).get("flow_completion_rate") == expected


def test_nfdump() -> None:
    summary = "Summary\nflows,bytes,packets,avg_bps,avg_pps,avg_bpp\n4593,241025,4652,58357,140,51\n"
    icmp = NFDUMP_ROW.replace("TCP,......S.", "ICMP,........").replace(",902,", ",8.0,")
    both = NFDUMP_ROW.replace(",3,180,0,0", ",3,180,2,80")
    got = read(f"{NFDUMP}\n{NFDUMP_ROW}\n{icmp}\n{both}\n{summary}", SourceSpec("t", timezone="Europe/Madrid"))
    assert not got.rejects
    event, f = got.events[0].event, present(got)
    assert event.ts_start == 1_515_767_850 * S and event.ts - event.ts_start == 2 * S
    assert f["flow_duration"] == 1.5 and f["total_forward_packets"] == 3 and f["forward_psh_flags"] == 0
    assert not f.keys() & {
        "total_backward_packets",
        "rst_flag_count",
        "flow_completion_rate",
        "flow_packets_per_second",
    }
    assert (got.events[1].event.src_port, got.events[1].event.dst_port) == (8, 0)
    assert present(Parsed(got.events[2:], []))["total_backward_packets"] == 2


@pytest.mark.parametrize(
    ("attack", "label", "expected"),
    [
        ("Benign", "0", ("Normal", "BENIGN")), ("Theft", "1", ("Exfiltration", "MALICIOUS")),
        ("injection", "1", ("WebAttack", "MALICIOUS")), ("DDOS attack-LOIC-UDP", "1", ("DDoS", "MALICIOUS")),
        ("DoS attacks-SlowHTTPTest", "1", ("DoS", "MALICIOUS")), ("Infilteration", "1", ("Infiltration", "MALICIOUS")),
        ("Brute Force -XSS", "1", ("WebAttack", "MALICIOUS")), ("scanning", "1", ("PortScan", "MALICIOUS")),
        ("mitm", "1", ("MITM", "MALICIOUS")), ("password", "1", ("BruteForce", "MALICIOUS")),
    ],
)  # fmt: skip
def test_labels(attack: str, label: str, expected: tuple[str, str]) -> None:
    got = read(f"{HEADER}\n{ROW.replace('0,Benign', f'{label},{attack}')}\n").events[0]
    assert (complete(got).family, got.event.classification) == expected


def test_real_tables_are_read_whole() -> None:
    got = read(content("nf_bot_iot_v2/nf_bot_iot_v2_dev.csv.gz"))
    assert not got.rejects and len({item.event.event_id for item in got.events}) == 9_790
    assert Counter(complete(item).family for item in got.events) == {
        "DDoS": 3_390, "DoS": 3_236, "PortScan": 2_647, "Normal": 502, "Exfiltration": 15,
    }  # fmt: skip
    f = unpack([item.features for item in got.events])
    assert (f[~np.isnan(f)] >= 0).all() and np.nanmax(f[:, 3]) < 10  # seconds: unwrapped
    got = read(content("nfdump/test1-malicious.nfdump1.7.1.csv.gz"))
    assert (len(got.events), len(got.rejects)) == (4_593, 0)
    assert sum(item.event.extra["ip_bytes_toserver"] for item in got.events) == 241_025  # as its summary says
