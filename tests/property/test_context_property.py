"""The context tracker against a slow reference written straight from features.tsv, and under any cut of the stream."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import features as table
from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.features import F32, INDEX
from ipc.event import Event

S = 10**9
WINDOW, LATE, HALF_LIFE = 30 * S, 900 * S, 3600.0 * S
FILE_PORTS = {20, 21, 111, 137, 138, 139, 445, 548, 873, 2049, 3260}
LATERAL_PORTS = {22, 23, 135, 139, 445, 3389, 5985, 5986}
NAN = math.nan


class Flow(NamedTuple):
    """One event of the stream with its features by name; `order` is that of arrival."""

    e: Event
    seconds: float
    forward_packets: float
    backward_packets: float
    forward_bytes: float
    backward_bytes: float

    @property
    def bytes(self) -> float:
        return self.forward_bytes + self.backward_bytes

    @property
    def packets(self) -> float:
        return self.forward_packets + self.backward_packets


def known(values: Sequence[float]) -> list[float]:
    return [v for v in values if not math.isnan(v)]


@cache
def internal(address: str) -> bool:
    return any(ip_address(address) in ip_network(cidr) for cidr in CIDRS_INTERNAL)


@cache
def prefix(address: str) -> str:
    return str(ip_network(f"{address}/{32 if ':' in address else 16}", strict=False))


def entropy(values: Sequence[Any]) -> float:
    n = len(values)
    if n < 2:
        return 0.0
    return -sum(c / n * math.log2(c / n) for c in Counter(values).values()) / math.log2(max(2, n))


def herfindahl(values: Sequence[Any]) -> float:
    return sum((c / len(values)) ** 2 for c in Counter(values).values())


def sample_std(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0 if values else NAN
    return float(np.std(np.array(values), ddof=1))


def log_ms(flows: Sequence[Flow]) -> list[float]:
    return [math.log1p(f.seconds * 1000) for f in flows if not math.isnan(f.seconds)]


def decayed(values: Sequence[float], times: Sequence[float], now: float) -> tuple[float, float]:
    """Decayed mean and deviation."""
    w = np.exp2(-(now - np.array(times)) / HALF_LIFE)
    mean = float(np.sum(w * values) / np.sum(w))
    return mean, math.sqrt(max(0.0, float(np.sum(w * (np.array(values) - mean) ** 2) / np.sum(w))))


def temporal_anomaly(past: Sequence[Flow], ts: int) -> float:
    buckets: list[int] = []
    for f in past:
        b = f.e.ts // WINDOW
        if not buckets or b >= max(buckets):  # a flow late for its bucket does not reopen it
            buckets.append(b)
    if not buckets:
        return NAN
    now = max(ts // WINDOW, buckets[-1])
    counts = Counter(buckets)
    before = range(buckets[0], now - 1)
    if len(before) < 5:
        return NAN
    mean, deviation = decayed([counts[b] for b in before], [b * WINDOW for b in before], now * WINDOW)
    return 1 - math.exp(-abs(counts[now - 1] - mean) / max(1.0, deviation) / 3)


def context(past: Sequence[Flow], f: Flow, newest: int) -> dict[str, float]:
    """The context of f after the flows `past` (all of one stream, in order of arrival); newest: running maximum."""
    out: dict[str, float] = {}
    e, is_flow = f.e, f.e.kind == "flow"
    if e.ts < newest - LATE:
        return out
    proto = e.proto
    has_port = e.dst_port is not None or (proto is not None and proto not in (6, 17, 132))
    taken = [*past, f] if is_flow else list(past)
    window = [g for g in taken if e.ts - WINDOW < g.e.ts <= e.ts]
    source = [g for g in window if g.e.src_ip == e.src_ip]
    if source:
        n = len(source)
        sizes = known([g.bytes for g in source])
        to_file = [g for g in source if g.e.dst_port in FILE_PORTS]
        out["connection_rate"] = min(1, math.log2(1 + n / 30) / 10)
        out["dst_ip_concentration"] = herfindahl([g.e.dst_ip for g in source])
        out["flow_duration_std"] = sample_std(log_ms(source))
        out["internal_connection_rate"] = min(1, math.log2(1 + sum(internal(g.e.dst_ip) for g in source) / 30) / 10)
        edge, end = (e.ts - WINDOW) // (S // 10), e.ts // (S // 10)  # the sensor's bytes: edges rounded outwards
        of_sensor = sum(known([g.bytes for g in taken if edge <= g.e.ts // (S // 10) <= end]))
        out["resource_usage"] = sum(sizes) / of_sensor if sizes and of_sensor else NAN
        if proto is not None:
            tcp, udp = (sum(g.e.proto == p for g in source) for p in (6, 17))
            out["tcp_udp_ratio"] = tcp / (tcp + udp) if tcp + udp else 0.5
        if has_port:
            ports = [g.e.dst_port for g in source]
            pairs = [(g.e.dst_ip, g.e.dst_port) for g in source]
            if sizes:
                out["io_intensity"] = min(1, math.log10(1 + sum(known([g.bytes for g in to_file])) / 30) / 8)
            out["file_operations"] = min(1, math.log2(1 + len(to_file)) / 10)
            out["access_frequency"] = min(1, math.log2(1 + pairs.count((e.dst_ip, e.dst_port))) / 10)
            out["port_entropy"] = entropy(ports)
            out["access_pattern_entropy"] = entropy(pairs)
            out["service_port_consistency"] = max(Counter(ports).values()) / n
            hosts = {g.e.dst_ip for g in source if g.e.dst_port in LATERAL_PORTS and internal(g.e.dst_ip)}
            out["lateral_movement_score"] = min(1, math.log2(1 + len(hosts)) / 6) if internal(e.src_ip) else 0.0
            stated = [g for g in source if not math.isnan(g.backward_packets)]
            if stated:
                answered = {(g.e.dst_ip, g.e.dst_port) for g in stated if g.backward_packets > 0}
                silent = {(g.e.dst_ip, g.e.dst_port) for g in stated} - answered
                out["service_discovery_patterns"] = len(silent) / len(stated)
            if proto is not None:
                classes = {
                    (g.e.proto, g.e.dst_port if g.e.dst_port is None or g.e.dst_port < 1024 else "high") for g in source
                }
                out["protocol_variety"] = min(1, len(classes) / 8)

    target = [g for g in window if g.e.dst_ip == e.dst_ip]
    if target:
        sources = [g.e.src_ip for g in target]
        later = sum(g.e.ts > e.ts - WINDOW // 2 for g in target)
        r = (later + 1) / (len(target) - later + 1)
        packets = known([g.forward_packets for g in target])
        out["source_ip_dispersion"] = len(set(sources)) / len(target)
        out["geographical_concentration"] = herfindahl([prefix(s) for s in sources])
        out["traffic_escalation_rate"] = r / (1 + r)
        out["src_ip_entropy"] = entropy(sources)
        if packets and f.packets > 0:
            load = min(1, sum(packets) / 30 / 10_000)
            out["resource_saturation_score"] = (math.exp(-f.bytes / f.packets / 100) + load) / 2

    mine = [g for g in past if g.e.src_ip == e.src_ip]
    with_port = [
        g for g in mine if g.e.proto is not None and (g.e.dst_port is not None or g.e.proto not in (6, 17, 132))
    ]
    weights = [2 ** (-(e.ts - g.e.ts) / HALF_LIFE) for g in with_port]
    if has_port and proto is not None and len(with_port) >= 5:
        same = [w for w, g in zip(weights, with_port, strict=True) if (g.e.proto, g.e.dst_port) == (proto, e.dst_port)]
        out["process_anomaly"] = 1 - sum(same) / sum(weights)
    if with_port:
        shares: Counter[str] = Counter()
        for w, g in zip(weights, with_port, strict=True):
            shares[{6: "tcp", 17: "udp"}.get(g.e.proto or 0, "other")] += w / sum(weights)  # type: ignore[assignment]
        out["protocol_regularity"] = 1 + sum(p * math.log2(p) for p in shares.values()) / math.log2(3)
    sized = [g for g in mine if not math.isnan(g.bytes)]
    if len(sized) >= 5 and not math.isnan(f.bytes):
        mean, deviation = decayed([math.log1p(g.bytes) for g in sized], [g.e.ts for g in sized], e.ts)
        out["behavior_consistency"] = math.exp(-abs(math.log1p(f.bytes) - mean) / max(0.1, deviation))
    out["temporal_anomaly_score"] = temporal_anomaly(mine, e.ts)

    if has_port:
        to_port = [g for g in taken if (g.e.src_ip, g.e.dst_ip, g.e.dst_port) == (e.src_ip, e.dst_ip, e.dst_port)]
        gaps = np.diff(sorted(g.e.ts_start for g in to_port[-8:])) / S
        if len(to_port) < 3:
            out["temporal_pattern"] = 0.0
        elif np.mean(gaps) > 0:
            out["temporal_pattern"] = float(1 / (1 + np.std(gaps, ddof=1) / np.mean(gaps)))
    to_dst = [g for g in mine if g.e.dst_ip == e.dst_ip and not math.isnan(g.seconds)]
    out["connection_duration_std"] = sample_std(log_ms(to_dst[-8:]))
    return out


def reference(flows: Sequence[Flow]) -> F32:
    """float32 [n, 26]: rescans everything before each event; streams are (source, sensor)."""
    rows = table.empty(len(flows))
    for i, f in enumerate(flows):
        past: list[Flow] = []
        newest = -1
        for g in flows[:i]:
            if (g.e.source, g.e.sensor) != (f.e.source, f.e.sensor) or g.e.kind != "flow":
                continue
            if g.e.ts >= newest - LATE:
                past.append(g)
                newest = max(newest, g.e.ts)
        if not past and f.e.kind != "flow":
            continue
        for name, value in context(past, f, newest).items():
            rows[i, INDEX[name]] = value
        if f.e.kind != "flow" and not any(g.e.src_ip == f.e.src_ip for g in past):
            rows[i, [INDEX["temporal_pattern"], INDEX["connection_duration_std"]]] = NAN  # a host nobody saw
    return rows[:, list(table.CONTEXT_INDEXES)]


HOSTS = ["10.0.0.1", "10.0.0.2", "10.0.9.9", "203.0.113.5", "203.0.7.7", "2001:db8::1", "fd00::5"]
maybe = st.sampled_from([NAN, 0.0, 1.0, 3.0, 40.0, 1500.0, 2.5e6])
# Mostly in order; ties, jitter, minutes late, more than 900 s late, and long silences.
steps = st.sampled_from([0, 0, 1, S // 3, S, 7 * S, 15 * S, 29 * S, 30 * S, 31 * S, 400 * S, 5_000 * S, 200_000 * S])
lags = st.sampled_from([0, 0, 0, 0, 1, S // 2, 3 * S, 14 * S, 31 * S, 200 * S, 899 * S, 900 * S, 901 * S])


@st.composite
def streams(draw: st.DrawFn) -> list[Flow]:
    now, flows = 1_700_000_000 * S + draw(st.integers(0, 40 * S)), []
    for i in range(draw(st.integers(1, 60))):
        now += draw(steps)
        ts = now - draw(lags)
        proto = draw(st.sampled_from([6, 6, 17, 1, 132, None]))
        port = None if proto == 1 else draw(st.sampled_from([443, 443, 22, 445, 53, 8080, 50_000, None]))
        e = Event(
            event_id=f"e{i}",
            source=draw(st.sampled_from(["a", "a", "a", "b"])),
            sensor="s",
            kind=draw(st.sampled_from(["flow", "flow", "flow", "flow", "alert"])),
            ts=ts,
            ts_start=ts - draw(st.sampled_from([0, 0, 1, S, 9 * S])),
            src_ip=draw(st.sampled_from(HOSTS)),
            dst_ip=draw(st.sampled_from(HOSTS)),
            dst_port=port,
            proto=proto,
        )
        flows.append(Flow(e, *(draw(maybe) for _ in range(5))))
    return flows


INPUTS = ("flow_duration", "total_forward_packets", "total_backward_packets", "total_forward_bytes",
          "total_backward_bytes")  # fmt: skip


def given_features(flows: Sequence[Flow]) -> F32:
    rows = table.empty(len(flows))
    rows[:, [INDEX[name] for name in INPUTS]] = np.array([f[1:] for f in flows], np.float32).reshape(-1, 5)
    return rows


def straight(flows: Sequence[Flow]) -> F32:
    rows = given_features(flows)
    Tracker(CIDRS_INTERNAL).observe([f.e for f in flows], rows)
    return rows


@settings(derandomize=True, deadline=None, max_examples=120)
@given(streams())
def test_agrees_with_a_rescan_of_all_earlier_events(flows: list[Flow]) -> None:
    got = straight(flows)[:, list(table.CONTEXT_INDEXES)]
    want = reference(flows)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        wrong = [
            (table.NAMES[c], x, y)
            for c, x, y in zip(table.CONTEXT_INDEXES, a, b, strict=True)
            if not (math.isnan(x) and math.isnan(y)) and not abs(x - y) <= 1e-5
        ]
        assert not wrong, (i, flows[i].e, wrong)


def busy(seed: int, n: int = 220) -> list[Flow]:
    """A stream whose windows hold tens of flows, with jitter, silences, late flows and alerts, and values missing."""
    rng, now, flows = np.random.default_rng(seed), 1_700_000_000 * S, []
    sizes = np.array([NAN, 0.0, 1.0, 3.0, 40.0, 1500.0, 2.5e6])
    for i in range(n):
        now += int(
            rng.choice([0, S // 10, S, 4 * S, 31 * S, 400 * S, 9_000 * S], p=[0.2, 0.4, 0.2, 0.1, 0.07, 0.02, 0.01])
        )
        ts = now - int(rng.choice([0, 1, 2 * S, 20 * S, 200 * S, 901 * S], p=[0.8, 0.05, 0.08, 0.04, 0.02, 0.01]))
        proto = [6, 6, 6, 17, 1, 132, None][rng.integers(7)]
        ports = [443, 443, 80, 53, 8080, 50_000, None, *FILE_PORTS, *LATERAL_PORTS]
        e = Event(
            event_id=f"e{i}",
            source="a",
            kind="alert" if rng.random() < 0.1 else "flow",
            ts=ts,
            ts_start=ts - int(rng.choice([0, S // 2, S, 9 * S])),
            src_ip=HOSTS[min(int(rng.zipf(1.5)), len(HOSTS)) - 1],
            dst_ip=HOSTS[-min(int(rng.zipf(1.4)), len(HOSTS))],
            dst_port=None if proto == 1 else ports[min(int(rng.zipf(1.3)), len(ports)) - 1],
            proto=proto,
        )
        flows.append(Flow(e, *rng.choice(sizes, 5, p=[0.1, 0.15, 0.15, 0.15, 0.15, 0.2, 0.1])))
    return flows


def test_all_26_features_agree_where_windows_are_full() -> None:
    """And each takes many values there, and is missing at times: the comparison says something about every one."""
    seen: dict[int, set[float]] = {column: set() for column in table.CONTEXT_INDEXES}
    for seed in range(6):
        flows = busy(seed)
        got, want = straight(flows)[:, list(table.CONTEXT_INDEXES)], reference(flows)
        for i, column in enumerate(table.CONTEXT_INDEXES):
            assert np.allclose(got[:, i], want[:, i], atol=1e-5, equal_nan=True), (seed, table.NAMES[column])
            seen[column] |= {NAN if math.isnan(x) else round(float(x), 4) for x in want[:, i]}
    assert len(seen) == 26
    few = {table.NAMES[column]: len(known(list(values))) for column, values in seen.items()}
    assert min(few.values()) >= 4, few
    assert all(any(map(math.isnan, values)) for values in seen.values())


@contextmanager
def room_for(flows: int) -> Iterator[None]:
    """So many in the windows of all sources, and of all targets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.context.state.CONTEXT_FLOWS_MAX", flows)
        yield


@settings(derandomize=True, deadline=None, max_examples=120)
@given(streams(), st.data())
def test_any_cut_overlay_merge_and_reload_gives_the_same_bits(flows: list[Flow], data: st.DataObject) -> None:
    """Also where the windows of all hosts together are full every few flows."""
    with room_for(data.draw(st.sampled_from([1_000, 30, 8]))):
        the_same_bits(flows, data)


def the_same_bits(flows: list[Flow], data: st.DataObject) -> None:
    want = straight(flows).tobytes()
    rows, events = given_features(flows), [f.e for f in flows]
    tracker, at = Tracker(CIDRS_INTERNAL), 0
    while at < len(flows):
        end = data.draw(st.integers(at + 1, len(flows)))
        way = data.draw(st.sampled_from(["straight", "overlay", "nested", "failed", "reload"]))
        if way == "reload":
            tracker = Tracker.load(tracker.dump(), CIDRS_INTERNAL)
        if way == "failed":  # a batch whose commit failed leaves no trace
            tracker.overlay().observe(events[at:end], rows[at:end].copy())
        if way in ("overlay", "nested"):
            child = tracker.overlay()
            if way == "nested":
                half = (at + end) // 2
                grandchild = child.overlay()
                grandchild.observe(events[at:half], rows[at:half])
                child.merge(grandchild)
                child.observe(events[half:end], rows[half:end])
            else:
                child.observe(events[at:end], rows[at:end])
            tracker.merge(child)
        else:
            tracker.observe(events[at:end], rows[at:end])
        at = end
    assert rows.tobytes() == want
    again = Tracker.load(tracker.dump(), CIDRS_INTERNAL)
    assert again.dump() == tracker.dump()


@settings(derandomize=True, deadline=None, max_examples=120)
@given(streams(), st.data())
def test_a_dump_in_slices_is_the_state_as_it_was_when_it_was_begun(flows: list[Flow], data: st.DataObject) -> None:
    """Whatever is merged between its slices, also where hosts, pairs and crowded windows are forgotten."""
    with room_for(data.draw(st.sampled_from([1_000, 30, 8]))):
        dumped_in_slices(flows, data)


def dumped_in_slices(flows: list[Flow], data: st.DataObject) -> None:
    rows, events = given_features(flows), [f.e for f in flows]
    tracker, at, want = Tracker(CIDRS_INTERNAL), 0, b""
    few = data.draw(st.sampled_from([2, 5, 1_000]))
    for store in (tracker.sources, tracker.targets, tracker.pairs.once, tracker.pairs.again):
        store.size_max = few
    while at < len(flows):
        if tracker.dumping is None:
            want = tracker.dump()
            tracker.begin_dump(at)
        elif tracker.dumping.step(data.draw(st.integers(1, 300))):
            assert tracker.dumping.whole() == want
            tracker.dumping = None
        end = data.draw(st.integers(at + 1, min(at + 6, len(flows))))
        child = tracker.overlay()
        child.observe(events[at:end], rows[at:end])
        if data.draw(st.booleans()):  # or else a commit that failed
            tracker.merge(child)
        at = end
    if tracker.dumping is not None:
        assert tracker.dumping.step(1 << 40)
        assert tracker.dumping.whole() == want
