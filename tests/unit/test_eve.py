"""Suricata EVE: flows, alerts, and the text that joins them."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections import Counter
from datetime import UTC
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import feed
from engine.features import INDEX, unpack
from engine.limits import RECORD_BYTES_MAX
from engine.normalize import complete
from engine.sources import eve, join
from engine.sources.base import Parsed, SourceSpec
from engine.sources.eve import EveAdapter, Record, completion, family_of, protocol
from engine.sources.join import Join
from ipc.event import FeaturedEvent
from tests.data import content, shared

FLOW: dict[str, Any] = {
    "timestamp": "2021-06-06T16:00:10.000000+0200", "flow_id": 7, "event_type": "flow", "src_ip": "10.0.0.1",
    "src_port": 1000, "dest_ip": "10.0.0.2", "dest_port": 80, "proto": "TCP", "app_proto": "http", "vlan": [12],
    "flow": {"pkts_toserver": 3, "pkts_toclient": 2, "bytes_toserver": 300, "bytes_toclient": 200, "age": 1,
             "start": "2021-06-06T15:59:46.457984+0200", "end": "2021-06-06T15:59:47.957984+0200", "state": "closed"},
    "tcp": {"tcp_flags": "1b", "state": "closed"},
}  # fmt: skip
HTTP: dict[str, Any] = {
    "timestamp": "2021-06-06T15:59:46.5+0200", "flow_id": 7, "event_type": "http", "src_ip": "10.0.0.1",
    "dest_ip": "10.0.0.2", "http": {"hostname": "evil.example", "url": "/a?b", "http_user_agent": "curl"},
}  # fmt: skip
ALERT: dict[str, Any] = {
    "timestamp": "2021-06-06T15:59:46.457984+0200", "flow_id": 8, "event_type": "alert", "src_ip": "10.0.0.3",
    "src_port": 4000, "dest_ip": "10.0.0.2", "dest_port": 22, "proto": "TCP",
    "alert": {"action": "blocked", "signature_id": 2001219, "signature": "ET SCAN Potential SSH Scan", "severity": 2,
              "category": "Attempted Information Leak", "metadata": {"mitre_technique_id": ["T1046"]}},
    "dns": {"query": [{"rrname": "x.example", "rrtype": "A"}]},
}  # fmt: skip


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def read(data: bytes, adapter: EveAdapter | None = None) -> Parsed:
    adapter = adapter or EveAdapter(SourceSpec("t", "eve.json"))
    first, last = adapter.feed(data, 0), adapter.finish()
    return Parsed(first.events + last.events, first.rejects + last.rejects)


def feature(item: FeaturedEvent, name: str) -> float:
    return float(unpack([item.features])[0, INDEX[name]])


def test_a_flow_with_its_text() -> None:
    got = read(lines(HTTP, FLOW))
    assert not got.rejects and len(got.events) == 1
    item = got.events[0]
    event = complete(item)
    assert event.ts_start == 1_622_987_986_457_984_000 and event.ts - event.ts_start == 1_500_000_000
    assert (event.kind, event.proto, event.vlan, event.classification, event.family) == (
        "flow",
        6,
        12,
        "UNKNOWN",
        "Unknown",
    )
    assert event.text == "evil.example | /a?b | curl"
    assert event.extra == {"frame_bytes_toserver": 300.0, "frame_bytes_toclient": 200.0}
    assert feature(item, "flow_duration") == 1.5
    assert feature(item, "total_forward_packets") == 3
    assert feature(item, "download_upload_ratio") == pytest.approx(2 / 3)
    assert feature(item, "flow_completion_rate") == 1.0
    assert feature(item, "urg_flag_count") == 0
    for name in ("total_forward_bytes", "flow_bytes_per_second", "data_volume", "syn_flag_count", "packet_length_mean"):
        assert np.isnan(feature(item, name)), name
    assert item.raw == lines(FLOW)[:-1]


def test_text_comes_too_late_or_not_at_all() -> None:
    got = read(lines(FLOW, HTTP))
    assert got.events[0].event.text == "" and got.events[0].event.extra["text_missing"] == 1.0


def test_an_alert() -> None:
    event = complete(read(lines(ALERT)).events[0])
    assert (event.kind, event.ts, event.ts_start) == ("alert", 1_622_987_986_457_984_000, 1_622_987_986_457_984_000)
    assert event.text == "ET SCAN Potential SSH Scan | Attempted Information Leak | x.example | A"
    assert (event.classification, event.family, event.decision) == ("SUSPICIOUS", "PortScan", "DROP")
    assert event.technique == ["T1046"]
    assert [(v.engine, v.reason_code) for v in event.verdicts] == [("suricata", "SIG_MATCH")]


@pytest.mark.parametrize("ends", [{}, {"src_ip": "10.0.0.3", "src_port": 4000, "dest_ip": "10.0.0.2", "dest_port": 22}])
def test_an_alert_about_an_answer_is_of_the_flow_that_was_asked(ends: dict[str, Any]) -> None:
    """Suricata gives an alert the ends of the packet that fired it. Of an error in a page that was answered to an
    attacker, the attacked server would be the source, for explanations as for the firewall."""
    asked = read(lines(ALERT)).events[0]
    answer = ALERT | {"src_ip": "10.0.0.2", "src_port": 22, "dest_ip": "10.0.0.3", "dest_port": 4000}
    answer |= {"direction": "to_client", "flow": {"pkts_toserver": 3} | ends}
    got = read(lines(answer)).events[0]
    for item in (asked, got):
        complete(item)
    event = got.event
    assert (event.src_ip, event.src_port, event.dst_ip, event.dst_port) == ("10.0.0.3", 4000, "10.0.0.2", 22)
    assert (got.event.trace_id, got.event.community_id) == (asked.event.trace_id, asked.event.community_id)
    assert got.event.extra["to_client"] == 1.0 and "to_client" not in asked.event.extra


def test_an_icmp_alert_about_an_answer_keeps_the_type_of_its_packet() -> None:
    answer = ALERT | {"proto": "ICMP", "icmp_type": 3, "icmp_code": 1, "direction": "to_client"}
    event = read(lines(answer)).events[0].event
    assert (event.src_ip, event.dst_ip, event.src_port, event.dst_port) == ("10.0.0.2", "10.0.0.3", 3, 1)


def test_waiting_text_is_bounded_and_sets_the_low_water_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    shared_join = Join(pending_max=2)
    for spec in (SourceSpec("t", "eve.json", join=shared_join), SourceSpec("t", "eve.json", join_pending_max=2)):
        adapter = EveAdapter(spec)
        data = lines(*({**HTTP, "flow_id": i} for i in range(4)))
        size = len(lines(HTTP))
        adapter.feed(data, 0)
        assert adapter.resume_offset == 2 * size
        adapter.feed(lines({**FLOW, "flow_id": 2}), len(data))
        assert adapter.resume_offset == 3 * size
    assert (shared_join.dropped, shared_join.unclaimed) == (2, 1)
    flow = lines({**FLOW, "flow_id": 9})
    monkeypatch.setattr(join, "JOIN_LAG_BYTES_MAX", size + 2 * len(flow))
    adapter.feed(flow * 2, len(data) + len(flow))  # the last begins just so far behind the text
    assert adapter.resume_offset == 3 * size
    adapter.feed(flow, len(data) + 3 * len(flow))
    assert adapter.resume_offset == len(data) + 4 * len(flow)


def test_text_of_one_file_joins_a_flow_of_the_next() -> None:
    """One join for both, as after a rotation; each says for itself where a restart must begin."""
    shared_join = Join(live=True)
    old, new = (EveAdapter(SourceSpec("t", name, join=shared_join)) for name in ("eve.json.1", "eve.json"))
    other = {**HTTP, "flow_id": 8, "http": {"url": "/other"}}
    old.feed(data := lines(ALERT, HTTP, other), 0)
    assert old.finish() == Parsed([], []) and old.resume_offset == len(lines(ALERT))
    more = new.feed(lines({**HTTP, "http": {"url": "/more"}}, FLOW, {**FLOW, "flow_id": 9}), 0)
    assert [item.event.text for item in more.events] == ["evil.example | /a?b | curl | /more", ""]
    assert [item.event.extra.get("text_missing") for item in more.events] == [None, 1.0]
    assert old.resume_offset == len(lines(ALERT, HTTP)) and new.resume_offset > len(lines(HTTP))
    (item,) = new.feed(lines({**FLOW, "flow_id": 8}), new.resume_offset).events
    assert item.event.text == "/other" and old.resume_offset == len(data)


def test_equal_flow_ids_of_two_sensors_are_two_flows() -> None:
    a, b = {"host": "a"}, {"host": "b"}
    got = read(lines({**HTTP, **a}, {**HTTP, **b, "http": {"url": "/b"}}, {**FLOW, **b}, {**FLOW, **a}))
    assert [item.event.text for item in got.events] == ["/b", "evil.example | /a?b | curl"]
    (item,) = read(lines({**HTTP, "host": {"name": "as Filebeat has it"}}, {**FLOW, "host": ["x"]})).events
    assert item.event.text == "evil.example | /a?b | curl"


@pytest.mark.parametrize("names", [("eve.json.2.gz", "eve.json.1", "eve.json"), ("a", "b", "c"), ("c", "b", "a")])
def test_rotated_files_are_read_oldest_first_whatever_they_are_called(
    names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, name in enumerate(names):
        at = {"timestamp": f"2021-06-06T1{i}:00:00.000000+0200"}
        text = {**HTTP, **at, "flow_id": i, "http": {"url": f"/{i}"}}
        data = lines({**at, "event_type": "stats"}, text, {**FLOW, **at, "flow_id": i - 1, "src_port": i})
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    items = [item for part in feed.parts([tmp_path], feed.How()) for item in part.events]
    assert {item.event.src_port: item.event.text for item in items} == {0: "", 1: "/0", 2: "/1"}
    said = "records that are no events: 3 of stats\ntext of 1 connections found no flow\n"
    assert capsys.readouterr().err == said


def test_a_first_record_without_a_time_comes_first() -> None:
    assert eve.order(b"", UTC) == eve.order(b'{"timestamp": "x"}', UTC) == eve.order(b'{"timestamp":"\xff"}', UTC) == 0
    assert eve.order(b'{"timestamp":"2021-06-06T14:00:10"}', UTC) == 1_622_988_010_000_000_000


def test_a_restart_from_the_low_water_mark_joins_the_same_text() -> None:
    data = lines(ALERT, HTTP, ALERT, {**FLOW, "flow_id": 9}, FLOW, ALERT)
    whole = read(data).events
    first = EveAdapter(SourceSpec("t", "eve.json"))
    cut = data.rindex(b'{"timestamp": "2021-06-06T16:00:10')
    before = first.feed(data[:cut], 0).events
    mark = first.resume_offset
    assert mark == len(lines(ALERT))
    again = EveAdapter(SourceSpec("t", "eve.json"))
    again.skip(data[:mark], 0)
    after = again.feed(data[mark:], mark).events
    known = {item.event.event_id for item in before}
    assert [item.event for item in before + [i for i in after if i.event.event_id not in known]] == [
        i.event for i in whole
    ]
    assert len({item.event.event_id for item in whole}) == 5  # three identical alerts are three events


def test_icmp_has_type_and_code_for_ports() -> None:
    ping = {k: v for k, v in FLOW.items() if k not in ("src_port", "dest_port", "tcp", "app_proto")} | {"proto": "ICMP"}
    item = read(lines(ping | {"icmp_type": 8, "icmp_code": 0})).events[0]
    event = complete(item)
    assert (event.src_port, event.dst_port, event.proto) == (8, 0, 1) and event.community_id
    assert feature(item, "flow_completion_rate") == 1.0 and feature(item, "syn_flag_count") == 0


@pytest.mark.parametrize(
    ("state", "flags", "back", "expected"),
    [
        ("syn_sent", "02", 0, 0.0),
        ("established", "1a", 1, 0.5),
        ("closed", "1b", 1, 1.0),
        ("closed", "1f", 1, 0.5),
        ("closed", "14", 1, 0.0),
        ("closed", "16", 0, 0.0),
        ("time_wait", "1b", 1, 1.0),
        ("odd", "1b", 1, None),
        ("closed", "zz", 1, None),
    ],
)
def test_completion(state: str, flags: str, back: int, expected: float | None) -> None:
    record = Record("flow", proto="TCP", flow=eve.FlowPart(1, back), tcp=eve.TcpPart(state, flags))
    assert completion(record) == expected or (expected is None and np.isnan(completion(record)))


@pytest.mark.parametrize(
    ("to_server", "to_client", "expected"),
    [
        ("02", "14", 0.0),  # refused: only the RST acknowledged
        ("06", "12", 0.0),  # a scan with SYNs, answered
        ("1b", "1b", 1.0),
        ("1f", "1b", None),  # FIN of both and a RST: which came first?
        ("16", "1a", None),
        ("1e", "1a", 0.5),
    ],
)
def test_completion_where_the_sides_are_told_apart(to_server: str, to_client: str, expected: float | None) -> None:
    both = f"{int(to_server, 16) | int(to_client, 16):02x}"
    part = eve.TcpPart("closed", both, to_server, to_client)
    got = completion(Record("flow", proto="TCP", flow=eve.FlowPart(3, 3), tcp=part))
    assert got == expected or (expected is None and np.isnan(got))


def test_flags_of_each_side_are_zero_where_that_side_had_none() -> None:
    tcp = {"tcp_flags": "1b", "tcp_flags_ts": "13", "tcp_flags_tc": "1b", "state": "closed"}
    item = read(lines(FLOW | {"tcp": tcp})).events[0]
    assert feature(item, "forward_psh_flags") == 0 and np.isnan(feature(item, "backward_psh_flags"))
    assert np.isnan(feature(item, "psh_flag_count")) and feature(item, "rst_flag_count") == 0


def test_flags_of_a_flow_without_a_session_are_not_known() -> None:
    """Suricata writes 00 for TCP that its engine did not follow, such as lone SYN-ACKs, whatever flags they had."""
    tcp = {"tcp_flags": "00", "tcp_flags_ts": "00", "tcp_flags_tc": "00"}
    item = read(lines(FLOW | {"tcp": tcp})).events[0]
    assert all(np.isnan(feature(item, f"{flag}_flag_count")) for flag in ("fin", "syn", "rst", "psh", "ack", "urg"))
    assert np.isnan(feature(item, "flow_completion_rate"))


def test_words_of_suricata() -> None:
    assert protocol("IPv6-ICMP") == 58 and protocol("132") == 132 and protocol("999") is None and protocol("x") is None
    assert family_of("ET MALWARE Win32/X CnC Beacon", "A Network Trojan was detected") == "C2"
    assert family_of("ET SCAN SSH Brute Force", "") == "BruteForce"
    assert family_of("SURICATA STREAM 3way", "Generic Protocol Command Decode") == ""
    assert family_of("Custom", "Web Application Attack") == "WebAttack"


def test_numbers_in_quotes_are_numbers() -> None:
    """As after Logstash and its like."""

    def quoted(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: quoted(v) for k, v in value.items()}
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    plain, other = read(lines(HTTP, FLOW, ALERT)), read(lines(*map(quoted, (HTTP, FLOW, ALERT))))
    assert not other.rejects and len(other.events) == 2
    for a, b in zip(plain.events, other.events, strict=True):
        b.event.event_id = a.event.event_id  # of the record, which differs
        assert (a.event, a.features) == (b.event, b.features)


def test_a_count_that_is_not_given_is_missing_not_0() -> None:
    (item,) = read(lines({**FLOW, "flow": {"start": FLOW["flow"]["start"], "pkts_toserver": 3}})).events
    assert feature(item, "total_forward_packets") == 3
    assert np.isnan(feature(item, "total_backward_packets")) and np.isnan(feature(item, "flow_completion_rate"))
    assert "frame_bytes_toserver" not in item.event.extra


@pytest.mark.parametrize(
    ("text", "timezone", "expected"),
    [
        ("2021-06-06T16:00:10.000000+0200", "UTC", 1_622_988_010),
        ("2021-06-06T14:00:10.000000Z", "UTC", 1_622_988_010),
        ("2021-06-06T14:00:10.000000+00:00", "Asia/Tokyo", 1_622_988_010),
        ("2021-06-06T19:30:10+0530", "UTC", 1_622_988_010),
        ("2021-06-06T10:00:10.000000-0400", "UTC", 1_622_988_010),
        ("2021-06-06T16:00:10.000000", "Europe/Madrid", 1_622_988_010),
    ],
)
def test_times_in_any_zone(text: str, timezone: str, expected: int) -> None:
    (item,) = read(lines({**ALERT, "timestamp": text}), EveAdapter(SourceSpec("t", timezone=timezone))).events
    assert item.event.ts == expected * 1_000_000_000


@pytest.mark.parametrize(
    "dns",
    [
        {"type": "query", "id": 1, "rrname": "a.example", "rrtype": "A", "tx_id": 0},
        {"version": 2, "type": "answer", "rrname": "a.example", "rrtype": "A", "rcode": "NOERROR",
         "answers": [{"rrname": "a.example", "rrtype": "A", "rdata": "1.2.3.4"}], "grouped": {"A": ["1.2.3.4"]}},
        {"version": 3, "type": "request", "id": 1, "queries": [{"rrname": "a.example", "rrtype": "A"}]},
        {"version": 3, "type": "response", "rcode": "NOERROR", "queries": [{"rrname": "a.example", "rrtype": "A"}],
         "answers": [{"rrname": "a.example", "rrtype": "A", "ttl": 5, "rdata": "1.2.3.4"}]},
    ],
    ids=["v1", "v2 answer", "v3 request", "v3 response"],
)  # fmt: skip
def test_names_of_every_version_of_dns_join_their_flow(dns: dict[str, Any]) -> None:
    """Versions 1 and 2 of Suricata up to 7, 3 of Suricata 8."""
    flow = {**FLOW, "app_proto": "dns", "proto": "UDP"}
    (item,) = read(lines({**HTTP, "event_type": "dns", "dns": dns}, flow)).events
    assert "a.example | A" in item.event.text


def test_alerts_of_one_moment_flow_and_type_are_events_of_their_own() -> None:
    """Of 1,181 real alerts 95 agree in flow id, time and type with another."""
    data = content("suricata_eve/slips_test6_eve.json.gz")
    alerts = [r for r in map(json.loads, data.splitlines()) if r["event_type"] == "alert"]
    same = Counter((r["flow_id"], r["timestamp"], r["event_type"]) for r in alerts)
    assert len(same) < len(alerts)
    got = [item.event.event_id for item in read(data).events if item.event.kind == "alert"]
    assert len(set(got)) == len(got) == len(alerts)


def test_lines_that_are_no_text_or_too_long_cost_themselves_only() -> None:
    long = lines({**ALERT, "payload": "x" * RECORD_BYTES_MAX})
    odd = [long, lines(ALERT)[:20] + b"\0" + lines(ALERT)[20:], lines(ALERT)[:20] + b"\xff" + lines(ALERT)[20:]]
    got = read(b"".join(part + lines({**ALERT, "src_port": i}) for i, part in enumerate(odd)))
    assert [item.event.src_port for item in got.events] == [0, 1, 2]
    reasons = ["line is longer than 1048576 bytes", "line has a NUL byte", "line is not UTF-8 at byte 20"]
    assert [r.reason for r in got.rejects] == reasons
    widest = lines({**ALERT, "payload": "x" * (RECORD_BYTES_MAX - len(lines({**ALERT, "payload": ""})) + 1)})
    assert len(widest) == RECORD_BYTES_MAX + 1 and len(read(widest).events) == 1  # 1 MiB and its line end


def test_bad_records() -> None:
    bad = [
        b"{",
        b"null",
        b'{"event_type": 5}',
        lines({**FLOW, "timestamp": "x", "flow": {"start": ""}})[:-1],
        lines({**FLOW, "src_ip": "1.2.3"})[:-1],
        lines({**FLOW, "flow": {"pkts_toserver": -1}})[:-1],
        lines({**FLOW, "flow": {"pkts_toserver": 10**30}})[:-1],
        lines({**FLOW, "src_port": 70_000})[:-1],
        b'{"event_type":"http","flow_id":1,"http":' + b"[" * 50_000,
    ]
    got = read(b"\n".join([*bad, lines(FLOW)]))
    assert len(got.events) == 1 and [r.record for r in got.rejects] == [b[:65_536] for b in bad]


def test_one_array_instead_of_lines() -> None:
    data = json.dumps([HTTP, FLOW, ALERT, {"event_type": 1}], indent=2).encode()
    for step in (len(data), 100):
        adapter = EveAdapter(SourceSpec("t", "eve.json"))
        for at in range(0, len(data), step):
            assert adapter.feed(data[at : at + step], at) == Parsed([], [])
        got = adapter.finish()
        assert [item.event.kind for item in got.events] == ["flow", "alert"] and len(got.rejects) == 1
        assert got.events[0].event.text and data[got.rejects[0].offset :].startswith(b"{")
        assert adapter.finish() == Parsed([], []) and adapter.resume_offset == len(data)
        shared_join = Join()
        adapter = EveAdapter(SourceSpec("t", join=shared_join))
        adapter.feed(data.replace(b'"flow_id": 7', b'"flow_id": 6', 1), 0)
        adapter.finish()
        assert adapter.resume_offset == 0 and shared_join.take(6)  # an array cannot be read from its middle
        assert adapter.resume_offset == len(data)
    assert read(b"[1, 2").rejects[0].reason.startswith("not a JSON array")


@pytest.mark.parametrize(
    ("rest", "events"),
    [(b",0" * 50_000 + b"]", 1), (b"," + b"{}," * 3, 1), (b",", 1), (b",]", 1), (b"] x", 1), (b"", 1),
     (b' ,{"a":"}', 1), (b", [] ,%s]", 1), (b' , {"a":"\\"}"},%s,null,%s ]', 2), (b"\n]\n", 1), (b",%s,%s\r\n]", 3)],
)  # fmt: skip
def test_what_is_no_object_of_an_array_is_refused_with_all_after_it_at_once(rest: bytes, events: int) -> None:
    """And what came before it is read. Lists of tiny things must not become so many rejects."""
    head = b"\xef\xbb\xbf [ " + json.dumps(ALERT, indent=1).encode()
    data = head + rest.replace(b"%s", json.dumps({**FLOW, "a": 'a"}{\\'}).encode())
    got = read(data)
    assert len(got.events) == events
    if rest.endswith((b"]\n", b"\n]")):
        assert not got.rejects
        return
    *own, last = got.rejects
    assert "not a JSON array" in last.reason and data[last.offset :].startswith(last.record[:1_000])
    assert all(r.record.startswith(b"{") for r in own) and len(own) == rest.count(b"{}") + rest.count(b'"},')


def test_an_array_gives_so_many_rejects_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eve, "ARRAY_REJECTS_MAX", 10)
    got = read(b"[" + b'{"event_type": 1},' * 9 + json.dumps(ALERT).encode() + b",{}" * eve.BLOCK_ROWS * 3 + b"]")
    assert len(got.events) == 1 and len(got.rejects) <= 10 + eve.BLOCK_ROWS
    assert "10 of one JSON array were refused" in got.rejects[-1].reason


def test_an_array_takes_no_more_memory_than_its_bytes() -> None:
    data = b"[" + json.dumps(ALERT).encode() + b",0" * 200_000 + b"]"
    adapter = EveAdapter(SourceSpec("t", "eve.json"))
    adapter.feed(data, 0)
    tracemalloc.start()
    try:
        adapter.finish()
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("suricata_eve/slips_test6_eve.json.gz", {"flow": 3512, "alert": 745}),
        ("suricata_eve/first-org-2015_alerts.array.json.gz", {"alert": 136}),
        ("suricata_eve/honeypot-2018_alerts.array.json.gz", {"alert": 44}),
    ],
)
def test_real_logs(file: str, kinds: dict[str, int]) -> None:
    data = content(file)
    assert EveAdapter.sniff(data[:65_536], "x")
    got = read(data)
    assert not got.rejects and Counter(item.event.kind for item in got.events) == kinds
    assert len({complete(item).event_id for item in got.events}) == len(got.events)
    assert all(item.event.text for item in got.events if item.event.kind == "alert")


def test_alerts_of_real_traffic_have_the_ends_of_their_flows() -> None:
    """Those whose flow is in the same log, of TCP and UDP; many were fired by an answer."""
    met = turned = 0
    for file in sorted(shared("eve_generated").rglob("*.eve.json.gz")):
        flows: dict[tuple[int, int], tuple[str, str]] = {}
        records = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
        for record in records:
            if record["event_type"] == "flow" and "src_port" in record:
                flows.setdefault((record["flow_id"], record["src_port"] + record["dest_port"]), (
                    record["src_ip"], record["dest_ip"]))  # fmt: skip
        for record in records:
            ends = flows.get((record.get("flow_id"), record.get("src_port", 0) + record.get("dest_port", 0)))
            if record["event_type"] == "alert" and ends is not None:
                event = read(lines(record)).events[0].event
                assert (event.src_ip, event.dst_ip) == tuple(str(ip_address(end)) for end in ends)
                met += 1
                turned += record["src_ip"] != ends[0]
    assert met > 100 and turned > 20, (met, turned)


def test_generated_logs() -> None:
    count = 0
    for file in sorted(shared("eve_generated").rglob("*.eve.json.gz")):
        data = content(str(file))
        got = read(data)
        assert not got.rejects, (file, got.rejects[0].reason)
        assert len(got.events) == data.count(b'"event_type":"flow"') + data.count(b'"event_type":"alert"')
        for item in got.events:
            complete(item)
            assert (
                item.event.community_id
                or item.event.proto is None
                or not item.event.src_ip
                or item.event.src_port is None
            )
        count += len(got.events)
    assert count > 20_000
