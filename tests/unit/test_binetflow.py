"""Argus binetflow: headers and none, directions, states, ports, labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.features import FEATURES, INDEX, unpack
from engine.normalize import complete
from engine.sources.base import Parsed, SourceSpec
from engine.sources.binetflow import ORDER, BinetflowAdapter, verdict
from engine.sources.files import Inputs
from engine.sources.ra import ports, protocol
from engine.sources.tcpflags import ACK, FIN, PSH, RST, SYN, UNSEEN, bits_of, completion
from tests.data import content, shared

S = 1_000_000_000
HEADER = "StartTime,Dur,Proto,SrcAddr,Sport,Dir,DstAddr,Dport,State,sTos,dTos,TotPkts,TotBytes,SrcBytes,SrcPkts,Label"
ROW = (
    "2011/08/10 09:46:59.607825,1.500000,tcp,10.0.0.1,1577,   ->,10.0.0.2,6667,FSPA_FSPA,0,16,5,500,300,3,"
    "flow=From-Botnet-V42-TCP-CC6-Plain-HTTP-Encrypted-Data"
)
UDP = "2011/08/10 09:46:59.607825,0.040000,udp,10.0.0.1,5000,  <->,10.0.0.3,53,CON,0,0,2,200,80"


def read(data: bytes | str, spec: SourceSpec | None = None) -> Parsed:
    adapter = BinetflowAdapter(spec or SourceSpec("t", "f.binetflow"))
    first, last = adapter.feed(data.encode() if isinstance(data, str) else data, 0), adapter.finish()
    return Parsed(first.events + last.events, first.rejects + last.rejects)


def one(**cells: str) -> tuple[Any, dict[str, float]]:
    """The event and the features that are present of ROW with other cells."""
    row = dict(zip(HEADER.split(","), ROW.split(","), strict=True)) | cells
    got = read(f"{HEADER}\n{','.join(row.values())}\n")
    assert not got.rejects
    features = unpack([got.events[0].features])[0]
    return got.events[0].event, {
        f.name: float(features[f.column]) for f in FEATURES if features[f.column] == features[f.column]
    }


def test_one_row_by_hand() -> None:
    event, f = one()
    assert event.ts_start == 1_312_969_619_607_825_000 and event.ts - event.ts_start == 1_500_000_000
    assert (event.src_ip, event.src_port, event.dst_ip, event.dst_port, event.proto) == (
        "10.0.0.1", 1577, "10.0.0.2", 6667, 6,
    )  # fmt: skip
    assert (event.family, event.classification) == ("C2", "MALICIOUS") and event.family_raw.startswith("flow=From-Bot")
    assert event.extra == {
        "frame_bytes_toserver": 300.0, "frame_bytes_toclient": 200.0, "tos_toserver": 0.0, "tos_toclient": 16.0,
    }  # fmt: skip
    expected = {
        "total_forward_packets": 3, "total_backward_packets": 2, "flow_duration": 1.5, "rst_flag_count": 0,
        "urg_flag_count": 0, "cwr_flag_count": 0, "forward_urg_flags": 0, "flow_completion_rate": 1.0,
        "flow_inter_arrival_time_mean": 375_000, "flow_packets_per_second": 5 / 1.5, "packet_symmetry": 0.2,
    }  # fmt: skip
    for name, value in expected.items():
        assert f[name] == pytest.approx(value, rel=1e-6), name
    # Frames are no payload, and how many packets had SYN is not said.
    assert not f.keys() & {
        "total_forward_bytes",
        "flow_bytes_per_second",
        "syn_flag_count",
        "forward_psh_flags",
        "entropy",
    }


def test_packets_of_a_side_only_where_certain() -> None:
    assert one(SrcPkts="", SrcBytes="500", TotBytes="500")[1]["total_backward_packets"] == 0
    assert one(SrcPkts="", TotPkts="2")[1]["total_forward_packets"] == 1  # both sides had flags
    assert one(SrcPkts="", TotPkts="1", SrcBytes="", State="S_")[1]["total_forward_packets"] == 1
    event, f = one(SrcPkts="")
    assert "total_forward_packets" not in f and event.extra["packets"] == 5.0
    assert f["flow_packets_per_second"] == pytest.approx(5 / 1.5) and f["flow_inter_arrival_time_mean"] == 375_000
    assert "total_forward_packets" not in one(SrcPkts="7")[1]  # more than there were


def test_forward_is_from_the_initiator() -> None:
    event, f = one(Dir="  <-", State="SA_SPA")
    assert (event.src_ip, event.src_port, event.dst_ip, event.dst_port) == ("10.0.0.2", 6667, "10.0.0.1", 1577)
    assert (f["total_forward_packets"], f["total_backward_packets"], f["backward_psh_flags"]) == (2, 3, 0)
    assert event.extra["frame_bytes_toserver"] == 200.0 and event.extra["tos_toserver"] == 16.0
    event, f = one(State="SA_", TotPkts="1", SrcPkts="1", SrcBytes="60", TotBytes="60")  # a lone SYN-ACK
    assert event.src_ip == "10.0.0.2" and (f["total_forward_packets"], f["total_backward_packets"]) == (0, 1)
    for direction in ("   ->", "  <->", "  <?>", "   ?>", "who"):
        assert one(Dir=direction)[0].src_ip == "10.0.0.1"


@pytest.mark.parametrize(
    ("state", "rate"),
    [
        ("FSPA_FSPA", 1.0), ("SPA_FSPA", 0.5), ("PA_PA", 0.5), ("S_", 0.0), ("S_RA", 0.0), ("SR_SA", 0.0),
        ("FSRPA_FSPA", None), ("SRA_SA", None), ("SA_A", None), ("S0", None),
        ("REQ", 0.0), ("ACC", 0.0), ("CON", 0.5), ("FIN", None), ("RST", None),
    ],
)  # fmt: skip
def test_a_state_gives_what_is_certain(state: str, rate: float | None) -> None:
    assert one(State=state)[1].get("flow_completion_rate") == rate


def test_flags_of_a_side() -> None:
    assert bits_of("FSPA") == FIN | SYN | PSH | ACK and bits_of("...AP.SF") == bits_of("FSPA")
    assert bits_of("S0") == UNSEEN and bits_of("") == 0
    assert completion(SYN | ACK | RST | PSH, SYN | ACK) == 0.5 and np.isnan(completion(UNSEEN, ACK))


@pytest.mark.parametrize(
    ("proto", "src", "dst", "expected"),
    [
        (6, "0x50", "443", (80, 443)), (17, "", "-", (None, None)), (1, "0x0303", "0x12d6", (3, 3)),
        (1, "0x0008", "0x0f72", (8, 0)), (1, "0x0103", "", (3, 1)), (1, "0x03", "0x03", (3, 3)),
        (58, "135", "0", (135, 0)), (2, "1", "2", (None, None)), (None, "66", "66", (None, None)),
    ],
)  # fmt: skip
def test_ports(proto: int | None, src: str, dst: str, expected: tuple[int | None, int | None]) -> None:
    assert ports(proto, src, dst) == expected


def test_protocol_names() -> None:
    assert [protocol(word) for word in ("tcp", " UDP", "sctp", "ospf", "ipv6-icmp", "igmp", "89")] == [
        6,
        17,
        132,
        89,
        58,
        2,
        89,
    ]
    assert [protocol(word) for word in ("arp", "llc", "any", "unas", "")] == [None] * 5


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("flow=Background-UDP-Established", ("Unknown", "UNKNOWN")),
        ("flow=To-Background-CVUT-Proxy", ("Unknown", "UNKNOWN")),
        ("flow=From-Normal-V42-Jist", ("Normal", "BENIGN")),
        ("flow=Normal-V42-HTTP-windowsupdate", ("Normal", "BENIGN")),
        ("flow=From-Botnet-V42-TCP-Attempt-SPAM", ("Spam", "MALICIOUS")),
        ("flow=From-Botnet-V42-UDP-DNS", ("Botnet", "MALICIOUS")),
        ("flow=Malware-UDP-DNS", ("Malware", "MALICIOUS")),
        ("flow=TCP-Established-To-Microsoft-7", ("Unknown", "UNKNOWN")),
        ("Botnet", ("Botnet", "MALICIOUS")), ("Background", ("Unknown", "UNKNOWN")), ("normal", ("Normal", "BENIGN")),
        ("Malicious", ("Unknown", "MALICIOUS")), ("", ("Unknown", "UNKNOWN")),
    ],
)  # fmt: skip
def test_labels(label: str, expected: tuple[str, str]) -> None:
    got = read(f"{HEADER}\n{ROW.rpartition(',')[0]},{label}\n").events[0]
    event = complete(got)
    assert (event.family, event.classification) == expected
    assert label in (event.family_raw, "Malicious") and verdict(label)[2] == event.classification


@pytest.mark.parametrize("width", [13, 14, 15, 16])
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_without_a_header(width: int, delimiter: str) -> None:
    names = [*HEADER.split(",")[: width - 1], "Label"] if width in (14, 15) else HEADER.split(",")[:width]
    cells = dict(zip(HEADER.split(","), ROW.split(","), strict=True))
    row = delimiter.join(cells[name] for name in names)
    assert BinetflowAdapter.sniff(row.encode() + b"\n", "x")
    bare, headed = read(f"{row}\n{row}\n"), read(f"{delimiter.join(names)}\n{row}\n{row}\n")
    assert bare == headed and len(bare.events) == 2 and not bare.rejects
    resumed = BinetflowAdapter(SourceSpec("t", "f.binetflow"))
    resumed.prime(row.encode() + b"\n")
    resumed.skip(row.encode() + b"\n", 0)
    assert resumed.feed(row.encode() + b"\n", len(row) + 1).events == bare.events[1:]
    assert len(ORDER) == 16


@pytest.mark.parametrize(
    "line",
    [
        ROW.replace("2011/08/10", "10.08.2011"), ROW.replace("1.500000", "fast"), ROW.replace("   ->", "east"),
        ROW.replace(",5,500,", ",5,many,"), UDP.rpartition(",")[0].rpartition(",")[0], ROW + ",1", "a,b,c", "",
    ],
)  # fmt: skip
def test_a_file_without_a_header_must_be_sure(line: str) -> None:
    assert not BinetflowAdapter.sniff(line.encode() + b"\n", "x.binetflow")
    got = read(line + "\n")
    assert not got.events and all("no binetflow header" in reject.reason for reject in got.rejects)


def test_times() -> None:
    assert one(StartTime="1300475167.096535")[0].ts_start == 1_300_475_167_096_535_000
    assert one(StartTime="1970/01/01 01:00:08.140073")[0].ts_start == 3_608_140_073_000  # relative
    madrid = read(f"{HEADER}\n{ROW}\n", SourceSpec("t", timezone="Europe/Madrid")).events[0].event
    assert one()[0].ts_start - madrid.ts_start == 7_200 * S


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("10.0.0.2", "10.0.0.299", "not an address"), ("2011/08/10", "2011/02/31", "not a date"),
        (",6667,", ",0x1ffff,", "destination port"), (",5,500,", ",five,500,", "packets"),
        (",tcp,", ",man,", "management record"), (",FSPA_FSPA", "", "15 columns, the header has 16"),
    ],
)  # fmt: skip
def test_bad_rows_are_rejected_and_stop_nothing(old: str, new: str, says: str) -> None:
    got = read(f"{HEADER}\n{ROW.replace(old, new)}\n{ROW}\n")
    assert len(got.events) == 1 and says in got.rejects[0].reason and got.rejects[0].offset == len(HEADER) + 1


@pytest.mark.parametrize(
    ("file", "rows", "no_flows"),
    [
        ("normal_2013-10-21", 2_398, 0), ("test11-portscan", 66, 0), ("test2-malicious", 6_751, 0),
        ("test3-mixed", 89, 0), ("test4-malicious", 394, 0), ("test5-mixed_labelled_first300", 300, 1),
    ],
)  # fmt: skip
def test_real_files_are_read_whole(file: str, rows: int, no_flows: int) -> None:
    data = content(f"argus_binetflow/{file}.binetflow.gz")
    assert BinetflowAdapter.sniff(data[:65_536], file)
    got = read(data)
    assert (len(got.events), len(got.rejects)) == (rows - no_flows, no_flows)
    assert len({item.event.event_id for item in got.events}) == len(got.events)
    assert {complete(item).family for item in got.events} <= {"Unknown", "Malware"}
    f = unpack([item.features for item in got.events])
    assert (f[~np.isnan(f)] >= 0).all() and min(item.event.coverage for item in got.events) >= 4
    # Without its header it says the same.
    bare = read(data.partition(b"\n")[2])
    assert [item.features for item in bare.events] == [item.features for item in got.events]
    assert [complete(item) for item in bare.events] == [item.event for item in got.events]


@pytest.mark.parametrize(
    ("tool", "format", "end", "alike"),
    [("argus_3.0.8", "binetflow", "binetflow", 60), ("netflower_1.1.0", "cicflow", "csv", 25)],
)
def test_tables_agree_with_our_own_flows_of_the_same_capture(tool: str, format: str, end: str, alike: int) -> None:
    """Where both cut the same flow, every feature that both have is the same."""
    found = 0
    for capture in ("pcap_zeek/wikipedia.pcap", "pcap_zeek/ssh/sshguess.pcap", "pcap_zeek/ftp/bruteforce.pcap"):
        ours = {}
        for item in (
            item for parsed in Inputs().read(shared(capture), SourceSpec("t"), "pcap") for item in parsed.events
        ):
            f, e = unpack([item.features])[0], item.event
            ours[e.src_ip, e.src_port, e.dst_ip, e.dst_port, e.proto, f[4], f[5]] = f
        table = shared(f"ground_truth_flows/{tool}/{capture.replace('/', '_')}.{end}.gz")
        for item in (item for parsed in Inputs().read(table, SourceSpec("t"), format) for item in parsed.events):
            theirs, e = unpack([item.features])[0], item.event
            mine = ours.get((e.src_ip, e.src_port, e.dst_ip, e.dst_port, e.proto, theirs[4], theirs[5]))
            if mine is None or abs(mine[3] - theirs[3]) > 1e-3:
                continue
            found += 1
            both = np.isfinite(mine) & np.isfinite(theirs)
            exact = np.where(np.array([f.unit for f in FEATURES]) == "us", 1.0, 1e-3)  # netflower: binary seconds
            wrong = both & ~(np.abs(mine - theirs) <= exact + 1e-3 * np.abs(mine))
            assert not wrong.any(), [(f.name, mine[f.column], theirs[f.column]) for f in FEATURES if wrong[f.column]]
    assert found >= alike
    assert INDEX["flow_duration"] == 3
