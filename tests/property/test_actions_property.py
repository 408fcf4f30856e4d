"""Firewall actions against an oracle: however they and the events come, what is joined follows from their contents."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.families import canonical
from engine.limits import ACTION_NEAR_S
from engine.normalize import trace_id
from ipc.event import Annotation, Event, FeaturedEvent, FirewallAction
from tests.events import T0, S, make
from tests.store_fixture import Store

SECONDS = st.integers(0, 600).map(lambda fifth: T0 + fifth * S // 5)
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "fe80::1"])
WORDS = st.sampled_from(["DDOS", "ssh_brute", "PortScan", "ATTACK", "new word"])
ACTIONS = st.builds(
    FirewallAction,
    ts=SECONDS,
    src_ip=ADDRESSES,
    dst_ip=ADDRESSES,
    family=WORDS,
    action=st.sampled_from(["BLOCK", "ALERT"]),
)
EVENTS = st.tuples(SECONDS, ADDRESSES, ADDRESSES, WORDS)
NEAR_NS = ACTION_NEAR_S * S


def flow(number: int, ts: int, src: str, dst: str, word: str) -> FeaturedEvent:
    return make(
        number, ts=ts, ts_start=ts, src_ip=src, dst_ip=dst, family="", family_raw=word, classification="UNKNOWN"
    )


def belongs(action: FirewallAction, event: Event) -> bool:
    """As EVENTS says it, on a completed event."""
    family = canonical(action.family)
    same = event.trace_id == trace_id(action.src_ip, action.dst_ip, family, action.ts)
    return same or (event.src_ip == action.src_ip and abs(event.ts - action.ts) <= NEAR_NS)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_order_and_any_batches_give_the_same(data: st.DataObject) -> None:
    items = [flow(i, *event) for i, event in enumerate(data.draw(st.lists(EVENTS, min_size=1, max_size=8)))]
    actions = data.draw(st.lists(ACTIONS, min_size=1, max_size=8))
    again = data.draw(st.lists(st.sampled_from(actions), max_size=3))
    stream: list[FeaturedEvent | FirewallAction] = data.draw(st.permutations([*items, *actions, *again]))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=4))
    reopen = data.draw(st.integers(0, 4))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "data")
        try:
            edges = [0, *sorted(cuts), len(stream)]
            for i, (lo, hi) in enumerate(pairwise(edges)):
                if i == reopen:
                    store.close()
                    store = Store(Path(folder) / "data")
                part = stream[lo:hi]
                store.publish(
                    [one for one in part if isinstance(one, FeaturedEvent)],
                    actions=[one for one in part if isinstance(one, FirewallAction)],
                )
            unmet = set(actions)
            joined = 0
            for item in items:
                found = {(a.ts, a.action) for a in actions if belongs(a, item.event)}
                unmet -= {a for a in actions if belongs(a, item.event)}
                with store.catalog.read() as view:
                    seq = view.find(item.event.event_id)
                    assert seq is not None
                    note = view.annotation(seq) or Annotation()
                assert {(at, value) for at, _, _, value in note.history} == found
                assert len(note.history) == len(found)
                assert (note.firewall_ts, note.firewall_action) == max(found, default=(0, ""))
                joined += len(found)
            assert store.publisher.actions.unmet == store.publisher.counters.actions_waiting == len(unmet)
            assert store.publisher.counters.actions_joined == joined
            store.check()
        finally:
            store.close()
