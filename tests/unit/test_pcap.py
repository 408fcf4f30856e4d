"""Captures: every form that is read, and every way one can be broken."""

from __future__ import annotations

import csv
import gzip
import struct
from ipaddress import ip_address

import msgspec
import numpy as np
import pytest

from engine.features import INDEX
from engine.flows.capture import CAPTURED_MAX, ORIGINAL_MAX, CaptureReader
from engine.flows.decode import ACK, FIN, SYN
from engine.flows.packets import Decoder
from engine.sources.base import Parsed, SourceSpec
from engine.sources.labels import LabelRules
from engine.sources.pcap import PcapAdapter
from ipc.messages import Reject
from tests.data import content, shared
from tests.packets import (
    ICMP,
    UDP,
    P,
    Piece,
    block,
    client_hello,
    enhanced,
    ethernet,
    header,
    interface,
    parse,
    pcap,
    record,
    section,
)

S = 1_000_000_000
T = 1_600_000_000 * S
ONE = P(T + 123_456_000, payload=b"hello")


def only(parsed: Parsed) -> dict[str, object]:
    assert parsed.rejects == [] and len(parsed.events) == 1, parsed.rejects
    raw: dict[str, object] = msgspec.json.decode(parsed.events[0].raw)
    return raw


def framed(frame: bytes, linktype: int = 1) -> Parsed:
    return parse(header(linktype=linktype) + record(T, frame))


def feature(parsed: Parsed, name: str, event: int = 0) -> float:
    return float(np.frombuffer(parsed.events[event].features, "<f4")[INDEX[name]])


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "tick_ns"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap_of_both_byte_orders_and_resolutions(order: str, magic: int, tick_ns: int) -> None:
    data = header(order, magic=magic) + record(ONE.ts, ethernet(ONE.ip), order=order, tick_ns=tick_ns)
    assert PcapAdapter.sniff(data, "x")
    raw = only(parse(data))
    assert (raw["start_ns"], raw["src"], raw["src_port"], raw["bytes"]) == (ONE.ts, "10.0.0.1", 1000, [5, 0])


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_resolutions_offsets_and_interfaces(order: str) -> None:
    def option(code: int, value: bytes) -> bytes:
        return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)

    frame = ethernet(ONE.ip)
    other = ethernet(P(0, "10.0.0.3").ip)
    third = ethernet(P(0, "10.0.0.4").ip)
    data = section(order)
    data += interface(order=order)
    data += interface(options=option(9, b"\x09") + option(14, struct.pack(order + "q", 7)), order=order)
    data += interface(options=option(9, b"\x94"), order=order)  # 2^-20 s
    data += block(5, b"statistics", order)
    data += enhanced(T // 1000, frame, 0, order) + enhanced(T, other, 1, order)
    data += enhanced(3 << 19, third, 2, order)
    parsed = parse(data)
    assert parsed.rejects == []
    starts = {e.event.src_ip: e.event.ts_start for e in parsed.events}
    assert starts == {"10.0.0.1": T, "10.0.0.3": T + 7 * S, "10.0.0.4": 3 * S // 2}
    by_ip = {e.event.src_ip: i for i, e in enumerate(parsed.events)}
    assert feature(parsed, "source_ifindex", by_ip["10.0.0.3"]) == 1


def test_pcapng_sections_of_both_orders_and_simple_packets() -> None:
    frame = ethernet(ONE.ip)
    simple = block(3, struct.pack("<I", len(frame)) + frame)
    data = section(">") + interface(order=">") + enhanced(T // 1000, frame, order=">")
    data += section("<") + interface() + simple + enhanced(T // 1000 + 1, frame)
    assert only(parse(data))["packets"] == [3, 0]


def test_microsecond_clock_at_its_end() -> None:
    data = section() + interface() + enhanced((1 << 64) - 1, ethernet(ONE.ip))
    (event,) = parse(data).events
    assert 0 <= event.event.ts_start < 1 << 63


@pytest.mark.parametrize(
    ("data", "reason", "events"),
    [
        (b"", "empty", 0),
        (b"\x7fELF" + bytes(60), "magic", 0),
        (b"\xd4\xc3\xb2\xa1" + bytes(4), "ends inside", 0),
        (pcap([ONE]) + bytes(7), "ends inside", 1),
        (pcap([ONE])[:-1], "ends inside", 0),
        (pcap([ONE]) + struct.pack("<IIII", 0, 0, CAPTURED_MAX + 1, 0) + bytes(99), "bytes long", 1),
        (section()[:8] + bytes(20), "byte-order mark", 0),
        (section() + struct.pack("<II", 6, 7) + bytes(20), "bytes long", 0),
        (section() + struct.pack("<II", 6, 1 << 30) + bytes(20), "bytes long", 0),
        (section() + enhanced(0, b""), "no known interface", 0),
        (section() + interface() + block(6, struct.pack("<IIIII", 0, 0, 0, 99, 99)), "longer than its block", 0),
        (section() + struct.pack("<II", 99, 1 << 20) + bytes(20), "ends inside", 0),
    ],
)
def test_a_broken_file_says_where_and_keeps_what_was_read(data: bytes, reason: str, events: int) -> None:
    parsed = parse(data)
    assert [reason in r.reason for r in parsed.rejects] == [True], parsed.rejects
    assert len(parsed.events) == events and 0 <= parsed.rejects[0].offset <= len(data)
    assert told(parse(data, list(range(1, len(data))))) == told(parsed)


def told(parsed: Parsed) -> tuple[list[bytes], list[Reject]]:
    return [e.raw for e in parsed.events], parsed.rejects


def test_a_huge_unknown_block_is_passed_over_unread() -> None:
    data = section() + interface() + block(99, bytes(1 << 20)) + enhanced(T // 1000, ethernet(ONE.ip))
    assert only(parse(data, [1000, 5000, 700_000]))["packets"] == [1, 0]


# ---- headers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("linktype", "frame", "vlan"),
    [
        (1, ethernet(ONE.ip), None),
        (101, ONE.ip, None),
        (12, ONE.ip, None),
        (9, b"\xff\x03\0\x21" + ONE.ip, None),
        (9, b"\x21" + ONE.ip, None),
        (228, ONE.ip, None),
        (0, struct.pack("<I", 2) + ONE.ip, None),
        (108, struct.pack(">I", 2) + ONE.ip, None),
        (113, bytes(14) + b"\x08\x00" + ONE.ip, None),
        (276, b"\x08\x00" + bytes(18) + ONE.ip, None),
        (1, ethernet(struct.pack(">HH", 0x2005, 0x0800) + ONE.ip, 0x8100), 5),
        (1, ethernet(struct.pack(">HHHH", 5, 0x8100, 7, 0x0800) + ONE.ip, 0x88A8), 5),
        (1, ethernet(bytes.fromhex("0000104000011140") + ONE.ip, 0x8847), None),
        (1, ethernet(bytes.fromhex("1100000100000021") + ONE.ip, 0x8864), None),
        (1, ethernet(b"\0\0" + ethernet(ONE.ip), 0x8903), None),
    ],
)
def test_every_link_layer_leads_to_the_same_packet(linktype: int, frame: bytes, vlan: int | None) -> None:
    raw = only(framed(frame, linktype))
    assert (raw["src"], raw["dst"], raw["src_port"], raw["dst_port"]) == ("10.0.0.1", "10.0.0.2", 1000, 80)
    assert (raw["bytes"], raw["vlan"]) == ([5, 0], vlan)


def test_padding_and_snaplen_do_not_count() -> None:
    p = P(T, payload=b"x" * 1000)
    parsed = parse(pcap([p, P(T + 1)], captured=68))
    assert only(parsed)["bytes"] == [1000, 0]
    assert np.isnan(feature(parsed, "entropy"))  # the capture cut into the sample
    assert feature(parsed, "maximum_packet_length") == 1000


def test_segmentation_offload() -> None:
    ip = bytearray(P(T, payload=b"x" * 3000).ip)
    ip[2:4] = b"\0\0"
    assert only(framed(ethernet(bytes(ip))))["bytes"] == [3000, 0]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("original", [65_000, 500_000, ORIGINAL_MAX, ORIGINAL_MAX + 1, (1 << 32) - 1])
def test_a_length_that_the_card_is_to_fill_in_comes_from_the_frame_but_no_frame_is_longer_than_any(
    original: int, v6: bool
) -> None:
    p = P(T, "fd00::1", "fd00::2", payload=b"x") if v6 else P(T, payload=b"x")
    ip = bytearray(p.ip)
    ip[(at := 4 if v6 else 2) : at + 2] = b"\0\0"
    frame = ethernet(bytes(ip), p.ethertype, 0)
    parsed = parse(header() + record(T, frame)[:12] + struct.pack("<I", original) + frame)
    length = min(original, ORIGINAL_MAX)
    assert only(parsed)["bytes"] == [length - len(frame) + 1, 0]
    assert parsed.events[0].event.extra["forward_frame_bytes"] == length


def test_ipv6_extension_headers() -> None:
    l4 = P(T, "fd00::1", "fd00::2", payload=b"abc").l4
    chain = bytes([43, 1]) + bytes(14) + bytes([60, 0]) + bytes(6) + bytes([6, 0]) + bytes(6)
    head = struct.pack(">IHBB", 6 << 28, len(chain + l4), 0, 1)
    body = head + ip_address("fd00::1").packed + ip_address("fd00::2").packed + chain + l4
    raw = only(framed(ethernet(body, 0x86DD)))
    assert (raw["src"], raw["proto"], raw["dst_port"], raw["bytes"]) == ("fd00::1", 6, 80, [3, 0])


def test_icmp_has_type_and_code_for_ports() -> None:
    parsed = parse(pcap([P(T, src_port=8, dst_port=0, proto=ICMP), P(T + 1, "10.0.0.2", "10.0.0.1", 0, 0, ICMP)]))
    raw = only(parsed)
    assert (raw["src_port"], raw["dst_port"], raw["packets"]) == (8, 0, [1, 1])


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (bytes(10), "link header"),
        (bytes(12) + b"\x08\x00" + ONE.ip[:12], "IP header was cut"),
        (ethernet(b"\x65" + ONE.ip[1:]), "contradicts"),
        (ethernet(b"\x44" + ONE.ip[1:]), "contradicts"),
        (ethernet(ONE.ip[:2] + b"\xff\xff" + ONE.ip[4:]), "beyond the frame"),
        (ethernet(ONE.ip[:32] + b"\xf0" + ONE.ip[33:]), "longer than its packet"),
        (ethernet(ONE.ip[:32] + b"\x40" + ONE.ip[33:]), "longer than its packet"),
        (ethernet(ONE.ip)[:44], "transport header was cut"),
        (ethernet(P(T, proto=UDP).ip[:24] + b"\0\4" + bytes(2)), "longer than its packet"),
        (ethernet(b"\0\0\0\0" * 30, 0x8847), "too many"),
    ],
)
def test_a_bad_packet_is_named_and_stops_nothing(frame: bytes, reason: str) -> None:
    whole = max(len(frame), len(ethernet(ONE.ip)))
    cut = struct.pack("<IIII", T // S, 0, len(frame), whole) + frame
    data = header() + cut + record(T, ethernet(ONE.ip))
    parsed = parse(data)
    assert len(parsed.events) == 1
    assert [reason in r.reason for r in parsed.rejects] == [True], parsed.rejects
    assert data[parsed.rejects[0].offset :].startswith(parsed.rejects[0].record)


OVERLAP = [ONE._replace(ts=T + i, piece=Piece(7, a, b)) for i, (a, b) in enumerate([(0, 24), (16, 25)])]


@pytest.mark.parametrize(
    ("data", "reason", "packets"),
    [
        pytest.param(pcap([ONE, ONE])[:-1], "the capture ends inside a record", 1, id="truncated-pcap"),
        pytest.param(b"\xd4\xc3\xb2\xa0" + pcap([ONE])[4:], "no magic number", 0, id="wrong-magic"),
        pytest.param(pcap([ONE], captured=40), "the transport header was cut", 0, id="cut-by-snaplen"),
        pytest.param(pcap([ONE], captured=30), "the IP header was cut", 0, id="cut-in-the-ip-header"),
        pytest.param(pcap(OVERLAP), "overlaps another fragment", 2, id="overlapping-fragments"),
        pytest.param(
            pcap([ONE]) + record(T, ethernet(ONE.ip[:32] + b"\xf0" + ONE.ip[33:])),
            "the transport header is longer than its packet",
            1,
            id="tcp-header-longer-than-the-packet",
        ),
    ],
)
def test_malformed_input_is_a_dead_letter_with_its_reason(data: bytes, reason: str, packets: int) -> None:
    parsed = parse(data)
    assert [reason in r.reason for r in parsed.rejects] == [True], parsed.rejects
    assert data[parsed.rejects[0].offset :].startswith(parsed.rejects[0].record)
    assert sum(sum(msgspec.json.decode(e.raw)["packets"]) for e in parsed.events) == packets


def test_the_source_says_what_the_capture_does_not() -> None:
    def interfaces(data: bytes, spec: SourceSpec) -> list[tuple[float, float]]:
        parsed = parse(data, adapter=PcapAdapter(spec))
        events = range(len(parsed.events))
        return [(feature(parsed, "source_ifindex", i), feature(parsed, "interface_mode", i)) for i in events]

    plain, numbered = pcap([ONE]), section() + interface() + enhanced(T // 1000, ethernet(ONE.ip))
    assert np.isnan(interfaces(plain, SourceSpec("t"))).all()
    assert interfaces(plain, SourceSpec("t", interface_mode=2, ifindex=7)) == [(7, 2)]
    assert interfaces(numbered, SourceSpec("t", interface_mode=1, ifindex=7)) == [(0, 1)]


def test_frames_that_are_no_ip_are_no_error() -> None:
    adapter = PcapAdapter(SourceSpec("t"))
    data = header() + record(T, ethernet(bytes(46), 0x0806)) + record(T, ethernet(ONE.ip))
    assert len(parse(data, adapter=adapter).events) == 1


def test_rejects_are_bounded() -> None:
    data = header() + record(T, bytes(3)) * 5000
    rejects = parse(data, [10_000, 20_000]).rejects
    assert len(rejects) == 1001 and "4000 more" in rejects[-1].reason


def test_unread_link_type() -> None:
    assert "link type" in framed(bytes(60), 147).rejects[0].reason


# ---- events ---------------------------------------------------------------------------------------------------------


def test_ids_tell_identical_records_apart_and_survive_a_replay() -> None:
    def handshake(t: int) -> list[P]:
        back = P(t, "10.0.0.2", "10.0.0.1", 80, 1000, flags=FIN | ACK)
        return [P(t, flags=SYN), P(t, flags=FIN | ACK), back]

    data = pcap(handshake(T) + handshake(T))
    parsed = parse(data)
    ids = [e.event.event_id for e in parsed.events]
    assert parsed.events[0].raw == parsed.events[1].raw and len(set(ids)) == 2
    assert ids == [e.event.event_id for e in parse(data, [50]).events] == sorted(ids)
    assert all(len(i) == 32 for i in ids)


def test_a_long_capture_comes_out_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.sources.pcap.HELD_MAX", 10)
    monkeypatch.setattr("engine.flows.capture.BLOCK_PACKETS", 4)
    packets = [P(T + i * 200 * S, src_port=i + 1) for i in range(50)]
    data = pcap(packets)
    adapter = PcapAdapter(SourceSpec("t"))
    early = adapter.feed(data, 0).events
    assert adapter.resume_offset == 0
    late = adapter.finish().events
    assert adapter.resume_offset == len(data)
    times = [e.event.ts for e in early + late]
    assert len(early) >= 30 and times == sorted(times) and len(times) == 50


@pytest.mark.parametrize(
    ("port", "proto", "payload", "text"),
    [
        (80, 6, b"GET /a?b HTTP/1.1\r\nHost: x.org\r\nUser-Agent: curl\r\n\r\n", "x.org/a?b | curl"),
        (80, 6, b"CONNECT x.org:443 HTTP/1.1\r\n\r\nHost: no\r\n", "x.org:443"),
        (53, 17, bytes.fromhex("000101000001000000000000") + b"\1a\3org\0" + b"\0\1\0\1", "a.org"),
        (53, 17, bytes.fromhex("000101000001000000000000") + b"\x3fa", ""),
        (80, 6, b"GET /" + b"\xff" * 700 + b" HTTP/1.1\r\n", "/" + "?" * 511),
        (443, 6, b"\x16\x03\x01", ""),
    ],
)
def test_names_in_clear(port: int, proto: int, payload: bytes, text: str) -> None:
    parsed = parse(pcap([P(T, dst_port=port, proto=proto, payload=payload)]))
    assert parsed.events[0].event.text == text


HELLO = client_hello(b"www.example.org")


@pytest.mark.parametrize("size", range(1, len(HELLO) + 1))
def test_a_handshake_may_end_anywhere(size: int) -> None:
    parsed = parse(pcap([P(T, dst_port=443, payload=HELLO[:size])]))
    assert [e.event.text for e in parsed.events] == ["www.example.org" if size == len(HELLO) else ""]


def test_labels(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.ndjson"
    rule = '{"episode":"e-1","half":1,"family":"PortScan","classification":"MALICIOUS","proto":6,"src":["10.0.0.0/31"],'
    rule += f'"dst":null,"src_ports":null,"dst_ports":[[1,90]],"start_ns":{T},"end_ns":{T + S},"text":"nmap"}}\n'
    path.write_text("\n" + rule)
    rules = LabelRules.load(path)
    packets = [P(T), P(T, dst_port=91), P(T, src="10.0.0.9"), P(T + 2 * S, src_port=2), P(T, proto=UDP)]
    adapter = PcapAdapter(SourceSpec("t", labels=rules))
    events = parse(pcap(packets), adapter=adapter).events
    labelled = [e.event for e in events if e.event.family_raw]
    assert [(e.dst_port, e.src_ip, e.classification, e.text) for e in labelled] == [(80, "10.0.0.1", "MALICIOUS", "")]
    matched = rules.match(labelled[0])
    assert matched is not None and (matched.episode, matched.half) == ("e-1", 1)


# Frames of the corpus that are no IP, counted by hand with another tool's names for them.
NOT_IP = {
    "pcap_ndpi/attack_or_risk/dns-tunnel-iodine.pcap": 4,  # ARP
    "pcap_ndpi/attack_or_risk/dos_win98_smb_netbeui.pcap": 158,  # NetBEUI over LLC, IPX
    "pcap_ndpi/attack_or_risk/icmp-tunnel.pcap.gz": 98,  # ARP
    "pcap_ndpi/attack_or_risk/tcp_scan.pcapng": 12,  # ARP
    "pcap_ndpi/benign/android.pcap": 25,  # ARP, EAPOL
    "pcap_ndpi/benign/coap_mqtt.pcap": 2,  # ARP
    "pcap_ndpi/benign/zoom.pcap.gz": 3,  # a switch maker's own
    "pcap_stopddos/amp.TCP.reflection.SYNACK.pcap.gz": 4,  # ARP
    "pcap_stratosphere/test8-malicious.pcap": 519,  # ARP
    "pcap_zeek/cisco-fabric-path.pcap": 2,  # tests of the fabric
    "pcap_zeek/pppoe.pcap": 40,  # LCP, IPCP
    "pcap_zeek/wikipedia.pcap": 10,  # ARP, spanning tree
}
LEFT_OUT = {"pcap_ndpi/attack_or_risk/badpackets.pcap": 93}  # lengths that lie


def test_of_the_corpus_nothing_is_left_out_without_a_reason() -> None:
    manifest = shared("PCAP_MANIFEST.csv")
    with manifest.open() as file:
        rows = [row for row in csv.DictReader(file) if (manifest.parent / row["path"]).exists()]
    assert len(rows) >= 80
    not_ip, left_out = {}, {}
    for row in rows:
        reader, decoder = CaptureReader(), Decoder()
        data = content(row["path"])
        ready = [p for block in (*reader.feed(data), *reader.finish()) for p in decoder.decode(block, 1 << 20)]
        packets = sum(len(p.ts) for p in ready + decoder.finish())
        assert reader.problems == [], row["path"]
        assert packets + decoder.not_ip + len(decoder.problems) == int(row["packets"]), row["path"]
        if decoder.not_ip:
            not_ip[row["path"]] = decoder.not_ip
        if decoder.problems:
            left_out[row["path"]] = len(decoder.problems)
    assert (not_ip, left_out) == (NOT_IP, LEFT_OUT)


@pytest.mark.parametrize(
    "capture", ["pcap_ndpi/attack_or_risk/badpackets.pcap", "pcap_ndpi/benign/dns_fragmented.pcap"]
)
def test_real_captures_cut_to_bits(capture: str) -> None:
    data = shared(capture).read_bytes()
    whole = parse(data)
    assert told(parse(data, list(range(0, len(data), 97)))) == told(whole)
    for size in range(0, len(data), len(data) // 40):
        parse(data[:size])


def test_sni_of_a_real_handshake() -> None:
    parsed = parse(gzip.decompress(shared("pcap_ndpi/benign/zoom.pcap.gz").read_bytes()))
    assert "zoomfrn99mmr.zoom.us" in {e.event.text for e in parsed.events}
