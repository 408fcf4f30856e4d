"""The flow table: its ends and bounds. (That it cuts like a slow one: tests/property/test_flows_property.py.)"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.flows.decode import ACK, FIN, RST, SYN
from engine.flows.split import Limits
from engine.sources.base import SourceSpec
from engine.sources.pcap import PcapAdapter
from tests.packets import P, parse, pcap

S = 1_000_000_000
T = 1_600_000_000 * S


def back(p: P) -> P:
    return p._replace(src=p.dst, dst=p.src, src_port=p.dst_port, dst_port=p.src_port)


def flows(packets: list[P], limits: Limits | None = None) -> list[Any]:
    adapter = PcapAdapter(SourceSpec("t"), limits)
    parsed = parse(pcap(packets), adapter=adapter)
    assert parsed.rejects == []
    raws = [msgspec.json.decode(e.raw) for e in parsed.events]
    return sorted(((r["start_ns"] - T) // S, r["packets"], r["end_reason"], r["src_port"]) for r in raws)


def test_fin_of_both_sides_and_what_trails() -> None:
    ps = [P(T, flags=SYN), back(P(T, flags=SYN | ACK)), P(T), P(T, flags=FIN | ACK), back(P(T, flags=FIN | ACK)), P(T)]
    assert flows(ps) == [(0, [4, 2], "fin", 1000)]
    again = [p._replace(ts=T + S) for p in ps]
    assert flows(ps + again) == [(0, [4, 2], "fin", 1000), (1, [4, 2], "fin", 1000)]


def test_rst_and_the_next_attempt() -> None:
    ps = [P(T, flags=SYN), back(P(T, flags=RST | ACK)), P(T + S, flags=SYN), back(P(T + S, flags=RST | ACK))]
    assert flows(ps) == [(0, [1, 1], "rst", 1000), (1, [1, 1], "rst", 1000)]


def test_a_syn_again_without_a_close_is_the_same_flow() -> None:
    assert flows([P(T, flags=SYN), P(T + S, flags=SYN), P(T + 3 * S, flags=SYN)]) == [(0, [3, 0], "end", 1000)]


def test_idle_and_active_timeouts() -> None:
    assert flows([P(T), P(T + 120 * S), P(T + 241 * S)]) == [(0, [2, 0], "idle", 1000), (241, [1, 0], "end", 1000)]
    steady = [P(T + 100 * i * S) for i in range(40)]
    assert flows(steady) == [(0, [37, 0], "active", 1000), (3700, [3, 0], "end", 1000)]
    assert flows([P(T), P(T + 11 * S)], Limits(idle_s=10)) == [(0, [1, 0], "idle", 1000), (11, [1, 0], "end", 1000)]


def test_a_syn_ack_first_flips_the_direction() -> None:
    assert flows([back(P(T, flags=SYN | ACK)), P(T)]) == [(0, [1, 1], "end", 1000)]


def test_long_silent_flows_end_idle_at_the_end() -> None:
    assert flows([P(T), P(T + 200 * S, src_port=2)]) == [(0, [1, 0], "idle", 1000), (200, [1, 0], "end", 2)]


def test_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed flows go first, then the longest unseen; the evicted are told, the closed keep how they were closed."""
    monkeypatch.setattr("engine.flows.capture.BLOCK_PACKETS", 4)
    ps = [P(T, src_port=1), P(T, src_port=2), P(T, src_port=3, flags=RST), P(T, src_port=4)]
    ps += [P(T + S, src_port=5), P(T + S, src_port=1), P(T + S, src_port=6), P(T + S, src_port=6)]
    got = flows(ps, Limits(flows_max=3))
    assert got == [
        (0, [1, 0], "evicted", 2),
        (0, [1, 0], "evicted", 4),
        (0, [1, 0], "rst", 3),
        (0, [2, 0], "end", 1),
        (1, [1, 0], "end", 5),
        (1, [2, 0], "end", 6),
    ]


def test_a_flow_of_very_many_packets_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.flows.capture.BLOCK_PACKETS", 7)
    got = flows([P(T + i) for i in range(100)], Limits(packets_max=30))
    assert [(n, why) for _, n, why, _ in got] == [([10, 0], "end"), *[([30, 0], "active")] * 3]


def test_stored_packets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.flows.capture.BLOCK_PACKETS", 10)
    few = [P(T, src_port=2)]
    got = flows(few + [P(T + i) for i in range(39)], Limits(stored_max=25))
    assert got == [(0, [1, 0], "end", 2), (0, [10, 0], "end", 1000), (0, [29, 0], "evicted", 1000)]
