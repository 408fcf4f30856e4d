"""Tunnels: each kind is opened to the flow inside, and whatever cannot be for certain stays the flow outside."""

from __future__ import annotations

import struct
from collections import Counter
from ipaddress import ip_address

import pytest

from engine.flows.split import Limits
from engine.sources.base import Parsed, SourceSpec
from engine.sources.pcap import PcapAdapter
from ipc.event import Event
from tests.data import content
from tests.packets import UDP, P, ethernet, header, ipv4, parse, pcap, record, wrap

T = 1_600_000_000_000_000_000
FOUR = P(T, payload=b"hello")
SIX = P(T, "fd00::1", "fd00::2", payload=b"hello")
A, B = (ip_address(a).packed for a in ("192.0.2.1", "192.0.2.2"))


def events(data: bytes, tunnels: str = "inner") -> list[Event]:
    parsed = parse(data, adapter=PcapAdapter(SourceSpec("t"), Limits(tunnels=tunnels)))
    assert parsed.rejects == []
    return [e.event for e in parsed.events]


def framed(*bodies: bytes, ethertype: int = 0x0800) -> bytes:
    return header() + b"".join(record(T + i, ethernet(body, ethertype)) for i, body in enumerate(bodies))


def udp(port: int, body: bytes, src: bytes = A, dst: bytes = B) -> bytes:
    return ipv4(src, dst, 17, struct.pack(">HHHH", 40_000, port, 8 + len(body), 0) + body)


def gre(head: bytes, body: bytes) -> bytes:
    return ipv4(A, B, 47, head + body)


TUNNELS = {
    "ipip": FOUR, "4in6": FOUR, "6in4": SIX, "6in6": SIX, "gre": FOUR, "gre:4294967295": SIX, "pptp": FOUR,
    "erspan:1023": SIX, "vxlan:16777215": FOUR, "geneve:0": SIX, "teredo": SIX, "gtp": FOUR, "vxlan:5/gre:7": FOUR,
    "gre/gre": SIX, "gtp/6in4": SIX,
}  # fmt: skip


@pytest.mark.parametrize("name", TUNNELS)
def test_a_packet_counts_for_the_flow_inside_or_as_configured_outside(name: str) -> None:
    p = TUNNELS[name]._replace(tunnel=name)
    (inner,) = events(pcap([p]))
    assert (inner.tunnel, inner.src_ip, inner.dst_ip, inner.src_port, inner.dst_port) == (name, p.src, p.dst, 1000, 80)
    (outer,) = events(pcap([p]), "outer")
    assert (outer.tunnel, outer.src_ip) in (("", "192.0.2.1"), ("", "2001:db8::1"))
    assert outer.extra["forward_frame_bytes"] == inner.extra["forward_frame_bytes"]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (gre(struct.pack(">HHIII", 0xB000, 0x0800, 1, 42, 3), FOUR.ip), "gre:42"),
        (gre(struct.pack(">HHI", 0x2000, 0x6558, 0xABCD), ethernet(FOUR.ip)), "gre:43981"),
        (gre(struct.pack(">HH", 0, 0x8847) + bytes.fromhex("00001140"), FOUR.ip), "gre"),
        (gre(struct.pack(">HH", 0, 0x88BE), ethernet(FOUR.ip)), "erspan"),
        (gre(struct.pack(">HHIHHII", 0x1000, 0x22EB, 1, 0x2000, 9, 0, 0), ethernet(FOUR.ip)), "erspan:9"),
        (gre(struct.pack(">HHIHHIIQ", 0x1000, 0x22EB, 1, 0x2000, 9, 0, 1, 0), ethernet(FOUR.ip)), "erspan:9"),
        (gre(struct.pack(">HHHHII", 0x3081, 0x880B, 4 + len(FOUR.ip), 9, 1, 1), b"\xff\x03\0\x21" + FOUR.ip), "pptp"),
        (gre(struct.pack(">HHHHI", 0x3001, 0x880B, 1 + len(FOUR.ip), 9, 1), b"\x21" + FOUR.ip), "pptp"),
        (udp(8472, struct.pack(">II", 8 << 24, 7 << 8) + ethernet(FOUR.ip)), "vxlan:7"),
        (udp(4789, struct.pack(">II", 0x88000001, 7 << 8) + ethernet(FOUR.ip)), "vxlan:7"),
        (udp(6081, struct.pack(">BBHI", 0, 0x40, 0x6558, 7 << 8) + ethernet(FOUR.ip)), "geneve:7"),
        (udp(2152, struct.pack(">BBHI", 0x30, 255, len(FOUR.ip), 5) + FOUR.ip), "gtp"),
        (udp(2152, struct.pack(">BBHII", 0x32, 255, 4 + len(FOUR.ip), 5, 1 << 16) + FOUR.ip), "gtp"),
    ],
)  # fmt: skip
def test_other_forms_of_the_same_tunnels(body: bytes, name: str) -> None:
    (event,) = events(framed(body))
    assert (event.tunnel, event.src_ip, event.dst_port) == (name, "10.0.0.1", 80)


def test_teredo_from_its_port_without_what_may_come_before() -> None:
    head = struct.pack(">HHHH", 3544, 40_000, 8 + len(SIX.ip), 0)
    (event,) = events(framed(ipv4(A, B, 17, head + SIX.ip)))
    assert (event.tunnel, event.src_ip) == ("teredo", "fd00::1")


def test_teredo_with_a_long_authentication() -> None:
    """A client id of 250 bytes and an authentication value of 10."""
    signed = struct.pack(">HBB", 1, 250, 10) + bytes(250 + 10 + 9) + bytes(8) + SIX.ip
    head = struct.pack(">HHHH", 3544, 40_000, 8 + len(signed), 0)
    (event,) = events(framed(ipv4(A, B, 17, head + signed)))
    assert (event.tunnel, event.src_ip) == ("teredo", "fd00::1")


LONG = FOUR.ip[:2] + struct.pack(">H", len(FOUR.ip) + 1) + FOUR.ip[4:]


@pytest.mark.parametrize(
    "body",
    [
        gre(struct.pack(">HHI", 0x4000, 0x0800, 0), FOUR.ip),  # source routing
        gre(struct.pack(">HH", 2, 0x0800), FOUR.ip),  # no such version
        gre(struct.pack(">HH", 0x0100, 0x0800), FOUR.ip),  # recursion
        gre(struct.pack(">HH", 0, 0), bytes(40)),  # a keepalive's answer
        gre(struct.pack(">HHHHI", 0x2081, 0x880B, 0, 9, 1), bytes(20)),  # PPTP's acknowledgement
        gre(struct.pack(">HHHHI", 0x3001, 0x880B, 2000, 9, 1), b"\0\x21" + FOUR.ip),  # a frame longer than the packet
        gre(struct.pack(">HHHHI", 0x3001, 0x880B, 60, 9, 1), b"\0\xfd" + bytes(58)),  # compressed
        gre(struct.pack(">HHIHHI", 0x1000, 0x88BE, 1, 0x7000, 9, 0), ethernet(FOUR.ip)),
        gre(struct.pack(">HHIHHII", 0x1000, 0x22EB, 1, 0x2000, 9, 0, 0x0800), ethernet(FOUR.ip)),  # not Ethernet
        ipv4(A, B, 4, bytes(40)),
        ipv4(A, B, 4, LONG),
        ipv4(A, B, 4, SIX.ip),
        ipv4(A, B, 41, FOUR.ip),
        ipv4(A, B, 4, FOUR.ip[:20]),
        ipv4(A, B, 4, b""),
        ipv4(A, B, 4, FOUR.ip, part=0x2000, ident=7),  # the first of a datagram's fragments
        ipv4(A, B, 4, FOUR.ip, part=9, ident=7),
        udp(4789, struct.pack(">II", 0, 7 << 8) + ethernet(FOUR.ip)),
        udp(4789, struct.pack(">II", 8 << 24, 7 << 8 | 1) + ethernet(FOUR.ip)),
        udp(4789, struct.pack(">II", 8 << 24, 7 << 8) + ethernet(bytes(28), 0x0806)),
        udp(4789, struct.pack(">II", 8 << 24, 7 << 8) + ethernet(b"\0\0\0\0" * 30, 0x8847)),
        udp(6081, struct.pack(">BBHI", 0x40, 0, 0x0800, 7 << 8) + FOUR.ip),
        udp(6081, struct.pack(">BBHI", 0, 0x80, 0x0800, 7 << 8) + FOUR.ip),  # control
        udp(6081, struct.pack(">BBHI", 63, 0, 0x0800, 7 << 8) + FOUR.ip),
        udp(2152, struct.pack(">BBHI", 0x30, 1, len(FOUR.ip), 5) + FOUR.ip),  # an echo request
        udp(2152, struct.pack(">BBHI", 0x50, 255, len(FOUR.ip), 5) + FOUR.ip),  # version 2
        udp(2152, struct.pack(">BBHI", 0x30, 255, len(FOUR.ip) - 1, 5) + FOUR.ip),
        udp(2152, struct.pack(">BBHIHBB", 0x34, 255, 12 + len(FOUR.ip), 5, 0, 0, 1) + bytes(8) + FOUR.ip),
        udp(2152, struct.pack(">BBHIHBB", 0x34, 255, 8 + len(FOUR.ip), 5, 0, 0, 1) + b"\xff\0\0\1" + FOUR.ip),
        udp(3544, SIX.ip + b"\0"),
        udp(3544, b"\0\1\xff\xff" + SIX.ip),
        udp(3544, bytes(40)),
        udp(2152, bytes(4)),
        udp(2152, b"\x30\xff"),
    ],
)
def test_what_cannot_be_opened_for_certain_is_its_outer_flow(body: bytes) -> None:
    inner, outer = events(framed(body)), events(framed(body), "outer")
    assert inner == outer and [e.tunnel for e in inner] == [""]
    cut = ipv4(A, B, 50, body)  # inside of what is not opened nothing is looked at
    assert [e.proto for e in events(framed(cut))] == [50]


@pytest.mark.parametrize("name", TUNNELS)
def test_a_capture_that_cuts_the_inner_headers_leaves_the_outer_flow(name: str) -> None:
    """Whatever the length, a packet is counted once: inside while the headers are there, outside below that."""
    p = TUNNELS[name]._replace(tunnel=name)
    lengths = range(len(p.frame), 14, -1)
    parsed = parse(header() + b"".join(record(T + i * 200 * 10**9, p.frame, n) for i, n in enumerate(lengths)))
    assert len(parsed.events) + len(parsed.rejects) == len(lengths)
    levels = list(dict.fromkeys(e.event.tunnel for e in parsed.events))
    assert levels == [name, *([name.split("/")[0]] if "/" in name else []), ""]


def back(p: P) -> P:
    return p._replace(src=p.dst, dst=p.src, src_port=p.dst_port, dst_port=p.src_port)


def packets_of(parsed: list[Event]) -> list[tuple[str, bool]]:
    return [(e.tunnel, e.extra["backward_frame_bytes"] > 0) for e in parsed]


def test_numbers_that_each_side_chooses_do_not_part_the_directions() -> None:
    def gtp(teid: int, p: P) -> bytes:
        return udp(2152, struct.pack(">BBHI", 0x30, 255, len(p.ip), teid) + p.ip)

    def pptp(call: int, p: P) -> bytes:
        return gre(struct.pack(">HHHHI", 0x3001, 0x880B, 2 + len(p.ip), call, 1), b"\0\x21" + p.ip)

    assert packets_of(events(framed(gtp(1, FOUR), gtp(2, back(FOUR))))) == [("gtp", True)]
    assert packets_of(events(framed(pptp(1, FOUR), pptp(2, back(FOUR))))) == [("pptp", True)]


def test_outer_endpoints_do_not_part_a_flow_but_numbers_and_kinds_do() -> None:
    def vxlan(number: int, p: P, src: bytes = A) -> bytes:
        return udp(4789, struct.pack(">II", 8 << 24, number << 8) + ethernet(p.ip), src)

    assert packets_of(events(framed(vxlan(1, FOUR), vxlan(1, back(FOUR), B)))) == [("vxlan:1", True)]
    apart = framed(
        vxlan(1, FOUR), vxlan(2, back(FOUR)), FOUR.ip, *(wrap(t, FOUR.ip, 0x0800)[0] for t in ("gre", "gre:0", "gre:1"))
    )
    assert sorted(packets_of(events(apart))) == [
        (name, False) for name in ("", "gre", "gre:0", "gre:1", "vxlan:1", "vxlan:2")
    ]
    nested = [wrap(f"vxlan:{n}", wrap("gre:1", FOUR.ip, 0x0800)[0], 0x0800)[0] for n in (1, 2)]
    assert sorted(packets_of(events(framed(*nested)))) == [("vxlan:1/gre:1", False), ("vxlan:2/gre:1", False)]


def test_a_third_tunnel_counts_as_what_is_in_the_second() -> None:
    (event,) = events(pcap([FOUR._replace(tunnel="vxlan:1/gre:2/ipip")]))
    assert (event.tunnel, event.proto, event.src_ip) == ("vxlan:1/gre:2", 4, "192.0.2.1")


def test_the_vlan_is_that_of_the_frame_inside_where_it_has_one() -> None:
    tagged = ethernet(struct.pack(">HH", 7, 0x0800) + FOUR.ip, 0x8100)
    inside = udp(4789, struct.pack(">II", 8 << 24, 1 << 8) + tagged)
    outside = struct.pack(">HH", 5, 0x0800) + inside
    assert [e.vlan for e in events(framed(inside) + record(T, ethernet(outside, 0x8100)))] == [7]
    plain = struct.pack(">HH", 5, 0x0800) + wrap("vxlan:1", FOUR.ip, 0x0800)[0]
    assert [e.vlan for e in events(header() + record(T, ethernet(plain, 0x8100)))] == [5]


def test_fragments_in_a_tunnel_are_of_one_datagram_only_there() -> None:
    pieces = [
        ipv4(A, B, UDP, struct.pack(">HHHH", 5, 53, 40, 0) + bytes(24), 0x2000, 9),
        ipv4(A, B, UDP, bytes(8), 4, 9),
    ]
    inside = [wrap("vxlan:1", piece, 0x0800)[0] for piece in pieces]
    (event,) = events(framed(*inside))
    assert (event.tunnel, event.dst_port) == ("vxlan:1", 53)
    assert len(events(framed(inside[0], pieces[1]))) == 2


def told(parsed: Parsed) -> Counter[str]:
    return Counter(e.event.tunnel for e in parsed.events)


@pytest.mark.parametrize(
    ("capture", "tunnels"),
    [
        ("pcap_ndpi/benign/6in4tunnel.pcap", {"6in4": 10}),
        ("pcap_ndpi/benign/gre.pcapng", {"pptp": 1}),
        ("pcap_ndpi/benign/vxlan.pcap", {"vxlan:1111": 4}),
        ("pcap_ndpi/benign/zoom.pcap.gz", {"": 33, "gtp": 1}),
        ("pcap_zeek/tunnels/Teredo.pcap", {"": 9, "teredo": 4}),
        ("pcap_zeek/tunnels/geneve.pcap", {"geneve:0": 1}),
        ("pcap_zeek/tunnels/vxlan.pcap", {"": 2, "vxlan:123": 1}),  # two frames are ARP
    ],
)
def test_real_tunnels(capture: str, tunnels: dict[str, int]) -> None:
    parsed = parse(content(capture))
    assert parsed.rejects == [] and told(parsed) == tunnels
