"""What the starts of a conversation's flows say of its rhythm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import rhythm as bench
from engine.embed.fit import teacher
from engine.embed.rhythm import FLOWS_MIN, ROUND_MIN, rhythms
from engine.features import INDEX
from ipc.event import Event
from tests.events import T0, make

EARLY = FLOWS_MIN - 1


def talk(gaps_s: Sequence[float], *, dst: str = "192.0.2.1", src: str = "10.0.0.1", **more: object) -> list[Event]:
    """Flows with these gaps between their starts; the first starts after the first gap."""
    starts = [T0 + round(t * 1e9) for t in np.cumsum(gaps_s).tolist()]
    fields = {"src_ip": src, "dst_ip": dst, "dst_port": 443, "proto": 6, "kind": "flow", **more}
    return [make(i, **{"ts_start": start, "ts": start, **fields}).event for i, start in enumerate(starts)]  # type: ignore[arg-type]


def beacon(period_s: float, seed: int, **more: object) -> list[Event]:
    """40 flows whose gaps differ from the period by at most 30 %."""
    return talk(period_s * np.random.default_rng(seed).uniform(0.7, 1.3, 40), dst=f"192.0.2.{seed}", **more)


def visitors(mean_s: float, seed: int) -> list[Event]:
    return talk(np.random.default_rng(seed).exponential(mean_s, 40), dst=f"192.0.2.{seed}")


def number(events: Sequence[Event], among: Sequence[Event]) -> int:
    """The one rhythm of these events."""
    of = dict(zip(map(id, among), rhythms(among).tolist(), strict=True))
    (found,) = {of[id(e)] for e in events[EARLY:]}
    assert all(of[id(e)] == -1 for e in events[:EARLY])  # when they came there was no rhythm yet
    return int(found)


def test_beacons_of_one_period_are_alike_whoever_they_call() -> None:
    one, same, slow = beacon(60, 1), beacon(62, 2, src="10.0.0.9", dst_port=8080), beacon(1_800, 3)
    chance, bursts = visitors(60, 4), talk([0.01, 0.01, 0.01, 240] * 10, dst="192.0.2.5")
    everything = [*one, *same, *slow, *chance, *bursts]
    numbers = [number(events, everything) for events in (one, same, slow, chance, bursts)]
    assert numbers[0] == numbers[1] and len({*numbers[1:3], *numbers[3:]}) >= 3
    assert not {numbers[3], numbers[4]} & set(numbers[:3])


def test_a_host_that_goes_round_is_no_beacon() -> None:
    rounds = [beacon(60, seed, src="10.0.0.7") for seed in range(1, 1 + ROUND_MIN)]
    home = beacon(60, 99)
    everything = [event for events in (*rounds, home) for event in events]
    found = {number(events, everything) for events in rounds}
    assert len(found) == 1 and number(home, everything) not in found
    assert number(rounds[0], [*rounds[0], *home]) == number(home, [*rounds[0], *home])  # one alone makes no round


def test_what_has_no_rhythm() -> None:
    assert rhythms([]).tolist() == []
    for few in (
        talk([60.0] * EARLY),
        talk([60.0] * 20, kind="alert"),
        talk([60.0] * 20, ts_start=0),
        talk([0.0] * 20),
        [event for k in range(20) for event in talk([60.0 * k], dst=f"192.0.2.{k}")],
        [event for k in range(20) for event in talk([60.0 * k], dst_port=1 + k)],
    ):
        assert set(rhythms(few).tolist()) == {-1}


@given(st.permutations(range(120)))
def test_the_order_of_events_does_not_matter(order: list[int]) -> None:
    everything = [*beacon(60, 1), *beacon(900, 2), *visitors(60, 3)]
    expected = rhythms(everything)
    assert rhythms([everything[i] for i in order]).tolist() == expected[order].tolist()


def test_a_throw_away_network_is_not_taught_by_later_flows() -> None:
    """What later flows would make a rhythm of is none yet for the map that earlier events alone may teach."""
    events = sorted(beacon(60, 1), key=lambda e: e.ts_start)
    families = np.zeros(len(events), np.int64)
    groups = teacher("chronos", events, families, trained=True)
    early, every = groups(np.arange(EARLY)), groups(np.arange(len(events)))
    assert early is not None and set(early.tolist()) == {-1}
    assert every is not None and set(every.tolist()) == {-1, 0}
    assert teacher("chronos", events, families, trained=False)(np.arange(len(events))) is None


def test_networks_of_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked is not in what is indexed, and only the starts tell a beacon."""
    monkeypatch.setattr(bench, "HOSTS", 4)
    monkeypatch.setattr(bench, "OF_EACH", 15)
    one, again, other = (bench.traffic(seed) for seed in (1, 1, 2))
    assert one.features.tobytes() == again.features.tobytes() and one.events == again.events
    addresses = [{address for e in t.events for address in (e.src_ip, e.dst_ip)} for t in (one, other)]
    assert not addresses[0] & addresses[1]
    beacon, clients = ((one.kind == bench.KINDS.index(kind)) & (one.nth >= 4) for kind in ("beacon", "clients"))
    for name, apart in (("temporal_pattern", True), ("total_forward_bytes", False), ("flow_duration", False)):
        ours, theirs = (one.features[rows, INDEX[name]] for rows in (beacon, clients))
        assert (ours[:, None] > theirs).mean() > 0.9 if apart else 0.4 < (ours[:, None] > theirs).mean() < 0.6
    asked = bench.sampled(one, 1, beacons_only=True)
    assert len(asked.kind) and not asked.kind.any() and np.isfinite(asked.period).all()
