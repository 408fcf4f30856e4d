"""Filters against plain Python over the same events."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadRequestError
from engine.normalize import complete
from engine.search import filters
from ipc.event import Event
from ipc.messages import Filter
from tests.conftest import FILLED
from tests.events import FAMILIES, T0, S, make
from tests.store_fixture import Store

EVENTS = [complete(make(n)) for n in range(FILLED)]


def matching(full: Store, wanted: Filter) -> list[int]:
    snapshot = full.snapshot()
    with full.catalog.read() as view:
        mask = filters.mask(snapshot, filters.tests(wanted, snapshot), filters.marks(wanted), view)
    return [int(i) for i in np.flatnonzero(mask)]


def holds(wanted: Filter, e: Event) -> bool:
    """The same in plain Python."""
    score = -1.0 if e.final_score is None else float(np.float32(e.final_score))

    def within(nets: list[str], *addresses: str) -> bool:
        return any(ipaddress.ip_address(a) in ipaddress.ip_network(n, strict=False) for n in nets for a in addresses)

    def port(ranges: list[tuple[int, int]], value: int | None) -> bool:
        return any(lo <= (-1 if value is None else value) <= hi for lo, hi in ranges)

    return (
        (not wanted.classifications or e.classification in wanted.classifications)
        and (not wanted.families or e.family in wanted.families)
        and (not wanted.kinds or e.kind in wanted.kinds)
        and (not wanted.decisions or e.decision in wanted.decisions)
        and (wanted.since is None or e.ts >= wanted.since)
        and (wanted.until is None or e.ts < wanted.until)
        and (not wanted.src or within(wanted.src, e.src_ip))
        and (not wanted.dst or within(wanted.dst, e.dst_ip))
        and (not wanted.addr or within(wanted.addr, e.src_ip, e.dst_ip))
        and (not wanted.src_ports or port(wanted.src_ports, e.src_port))
        and (not wanted.dst_ports or port(wanted.dst_ports, e.dst_port))
        and (not wanted.protos or e.proto in wanted.protos)
        and (wanted.score_min is None or score >= wanted.score_min)
        and (wanted.score_max is None or 0 <= score <= wanted.score_max)
    )


some = st.one_of(st.just([]), st.lists(st.sampled_from(["BENIGN", "MALICIOUS", "SUSPICIOUS", "UNKNOWN"]), max_size=2))
nets = st.one_of(
    st.just([]),
    st.lists(st.sampled_from(["10.0.0.0/8", "10.0.1.0/24", "192.0.2.1", "192.0.2.4/30", "10.0.2.2"]), max_size=2),
)
ports = st.one_of(st.just([]), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000)), max_size=2))
scores = st.one_of(st.none(), st.floats(0, 1, width=16))
times = st.one_of(st.none(), st.integers(T0 - S, T0 + FILLED * S))


@settings(max_examples=150)
@given(
    wanted=st.builds(
        Filter, classifications=some, families=st.lists(st.sampled_from([*FAMILIES, "Nothing"]), max_size=2),
        kinds=st.lists(st.sampled_from(["flow", "alert", "notice"]), max_size=2),
        decisions=st.lists(st.sampled_from(["", "DROP", "ALERT"]), max_size=2), since=times, until=times,
        src=nets, dst=nets, addr=nets, src_ports=ports, dst_ports=ports,
        protos=st.lists(st.sampled_from([6, 17, 1, 1 << 40]), max_size=2),
        score_min=scores, score_max=scores,
    )
)  # fmt: skip
def test_a_mask_is_what_plain_python_says(full: Store, wanted: Filter) -> None:
    assert matching(full, wanted) == [i for i, e in enumerate(EVENTS) if holds(wanted, e)]


def test_networks_of_both_families(full: Store) -> None:
    assert matching(full, Filter(src=["::ffff:10.0.1.0/120"])) == matching(full, Filter(src=["10.0.1.0/24"]))
    assert matching(full, Filter(src=["0.0.0.0/0"])) == list(range(FILLED))
    assert matching(full, Filter(src=["2001:db8::/32"])) == []
    assert matching(full, Filter(src=["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"])) == []


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Filter(classifications=["EVIL"]), "no classification 'EVIL'; there are UNKNOWN, BENIGN"),
        (Filter(kinds=["x"]), "no kind 'x'"),
        (Filter(decisions=["x"]), "no decision 'x'; there are \\(none\\), ALLOW"),
        (Filter(src=["10.0.0.0/33"]), "no address or network"),
        (Filter(addr=["host.example"]), "no address or network"),
        (Filter(dst=[""]), "no address or network"),
    ],
)
def test_what_is_not_understood_is_named(full: Store, wanted: Filter, said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        matching(full, wanted)


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(since=1 << 63), Filter(until=-(1 << 63)), Filter(score_min=float("nan")), Filter(score_max=-1.0),
        Filter(src_ports=[(70_000, 1 << 62)]), Filter(dst_ports=[(5, 1)]), Filter(protos=[-5]),
        Filter(sources=["x" * 128]), Filter(labels=["x" * 128]), Filter(discrepancy_min=float("inf")),
    ],
)  # fmt: skip
def test_values_out_of_any_range_match_nothing(full: Store, wanted: Filter) -> None:
    assert matching(full, wanted) == []


def test_labels_resolve_through_the_catalog(store: Store) -> None:
    store.publish([make(n) for n in range(10)])
    for name, label in (("e000002", "a"), ("e000003", "b"), ("e000004", "a"), ("e000004", "")):
        store.publisher.annotate(name, label, "ana")

    def labelled(*labels: str) -> list[int]:
        return matching(store, Filter(labels=list(labels)))

    assert labelled("a") == [2]
    assert labelled("a", "b") == [2, 3]
    assert labelled("") == [0, 1, 4, 5, 6, 7, 8, 9]
    assert labelled("", "b") == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert labelled("c") == []


def test_before_episodes_and_families(full: Store) -> None:
    snapshot = full.snapshot()

    def passing(test: Any) -> list[int]:
        return [int(i) for i in np.flatnonzero(filters.mask(snapshot, [test]))]

    event = EVENTS[100]
    assert passing(filters.before(event)) == list(range(100))
    turned = make(100, src_ip=event.dst_ip, dst_ip=event.src_ip).event
    same = {
        i for i, e in enumerate(EVENTS)
        if {e.src_ip, e.dst_ip} == {event.src_ip, event.dst_ip} and e.family == event.family
        and abs(e.ts - event.ts) <= 600 * S
    }  # fmt: skip
    assert len(same) > 3
    for asked in (event, turned):
        assert passing(filters.other_episodes(asked, snapshot)) == [i for i in range(FILLED) if i not in same]
    later = make(100, ts=event.ts + 3600 * S).event
    assert passing(filters.other_episodes(later, snapshot)) == list(range(FILLED))
    other = make(100, family="Never seen").event
    assert passing(filters.other_episodes(other, snapshot)) == [i for i in range(FILLED) if i != 100]  # the connection
    others = [i for i, e in enumerate(EVENTS) if e.family != event.family]
    assert passing(filters.other_family(snapshot.names.families.index(event.family))) == others


def test_another_episode_is_not_the_same_one_as_another_detector_saw_it(store: Store) -> None:
    """A flow record without a family beside a flow with one was named the first precedent of itself."""
    ends = {"src_ip": "10.0.0.5", "dst_ip": "192.0.2.80", "src_port": 40_000, "dst_port": 8_443}
    back = {"src_ip": "192.0.2.80", "dst_ip": "10.0.0.5", "src_port": 8_443, "dst_port": 40_000}
    later, much_later = T0 + 60 * S, T0 + 3_600 * S
    events = [
        make(0, ts=T0, family="C2", **ends),
        make(1, ts=T0, family="Unknown", **ends),
        make(2, ts=T0, family="Exfiltration", **back),
        make(3, ts=later, family="Unknown", **(ends | {"src_port": 40_001})),
        make(4, ts=later, family="Exfiltration", **(ends | {"src_port": 40_001})),
        make(5, ts=much_later, family="C2", **ends),
    ]  # fmt: skip
    store.publish(events)
    snapshot = store.snapshot()

    def left(event: Any) -> list[int]:
        return np.flatnonzero(filters.mask(snapshot, [filters.other_episodes(event, snapshot)])).tolist()

    assert left(events[0].event) == [4, 5]
    assert left(events[1].event) == [5]  # of nobody knows what: all that the two hosts did
    assert left(make(9, ts=T0, family="C2", src_ip="10.0.0.6", dst_ip="192.0.2.80").event) == [0, 1, 2, 3, 4, 5]
