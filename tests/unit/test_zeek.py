"""Zeek's logs: what becomes of each line, what follows for certain from a conn.log, and its dialects."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import feed
from engine.features import INDEX, NAMES, unpack
from engine.normalize import complete
from engine.sources import detect, join
from engine.sources.base import Parsed, SourceSpec
from engine.sources.files import Inputs
from engine.sources.join import Join
from engine.sources.zeek import ZeekAdapter, duration_ns, judged, stamp_ns
from engine.sources.zeek_flow import proof
from ipc.event import FeaturedEvent
from tests.data import content, shared

CONN: dict[str, Any] = {
    "ts": "1596790164.509987", "uid": "C1", "id.orig_h": "10.0.0.1", "id.orig_p": "1000", "id.resp_h": "10.0.0.2",
    "id.resp_p": "80", "proto": "tcp", "service": "http", "duration": "1.500000", "orig_bytes": "100",
    "resp_bytes": "300", "conn_state": "SF", "local_orig": "T", "local_resp": "F", "missed_bytes": "0",
    "history": "ShADadFf", "orig_pkts": "5", "orig_ip_bytes": "308", "resp_pkts": "4", "resp_ip_bytes": "516",
    "tunnel_parents": "(empty)",
}  # fmt: skip
CONN_JSON: dict[str, Any] = {
    k: int(v) if v.isdigit() else {"T": True, "F": False}.get(v, v) for k, v in CONN.items() if k != "tunnel_parents"
} | {"ts": 1596790164.509987, "duration": 1.5}
DNS = {"ts": "1596790164.6", "uid": "C1", "query": "evil.example", "qtype_name": "A", "rcode_name": "NOERROR"}
HTTP = {
    "ts": "1596790164.7", "uid": "C1", "method": "GET", "host": "evil.example", "uri": "/caf\\xc3\\xa9\\x0a?\\\\x41",
    "user_agent": "curl", "status_code": "200",
}  # fmt: skip
SSL = {"ts": "5.0", "uid": "C1", "version": "TLSv12", "server_name": "a.example", "subject": "CN=a", "issuer": "CN=ca"}
NOTICE_JSON: dict[str, Any] = {
    "ts": 1596790170.5, "note": "Scan::Port_Scan", "msg": "scanned", "sub": "remote", "src": "10.0.0.9",
    "dst": "10.0.0.2", "p": 22, "proto": "tcp", "n": 15, "actions": ["Notice::ACTION_LOG"],
}  # fmt: skip


def head(path: str, fields: list[str]) -> str:
    return (
        "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n"
        f"#path\t{path}\n#open\t2020-08-07-00-00-00\n#fields\t" + "\t".join(fields) + "\n#types\tx\n"
    )


HEADER = head("conn", list(CONN))


def table(path: str, *records: dict[str, Any]) -> bytes:
    rows = ["\t".join(str(value) for value in record.values()) for record in records]
    return (head(path, list(records[0])) + "".join(f"{row}\n" for row in rows)).encode()


def rows(*records: dict[str, Any]) -> bytes:
    """The same without a header."""
    return b"".join(("\t".join(map(str, record.values())) + "\n").encode() for record in records)


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def read(data: bytes, adapter: ZeekAdapter | None = None) -> Parsed:
    adapter = adapter or ZeekAdapter(SourceSpec("t", "conn.log"))
    first, last = adapter.feed(data, 0), adapter.finish()
    return Parsed(first.events + last.events, first.rejects + last.rejects)


def one(record: dict[str, Any]) -> FeaturedEvent:
    got = read(table("conn", record))
    assert not got.rejects, got.rejects[0].reason
    return got.events[0]


def features(item: FeaturedEvent) -> dict[str, float]:
    return dict(zip(NAMES, unpack([item.features])[0].tolist(), strict=True))


def test_a_flow_of_conn_log() -> None:
    item = one(CONN)
    event, f = complete(item), features(item)
    assert (event.kind, event.src_ip, event.src_port, event.dst_ip, event.dst_port, event.proto) == (
        "flow", "10.0.0.1", 1000, "10.0.0.2", 80, 6,
    )  # fmt: skip
    assert event.ts_start == 1_596_790_164_509_987_000 and event.ts - event.ts_start == 1_500_000_000
    assert event.text == "http" and event.extra == {
        "orig_ip_bytes": 308.0, "resp_ip_bytes": 516.0, "local_orig": 1.0, "local_resp": 0.0, "text_missing": 1.0,
    }  # fmt: skip
    assert (event.classification, event.family, event.tunnel) == ("UNKNOWN", "Unknown", "")
    expected = {
        "flow_duration": 1.5, "total_forward_packets": 5, "total_backward_packets": 4, "total_forward_bytes": 100,
        "total_backward_bytes": 300, "average_packet_size": 400 / 9, "flow_completion_rate": 1.0, "rst_flag_count": 0,
        "flow_packets_per_second": 6.0, "traffic_amplification_factor": 3.0,
    }  # fmt: skip
    for name, value in expected.items():
        assert f[name] == pytest.approx(value), name
    for name in ("syn_flag_count", "fin_flag_count", "psh_flag_count", "packet_length_std", "forward_header_length"):
        assert np.isnan(f[name]), name
    assert np.isnan(f["flow_inter_arrival_time_mean"])  # nine packets in a time that leaves the last of them out
    still_open = features(one(CONN | {"history": "ShADad", "conn_state": "S1"}))
    assert still_open["flow_inter_arrival_time_mean"] == pytest.approx(187_500)
    assert item.raw == rows(CONN)[:-1]


@pytest.mark.parametrize(
    ("more", "forward", "backward"),
    [
        ({}, 100, 300),
        ({"missed_bytes": "10"}, None, None),
        ({"history": "DadA"}, None, None),  # begun before the capture: where the numbers start is not known
        ({"history": "ShADadTFf"}, None, 300),  # sent twice: counted once
        ({"history": "ShADadgFf"}, 100, None),
        ({"orig_ip_bytes": "307"}, None, 300),  # headers are multiples of 4
        ({"orig_ip_bytes": "290"}, None, 300),  # and have at least 40 bytes
        ({"orig_ip_bytes": "900"}, None, 300),  # too much for headers: something was sent twice
        ({"history": "ShADadcFf"}, 100, None),
        ({"history": "-"}, None, None),
        ({"resp_pkts": "-", "resp_ip_bytes": "-", "resp_bytes": "-"}, 100, None),
        ({"history": "Sr", "conn_state": "REJ", "orig_bytes": "-", "orig_pkts": "1", "orig_ip_bytes": "60",
          "resp_bytes": "0", "resp_pkts": "1", "resp_ip_bytes": "40"}, 0, 0),
        ({"history": "F", "conn_state": "SH", "orig_bytes": "-", "orig_pkts": "1", "orig_ip_bytes": "60",
          "resp_bytes": "0", "resp_pkts": "0", "resp_ip_bytes": "0"}, None, 0),  # a FIN may carry data
        ({"proto": "udp", "history": "Dd", "orig_ip_bytes": "240", "resp_ip_bytes": "412"}, 100, 300),
        ({"proto": "udp", "history": "Dd", "orig_ip_bytes": "241", "resp_ip_bytes": "-"}, None, None),
        ({"proto": "unknown_transport", "history": "-"}, None, None),
    ],
)  # fmt: skip
def test_bytes_are_payload_only_where_that_is_certain(
    more: dict[str, str], forward: float | None, backward: float | None
) -> None:
    f = features(one(CONN | more))
    for name, value in (("total_forward_bytes", forward), ("total_backward_bytes", backward)):
        assert f[name] == value or (value is None and np.isnan(f[name])), (name, f[name])


def test_a_scan_is_known_almost_whole() -> None:
    item = one(CONN | {"service": "-", "duration": "-", "orig_bytes": "-", "resp_bytes": "-", "conn_state": "S0",
                       "history": "S", "orig_pkts": "1", "orig_ip_bytes": "40", "resp_pkts": "0",
                       "resp_ip_bytes": "0"})  # fmt: skip
    event, f = complete(item), features(item)
    assert event.ts == event.ts_start and event.text == "" and "text_missing" not in event.extra
    expected = {
        "flow_duration": 0, "flow_packets_per_second": 0, "total_forward_bytes": 0, "forward_packet_length_max": 0,
        "backward_packet_length_std": 0, "syn_flag_count": 1, "ack_flag_count": 0, "rst_flag_count": 0,
        "flow_completion_rate": 0, "forward_header_length": 20, "packet_symmetry": 1, "syn_ack_ratio": 1,
    }  # fmt: skip
    assert {name: f[name] for name in expected} == expected
    assert np.isnan(f["psh_flag_count"]) and np.isnan(f["flow_inter_arrival_time_mean"])
    two = features(one(CONN | {"history": "S", "conn_state": "S0", "duration": "-", "orig_bytes": "-",
                               "orig_pkts": "2", "orig_ip_bytes": "120", "resp_pkts": "0"}))  # fmt: skip
    assert two["syn_flag_count"] == 2 and np.isnan(two["flow_duration"]) and np.isnan(two["forward_header_length"])


@pytest.mark.parametrize(
    ("history", "state", "expected"),
    [
        ("ShADadFf", "SF", 1.0), ("ShADad", "S1", 0.5), ("ShADadF", "S2", 0.5), ("ShADadf", "S3", 0.5),
        ("ShR", "RSTO", 0.0), ("ShAR", "RSTO", 0.5), ("ShADr", "RSTR", 0.5), ("S", "S0", 0.0),
        ("Sr", "REJ", 0.0), ("SR", "RSTOS0", 0.0), ("SF", "SH", 0.0),
        ("DdA", "OTH", 0.5), ("D", "OTH", 0.0), ("^hf", "SHR", 0.0), ("^hCf", "SHR", None),
        ("", "OTH", None), ("ShADadFf", "odd", None), ("", "SF", 1.0),
    ],
)  # fmt: skip
def test_completion(history: str, state: str, expected: float | None) -> None:
    got = proof(history, state).completion
    assert got == expected or (expected is None and np.isnan(got))


def test_icmp_has_type_and_code_for_ports_whatever_stands_there() -> None:
    v6 = {"id.orig_h": "fe80::1", "id.resp_h": "fe80::2", "proto": "icmp", "history": "-", "service": "-"}
    asked = complete(one(CONN | v6 | {"id.orig_p": "128", "id.resp_p": "129"}))  # Zeek has the answer's type there
    assert (asked.src_port, asked.dst_port, asked.proto) == (128, 0, 58) and asked.community_id
    f = features(one(CONN | v6 | {"id.orig_p": "3", "id.resp_p": "3"}))
    assert f["syn_flag_count"] == 0 and f["flow_completion_rate"] == 1.0
    told = complete(one(CONN | {"proto": "icmp", "id.orig_p": "3", "id.resp_p": "3"}))
    assert (told.src_port, told.dst_port, told.proto) == (3, 3, 1)
    assert complete(one(CONN | {"proto": "unknown_transport", "ip_proto": "132"})).proto == 132


@pytest.mark.parametrize(
    ("label", "detail", "expected"),
    [
        ("Malicious", "C&C-Torii", ("MALICIOUS", "C2", "C&C-Torii")),
        ("Malicious", "(empty)", ("MALICIOUS", "Unknown", "Malicious")),
        ("benign", "-", ("BENIGN", "Normal", "benign")),
        ("Benign", "Google", ("BENIGN", "Normal", "Google")),
        ("Background", "(empty)", ("UNKNOWN", "Unknown", "Background")),
        ("-", "-", ("UNKNOWN", "Unknown", "")),
        ("(empty)", "", ("UNKNOWN", "Unknown", "")),
    ],
)
def test_labels(label: str, detail: str, expected: tuple[str, str, str]) -> None:
    event = complete(one(CONN | {"label": label, "detailedlabel": detail}))
    assert (event.classification, event.family, event.family_raw) == expected
    # IoT-23 as it was published: three columns in one, three spaces apart.
    spaced = HEADER.replace("tunnel_parents", "tunnel_parents   label   detailed-label").encode()
    spaced += rows(CONN | {"tunnel_parents": f"(empty)   {label}   {detail}"})
    event = complete(read(spaced).events[0])
    assert (event.classification, event.family, event.family_raw) == expected and event.tunnel == ""
    assert judged("Suspicious", "")[0] == "SUSPICIOUS"


def test_a_notice() -> None:
    item = read(lines(NOTICE_JSON)).events[0]
    event = complete(item)
    assert (event.kind, event.classification, event.family, event.family_raw, event.decision) == (
        "notice", "SUSPICIOUS", "PortScan", "Scan::Port_Scan", "ALERT",
    )  # fmt: skip
    assert (event.src_ip, event.dst_ip, event.dst_port, event.proto) == ("10.0.0.9", "10.0.0.2", 22, 6)
    assert event.text == "Scan::Port_Scan | scanned | remote" and event.extra == {"n": 15.0}
    assert event.ts == event.ts_start == 1_596_790_170_500_000_000 and event.coverage == 1
    other = complete(read(lines(NOTICE_JSON | {"note": "Weird::Activity", "dropped": True})).events[0])
    assert (other.family, other.family_raw, other.decision) == ("Unknown", "Weird::Activity", "DROP")


def test_text_joins_its_flow_within_one_stream() -> None:
    adapter = ZeekAdapter(SourceSpec("t"))
    got = read(table("http", HTTP) + table("ssl", SSL) + table("conn", CONN, CONN | {"uid": "C2"}), adapter)
    event = complete(got.events[0])
    assert event.text == "http | GET | evil.example | /café\n?\\x41 | curl | 200 | a.example | TLSv12 | CN=a | CN=ca"
    assert "text_missing" not in event.extra and got.events[1].event.extra["text_missing"] == 1.0
    mixed = lines({"_path": "dns", **DNS}, {"_path": "weird", "ts": 1, "uid": "C1"}, {"_path": "conn", **CONN_JSON})
    adapter = ZeekAdapter(SourceSpec("t"))
    (item,) = read(mixed, adapter).events
    assert item.event.text == "http | evil.example | A | NOERROR" and adapter.ignored == Counter({"weird": 1})


def test_tables_and_json_say_the_same() -> None:
    json_item, table_item = read(lines(CONN_JSON)).events[0], one(CONN)
    assert json_item.features == table_item.features
    json_item.event.event_id = table_item.event.event_id
    assert complete(json_item) == complete(table_item)


def test_a_header_anywhere_says_how_the_next_lines_are_read() -> None:
    swapped = dict(reversed(CONN.items())) | {"uid": "C7"}
    data = (
        b"\t" + table("conn", CONN) + b"#close\tx\n\n" + table("conn", swapped) + table("files", {"ts": 1, "fuid": 2})
    )
    adapter = ZeekAdapter(SourceSpec("t"))
    got = read(data, adapter)
    assert [item.event.src_port for item in got.events] == [1000, 1000] and not got.rejects
    assert adapter.ignored == Counter({"files": 1})
    again = ZeekAdapter(SourceSpec("t"))
    at = data.index(rows(swapped))
    again.prime(data)
    again.skip(data[:at], 0)
    assert again.feed(data[at:], at).events == got.events[1:]
    csv = b"ts,uid,id.orig_h,id.orig_p,id.resp_h,id.resp_p,proto,conn_state,label,detailed-label\n"
    csv += b'1.5,"C,1",10.0.0.1,1,10.0.0.2,2,udp,S0,Malicious,-\n'
    event = complete(read(csv).events[0])
    assert (event.dst_port, event.proto, event.classification, event.ts) == (2, 17, "MALICIOUS", 1_500_000_000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (rows(CONN), "no #fields header above this line"),
        (table("conn", CONN)[:-9] + b"\n", "20 columns, the header has 21"),
        (table("conn", CONN | {"ts": "nan"}), "'nan' is not a date and time"),
        (table("conn", CONN | {"ts": "9999999999999"}), "'9999999999999' is not a date and time"),
        (table("conn", CONN | {"ts": "9999999999"}), "'9999999999' is not between 1970 and 2262"),
        (table("conn", CONN | {"duration": "Infinity"}), "duration is not a number of seconds"),
        (table("conn", CONN | {"duration": "1s"}), "duration is not a number"),
        (table("conn", CONN | {"orig_pkts": "NaN"}), "orig_pkts is not a whole number"),
        (table("conn", CONN | {"orig_bytes": "-5"}), "orig_bytes is not a whole number"),
        (table("conn", CONN | {"resp_bytes": "1" * 30}), "resp_bytes is not a whole number"),
        (table("conn", CONN | {"id.orig_p": "70000"}), "id.orig_p is not in 0..65535"),
        (table("conn", CONN | {"id.orig_h": "10.0.0"}), "'10.0.0' is not an address"),
        (table("conn", CONN)[:-1] + b"\0\n", "line has a NUL byte"),
        (table("conn", CONN)[:-1] + b"\xff\n", "line is not UTF-8 at byte"),
        (table("conn", CONN)[:-1] + b"x" * (1 << 20) + b"\n", "line is longer than 1048576 bytes"),
        (lines(CONN_JSON | {"orig_pkts": 1.5}), "orig_pkts is not a whole number"),
        (lines(CONN_JSON | {"ts": [1]}), "'[1]' is not a date and time"),
        (b'{"ts": NaN, "uid": "C1", "conn_state": "SF"}\n', "not a Zeek record: JSON is malformed"),
        (b'{"uid": "C1", "conn_state": "SF"}\n', "'' is not a date and time"),
        (b"{" + b'"a":[' * 5_000 + b"\n", "not a Zeek record"),
    ],
)
def test_malformed_lines_are_rejected_with_their_reason(data: bytes, reason: str) -> None:
    got = read(data)
    assert not got.events and len(got.rejects) == 1
    assert got.rejects[0].reason.startswith(reason), got.rejects[0].reason
    assert data[got.rejects[0].offset :].startswith(got.rejects[0].record[:100])
    assert len(read(data + table("conn", CONN)).events) == 1  # it stops nothing


def test_numbers_as_strings_are_numbers() -> None:
    assert read(lines(CONN_JSON)).events[0].features == read(lines({**CONN, "ts": 5.0})).events[0].features
    assert stamp_ns("1.5", None) == 1_500_000_000 and duration_ns(-0.1) is None
    assert duration_ns("0.012166976928710938") == 12_167_000 == duration_ns(0.012166976928710938)


@pytest.mark.parametrize(
    ("file", "events", "rejects", "ignored"),
    [
        ("zeek_stratosphere/001_njrat_conn.log.labeled.gz", 992, 0, 0),
        ("zeek_stratosphere/002_nmap_portscan_conn.json.log.gz", 4504, 0, 0),
        ("zeek_stratosphere/003_androidtester_rat_conn.log.gz", 361, 0, 0),
        ("zeek_stratosphere/006_honeypot_ssh_conn.log.gz", 18, 0, 0),
        ("zeek_stratosphere/007_honeypot_notice.log.gz", 345, 0, 0),
        ("zeek_stratosphere/008_ctu_normal40_conn.log.labeled.gz", 5663, 0, 0),
        ("zeek_stratosphere/010_ctu_normal42_conn.log.labeled.gz", 5347, 0, 0),
        ("zeek_stratosphere/ctu_sme11_remcosrat_conn.log.labeled.gz", 766, 0, 0),
        ("zeek_stratosphere/slips_portscan_horizontal_conn.log.gz", 41, 0, 0),
        ("zeek_stratosphere/slips_test10_conn.log.gz", 141, 0, 0),
        ("zeek_stratosphere/slips_test10_notice.log.gz", 12, 1, 0),  # its last record has lost three columns
        ("zeek_stratosphere/slips_test9_conn.json.log.gz", 576, 0, 0),
        ("zeek_stratosphere/slips_test9_notice.json.log.gz", 18, 0, 0),
        ("zeek_wrccdc/notice.json.log.gz", 207, 0, 0),
        ("zeek_wrccdc/notice.log.gz", 207, 0, 0),
        ("zeek_wrccdc/ntlm.json.log.gz", 0, 0, 422),
        ("zeek_wrccdc/ntlm.log.gz", 0, 0, 422),
        ("zeek_wrccdc/rdp.json.log.gz", 0, 0, 4122),
        ("zeek_wrccdc/rdp.log.gz", 0, 0, 4122),
        ("iot23/CTU-Honeypot-Capture-4-1-labeled.csv.gz", 452, 0, 0),
        ("iot23/CTU-Honeypot-Capture-7-1-labeled.csv.gz", 130, 0, 0),
        ("iot23/CTU-Malware-Capture-20-1-labeled.csv.gz", 3209, 0, 0),
        ("iot23/CTU-Malware-Capture-44-1-labeled.csv.gz", 237, 0, 0),
        ("iot23/CTU-Malware-Capture-8-1-labeled.csv.gz", 10403, 0, 0),
    ],
)
def test_every_line_of_a_real_log_is_an_event_a_reject_or_ignored(
    file: str, events: int, rejects: int, ignored: int
) -> None:
    data = content(file)
    assert detect(data[:65_536], file) == "zeek"
    adapter = ZeekAdapter(SourceSpec("t", file))
    got = read(data, adapter)
    assert (len(got.events), len(got.rejects), adapter.ignored.total()) == (events, rejects, ignored)
    assert [r.reason for r in got.rejects] == ["23 columns, the header has 26"] * rejects
    assert len({item.event.event_id for item in got.events}) == events
    coverage = [complete(item).coverage for item in got.events if item.event.kind == "flow"]
    assert not coverage or min(coverage) >= 2
    f = unpack([item.features for item in got.events])
    assert not (f < 0).any() and np.nanmax(f[:, INDEX["flow_completion_rate"]], initial=0.0) <= 1.0


def test_real_notices_are_the_same_in_both_dialects() -> None:
    def told(file: str) -> list[Any]:
        out = []
        for item in read(content(file)).events:
            event = complete(item)
            event.event_id = "-"
            out.append((event, item.features))
        return sorted(out, key=repr)

    assert told("zeek_wrccdc/notice.log.gz") == told("zeek_wrccdc/notice.json.log.gz")


def test_zeek_and_our_own_flows_of_the_same_capture_agree() -> None:
    """Of flows with equal key and packet counts all features agree; only a duration may lack the last ACK, and what
    goes by it. The mean gap, which would be wrong for more, is missing then."""
    late = {n for n in NAMES if "second" in n or n in ("flow_duration", "network_activity", "packet_rate",
            "active_mean")}  # fmt: skip
    alike, cells, longer = 0, Counter[str](), 0
    for entry in content("pcap_zeek/expected_zeek/MAP.tsv").decode().splitlines():
        log, capture = entry.split("\t")
        file = shared(f"pcap_zeek/{capture}" if (shared("pcap_zeek") / capture).exists() else f"pcap_zeek/{capture}.gz")
        ours: dict[Any, list[FeaturedEvent]] = {}
        for item in (item for parsed in Inputs().read(file, SourceSpec("t"), "pcap") for item in parsed.events):
            event = complete(item)
            ours.setdefault((event.community_id, event.src_ip), []).append(item)
        masked = content(f"pcap_zeek/expected_zeek/{log}").replace(b"XXXXXXXXXX.XXXXXX", b"1000000000.000000")
        got = read(masked)
        assert not got.rejects
        for item in got.events:
            event, theirs = complete(item), unpack([item.features])[0]
            found = ours.get((event.community_id, event.src_ip), ())
            same = [m for m in (unpack([o.features])[0] for o in found) if (m[4:6] == theirs[4:6]).all()]
            same = [mine for mine in same if np.isnan(theirs[3]) or abs(mine[3] - theirs[3]) < 0.5]
            if not same:
                continue  # Zeek and we cut conversations and tunnels differently
            alike += 1
            known = np.isfinite(theirs)
            wrong = known & ~np.isclose(same[0], theirs, rtol=1e-3, atol=2e-3)
            longer += bool(wrong.any())
            assert not wrong.any() or same[0][3] > theirs[3]
            assert {NAMES[i] for i in np.flatnonzero(wrong)} <= late, (log, event)
            cells.update(NAMES[i] for i in np.flatnonzero(known))
    assert alike >= 140 and longer <= 15
    assert cells["total_forward_bytes"] >= 90 and cells["total_backward_bytes"] >= 130 and cells["syn_flag_count"] >= 90


def test_a_directory_is_read_texts_first_and_by_period(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def put(name: str, data: bytes) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)

    put("a/conn.log", table("conn", CONN))
    put("a/http.log", lines({k: v for k, v in HTTP.items() if k != "ts"} | {"ts": 1596790164.7}))
    put("b/conn.00:00:00-01:00:00.log", table("conn", CONN | {"uid": "C8", "ts": "1.0"}))
    put("b/conn.01:00:00-02:00:00.log", table("conn", CONN | {"uid": "C9", "ts": "2.0"}))
    put("b/http.00:00:00-01:00:00.log", table("http", HTTP | {"uid": "C9"}))
    put("b/http.01:00:00-02:00:00.log", table("http", HTTP | {"uid": "C8"}))
    put("b/weird.log", lines({"_path": "weird", "ts": 1.0, "name": "x"}))
    items = [item for part in feed.parts([tmp_path], feed.How()) for item in part.events]
    assert [item.event.text.count("evil.example") for item in items] == [0, 1, 1]  # a flow comes after its text
    assert capsys.readouterr().err == (
        "records that are no events: 1 of weird\ntext of 1 connections found no flow\n"  # its log came after the flow's
    )
    assert feed.sorted_out([tmp_path], feed.How(), Inputs()).keys() == {"zeek"}
    alone = [item for part in feed.parts([tmp_path / "a" / "conn.log"], feed.How()) for item in part.events]
    assert alone[0].event.extra["text_missing"] == 1.0


def test_a_text_after_its_flow_holds_no_offset() -> None:
    """Zeek had not known the service when the connection ended."""
    shared_join = Join(live=True)
    dns, conn = (ZeekAdapter(SourceSpec("t", join=shared_join)) for _ in range(2))
    conn.feed(table("conn", CONN | {"service": "-"}), 0)
    data = table("dns", DNS)
    dns.feed(data, 0)
    assert dns.resume_offset == len(data) and shared_join.dropped == 1 and not shared_join.unclaimed


def test_texts_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    shared_join = Join(pending_max=2)
    adapter = ZeekAdapter(SourceSpec("t", join=shared_join))
    data = table("dns", *(DNS | {"uid": f"C{i}"} for i in range(4)))
    adapter.feed(data, 0)
    assert shared_join.dropped == 2 and adapter.resume_offset == len(data) - 2 * len(rows(DNS))
    assert shared_join.take("C2") and not shared_join.take("C1")
    assert adapter.resume_offset == len(data) - len(rows(DNS))
    monkeypatch.setattr(join, "JOIN_LAG_BYTES_MAX", 100)
    adapter.feed(b"#" + b"x" * 200 + b"\n" + rows(DNS | {"uid": "C5"}), len(data))
    assert adapter.resume_offset == len(data) + 202
    monkeypatch.setattr(join, "JOIN_BYTES_MAX", 10)
    adapter.feed(rows(DNS | {"uid": "C6"}), len(data) + 202 + len(rows(DNS)))
    assert not shared_join.take("C6")


def test_a_beginning_that_is_no_utf8_is_passed_over() -> None:
    """A followed log's beginning is looked at before its lines are."""
    adapter = ZeekAdapter(SourceSpec("zeek"))
    adapter.prime(b'{"ts": 1.5, "uid": "\xd0", "id.orig_h": "10.0.0.1"}\n')
    parsed = adapter.feed(lines(CONN_JSON), 0)
    assert parsed.rejects == []
