"""The flow table against a slow one, over random captures; and no result may depend on how the bytes were cut."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import engine.flows.capture as capture
from engine.features import INDEX
from engine.flows.decode import ACK, FIN, PSH, RST, SYN
from engine.flows.names import flow_text
from engine.flows.split import KEY_WORDS, Limits, group
from engine.sources.base import Parsed, SourceSpec
from engine.sources.pcap import PcapAdapter
from tests.packets import (
    Flow,
    P,
    Piece,
    client_hello,
    enhanced,
    ethernet,
    header,
    interface,
    parse,
    pcap,
    record,
    reference,
    section,
    split,
)

S = 1_000_000_000
LONG = bytes(range(251))
gaps = st.one_of(st.integers(0, 3 * S), st.sampled_from([0, S, 5 * S, 5 * S + 1, 119 * S, 121 * S, -S, -200 * S]))
tcp_flags = st.sampled_from([SYN, SYN | ACK, ACK, ACK | PSH, FIN | ACK, FIN | ACK, RST, RST | ACK])
packet: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    gap=gaps,
    turn=st.booleans(),
    host=st.integers(0, 2),
    port=st.integers(0, 1),
    proto=st.sampled_from([6, 6, 6, 17, 1, 132, 89]),
    v6=st.sampled_from([False, False, True]),
    flags=tcp_flags,
    tunnel=st.one_of(st.just(0), st.integers(0, 9)),
    payload=st.one_of(st.just(b""), st.binary(max_size=40), st.integers(1, 1400).map(lambda n: (LONG * 6)[:n])),
)


TUNNELS4 = ("", "ipip", "4in6", "gre", "gre:0", "gre:7", "pptp", "erspan:3", "vxlan:5/gre:7", "gtp/ipip")
TUNNELS6 = ("", "6in4", "6in6", "gre", "vxlan:5", "vxlan:6", "geneve:5", "teredo", "gtp", "geneve:1/6in4")


def build(rows: list[dict[str, Any]], clock_goes_back: bool = True) -> list[P]:
    now, out = 1_600_000_000 * S, []
    for r in rows:
        now += r["gap"] if clock_goes_back else abs(r["gap"])
        a, b = (f"fd00::{r['host'] + 1}", "fd00::99") if r["v6"] else (f"10.0.0.{r['host'] + 1}", "10.0.0.99")
        pa, pb = (4000 + r["port"], 80) if r["proto"] in (6, 17, 132) else (8, 0) if r["proto"] == 1 else (0, 0)
        if r["turn"]:
            a, b, pa, pb = b, a, *((0, 0) if r["proto"] == 1 else (pb, pa))
        tunnel = (TUNNELS6 if r["v6"] else TUNNELS4)[r["tunnel"]]
        out.append(P(now, a, b, pa, pb, r["proto"], r["flags"], r["payload"], tunnel))
    return out


rows_of_packets = st.lists(packet, min_size=1, max_size=40)
captures = rows_of_packets.map(build)


def told(parsed: Parsed) -> list[Any]:
    return [(e.event.event_id, e.raw, e.features, msgspec.json.encode(e.event)) for e in parsed.events]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_of_packets)
@pytest.mark.parametrize("block", [1, 3, 1 << 15])
def test_same_as_packet_by_packet(rows: list[dict[str, Any]], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "BLOCK_PACKETS", block)
    compare(build(rows, clock_goes_back=block > 3))  # a flow that a whole block came after is not taken up again


def compare(packets: list[P]) -> None:
    """The events of a capture with the flows of the slow table."""
    expected: dict[Any, list[Flow]] = {}
    for flow in split(packets):
        expected.setdefault(identity(flow), []).append(flow)
    events = parse(pcap(packets)).events
    assert len(events) == sum(map(len, expected.values()))
    for event in events:
        raw = msgspec.json.decode(event.raw)
        assert event.event.tunnel == raw.get("tunnel", "")
        ends = raw["src"], raw["src_port"], raw["proto"], event.event.tunnel
        key = (*ends, raw["start_ns"], raw["end_ns"], tuple(raw["packets"]))
        flows = expected[key]
        row = np.frombuffer(event.features, "<f4")
        assert any(raw["end_reason"] == flow.reason and close(reference(flow), row) for flow in flows), (key, raw)


pieces = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(packet, st.one_of(st.none(), pieces), st.randoms()), min_size=1, max_size=12))
def test_fragments_same_as_byte_by_byte(rows: list[tuple[dict[str, Any], Any, Any]]) -> None:
    """Any cuts, in any order, overlapping and twice, whole or not; the first one is among them."""
    packets: list[P] = []
    for ident, (row, plan, random) in enumerate(rows):
        (p,) = build([{**row, "gap": 0}])
        p = p._replace(ts=p.ts + ident * S)
        size = len(p.l4)
        if plan is None or size < 9:
            packets.append(p)
            continue
        cuts = [(8 * a, min(8 * (a + n), size)) for a, n in plan if 8 * a < size]
        stop = min(8 * plan[0][1], size - 1) // 8 * 8
        cuts = [c for c in cuts if c != (0, size)] + [(0, stop), (stop, size)]
        random.shuffle(cuts)
        packets += [p._replace(ts=p.ts + i, piece=Piece(ident, a, b)) for i, (a, b) in enumerate(cuts)]
    compare(packets)


def identity(flow: Flow) -> tuple[Any, ...]:
    first, times = flow.packets[0], [p.ts for p in flow.packets]
    port = flow.initiator[1] if first.proto in (6, 17, 132) else None if first.proto == 89 else first.src_port
    n = sum(map(flow.forward, flow.packets))
    return flow.initiator[0], port, first.proto, first.tunnel, min(times), max(times), (n, len(times) - n)


def close(expected: dict[str, float], row: Any) -> bool:
    return all(
        math.isclose(row[INDEX[name]], value, rel_tol=2e-5, abs_tol=1e-5)
        or (math.isnan(value) and math.isnan(row[INDEX[name]]))
        for name, value in expected.items()
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    packets=captures, cuts=st.lists(st.integers(0, 4000), max_size=20), ng=st.booleans(), block=st.sampled_from([2, 7])
)
def test_cuts_change_nothing(
    packets: list[P], cuts: list[int], ng: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "BLOCK_PACKETS", block)
    data = pcap(packets)
    if ng:
        frames = [enhanced(p.ts // 1000, ethernet(p.ip, p.ethertype)) for p in packets]
        data = section() + interface() + b"".join(frames)
    whole = parse(data)
    assert told(parse(data, [min(c, len(data)) for c in cuts])) == told(whole)
    assert told(parse(data, list(range(0, len(data), 13)))) == told(whole)


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=400),
    frames=st.lists(st.binary(max_size=120), max_size=6),
    linktype=st.sampled_from([0, 1, 101, 108, 113, 276, 147]),
)
def test_any_bytes_are_taken(data: bytes, frames: list[bytes], linktype: int) -> None:
    parse(data)
    parse(header(linktype=linktype) + data)
    parse(header(linktype=linktype) + b"".join(record(i * S, f) for i, f in enumerate(frames)))
    parse(section() + data)
    parse(section() + interface(linktype) + b"".join(enhanced(i, f) for i, f in enumerate(frames)) + data)


@given(name=st.binary(max_size=40), more=st.binary(max_size=20), backward=st.booleans())
def test_a_name_in_clear_may_be_cut_anywhere(name: bytes, more: bytes, backward: bool) -> None:
    hello = client_hello(name)
    whole = hello + more
    for size in range(len(whole) + 1):
        text = flow_text(6, 443, *((b"", whole[:size]) if backward else (whole[:size], b"")))
        assert text.isascii() and (size >= len(hello) or text == "")


@settings(max_examples=100, deadline=None)
@given(
    packets=captures,
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
    captured=st.one_of(st.none(), st.integers(0, 150)),
)
def test_damage_is_taken(packets: list[P], flips: list[tuple[int, int]], captured: int | None) -> None:
    """Inner or outer, opened or not: the same packets are counted once, or left out with a reason."""
    data = bytearray(pcap(packets, captured))
    for at, value in flips:
        data[24 + at % (len(data) - 24)] = value
    for tunnels in ("inner", "outer"):
        adapter = PcapAdapter(SourceSpec("t"), Limits(tunnels=tunnels))
        parsed = parse(bytes(data), adapter=adapter)
        if not flips:
            counted = sum(sum(msgspec.json.decode(e.raw)["packets"]) for e in parsed.events)
            assert counted + len(parsed.rejects) == len(packets)


def test_conversations_of_one_hash_stay_apart() -> None:
    keys = np.array([[i % 3, *[0] * (KEY_WORDS - 1)] for i in range(30)], np.uint64)
    order, starts = group(keys, np.zeros(KEY_WORDS, np.uint64))  # multiplied by zero: all hashes are equal
    assert starts.tolist() == [0, 10, 20]
    assert order.tolist() == [*range(0, 30, 3), *range(1, 30, 3), *range(2, 30, 3)]
