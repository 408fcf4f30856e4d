"""What else is stored of the connections of an answer."""

from __future__ import annotations

from typing import Any

import pytest

from engine.search.connection import ALERTS_MAX, COUNTED_MAX, FLOWS_MAX, NEAR_NS, TEXT_CHARS_MAX
from engine.search.query import Question, stored_question
from engine.store.catalog import seq_key
from ipc.event import FeaturedEvent
from ipc.messages import Alert, Options
from tests.events import T0, S, make, several
from tests.store_fixture import Store, damage

ENDS = {"src_ip": "10.9.9.1", "dst_ip": "192.0.2.200", "src_port": 40_000, "dst_port": 443, "proto": 6}
BACK = {"src_ip": "192.0.2.200", "dst_ip": "10.9.9.1", "src_port": 443, "dst_port": 40_000}


def flow(number: int, **more: Any) -> FeaturedEvent:
    """From T0 to 10 s later."""
    return make(number, **(ENDS | {"kind": "flow", "ts_start": T0, "ts": T0 + 10 * S} | more))


def alert(number: int, text: str, **more: Any) -> FeaturedEvent:
    given = {"kind": "alert", "ts_start": T0 + 5 * S, "ts": T0 + 5 * S, "source": "eve", "text": text}
    return FeaturedEvent(make(number, **(ENDS | given | more)).event)


def said(alerts: list[Alert]) -> list[tuple[str, int]]:
    return [(alert.text, alert.count) for alert in alerts]


def test_an_explained_answer_tells_what_was_said_of_its_connections(store: Store) -> None:
    store.publish([flow(0), flow(1, src_port=40_001), *several(20, 100)])
    of_query = [
        alert(200, "beacon | a.example", ts=T0 + 7 * S),
        alert(201, "beacon | b.example", ts=T0 + 6 * S),
        alert(202, "odd certificate", source="zeek", kind="notice"),
        alert(203, "answer to it", **BACK, ts=T0 + 10 * S + NEAR_NS),
        alert(204, "nobody knows the protocol", proto=None, ts=T0 + 9 * S),
        alert(205, "nobody knows its start", ts_start=0, ts=T0 + 9 * S + 1),
    ]
    not_of_it = [
        alert(210, "other port", src_port=40_001),
        alert(211, "other protocol", proto=17),
        alert(212, "too late", ts_start=T0 + 11 * S + NEAR_NS, ts=T0 + 11 * S + NEAR_NS),
        alert(213, "too early", ts_start=T0 - 1 - NEAR_NS, ts=T0 - 1 - NEAR_NS),
        alert(216, "much later, nobody knows its start", ts_start=0, ts=T0 + 900 * S),
        alert(214, "turned hosts, not ports", src_ip=BACK["src_ip"], dst_ip=BACK["dst_ip"]),
        make(215, **(ENDS | {"kind": "flow", "ts": T0 + 5 * S, "source": "eve"})),
    ]
    store.publish(of_query + not_of_it)
    answer = store.ask("test/e000000", space="attack", explain=True, collapse=False, top_k=60)
    assert said(answer.query_alerts) == [
        ("odd certificate", 1), ("beacon", 2), ("nobody knows the protocol", 1), ("nobody knows its start", 1),
    ]  # fmt: skip
    assert len(answer.alerts) == len(answer.hits) > 10
    by_id = {hit.event.event_id: said(of) for hit, of in zip(answer.hits, answer.alerts, strict=True)}  # type: ignore[union-attr]
    assert by_id["e000001"] == [("other port", 1)]
    assert store.ask("test/e000000", space="attack").alerts == []  # it was not asked why


def test_an_alert_says_nothing_of_itself_but_others_do(store: Store) -> None:
    store.publish([alert(0, "one"), alert(1, "other"), *several(10, 100)])
    answer = store.ask("eve/e000000", explain=True)
    assert said(answer.query_alerts) == [("other", 1)]


def test_an_answer_to_a_ping_is_of_the_same_connection_though_its_type_is_another(store: Store) -> None:
    ping = {"src_port": 8, "dst_port": 0, "proto": 1}
    pong = {**BACK, "src_port": 0, "dst_port": 0, "proto": 1}
    store.publish([flow(0, **ping), *several(10, 100), alert(1, "odd answer", **pong), alert(2, "tcp")])
    assert said(store.ask("e000000", explain=True).query_alerts) == [("odd answer", 1)]


def test_what_is_asked_together_is_looked_up_at_once(store: Store) -> None:
    """Some with reasons, some without, one that is no event."""
    store.publish([flow(0), alert(1, "one"), *several(30, 100)])
    snapshot = store.snapshot()
    with store.catalog.read() as view:
        models = store.publisher.models
        questions = [
            stored_question(name, Options(space="sbert", explain=why), snapshot, view, models)
            for name, why in (("e000000", True), ("e000100", False), ("eve/e000001", True))
        ]  # fmt: skip
    questions.append(Question(Options(space="sbert", explain=True), questions[0].vectors))
    flow_, plain, bare, text = store.answer(questions, snapshot)
    assert said(flow_.query_alerts) == [("one", 1)] and plain.alerts == [] and plain.query_alerts == []
    assert [one.event_id for one in bare.query_flows] == ["e000000"]
    assert text.query_alerts == [] and len(text.alerts) == len(text.hits)


def test_connections_without_ports_are_those_of_the_same_hosts(store: Store) -> None:
    bare = {"src_port": None, "dst_port": None, "proto": 1}
    store.publish([flow(0, **bare), *several(10, 100), alert(1, "ping flood", **bare), alert(2, "tcp")])
    assert said(store.ask("e000000", explain=True).query_alerts) == [("ping flood", 1)]


@pytest.mark.parametrize("unknown", [{"ts": 0, "ts_start": 0}, {"src_ip": ""}, {"dst_ip": ""}])
def test_nothing_is_said_of_a_connection_that_is_not_known(store: Store, unknown: dict[str, Any]) -> None:
    store.publish([flow(0, **unknown), *several(10, 100), alert(1, "one", **unknown), alert(2, "other")])
    answer = store.ask("e000000", space="attack", explain=True)
    assert answer.query_alerts == []


def test_a_flood_of_alerts_is_counted_to_an_end_and_told_in_few_lines(store: Store) -> None:
    store.publish([flow(0), *several(10, 100)])
    store.publish([alert(200 + i, f"signature {i}" if i >= 50 else "the same") for i in range(COUNTED_MAX + 20)])
    told = said(store.ask("e000000", explain=True).query_alerts)
    assert told[0] == ("the same", 50) and len(told) == ALERTS_MAX


def test_a_long_text_is_cut_and_one_without_any_is_told_by_its_kind(store: Store) -> None:
    store.publish([flow(0), *several(10, 100), alert(1, "x" * 300), alert(2, "x" * 299 + "y"), alert(3, "")])
    told = store.ask("e000000", explain=True).query_alerts
    assert said(told) == [("x" * TEXT_CHARS_MAX, 1), ("x" * TEXT_CHARS_MAX, 1), ("alert", 1)]  # two that begin alike


def test_a_damaged_alert_is_left_out(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.publish([flow(0), *several(10, 100), alert(1, "damaged"), alert(2, "whole")])
    damage(store.catalog, "records", seq_key(11))
    assert said(store.ask("e000000", explain=True).query_alerts) == [("whole", 1)]
    assert "left out of an answer" in caplog.text


def test_a_bare_alert_names_the_flows_that_can_be_compared(store: Store) -> None:
    """Nothing behaves like an alert without features; what it was about may be stored as a flow."""
    others = [flow(10 + i, source=f"s{i}", ts=T0 + (20 - i) * S) for i in range(FLOWS_MAX + 2)]
    little = FeaturedEvent(flow(20, source="little").event)
    store.publish([little, *others, flow(1, src_port=40_001), alert(2, "one"), alert(3, "other"), *several(10, 100)])
    answer = store.ask("eve/e000002", space="attack")
    assert not answer.hits
    assert [one.source for one in answer.query_flows] == [f"s{i}" for i in reversed(range(2, FLOWS_MAX + 2))]  # in time
    said_of_it = store.ask("eve/e000002", space="sbert", explain=True)
    assert len(said_of_it.query_flows) == FLOWS_MAX and said(said_of_it.query_alerts) == [("other", 1)]
    assert store.ask("eve/e000002", space="sbert").query_flows == []  # it was not asked why
    assert store.ask("s0/e000010", space="attack", explain=True).query_flows == []  # it is a flow


def test_a_store_without_alerts_has_none_to_tell(store: Store) -> None:
    store.publish([flow(i) for i in range(12)])
    answer = store.ask("e000000", explain=True)
    assert answer.query_alerts == [] and answer.alerts == [[] for _ in answer.hits]
