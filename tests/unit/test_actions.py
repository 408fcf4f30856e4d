"""Firewall actions and the events that they are about: joined in either order, once, and none lost in silence."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.errors import NoSpaceError
from engine.facts import stats
from engine.search import filters
from engine.store import actions as firewall
from engine.store.catalog import seq_key
from engine.store.counters import Counters
from engine.store.publish import Submission
from ipc.event import Annotation, FeaturedEvent, FirewallAction
from ipc.messages import Filter, Ingest, Ingested, decode_reply, decode_request, encode
from tests.events import T0, S, blocked, make, several
from tests.store_fixture import ROWS, Store

MINUTE = 60 * S


def note(store: Store, seq: int) -> Annotation:
    with store.catalog.read() as view:
        return view.annotation(seq) or Annotation()


def marked(store: Store, action: str = "BLOCK") -> list[int]:
    with store.catalog.read() as view:
        return view.marked("firewall_action", action)


def counters(store: Store) -> Counters:
    with store.catalog.read() as view:
        return view.counters()


def counted(store: Store) -> tuple[int, int, int, int]:
    c = counters(store)
    assert c == store.publisher.counters
    return c.actions_joined, c.actions_waiting, c.actions_unmet, c.actions_cut


def test_a_damaged_annotation_costs_its_event_an_action_and_nobody_else_theirs(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A followed log would be begun again at the same line for ever, and nothing behind it stored."""
    store.publish(several(10))
    store.publisher.annotate("e000003", "good", "ana")
    with store.catalog.write() as batch:
        table, key = store.catalog.tables["annotations"], seq_key(3)
        value = bytearray(batch.txn.get(key, None, table))
        value[3] ^= 0x10
        batch.txn.put(key, bytes(value), db=table)
    store.publish(several(5, 20), actions=[blocked(3), blocked(4)])
    assert len(store.ids()) == 15 and note(store, 4).firewall_action == "BLOCK"
    assert any("is not joined" in message for message in caplog.messages)


def flow(number: int = 0, *, after_s: float = 0.0, **more: object) -> FeaturedEvent:
    """Event of 10.0.0.1 to 192.0.2.1, DDoS, so long after a full minute."""
    fields: dict[str, object] = {
        "event_id": f"flow{number}", "ts": BASE + round(after_s * S), "ts_start": BASE, "src_ip": "10.0.0.1",
        "dst_ip": "192.0.2.1", "family": "DDoS", "classification": "MALICIOUS",
    }  # fmt: skip
    return make(number, **(fields | more))  # type: ignore[arg-type]


BASE = T0 // MINUTE * MINUTE


def act(after_s: float = 0.0, **more: object) -> FirewallAction:
    fields: dict[str, object] = {
        "ts": BASE + round(after_s * S), "src_ip": "10.0.0.1", "dst_ip": "192.0.2.1", "family": "DDOS_ATTACK",
        "action": "BLOCK", "confidence": 0.95,
    }  # fmt: skip
    return FirewallAction(**(fields | more))  # type: ignore[arg-type]


@pytest.fixture
def reopened(tmp_path: Path) -> Iterator[list[Store]]:
    """Stores opened by a test, closed at its end."""
    opened: list[Store] = []
    yield opened
    for store in opened:
        store.close()


# ---- which events


@pytest.mark.parametrize("order", ["event first", "action first", "together"])
def test_an_action_is_joined_in_either_order(store: Store, order: str) -> None:
    if order == "event first":
        store.publish([flow()])
        outcome = store.publish([], actions=[act(1)], source="fw")
    elif order == "action first":
        first = store.publish([], actions=[act(1)], source="fw")
        assert (first.joined, first.waiting) == (0, 1)
        outcome = store.publish([flow()], source="fw")
    else:
        outcome = store.publish([flow()], actions=[act(1)], source="fw")
    assert (outcome.joined, outcome.waiting) == (1, 0)
    found = note(store, 0)
    assert (found.firewall_action, found.firewall_ts) == ("BLOCK", BASE + S)
    assert found.history == [(BASE + S, "fw", "firewall_action", "BLOCK")]
    assert marked(store) == [0]
    assert counted(store) == (1, 0, 0, 0)
    store.check()


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize(
    ("event", "action", "belongs"),
    [
        # by source and time
        (flow(after_s=20, family="C2"), act(25), True),
        (flow(after_s=20, family="C2"), act(15), True),
        (flow(after_s=20, family="C2"), act(25.000000001), False),
        (flow(after_s=20, family="C2"), act(14.999999999), False),
        (flow(after_s=20, dst_ip="192.0.2.77", family="C2"), act(22), True),
        (flow(after_s=20, src_ip="10.0.0.2"), act(22), False),
        (flow(after_s=20, src_ip="192.0.2.1", dst_ip="10.0.0.1"), act(22), False),
        (flow(after_s=20, src_ip="fe80::1", dst_ip=""), act(22, src_ip="FE80:0::1", dst_ip=""), True),
        # by trace id: the windows begin at full minutes and are 10 s for DDoS, 30 s for brute force, else 60 s
        (flow(after_s=0.5), act(9.5), True),
        (flow(after_s=9.5), act(0), True),
        (flow(after_s=0.5), act(10), False),
        (flow(after_s=0.5, dst_ip="192.0.2.2"), act(9.5), False),
        (flow(after_s=0.5, family="C2"), act(9.5), False),
        (flow(after_s=1, family="SSH Brute Force"), act(29, family="ssh_brute"), True),
        (flow(after_s=1, family="BruteForce"), act(31, family="BRUTE_FORCE"), False),
        (flow(after_s=1, family="PortScan"), act(59, family="scan"), True),
        (flow(after_s=1, family=""), act(59, family="ATTACK"), True),  # both Unknown
        (flow(after_s=1, family="never heard of"), act(59, family="Never_Heard_Of"), True),
        (flow(after_s=59.9, family="PortScan"), act(60 + 5.1, family="scan"), False),
    ],
)
def test_which_events_an_action_belongs_to(
    store: Store, event: FeaturedEvent, action: FirewallAction, belongs: bool, stored: bool
) -> None:
    event.event.family_raw = event.event.family
    event.event.family = ""
    if stored:
        store.publish([event])
        outcome = store.publish([], actions=[action])
    else:
        store.publish([], actions=[action])
        outcome = store.publish([event])
    assert outcome.joined == belongs
    assert bool(note(store, 0).firewall_action) == belongs


def test_all_events_of_an_action_are_found_over_all_row_files(store: Store) -> None:
    count = 3 * ROWS + 7
    store.publish([flow(n, after_s=n / 30) for n in range(count)])  # 6.6 s
    other = several(20, count)
    store.publish(other)
    generation = store.generation
    outcome = store.publish([], actions=[act(3)])
    assert outcome.joined == count
    assert store.generation == generation + 1  # one commit
    assert marked(store) == list(range(count))
    assert store.publish([], actions=[act(2.5, action="ALERT")]).joined == count  # with what is known of full files now
    assert marked(store) == list(range(count)) and marked(store, "ALERT") == []


# ---- several actions


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_latest_action_counts_and_the_history_keeps_all(store: Store, order: tuple[int, ...]) -> None:
    made = [act(1, action="ALERT"), act(2, action="BLOCK"), act(3, action="UNBLOCK")]
    store.publish([flow()])
    for i in order:
        store.publish([], actions=[made[i]], source=f"fw{i}")
    found = note(store, 0)
    assert (found.firewall_action, found.firewall_ts) == ("UNBLOCK", BASE + 3 * S)
    assert [entry[3] for entry in found.history] == [made[i].action for i in order]
    assert [marked(store, a.action) for a in made] == [[], [], [0]]


def test_the_same_again_changes_nothing(store: Store) -> None:
    store.publish([flow(), flow(1, after_s=1)], actions=[act(1), act(2)])
    before, generation = [note(store, seq) for seq in (0, 1)], store.generation
    outcome = store.publish([], actions=[act(1), act(2), act(1)], source="another name")
    assert (outcome.joined, outcome.waiting) == (0, 0)
    assert store.generation == generation
    store.publish([flow(2, after_s=3_600, src_ip="10.9.9.9")])  # they leave
    assert store.publisher.actions.waiting == {}
    assert store.publish([], actions=[act(1), act(2)]).joined == 0
    assert [note(store, seq) for seq in (0, 1)] == before
    assert counted(store) == (4, 0, 0, 0)


def test_a_label_and_an_action_keep_each_other(store: Store) -> None:
    store.publish([flow()])
    store.publisher.annotate("flow0", "true_positive", "ana")
    store.publish([], actions=[act(1)])
    store.publisher.annotate("flow0", "benign", "eva")
    found = note(store, 0)
    assert (found.label, found.firewall_action, len(found.history)) == ("benign", "BLOCK", 3)


def test_the_history_of_an_event_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "ACTION_HISTORY_MAX", 3)
    store.publish([flow()])
    for n in range(6):
        store.publish([], actions=[act(n / 10)])
    found = note(store, 0)
    assert len(found.history) == 3
    assert found.firewall_ts == BASE + S // 2  # still the latest
    assert store.publish([], actions=[act(0.45)]).joined == 0


# ---- waiting


def test_what_waits_is_there_after_a_restart(tmp_path: Path, reopened: list[Store]) -> None:
    reopened.append(Store(tmp_path / "data"))
    reopened[0].publish([], {b"followed": b"offset"}, [act(1), act(2, action="ALERT")], "fw")
    reopened.pop().close()
    reopened.append(Store(tmp_path / "data"))
    store = reopened[0]
    assert [w.action for w in store.publisher.actions.waiting.values()] == [act(1), act(2, action="ALERT")]
    assert store.publisher.actions.unmet == 2
    outcome = store.publish([flow()], actions=[act(1)])
    assert (outcome.joined, outcome.waiting) == (2, 0)
    assert [(by, what) for _, by, _, what in note(store, 0).history] == [("fw", "BLOCK"), ("fw", "ALERT")]
    store.publish([], actions=[act(3)])
    assert len({w.number for w in store.publisher.actions.waiting.values()}) == 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_commit_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store.publish([], actions=[act(1)])

    def fails(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr("os.fdatasync", fails)
        with pytest.raises(NoSpaceError if code == errno.ENOSPC else OSError):
            store.publish([flow()], actions=[act(2)])
    assert (len(store.publisher.actions.waiting), store.publisher.actions.unmet) == (1, 1)
    outcome = store.publish([flow()], actions=[act(2)])
    assert (outcome.accepted, outcome.joined, outcome.waiting) == (1, 2, 0)
    assert [w.number for w in store.publisher.actions.waiting.values()] == [0, 1]


def test_actions_that_meet_nothing_leave_counted_and_logged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.publish([flow()], actions=[act(1), act(2, src_ip="10.0.0.9"), act(70, src_ip="10.0.0.9")])
    assert counted(store) == (1, 2, 0, 0)
    store.publish([flow(1, after_s=902, src_ip="10.5.5.5")])  # exactly 900 s after the second: it stays
    assert counted(store) == (1, 2, 0, 0) and len(store.publisher.actions.waiting) == 2
    with caplog.at_level(logging.WARNING):
        store.publish([flow(2, after_s=902.1, src_ip="10.5.5.5")])
    assert counted(store) == (1, 1, 1, 0)
    assert "1 firewall actions met no event: BLOCK from 10.0.0.9" in caplog.text
    store.publish([flow(3, after_s=60, src_ip="10.5.5.5"), flow(4, after_s=9_000, src_ip="10.5.5.5")])
    assert counted(store) == (1, 1, 1, 0)  # a batch that is not past it yet
    assert store.publish([flow(5, after_s=71, src_ip="10.0.0.9")]).joined == 1
    store.publish([flow(6, after_s=9_000, src_ip="10.5.5.5")])
    assert counted(store) == (2, 0, 1, 0)
    assert store.publisher.actions.waiting == {} and not store.publisher.actions._index.by_source
    with store.catalog.read() as view:
        assert list(view.scan("meta", prefix=firewall.PREFIX)) == []


def test_an_action_that_is_late_finds_what_is_stored_and_does_not_wait(store: Store) -> None:
    store.publish([flow(), flow(1, after_s=9_000)])
    assert store.publish([], actions=[act(1)]).joined == 1
    outcome = store.publish([flow(2, after_s=9_001)], actions=[act(2), act(3, src_ip="10.0.0.9")])
    assert (outcome.joined, outcome.waiting) == (1, 0)
    assert store.publisher.actions.waiting == {} and counted(store) == (2, 0, 1, 0)


def test_no_more_wait_than_there_is_room_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "ACTIONS_WAITING_MAX", 3)
    outcome = store.publish([], actions=[act(n) for n in range(5)])
    assert outcome.waiting == 3 and counted(store) == (0, 3, 2, 0)
    store.publish([], actions=[act(5)])
    assert [w.action.ts for w in store.publisher.actions.waiting.values()] == [BASE + n * S for n in (3, 4, 5)]
    assert counted(store) == (0, 3, 3, 0)


def test_events_that_are_too_many_for_one_commit_are_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(firewall, "ACTION_JOINS_MAX", 10)
    store.publish([flow(n) for n in range(25)])
    with caplog.at_level(logging.WARNING):
        outcome = store.publish([], actions=[act(1), act(2)])
    assert outcome.joined == 10 and counted(store) == (10, 1, 0, 40)
    assert marked(store) == list(range(15, 25))  # the newest
    assert "40 events got no firewall action" in caplog.text


def test_a_row_file_that_cannot_be_read_costs_its_events_only(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.publish([flow(n) for n in range(ROWS + 5)])
    real = firewall.RowMap

    def broken(path: Path, number: int, rows: int) -> object:
        if number == 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, number, rows)

    monkeypatch.setattr(firewall, "RowMap", broken)
    assert store.publish([], actions=[act(1)]).joined == 5
    assert "its events get no firewall action" in caplog.text


# ---- messages, counts, filters


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (act(src_ip="nowhere"), "is not an address"),
        (act(src_ip=""), "without a source address"),
        (act(action="\n\x1b"), "without a word for it"),
        (act(dst_ip="10.0.0"), "is not an address"),
    ],
)
def test_a_bad_action_costs_itself_only(store: Store, bad: FirewallAction, reason: str) -> None:
    outcome = store.publish([flow()], actions=[bad, act(1)], source="fw")
    assert outcome.joined == 1
    assert reason in outcome.rejects[0].reason
    assert store.publisher.counters.sources["fw"].rejected == 1
    store.publish([], actions=[act(2, action=" RATE\n LIMIT\x1b[2J")])
    assert note(store, 0).firewall_action == "RATE LIMIT [2J"


def test_each_submission_counts_what_is_its_own(store: Store) -> None:
    def submission(items: list[FeaturedEvent], actions: list[FirewallAction]) -> Submission:
        return Submission("x", items, [], lambda outcome: None, source="s", actions=actions)

    store.publish([flow()])
    outcomes = store.publisher.publish(
        [
            submission([flow(1, after_s=1)], []),
            submission([], [act(1)]),
            submission([flow(0), flow(2, after_s=2), flow(3, after_s=500)], []),
        ]
    )
    assert [(o.accepted, o.joined, o.waiting) for o in outcomes] == [(1, 1, 0), (0, 1, 0), (2, 1, 0)]


def test_messages_carry_actions_and_bound_them() -> None:
    message = Ingest(1, "argus-firewall", [], [], "fw", [act(1), act(2, action="ALERT")])
    assert decode_request(encode(message)) == message
    reply = Ingested(1, 2, 0, 0, 0, "", 3, 4)
    assert decode_reply(encode(reply)) == reply
    for bad in (act(action=""), act(action="x" * 65), act(action="a\0b"), act(ts=-1), act(confidence=2.0)):
        with pytest.raises(Exception, match="Expected"):
            decode_request(encode(Ingest(1, "f", [], [], "fw", [bad])))
    with pytest.raises(Exception, match="Expected"):
        decode_request(encode(Ingest(1, "f", [], [], "fw", [act(1)] * 1_025)))


def test_a_filter_finds_what_became_of_events(store: Store) -> None:
    store.publish(several(30), actions=[blocked(3), blocked(7, action="ALERT", after_s=0)])
    snapshot = store.snapshot()

    def found(**more: list[str]) -> list[int]:
        wanted = Filter(**more)  # type: ignore[arg-type]
        with store.catalog.read() as view:
            mask = filters.mask(snapshot, filters.tests(wanted, snapshot), filters.marks(wanted), view)
        return np.flatnonzero(mask).tolist()

    blocks, alerts = found(firewall_actions=["BLOCK"]), found(firewall_actions=["ALERT"])
    assert 3 in blocks and 7 in alerts
    assert found(firewall_actions=["BLOCK", "ALERT"]) == sorted({*blocks, *alerts})
    assert found(firewall_actions=[""]) == sorted(set(range(30)) - {*blocks, *alerts})
    assert found(firewall_actions=["BLOCK"], families=["C2"]) == [n for n in blocks if n % 4 == 2]
    store.publisher.annotate("e000003", "good", "ana")
    assert found(firewall_actions=["BLOCK"], labels=["good"]) == [3]
    assert found(firewall_actions=["NEVER"]) == []
    hits = store.ask("e000000", top_k=5, filter=Filter(firewall_actions=["BLOCK"])).hits
    assert {hit.annotation.firewall_action for hit in hits} == {"BLOCK"}  # type: ignore[union-attr]


def test_stats_say_what_became_of_actions(store: Store) -> None:
    store.publish([flow()], actions=[act(1), act(1, src_ip="10.7.7.7")])
    with store.catalog.read() as view:
        assert stats(store.layout, view)["firewall"] == {"joined": 1, "waiting": 1, "unmet": 0, "cut": 0}
