"""UNSW-NB15: both dialects, units, what is not payload, labels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from engine.features import INDEX, unpack
from engine.normalize import complete
from engine.sources.base import Parsed, SourceSpec
from engine.sources.table import normalised
from engine.sources.unsw import RAW, UnswAdapter
from tests.data import content

S = 1_000_000_000
HEADER = (
    "id,dur,proto,service,state,spkts,dpkts,sbytes,dbytes,rate,sttl,dttl,sload,dload,sloss,dloss,sinpkt,dinpkt,sjit,djit,"
    "swin,stcpb,dtcpb,dwin,tcprtt,synack,ackdat,smean,dmean,trans_depth,response_body_len,ct_srv_src,ct_state_ttl,"
    "ct_dst_ltm,ct_src_dport_ltm,ct_dst_sport_ltm,ct_dst_src_ltm,is_ftp_login,ct_ftp_cmd,ct_flw_http_mthd,ct_src_ltm,"
    "ct_srv_dst,is_sm_ips_ports,attack_cat,label"
)
ROW = (
    "7,0.5,tcp,http,CON,3,2,300,200,8,31,29,1,1,1,0,200.5,500,12.5,0,255,1,1,255,0.03,0.01,0.02,100,100,1,77,1,0,1,1,1,1,"
    "0,0,1,1,1,0,Exploits,1"
)
RAW_ROW = (
    "59.166.0.0,1390,149.171.126.6,0x35,udp,CON,0.001055,132,164,31,29,0,0,dns,500473.9375,621800.9375,2,2,0,0,0,0,66,82,"
    "0,0,0,0,1421927414,1421927414,0.017,0.013,0,0,0,0,0,0,0,0,3,7,1,3,1,1,1,,0"
)


def read(data: bytes | str, spec: SourceSpec | None = None) -> Parsed:
    adapter = UnswAdapter(spec or SourceSpec("t", "f.csv"))
    first, last = adapter.feed(data.encode() if isinstance(data, str) else data, 0), adapter.finish()
    return Parsed(first.events + last.events, first.rejects + last.rejects)


def feature(parsed: Parsed, name: str) -> float:
    return float(unpack([parsed.events[0].features])[0, INDEX[name]])


def test_one_row_by_hand() -> None:
    got = read(f"{HEADER}\n{ROW}\n")
    event = complete(got.events[0])
    assert (event.ts, event.ts_start, event.proto, event.text) == (0, 0, 6, "http")
    assert (event.family, event.classification) == ("Exploit", "MALICIOUS")
    assert event.extra["frame_bytes_toserver"] == 300 and event.extra["jitter_ms_toserver"] == 12.5
    assert event.extra["tcp_rtt_s"] == 0.03 and event.extra["response_body_bytes"] == 77
    expected = {
        "flow_duration": 0.5, "total_forward_packets": 3, "total_backward_packets": 2, "flow_packets_per_second": 10,
        "flow_inter_arrival_time_mean": 125_000, "forward_inter_arrival_time_mean": 200_500,
        "forward_inter_arrival_time_total": 401_000, "flow_completion_rate": 0.5, "packet_symmetry": 0.2,
    }  # fmt: skip
    for name, value in expected.items():
        assert feature(got, name) == pytest.approx(value, rel=1e-6), name
    for name in (
        "total_forward_bytes",
        "forward_packet_length_mean",
        "forward_inter_arrival_time_std",
        "syn_flag_count",
    ):
        assert np.isnan(feature(got, name)), name


def test_gaps_that_add_up_to_more_than_the_flow_are_missing() -> None:
    assert np.isnan(feature(read(f"{HEADER}\n{ROW.replace('200.5', '300')}\n"), "forward_inter_arrival_time_mean"))
    assert np.isnan(
        feature(read(f"{HEADER}\n{ROW.replace(',3,2,300', ',1,2,300')}\n"), "forward_inter_arrival_time_mean")
    )


def test_the_raw_files_have_no_header() -> None:
    data = f"\ufeff{RAW_ROW}\n{RAW_ROW.replace(',,0', ', Fuzzers ,1')}\r\n".encode()
    assert UnswAdapter.sniff(data, "UNSW-NB15_1.csv")
    got = read(data)
    assert not got.rejects
    event, attack = (complete(item) for item in got.events)
    assert (event.src_ip, event.src_port, event.dst_ip, event.dst_port) == ("59.166.0.0", 1390, "149.171.126.6", 53)
    assert event.ts_start == 1_421_927_414 * S and event.ts - event.ts_start == 1_055_000
    assert (event.family, event.classification, event.text) == ("Normal", "BENIGN", "dns")
    assert (attack.family, attack.classification, attack.family_raw) == ("Fuzzers", "MALICIOUS", "Fuzzers")
    assert feature(got, "syn_flag_count") == 0 and feature(got, "forward_inter_arrival_time_mean") == pytest.approx(17)
    assert feature(got, "flow_completion_rate") == 1


@pytest.mark.parametrize("change", [("59.166", "x.166"), ("1421927414,", "2011-01-01,"), (",,0", ",,2"), (",,0", ",0")])
def test_a_file_without_a_header_must_be_sure(change: tuple[str, str]) -> None:
    assert not UnswAdapter.sniff(RAW_ROW.replace(*change).encode(), "UNSW-NB15_1.csv")
    assert len(RAW.split(",")) == 49


@pytest.mark.parametrize(
    ("attack", "label", "expected"),
    [
        ("Normal", "0", ("Normal", "BENIGN")), ("", "0", ("Normal", "BENIGN")),
        (" Fuzzers ", "1", ("Fuzzers", "MALICIOUS")),
        ("Backdoors", "1", ("Backdoor", "MALICIOUS")), ("Analysis", "1", ("PortScan", "MALICIOUS")),
        ("", "1", ("Unknown", "MALICIOUS")), ("-", "Malicious", ("Unknown", "MALICIOUS")),
        ("", "Benign", ("Normal", "BENIGN")), ("Worms", "", ("Worm", "MALICIOUS")), ("", "", ("Unknown", "UNKNOWN")),
    ],
)  # fmt: skip
def test_labels(attack: str, label: str, expected: tuple[str, str]) -> None:
    event = complete(read(f"{HEADER}\n{ROW.replace('Exploits,1', f'{attack},{label}')}\n").events[0])
    assert (event.family, event.classification) == expected


@pytest.mark.parametrize(
    ("file", "families"),
    [
        ("unsw_nb15_82k_dev", {"Normal": 7_379, "Generic": 3_723, "Exploit": 2_348, "Fuzzers": 1_138, "DoS": 803,
                               "PortScan": 799, "Backdoor": 102, "Shellcode": 80, "Worm": 10}),
        ("unsw_nb15_1_sampled_with_stime", {"Normal": 6_796, "Unknown": 204}),
    ],
)  # fmt: skip
def test_real_files_are_read_whole(file: str, families: dict[str, int]) -> None:
    data = content(f"unsw_nb15/{file}.csv.gz")
    assert UnswAdapter.sniff(data[:65_536], file)
    got = read(data, SourceSpec("t", "f", fingerprint="f"))
    assert not got.rejects and Counter(complete(item).family for item in got.events) == families
    assert len({item.event.event_id for item in got.events}) == len(got.events)
    f = unpack([item.features for item in got.events])
    assert (f[~np.isnan(f)] >= 0).all() and min(item.event.coverage for item in got.events) >= 8
    # Where only the source sent, its gaps are the flow's; and what the table says of them is nearly always that.
    n, seconds = f[:, INDEX["total_forward_packets"]], f[:, INDEX["flow_duration"]]
    alone = (f[:, INDEX["total_backward_packets"]] == 0) & (n > 1)
    gap_us = seconds[alone] * 1e6 / (n[alone] - 1)
    assert np.allclose(f[alone, INDEX["forward_inter_arrival_time_mean"]], gap_us, rtol=1e-5)
    names = [normalised(name) for name in data.partition(b"\n")[0].decode().split(",")]
    column = next(names.index(name) for name in ("sinpkt", "sintpkt") if name in names)
    given_ms = np.array([float(line.split(",")[column]) for line in data.decode().splitlines()[1:]])
    same = np.isclose(given_ms[alone] * 1e3, gap_us, rtol=2e-3, atol=1.1)
    assert same.mean() > (0.95 if len(same) > 1_000 else 0.85)
