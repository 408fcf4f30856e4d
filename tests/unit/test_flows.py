"""The flow table: its ends and bounds. (That it cuts like a slow one: tests/property/test_flows_property.py.)"""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.flows.decode import ACK, FIN, RST, SYN
from engine.flows.split import Limits
from engine.flows.table import EndReason, TcpState
from engine.sources.base import Parsed, SourceSpec
from engine.sources.pcap import PcapAdapter
from tests.captures import Kept
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


def test_a_syn_after_a_missed_beginning_begins_a_flow_of_its_own_direction() -> None:
    """The capture began in the middle; then the client connects anew from the same port."""
    middle = [back(P(T)), P(T), back(P(T))]
    connect = [P(T + S, flags=SYN), back(P(T + S, flags=SYN | ACK)), P(T + S)]
    first, second = (0, [2, 1], "active", 80), (1, [2, 1], "end", 1000)
    assert flows(middle + connect) == [first, second]
    half_closed = [back(P(T)), P(T, flags=FIN | ACK)]
    assert flows(half_closed + connect) == [(0, [1, 1], "active", 80), second]
    late_syn = [back(P(T, flags=SYN | ACK)), P(T, flags=SYN), P(T)]  # two taps, out of order
    assert flows(late_syn) == [(0, [2, 1], "end", 1000)]


@pytest.mark.parametrize("block", [1, 2, 1 << 15])
def test_a_syn_after_a_missed_beginning_in_another_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.flows.capture.BLOCK_PACKETS", block)
    got = flows([back(P(T)), back(P(T)), P(T + S, flags=SYN), back(P(T + S, flags=SYN | ACK)), P(T + 2 * S, flags=SYN)])
    assert got == [(0, [2, 0], "active", 80), (1, [2, 1], "end", 1000)]


SYNS = [P(T, flags=SYN), back(P(T, flags=SYN | ACK))]
OPEN = [*SYNS, P(T)]
FIN1, FIN2 = P(T, flags=FIN | ACK), back(P(T, flags=FIN | ACK))


@pytest.mark.parametrize(
    ("packets", "state", "reason"),
    [
        (SYNS[:1], TcpState.NEW, "end"),
        (SYNS, TcpState.NEW, "end"),
        (OPEN, TcpState.ESTABLISHED, "end"),
        ([P(T), back(P(T))], TcpState.ESTABLISHED, "end"),
        ([*OPEN, FIN1], TcpState.HALF_CLOSED, "end"),
        ([*OPEN, FIN1, FIN1, back(P(T))], TcpState.HALF_CLOSED, "end"),
        ([*OPEN, FIN2, FIN1, back(P(T))], TcpState.CLOSED, "fin"),
        ([*OPEN, P(T, flags=RST)], TcpState.RESET, "rst"),
        ([*OPEN, FIN1, back(P(T, flags=RST))], TcpState.RESET, "rst"),
        ([*OPEN, FIN1, FIN2, P(T, flags=RST)], TcpState.CLOSED, "fin"),
        ([SYNS[0], back(P(T, flags=RST | ACK))], TcpState.RESET, "rst"),
        ([P(T, proto=17), back(P(T, proto=17))], None, "end"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 15])
def test_every_flow_says_how_far_it_came_and_why_it_ended(
    packets: list[P], state: TcpState | None, reason: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.flows.capture.BLOCK_PACKETS", block)
    (one,) = parse(pcap(packets)).events
    assert one.event.extra.get("tcp_state") == state
    assert one.event.extra["end_reason"] == EndReason[reason.upper()]
    assert msgspec.json.decode(one.raw)["end_reason"] == reason


def test_limits_come_from_the_source() -> None:
    spec = SourceSpec("t", flows=Limits(idle_s=1, active_s=4, flows_max=2))
    ps = [P(T), P(T + 2 * S), *(P(T + (4 + i) * S, src_port=2) for i in range(6))]
    parsed = parse(pcap(ps), adapter=PcapAdapter(spec))
    assert sorted(msgspec.json.decode(e.raw)["end_reason"] for e in parsed.events) == ["active", "end", "idle", "idle"]


def test_memory_stays_flat_over_ten_times_the_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flow comes out once, with all its packets, and what is held does not grow with how many went by."""
    monkeypatch.setattr("engine.flows.capture.BLOCK_PACKETS", 256)
    monkeypatch.setattr("engine.sources.pcap.HELD_MAX", 300)
    capacity, total, step = 300, 3_000, 100
    adapter = PcapAdapter(SourceSpec("t"), Limits(flows_max=capacity))
    seen, packets = np.zeros(total, np.int64), np.zeros(total, np.int64)
    reasons: Counter[str] = Counter()
    sent = held_peak = early_peak = 0

    def take(parsed: Parsed) -> None:
        for event in parsed.events:
            raw = msgspec.json.decode(event.raw)
            number = int(raw["src"].split(".")[2]) + (raw["src_port"] - 1) * 40
            seen[number] += 1
            packets[number] += sum(raw["packets"])
            reasons[raw["end_reason"]] += 1

    offset = 0
    tracemalloc.start()
    try:
        for begin in range(0, total, step):
            ends = [(f"10.0.{i % 40}.1", 1 + i // 40) for i in range(begin, begin + step)]
            ps = [P(T + begin + n, host, src_port=port) for host, port in ends for n in range(1 + port % 3)]
            data = pcap(ps)[0 if begin == 0 else 24 :]
            sent += len(ps)
            take(adapter.feed(data, offset))
            offset += len(data)
            held_peak = max(held_peak, tracemalloc.get_traced_memory()[0])
            if begin < total // 2:
                early_peak = held_peak
    finally:
        tracemalloc.stop()
    take(adapter.finish())
    assert seen.tolist() == [1] * total
    assert packets.tolist() == [1 + (1 + i // 40) % 3 for i in range(total)] and packets.sum() == sent
    assert reasons["evicted"] == total - capacity and reasons["end"] == capacity
    assert held_peak < early_peak * 1.25


def test_finished_flows_come_out_beside_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many packets are held of what goes on, few flows are at once."""
    monkeypatch.setattr("engine.flows.capture.BLOCK_PACKETS", 50)
    monkeypatch.setattr("engine.flows.table.FINISHED_MAX", 100)
    long = [P(T + i) for i in range(2_000)]
    short = [P(T + S + i, src_port=2_000 + i) for i in range(1_000)]
    adapter = Kept(Limits(flows_max=20))
    adapter.feed(pcap(long + [p for pair in zip(short, long[:1_000], strict=True) for p in pair]), 0)
    adapter.finish()
    sizes = [len(batch.flows) for batch in adapter.batches]
    assert sum(sizes) == 1_001 and max(sizes) <= 150


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
