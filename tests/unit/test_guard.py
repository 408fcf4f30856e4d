"""A source cannot write history, and cannot bring more than it may."""

from __future__ import annotations

import time

import pytest

from engine.config import Source
from engine.run import guard
from engine.run.guard import Guard
from ipc.event import FirewallAction
from tests.events import S, make

HOUR_NS = 3_600 * S
LIVE = {"live": Source(path="/x", past_s=3_600), "free": Source(path="/y")}


def test_what_is_older_than_the_window_is_a_dead_letter_and_the_rest_goes_on() -> None:
    now_ns = time.time_ns()
    events = [make(n, source="live", ts=now_ns - n * HOUR_NS // 2) for n in range(5)]
    actions = [FirewallAction(now_ns - n * HOUR_NS, "10.0.0.1", "192.0.2.1", "DDoS", "BLOCK") for n in (0, 2)]
    kept, done, rejects = Guard(LIVE).within("live", events, actions)
    assert [item.event.event_id for item in kept] == ["e000000", "e000001"]  # at the edge, time has passed already
    assert done == actions[:1]
    assert {r.reason for r in rejects} == {"older than source 'live' may write (3600 s, past_s)"}
    assert len(rejects) == 4


def test_an_event_is_held_to_the_windows_of_who_brings_it_and_of_whom_it_names() -> None:
    """A client cannot put events into a live source's past under its own name, nor a live source into another's."""
    old = make(1, source="live", ts=1)
    assert Guard(LIVE).within("mine", [old], [])[0] == []
    assert Guard(LIVE).within("live", [make(1, source="mine", ts=1)], [])[0] == []
    assert Guard(LIVE).within("mine", [make(1, source="mine", ts=1)], [])[2] == []
    assert Guard(LIVE).within("free", [make(1, source="free", ts=0)], [])[2] == []


def test_without_windows_nothing_is_looked_at() -> None:
    events = [make(1, ts=1)]
    assert Guard({}).within("test", events, [])[0] is events


def test_a_rate_lets_a_second_through_at_once_and_then_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(guard.time, "monotonic", lambda: now_s)
    one = Guard({"live": Source(path="/x", rate_max=100)})
    stored = 0
    for _ in range(1_000):  # ten seconds, in steps of 10 ms
        while not (wait_s := one.wait_s("live", 10)):
            stored += 10
        assert 0 < wait_s <= 1
        now_s += 0.01
    assert 1_000 <= stored <= 1_100 + 10
    assert one.wait_s("other", 10**9) == one.wait_s("live", 0) == 0
    now_s += 60
    assert one.wait_s("live", 10_000) == 0  # one that is larger than a second is not refused for ever
    assert one.wait_s("live", 1) == pytest.approx(99)
