"""The context tracker: rules that a small stream does not show, bounds, floods, dumps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import xxhash

from engine import features as table
from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.context.layers import Lru
from engine.context.state import LATE_NS
from engine.context.streams import SLICE_NS, Stream
from engine.context.tracker import LATE_RUN_MAX
from engine.context.windows import FLOWS_MAX, STEPS_MAX, WINDOW_NS
from engine.errors import CorruptionError
from engine.features import F32, INDEX
from engine.limits import CONTEXT_FLOWS_MAX
from ipc.event import Event

S = 10**9
T0 = 1_767_600_000 * S


def flow(ts_s: float, src: str = "10.0.0.1", dst: str = "10.0.0.2", port: int = 443, **more: object) -> Event:
    ts = T0 + round(ts_s * S)
    fields = {"event_id": "e", "source": "test", "ts": ts, "ts_start": ts, "src_ip": src, "dst_ip": dst, "proto": 6}
    return Event(**{**fields, "dst_port": port, **more})  # type: ignore[arg-type]


def features(n: int, **values: float) -> F32:
    rows = table.empty(n)
    for name, value in values.items():
        rows[:, INDEX[name]] = value
    return rows


def observe(tracker: Tracker, events: Sequence[Event], **values: float) -> F32:
    rows = features(len(events), **values)
    tracker.observe(events, rows)
    return rows


def last(rows: F32, name: str) -> float:
    return float(rows[-1, INDEX[name]])


def test_what_a_source_supplies_is_kept() -> None:
    rows = observe(Tracker(CIDRS_INTERNAL), [flow(0)], connection_rate=0.75)
    assert last(rows, "connection_rate") == 0.75
    assert last(rows, "dst_ip_concentration") == 1.0


def test_missing_bytes_packets_and_duration_stay_missing() -> None:
    rows = observe(Tracker(CIDRS_INTERNAL), [flow(i) for i in range(8)])
    for name in ("io_intensity", "resource_usage", "flow_duration_std", "service_discovery_patterns",
                 "behavior_consistency", "connection_duration_std", "resource_saturation_score"):  # fmt: skip
        assert math.isnan(last(rows, name)), name
    assert last(rows, "process_anomaly") == 0.0


def test_an_alert_gets_context_and_counts_as_no_flow() -> None:
    tracker = Tracker(CIDRS_INTERNAL)
    before = observe(tracker, [flow(0), flow(1)])
    state = tracker.dump()
    rows = observe(tracker, [flow(1.5, kind="alert")])
    assert last(rows, "access_frequency") == last(before, "access_frequency")
    assert tracker.dump() == state
    assert np.isnan(observe(tracker, [flow(500, kind="alert")])[0, INDEX["connection_rate"]])
    assert tracker.dump() == state


def test_an_event_without_a_time_has_no_context_and_changes_nothing() -> None:
    tracker = Tracker(CIDRS_INTERNAL)
    before = tracker.dump()
    rows = observe(tracker, [flow(-T0 / S), flow(-T0 / S)])
    assert np.isnan(rows[:, list(table.CONTEXT_INDEXES)]).all() and tracker.dump() == before


def test_a_window_is_left_open_at_its_beginning() -> None:
    rows = observe(Tracker(CIDRS_INTERNAL), [flow(0), flow(30)])
    assert last(rows, "access_frequency") == pytest.approx(math.log2(2) / 10)
    rows = observe(Tracker(CIDRS_INTERNAL), [flow(0), flow(29.999999999)])
    assert last(rows, "access_frequency") == pytest.approx(math.log2(3) / 10)


def test_a_beacon_is_regular() -> None:
    rows = observe(Tracker(CIDRS_INTERNAL), [flow(60 * i) for i in range(12)])
    assert last(rows, "temporal_pattern") == 1.0
    assert rows[1, INDEX["temporal_pattern"]] == 0.0


def test_too_late_is_counted_and_changes_nothing() -> None:
    tracker = Tracker(CIDRS_INTERNAL)
    rows = observe(tracker, [flow(2_000), flow(1_099), flow(1_100), flow(2_000)])
    assert np.isnan(rows[1, list(table.CONTEXT_INDEXES)]).all() and tracker.late == 1
    assert not np.isnan(rows[2, INDEX["connection_rate"]])
    assert last(rows, "access_frequency") == pytest.approx(math.log2(3) / 10)


def test_a_stream_that_goes_back_begins_anew() -> None:
    tracker = Tracker(CIDRS_INTERNAL)
    rows = observe(tracker, [flow(10**6), *(flow(i) for i in range(40))])
    assert tracker.late == LATE_RUN_MAX
    assert not math.isnan(last(rows, "connection_rate"))


def test_another_source_or_sensor_is_another_stream() -> None:
    tracker = Tracker(CIDRS_INTERNAL)
    observe(tracker, [flow(10**6), flow(10**6 + 1)])
    for e in (flow(0, source="old file"), flow(0, sensor="dmz")):
        assert last(observe(tracker, [e]), "access_frequency") == pytest.approx(math.log2(2) / 10)
    assert tracker.late == 0


def test_an_overlay_leaves_its_parent_alone_and_a_stale_one_is_refused() -> None:
    tracker = Tracker(CIDRS_INTERNAL)
    observe(tracker, [flow(i) for i in range(20)])
    state = tracker.dump()
    child = tracker.overlay()
    observe(child, [flow(i, src=f"10.0.0.{i % 7}") for i in range(20, 70)])
    assert tracker.dump() == state
    observe(tracker, [flow(90)])
    with pytest.raises(AssertionError, match="changed under"):
        tracker.merge(child)


def test_an_overlay_of_an_overlay_that_is_dropped_leaves_no_trace() -> None:
    """Nor may what it took over from its own overlay reach the tracker below both."""
    tracker = Tracker(CIDRS_INTERNAL)
    flows = [flow(i / 100, dst=f"10.1.{i % 6}.{i % 200}", port=i) for i in range(1_000)]
    observe(tracker, flows[:800], total_forward_bytes=9.0)  # more counters than are copied
    asked = tracker.overlay()
    inner = asked.overlay()
    observe(inner, flows[800:], total_forward_bytes=9.0)
    asked.merge(inner)
    rows, straight = observe(tracker, flows[800:], total_forward_bytes=9.0), Tracker(CIDRS_INTERNAL)
    assert np.array_equal(rows, observe(straight, flows, total_forward_bytes=9.0)[800:], equal_nan=True)
    assert tracker.dump() == straight.dump()


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:], lambda b: b * 2]
)
def test_a_damaged_dump_is_refused(damage: object) -> None:
    tracker = Tracker(CIDRS_INTERNAL)
    observe(tracker, [flow(i) for i in range(20)])
    with pytest.raises(CorruptionError, match="tracker state"):
        Tracker.load(damage(tracker.dump()), CIDRS_INTERNAL)  # type: ignore[operator]


def test_a_dump_of_another_version_is_refused() -> None:
    body = msgspec.msgpack.encode([2, [0, 0, 0], [], [], [], [], []])
    with pytest.raises(CorruptionError, match="version"):
        Tracker.load(xxhash.xxh3_64_digest(body) + body, CIDRS_INTERNAL)


def replay(events: Sequence[Event], cuts: Sequence[int], reload: bool = False) -> bytes:
    tracker, out, at = Tracker(CIDRS_INTERNAL), [], 0
    for end in (*cuts, len(events)):
        if reload:
            tracker = Tracker.load(tracker.dump(), CIDRS_INTERNAL)
        child = tracker.overlay()
        out.append(observe(child, events[at:end], flow_duration=1.0, total_forward_bytes=9.0).tobytes())
        tracker.merge(child)
        at = end
    return b"".join(out)


def set_bounds(monkeypatch: pytest.MonkeyPatch, hosts: int, pairs: int, flows: int, of_all: int = 10_000) -> None:
    bounds = {
        "state.CONTEXT_HOSTS_MAX": hosts, "state.PAIRS_MAX": pairs, "history.PAIR_PORTS": 3, "history.PORTS_MAX": 4,
        "windows.FLOWS_MAX": flows, "windows.STEPS_MAX": 3,
        "state.CONTEXT_FLOWS_MAX": of_all,
    }  # fmt: skip
    for name, value in bounds.items():
        monkeypatch.setattr(f"engine.context.{name}", value)


def in_use(tracker: Tracker) -> list[int]:
    """How many flows an answer may look at, of sources and of targets."""
    ends = {s.id: s.ts_max - LATE_NS - WINDOW_NS for s in tracker.streams.own.values()}
    return [
        sum(len(window.entries) - window.needed(ends[key[0]]) for key, window in store.own.items())
        for store in (tracker.sources, tracker.targets)
    ]


def test_flows_within_30_s_of_many_hosts_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event time is the source's to say: each host has fewer flows than a window may, and all lie within 30 s."""
    monkeypatch.setattr("engine.context.state.CONTEXT_FLOWS_MAX", 2_000, raising=False)
    rng, tracker = np.random.default_rng(1), Tracker(CIDRS_INTERNAL)
    at = np.sort(rng.random(20_000) * 29).tolist()
    events = [flow(t, src=f"10.1.0.{i % 100}", dst=f"10.2.0.{i // 100 % 100}") for i, t in enumerate(at)]
    for i in range(0, 20_000, 100):
        child = tracker.overlay()
        rows = observe(child, events[i : i + 100])
        tracker.merge(child)
        for store in (tracker.sources, tracker.targets):
            assert sum(len(window.entries) for window in store.own.values()) <= 2_000
        assert not np.isnan(rows[:, INDEX["connection_rate"]]).any() and tracker.unplaced == 0
    assert min(in_use(tracker)) >= 1_000


def test_flows_that_no_answer_looks_at_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Late ones before the newest window, of many hosts."""
    monkeypatch.setattr("engine.context.state.CONTEXT_FLOWS_MAX", 1_000, raising=False)
    monkeypatch.setattr("engine.context.windows.STEPS_MAX", 4)
    tracker = Tracker(CIDRS_INTERNAL)
    observe(tracker, [flow(800, src=f"10.1.0.{i}", dst=f"10.2.0.{i}") for i in range(50)])
    for k in range(400):
        observe(tracker, [flow(700 - k / 4, src=f"10.1.0.{i}", dst=f"10.2.0.{i}") for i in range(50)])
        for store in (tracker.sources, tracker.targets):
            assert sum(len(window.entries) for window in store.own.values()) <= 3_000


def test_a_dump_without_room_is_looked_through_at_the_next_flow() -> None:
    """As it was written before there was such a bound."""
    tracker = Tracker(CIDRS_INTERNAL)
    observe(tracker, [flow(i) for i in range(20)])
    *state, room = msgspec.msgpack.decode(tracker.dump()[8:])
    body = msgspec.msgpack.encode(state)
    old = Tracker.load(xxhash.xxh3_64_digest(body) + body, CIDRS_INTERNAL)
    assert room == tracker.room == CONTEXT_FLOWS_MAX - 20 and old.room == 0
    want = observe(tracker, [flow(21)])
    assert np.array_equal(observe(old, [flow(21)]), want, equal_nan=True) and old.room == room - 1


@pytest.mark.parametrize("of_all", [10_000, 60, 30])
@pytest.mark.parametrize("seed", range(3))
def test_small_bounds_are_kept_and_do_not_depend_on_the_cut(
    seed: int, of_all: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts, pairs and flows leave at the same event, however the stream is cut."""
    set_bounds(monkeypatch, hosts=5, pairs=6, flows=24, of_all=of_all)
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.exponential(0.6, 1_500)) - rng.exponential(4.0, 1_500) * (rng.random(1_500) < 0.2)
    events = [
        flow(1000 + float(t), src=f"10.0.0.{int(rng.zipf(1.6)) % 12}", dst=f"10.0.1.{int(rng.zipf(1.6)) % 12}",
             port=int(rng.integers(440, 450)))
        for t in steps
    ]  # fmt: skip
    want = replay(events, [])
    assert replay(events, range(1, 1_500)) == want
    assert replay(events, range(7, 1_500, 7)) == want
    assert replay(events, range(97, 1_500, 97), reload=True) == want
    tracker = Tracker(CIDRS_INTERNAL)
    observe(tracker, events)
    assert len(tracker.sources) == len(tracker.targets) == 5
    assert len(tracker.pairs.once) <= 3 and len(tracker.pairs.again) <= 6
    assert max(in_use(tracker)) <= of_all - tracker.room
    for host in tracker.sources.own.values():
        assert host.hi - host.lo <= 24 and len(host.history.weights) <= 4


def test_an_lru_layer_evicts_as_its_parent_would() -> None:
    rng = np.random.default_rng(5)
    plain: Lru[int, int] = Lru(20)
    layered: Lru[int, int] = Lru(20)
    for _ in range(40):
        layer = layered.layer()
        for key in rng.zipf(1.3, int(rng.integers(1, 60))).tolist():
            assert layer.get(key) == plain.get(key)
            if plain.get(key) is not None and rng.random() < 0.1:
                plain.pop(key)
                layer.pop(key)
            else:
                plain.put(key, key + 1)
                layer.put(key, key + 1)
        assert list(layer.keys()) == list(plain.keys()) and len(layer) == len(plain)
        layered.merge(layer)
        assert list(layered.own.items()) == list(plain.own.items())


def test_silent_hosts_give_their_windows_back() -> None:
    tracker = Tracker(CIDRS_INTERNAL)
    observe(tracker, [flow(i / 100, port=i) for i in range(1_000)])
    for i in range(50):
        observe(tracker, [flow(2_000 + i, src="10.0.0.9", dst="10.0.0.8")])
    quiet = next(s for (_, ip), s in tracker.sources.own.items() if ip == "10.0.0.1")
    assert not quiet.entries and not quiet.counts and quiet.history.flows == 1_000


def test_a_flood_of_jittered_flows_stays_near_its_true_window() -> None:
    """Too many flows between a late event and the newest window: the newest one answers, not NaN."""
    rng = np.random.default_rng(1)
    times = np.arange(30_000) / 500 + rng.uniform(0, 1.0, 30_000)
    tracker = Tracker(CIDRS_INTERNAL)
    rows = observe(tracker, [flow(float(t), src=f"9.{i % 200}.0.1") for i, t in enumerate(times)])
    assert tracker.unplaced == 0
    assert last(rows, "source_ip_dispersion") == pytest.approx(200 / 15_000, rel=0.1)
    assert not np.isnan(rows[:, INDEX["src_ip_entropy"]]).any()


@pytest.mark.parametrize("kind", ["one to one", "many to one", "scan"])
def test_the_cost_of_an_event_does_not_grow_with_a_flood(kind: str) -> None:
    """100,000 flows in 30 s: an event in the last tenth costs no more than a few times one in the first."""
    events = []
    for i in range(100_000):
        src = f"{i % 223 + 1}.{i // 223 % 250}.7.7" if kind == "many to one" else "10.0.0.1"
        dst = f"10.1.{i % 250}.{i // 250 % 250}" if kind == "scan" else "10.0.0.2"
        events.append(flow(i * 0.0003, src=src, dst=dst, port=i % 65_536 if kind == "scan" else 80))
    rows = features(len(events), total_forward_bytes=60.0, total_backward_bytes=0.0, flow_duration=0.1)
    tracker, cost = Tracker(CIDRS_INTERNAL), []
    for at in range(0, 100_000, 1_000):
        began = time.process_time()
        child = tracker.overlay()
        child.observe(events[at : at + 1_000], rows[at : at + 1_000])
        tracker.merge(child)
        cost.append(time.process_time() - began)
    assert np.median(cost[-10:]) < 5 * np.median(cost[:10]) + 0.01
    assert last(rows, "connection_rate" if kind != "many to one" else "src_ip_entropy") > 0.9


def test_flows_that_come_late_in_a_flood_stay_within_bounds() -> None:
    """A detector that ends writes all its flows at once, in any order: after the newest, all others are late."""
    tracker = Tracker(CIDRS_INTERNAL)
    n = FLOWS_MAX + 5_000
    observe(tracker, [flow(200)])
    rows = observe(tracker, [flow(199.5) for _ in range(n)])
    assert last(rows, "connection_rate") == pytest.approx(1.0)
    observe(tracker, [flow(900)])
    observe(tracker, [flow(850 + i / n) for i in range(n)])  # none of them in the newest window
    for window in (*tracker.sources.own.values(), *tracker.targets.own.values()):
        assert len(window.entries) <= 2 * FLOWS_MAX + 2 * STEPS_MAX
        assert window.hi - window.lo <= FLOWS_MAX


def test_a_protocol_not_used_for_months_fades_without_an_error() -> None:
    tracker = Tracker(CIDRS_INTERNAL)
    observe(tracker, [flow(0, proto=17)])
    day = 24 * 3600
    for hour in range(0, 60 * 24, 5):
        rows = observe(tracker, [flow(hour * 3600 + second) for second in range(5)])
    assert hour * 3600 > 50 * day and last(rows, "protocol_regularity") == 1.0


def test_numbers_that_no_flow_has_count_as_not_stated() -> None:
    rows = observe(Tracker(CIDRS_INTERNAL), [flow(0)], average_packet_size=-1e15, total_forward_packets=-1.0,
                   total_forward_bytes=-5.0, flow_duration=-2.0)  # fmt: skip
    assert math.isnan(last(rows, "resource_saturation_score")) and math.isnan(last(rows, "resource_usage"))


def test_the_first_bytes_of_a_stream_may_be_older_than_its_window() -> None:
    stream = Stream(id=1, ts_max=0, head=1_000)
    stream.add((1_000 - 310) * SLICE_NS, 7)  # a late flow, the first that states its bytes
    stream.add(1_000 * SLICE_NS, 5)
    stream.add(1_003 * SLICE_NS, 1)
    assert stream.bytes_at(1_003 * SLICE_NS) == 6
    assert stream.bytes_at((1_000 - 300) * SLICE_NS) == 7
