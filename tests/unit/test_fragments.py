"""Fragments: their datagram's ports whatever the order, and no byte twice. (Against a slow way: the property test.)"""

from __future__ import annotations

import gc
import struct
import tracemalloc
from ipaddress import ip_address
from itertools import permutations
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.features import INDEX
from engine.flows.decode import ACK, SYN
from engine.flows.fragments import DATAGRAMS_MAX, HOLD_S, Datagram
from engine.sources.base import SourceSpec
from engine.sources.pcap import PcapAdapter
from ipc.event import FeaturedEvent
from tests.packets import ICMP, TCP, UDP, P, Piece, ethernet, header, ipv4, parse, pcap, record

S = 1_000_000_000
T = 1_600_000_000 * S
A, B = (ip_address(a).packed for a in ("10.0.0.1", "10.0.0.2"))
BIG = P(T, src_port=5000, dst_port=53, proto=UDP, payload=bytes(3000))
CUTS = ((0, 1480), (1480, 2960), (2960, 3008))


def cut(p: P, *pieces: tuple[int, int], ident: int = 77) -> list[P]:
    return [p._replace(ts=p.ts + i, piece=Piece(ident, a, b)) for i, (a, b) in enumerate(pieces)]


def read(packets: list[P]) -> tuple[list[FeaturedEvent], list[str]]:
    parsed = parse(header(magic=0xA1B23C4D) + b"".join(record(p.ts, p.frame, tick_ns=1) for p in packets))
    return parsed.events, [r.reason for r in parsed.rejects]


def told(events: list[FeaturedEvent]) -> list[tuple[Any, ...]]:
    """Ports, packets, bytes and header bytes of each flow."""
    out = []
    for event in events:
        raw, row = msgspec.json.decode(event.raw), np.frombuffer(event.features, "<f4")
        headers = row[INDEX["forward_header_length"]] + row[INDEX["backward_header_length"]]
        out.append((raw["src_port"], raw["dst_port"], raw["packets"], raw["bytes"], int(headers)))
    return sorted(out)


@pytest.mark.parametrize("order", list(permutations(CUTS)))
@pytest.mark.parametrize("v6", [False, True])
def test_in_any_order_a_datagram_is_one_flow_of_its_bytes(order: tuple[tuple[int, int], ...], v6: bool) -> None:
    p = BIG._replace(src="fd00::1", dst="fd00::2") if v6 else BIG
    events, reasons = read(cut(p, *order))
    assert told(events) == [(5000, 53, [3, 0], [3000, 0], 8)] and reasons == []


@pytest.mark.parametrize("proto", [TCP, ICMP, 132, 89])
def test_every_protocol_sums_up_to_its_datagram(proto: int) -> None:
    p = P(T, proto=proto, src_port=8, dst_port=0, payload=bytes(2000))
    size = len(p.l4)
    events, _ = read(cut(p, (1000, size), (0, 1000)))
    ports = (None, None) if proto == 89 else (8, 0)
    assert told(events) == [(*ports, [2, 0], [2000, 0], size - 2000)]


def test_the_first_one_may_come_in_the_next_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later it may not; what waited then is of a flow without ports. The order of the capture stays."""
    monkeypatch.setattr("engine.flows.capture.BLOCK_PACKETS", 2)
    late, *_, first = cut(BIG, (1480, 3008), (0, 0), (0, 0), (0, 0), (0, 0), (0, 1480))
    others = [P(T + i, dst_port=99) for i in range(1, 6)]
    events, _ = read([late, *others[:2], first])
    assert told(events) == [(1000, 99, [2, 0], [0, 0], 40), (5000, 53, [2, 0], [3000, 0], 8)]
    assert [e.event.ts_start for e in events if e.event.dst_port == 53] == [T]
    events, _ = read([late, *others, first])
    assert (0, 0, [1, 0], [1528, 0], 0) in told(events) and (5000, 53, [1, 0], [1472, 0], 8) in told(events)


def test_overlapping_and_repeated_fragments_count_what_is_new_and_are_named() -> None:
    events, reasons = read(cut(BIG, (0, 1480), (0, 1480), (1000, 2960), (1480, 2960), (2960, 3008)))
    assert told(events) == [(5000, 53, [5, 0], [3000, 0], 8)]
    assert reasons == ["a fragment: it overlaps another fragment of its datagram"] * 3
    assert not np.isnan(np.frombuffer(events[0].features, "<f4")[INDEX["entropy"]])  # the sample came before


def test_a_number_comes_again_when_the_datagram_is_whole_or_old() -> None:
    whole = cut(BIG, *CUTS)
    again = [p._replace(ts=p.ts + S, dst_port=54) for p in whole]
    assert told(read(whole + again)[0]) == [(5000, p, [3, 0], [3000, 0], 8) for p in (53, 54)]
    assert read(whole + again)[1] == []
    old = [p._replace(ts=p.ts + (HOLD_S + 1) * S, dst_port=54) for p in whole]
    events, reasons = read(whole[:2] + old)
    assert told(events) == [(5000, 53, [2, 0], [2952, 0], 8), (5000, 54, [3, 0], [3000, 0], 8)] and reasons == []


def test_tiny_fragments_hide_nothing() -> None:
    """A first fragment of eight bytes has TCP's ports and no flags: those count in the fragment that has them."""
    p = P(T, flags=SYN | ACK, payload=bytes(100))
    events, reasons = read(cut(p, (0, 8), (8, 16), (16, 120)))
    assert told(events) == [(1000, 80, [3, 0], [100, 0], 20)]
    assert np.frombuffer(events[0].features, "<f4")[INDEX["syn_flag_count"]] == 1
    assert reasons == ["a fragment: a first fragment too small for the transport header"]
    events, reasons = read(cut(p, (16, 120), (8, 16), (0, 8)))
    assert told(events) == [(1000, 80, [3, 0], [100, 0], 20)]


@pytest.mark.parametrize("size", range(8))
def test_a_first_fragment_without_ports_is_left_out(size: int) -> None:
    frame = ethernet(ipv4(A, B, UDP, bytes(size), 0x2000, 5))
    parsed = parse(header() + record(T, frame))
    assert parsed.events == [] and ["longer than its packet" in r.reason for r in parsed.rejects] == [True]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("size", [7, 8, 1480])
def test_a_fragment_that_ends_beyond_the_largest_datagram_is_left_out(size: int, v6: bool) -> None:
    at = 0x1FFF * 8
    p = P(T, src_port=8, dst_port=0, proto=ICMP, payload=bytes(at + size - 8), piece=Piece(5, at, at + size))
    events, reasons = read([p._replace(src="fd00::1", dst="fd00::2", proto=58) if v6 else p])
    assert told(events) == ([(0, 0, [1, 0], [7, 0], 0)] if size == 7 else [])
    assert ["beyond the largest datagram" in reason for reason in reasons] == [True] * (size > 7)


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("part", [(0, 800), (800, 1600), (2200, 3008)])
def test_a_fragment_without_a_length_is_left_out(part: tuple[int, int], v6: bool) -> None:
    """Only what a card is still to cut has none. The record says that 4 GiB were on the wire."""
    (p,) = cut(BIG._replace(src="fd00::1", dst="fd00::2") if v6 else BIG, part)
    ip = bytearray(p.ip)
    ip[(at := 4 if v6 else 2) : at + 2] = b"\0\0"
    frame = ethernet(bytes(ip), p.ethertype)
    tracemalloc.start()
    try:
        parsed = parse(header() + record(T, frame)[:12] + b"\xff" * 4 + frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert parsed.events == [] and ["contradicts itself" in r.reason for r in parsed.rejects] == [True]
    assert peak < 16 << 20


def test_a_datagram_whose_first_one_came_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later fragments before their first one, in the same block."""
    monkeypatch.setattr("engine.flows.capture.BLOCK_PACKETS", 4)
    monkeypatch.setattr("engine.flows.fragments.DATAGRAMS_MAX", 10)
    packets = [p for ident in range(100) for p in cut(BIG, CUTS[1], CUTS[0], ident=ident)]
    adapter = PcapAdapter(SourceSpec("t"))
    adapter.feed(pcap(packets), 0)
    assert sum(type(thing) is Datagram for thing in gc.get_objects()) <= 10
    assert told(adapter.finish().events) == [(5000, 53, [200, 0], [2952 * 100, 0], 800)]


def test_very_many_datagrams_at_once() -> None:
    firsts = [p for i in range(DATAGRAMS_MAX + 1) for p in cut(BIG, CUTS[0], ident=i)]
    rest = [p for i in range(DATAGRAMS_MAX + 1) for p in cut(BIG, CUTS[1], ident=i)]
    (without, with_) = told(read(firsts + rest[::-1])[0])  # the oldest one was forgotten
    assert without[:3] == (0, 0, [1, 0]) and with_[2] == [2 * DATAGRAMS_MAX + 1, 0]


def test_bytes_beyond_a_fragment_decide_nothing() -> None:
    """Padding after a short first fragment is not its transport header."""
    frame = bytearray(ethernet(ipv4(A, B, TCP, struct.pack(">HHI", 7, 80, 0), 0x2000, 5)))
    frame[14 + 20 + 8 :] = b"\xff" * (len(frame) - 42)
    parsed = parse(header() + record(T, bytes(frame)))
    assert told(parsed.events) == [(7, 80, [1, 0], [0, 0], 8)]
    assert np.frombuffer(parsed.events[0].features, "<f4")[INDEX["fin_flag_count"]] == 0
