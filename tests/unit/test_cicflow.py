"""CICFlowMeter tables: every dialect, units, unsound columns, labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.features import FEATURES, INDEX, unpack
from engine.normalize import complete
from engine.sources.base import Parsed, SourceSpec
from engine.sources.cicflow import CicFlowAdapter, header_of, judged
from engine.sources.files import Inputs
from tests.data import content, shared

S = 1_000_000_000
JAVA4 = (
    "Flow ID,Src IP,Src Port,Dst IP,Dst Port,Protocol,Timestamp,Flow Duration,Total Fwd Packet,Total Bwd packets,"
    "Total Length of Fwd Packet,Total Length of Bwd Packet,Fwd Packet Length Max,Fwd Packet Length Min,"
    "Fwd Packet Length Mean,Fwd Packet Length Std,Bwd Packet Length Max,Bwd Packet Length Min,Bwd Packet Length Mean,"
    "Bwd Packet Length Std,Flow Bytes/s,Flow Packets/s,Flow IAT Mean,Flow IAT Std,Flow IAT Max,Flow IAT Min,"
    "Fwd IAT Total,Fwd IAT Mean,Fwd IAT Std,Fwd IAT Max,Fwd IAT Min,Bwd IAT Total,Bwd IAT Mean,Bwd IAT Std,Bwd IAT Max,"
    "Bwd IAT Min,SYN Flag Count,ACK Flag Count,CWR Flag Count,Fwd PSH Flags,Idle Mean,Idle Max,Label"
)
ROW = (
    "x,10.0.0.1,1234,10.0.0.2,80,6,31/03/2015 11:32:18 PM,1500000,2,1,30,100,20,10,15.0,7.0710678118654755,100,100,"
    "100.0,0.0,Infinity,NaN,750000,0,900000,600000,600000,600000,0,600000,600000,0,0,0,0,0,2,3,0,1,0,0,DoS Hulk"
)


def read(data: bytes | str, spec: SourceSpec | None = None) -> Parsed:
    adapter = CicFlowAdapter(spec or SourceSpec("t", "f.csv"))
    first, last = adapter.feed(data.encode() if isinstance(data, str) else data, 0), adapter.finish()
    return Parsed(first.events + last.events, first.rejects + last.rejects)


def values(parsed: Parsed) -> dict[str, Any]:
    features = unpack([item.features for item in parsed.events])
    return {name: features[:, column] for name, column in INDEX.items()}


def test_one_row_by_hand() -> None:
    got = read(f"{JAVA4}\n{ROW}\n")
    assert not got.rejects
    event = got.events[0].event
    assert event.ts_start == 1_427_844_738 * S and event.ts - event.ts_start == 1_500_000_000
    assert (event.src_ip, event.src_port, event.dst_ip, event.dst_port, event.proto) == (
        "10.0.0.1",
        1234,
        "10.0.0.2",
        80,
        6,
    )
    assert complete(got.events[0]).family == "DoS" and event.classification == "MALICIOUS"
    f = {name: float(column[0]) for name, column in values(got).items()}
    expected = {
        "flow_duration": 1.5,
        "flow_bytes_per_second": 130 / 1.5,
        "flow_packets_per_second": 2.0,
        "download_upload_ratio": 0.5,
        "average_packet_size": 130 / 3,
        "packet_length_mean": 130 / 3,
        "packet_length_std": float(np.std([10, 20, 100], ddof=1)),
        "packet_length_variance": float(np.var([10, 20, 100], ddof=1)),
        "minimum_packet_length": 10,
        "maximum_packet_length": 100,
        "flow_inter_arrival_time_mean": 750_000,
        "forward_inter_arrival_time_total": 600_000,
        "active_mean": 1_500_000,
        "syn_ack_ratio": 0.5,
        "packet_symmetry": 1 / 3,
        "traffic_amplification_factor": 100 / 30,
        "temporal_consistency": 1.0,
        "data_volume": float(np.log10(131) / 9),
    }
    for name, value in expected.items():
        assert f[name] == pytest.approx(value, rel=1e-6), name
    # One packet back has no gaps; Java looks at the first packet only for the flags of a direction; nothing was idle.
    for name in (
        "backward_inter_arrival_time_total",
        "forward_psh_flags",
        "idle_mean",
        "flow_completion_rate",
        "entropy",
    ):
        assert np.isnan(f[name]), name


@pytest.mark.parametrize(
    ("file", "dialect", "rows"),
    [
        ("cicids2017_improved/cicids2017_improved_dev.csv.gz", "improved", 13_312),
        ("cse_cic_ids2018/wed14feb2018_dev.csv.gz", "java3", 1_079),
        ("cicflowmeter_java_flows/flows.csv.gz", "java4", 1_592),
        ("cicflowmeter_official/expected_v3_2018-02_test.pcap.csv", "java3", 96),
        ("cicflowmeter_official/expected_v4_2018-02_test.csv", "java3", 96),
        ("cicflowmeter_official/live_sample_test_Flow.csv", "java3", 26),
        ("ground_truth_flows/cicflowmeter_py_0.2.0/cicflowmeter_official_test.pcap.csv.gz", "python", 57),
        ("ground_truth_flows/cicflowmeter_py_0.5.0/cicflowmeter_official_test.pcap.csv.gz", "python", 57),
    ],
)
def test_real_tables_are_read_whole(file: str, dialect: str, rows: int) -> None:
    data = content(file)
    header = header_of(data.partition(b"\n")[0])
    assert header is not None and header.dialect == dialect and CicFlowAdapter.sniff(data[:65_536], file)
    got = read(data)
    assert (len(got.events), len(got.rejects)) == (rows, 0)
    assert len({item.event.event_id for item in got.events}) == rows
    assert min(complete(item).coverage for item in got.events) >= 15
    f = values(got)
    forward, backward = f["total_forward_packets"], f["total_backward_packets"]
    assert np.nanmin(f["flow_duration"]) >= 0 and np.nanmax(f["flow_duration"]) < 150  # seconds
    assert np.isnan(f["backward_inter_arrival_time_mean"][backward < 2]).all()
    with np.errstate(all="ignore"):
        gap_us = f["flow_duration"] * 1e6 / (forward + backward - 1)
    close = np.isclose(f["flow_inter_arrival_time_mean"], gap_us, rtol=1e-3, atol=2)
    assert close[(forward + backward > 1) & ~np.isnan(gap_us)].mean() > 0.95
    # What both sides' statistics add up to agrees with the column that Java's later editions got right.
    assert np.isfinite(f["packet_length_mean"]).any() == (dialect != "python")


@pytest.mark.parametrize(
    ("tool", "capture", "alike"),
    [
        ("java_98a5beb", "wikipedia", 26),
        ("py_0.2.0", "wikipedia", 30),
        ("py_0.5.0", "wikipedia", 26),
        ("py_0.2.0", "ftp_bruteforce", 1),
    ],
)
def test_tables_agree_with_our_own_flows_of_the_same_capture(tool: str, capture: str, alike: int) -> None:
    """Where both cut the same flow, every feature that both have is the same."""
    folder = "ftp" if capture == "ftp_bruteforce" else ""
    file = shared(f"pcap_zeek/{folder}/{capture.removeprefix('ftp_')}.pcap")
    ours = {}
    for item in (item for parsed in Inputs().read(file, SourceSpec("t"), "pcap") for item in parsed.events):
        f, e = unpack([item.features])[0], item.event
        ours[e.src_ip, e.src_port, e.dst_ip, e.dst_port, e.proto, int(f[4]), int(f[5])] = f
    name = f"pcap_zeek_{folder + '_' if folder else ''}{capture.removeprefix('ftp_')}.pcap.csv.gz"
    found = 0
    for item in read(content(f"ground_truth_flows/cicflowmeter_{tool}/{name}")).events:
        theirs, e = unpack([item.features])[0], item.event
        mine = ours.get((e.src_ip, e.src_port, e.dst_ip, e.dst_port, e.proto, int(theirs[4]), int(theirs[5])))
        if mine is None or abs(mine[3] - theirs[3]) > 1e-3:
            continue
        found += 1
        both = np.isfinite(mine) & np.isfinite(theirs)
        wrong = both & ~np.isclose(mine, theirs, rtol=1e-3, atol=1e-3)
        assert not wrong.any(), ([f.name for f in FEATURES if wrong[f.column]], name)
    assert found >= alike


def test_improved_lengths_over_both_directions_agree_with_the_table() -> None:
    data = content("cicids2017_improved/cicids2017_improved_dev.csv.gz")
    names = data.partition(b"\n")[0].decode().split(",")
    rows = [line.split(",") for line in data.decode().splitlines()[1:]]
    f = values(read(data))
    layered = np.isin(f["protocol_number"], (6, 17))
    for ours, theirs in (
        ("packet_length_mean", "Packet Length Mean"),
        ("packet_length_std", "Packet Length Std"),
        ("maximum_packet_length", "Packet Length Max"),
        ("flow_bytes_per_second", "Flow Bytes/s"),
        ("backward_average_bytes_bulk", "Bwd Bytes/Bulk Avg"),
    ):
        column = np.array([float(row[names.index(theirs)]) for row in rows])
        known = np.isfinite(f[ours]) & np.isfinite(column) & layered
        assert known.sum() > 1_000
        assert np.isclose(f[ours][known], column[known], rtol=1e-4, atol=1e-3).mean() > 0.999, ours


@pytest.mark.parametrize(
    ("label", "attempted", "expected"),
    [
        ("BENIGN", "", ("BENIGN", "BENIGN")),
        ("Benign", "-1", ("Benign", "BENIGN")),
        ("NeedManualLabel", "", ("", "UNKNOWN")),
        ("No Label", "", ("", "UNKNOWN")),
        ("DoS Hulk", "-1", ("DoS Hulk", "MALICIOUS")),
        ("DoS Hulk - Attempted", "", ("DoS Hulk - Attempted", "SUSPICIOUS")),
        ("DoS Hulk", "3", ("DoS Hulk", "SUSPICIOUS")),
    ],
)
def test_labels(label: str, attempted: str, expected: tuple[str, str]) -> None:
    assert judged(label, attempted) == expected


@pytest.mark.parametrize(
    ("stamp", "ns"),
    [
        ("2017-07-03 11:57:41.826651", 1_499_083_061_826_651_000),
        ("14/02/2018 10:44:51", 1_518_605_091 * S),
        ("31/03/2015 12:00:00 AM", 1_427_760_000 * S),
        ("7/7/2017 3:30", 1_499_398_200 * S),
    ],
)
def test_timestamps(stamp: str, ns: int) -> None:
    row = ROW.replace("31/03/2015 11:32:18 PM", stamp)
    assert read(f"{JAVA4}\n{row}\n").events[0].event.ts_start == ns
    madrid = read(f"{JAVA4}\n{row}\n", SourceSpec("t", timezone="Europe/Madrid"))
    assert ns - madrid.events[0].event.ts_start in (3600 * S, 7200 * S)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (",80,", ",99999,", "destination port"),
        ("10.0.0.2", "10.0.0.299", "not an address"),
        ("31/03/2015", "31/02/2015", "not a date"),
        ("11:32:18 PM", "13:32:18 PM", "not a date"),
        (",750000,", ",many,", "flow_inter_arrival_time_mean"),
        (",DoS Hulk", "", "42 columns, the header has 43"),
    ],
)
def test_bad_rows_are_rejected_and_stop_nothing(old: str, new: str, says: str) -> None:
    got = read(f"{JAVA4}\n{ROW.replace(old, new)}\n{ROW}\n")
    assert len(got.events) == 1 and says in got.rejects[0].reason and got.rejects[0].offset == len(JAVA4) + 1


def test_negative_and_missing_cells_are_missing() -> None:
    f = values(read(f"{JAVA4}\n{ROW.replace(',1500000,', ',-5,').replace(',7.0710678118654755,', ',,')}\n"))
    assert np.isnan(f["flow_duration"][0]) and np.isnan(f["forward_packet_length_std"][0])
    assert np.isnan(f["packet_length_std"][0]) and f["packet_length_mean"][0] == pytest.approx(130 / 3)


def test_header_in_the_middle_and_none_at_all() -> None:
    got = read(f"{JAVA4}\n{ROW}\n{JAVA4}\n{ROW}\n")
    assert len(got.events) == 2 and not got.rejects
    got = read(f"{ROW}\n{ROW}\n")
    assert not got.events and "no CICFlowMeter header" in got.rejects[0].reason


def test_a_table_without_times_has_ids_by_place() -> None:
    header = JAVA4.replace("Timestamp,", "").replace("Flow ID,Src IP,Src Port,Dst IP,", "")
    row = ROW.replace("31/03/2015 11:32:18 PM,", "").replace("x,10.0.0.1,1234,10.0.0.2,", "")
    spec = SourceSpec("t", fingerprint="abc")
    ids = [item.event.event_id for item in read(f"{header}\n{row}\n{row}\n", spec).events]
    assert len(set(ids)) == 2
    assert ids == [item.event.event_id for item in read(f"{header}\n{row}\n{row}\n", spec).events]
    resumed = CicFlowAdapter(spec)
    resumed.prime(header.encode() + b"\n")
    at = len(header) + len(row) + 2
    assert [item.event.event_id for item in resumed.feed(row.encode() + b"\n", at).events] == ids[1:]


def test_a_label_with_a_dash_of_windows_is_read() -> None:
    """CIC-IDS-2017 has its web attacks so; what is kept as the record is what was there."""
    row = ROW.replace("DoS Hulk", "Web Attack \x96 Brute Force").encode("latin-1")
    got = read(f"{JAVA4}\n".encode() + row + b"\n" + row + b"\n")
    assert not got.rejects and [item.raw for item in got.events] == [row, row]
    event = complete(got.events[0])
    assert (event.family_raw, event.family, event.classification) == (
        "Web Attack \N{EN DASH} Brute Force", "WebAttack", "MALICIOUS"
    )  # fmt: skip
    resumed = CicFlowAdapter(SourceSpec("t", "f.csv"))
    resumed.prime(JAVA4.encode())
    resumed.skip(f"{JAVA4}\n".encode() + row + b"\n", 0)
    again = resumed.feed(row + b"\n", len(JAVA4) + 1 + len(row) + 1).events
    assert [item.event.event_id for item in again] == [got.events[1].event.event_id]


@pytest.mark.parametrize("nothing", [",,,,,,,", '"","",""', " , ,\t,", ";;;"])
def test_a_row_without_a_word_is_passed_over_as_an_empty_line_is(nothing: str) -> None:
    """A file of CIC-IDS-2017 ends with more of these than it has rows."""
    got = read(f"{JAVA4}\n{ROW}\n{nothing}\n{nothing}\n\n{ROW}\n{nothing}\n")
    assert not got.rejects and len(got.events) == 2
    assert len({item.event.event_id for item in got.events}) == 2
