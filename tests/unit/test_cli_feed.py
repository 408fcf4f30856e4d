"""Files to messages: bounds, back-pressure, broken connections. The client is mostly a fake with that interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from cli import feed
from ipc.client import Client
from ipc.errors import ClientError, ConnectError, ConnectionLostError, OverloadedError
from ipc.event import Event, FeaturedEvent, FirewallAction
from ipc.messages import (
    FRAME_BYTES_MAX,
    Answer,
    Answers,
    ErrorCode,
    Failure,
    Ingest,
    Ingested,
    Options,
    Reject,
    Reply,
    encode,
)
from ipc.server import Bounds
from tests.unit import test_client
from tests.wait import eventually


class Silent:
    total = 0

    def advance(self, n: int) -> None:
        self.total += n


def items(first: int, count: int, raw: int = 10) -> list[FeaturedEvent]:
    return [
        FeaturedEvent(Event(event_id=f"e{i}", source="lab", ts=i, ts_start=i), b"", b"x" * raw)
        for i in range(first, first + count)
    ]


def test_a_reject_of_a_file_whose_name_is_no_utf8_can_be_sent() -> None:
    """One bad line in it cost the events of all files."""
    reject = feed._bounded(Reject("logs/" + os.fsdecode(b"caf\xe9.json"), 3, "bad", b"r"))
    assert encode(Ingest(1, "eve", [], [reject], "eve")) and reject.file == "logs/caf?.json"


def part(first: int, count: int, raw: int = 10, rejects: int = 0, format: str = "ndjson") -> feed.Part:
    return feed.Part(format, "lab", items(first, count, raw), [Reject("f", i, "bad", b"r") for i in range(rejects)])


MOST = feed.EVENTS_MAX


class Engine:
    """Knows ids; does at each message what the script says: None, a Failure's code, 'break', 'break after' storing,
    'refused' and 'full' as an attempt to connect."""

    def __init__(self, script: Iterable[Any] = ()) -> None:
        self.script = iter(script)
        self.ids: set[str] = set()
        self.messages: list[Ingest] = []
        self.connects = 0

    def pipeline(self, makes: Iterable[Callable[[int, int], Any]], *, window: int, timeout_ms: int) -> Iterator[Reply]:
        self.connects += 1
        waiting: list[Reply | Exception] = []
        for n, make in enumerate(makes):
            if len(waiting) >= window:
                yield self._taken(waiting)
            waiting.append(self.one(make(n, timeout_ms)))
        while waiting:
            yield self._taken(waiting)

    def _taken(self, waiting: list[Reply | Exception]) -> Reply:
        first = waiting.pop(0)
        if isinstance(first, Exception):
            raise first
        return first

    def one(self, message: Ingest) -> Reply | Exception:
        act = next(self.script, None)
        if act == "break":
            return ConnectionLostError("/s", "broke")
        if act == "full":  # says a Hello
            return OverloadedError(ErrorCode.OVERLOADED, "all connections are in use", 10)
        if act == "refused":
            return ConnectError("/s", "no engine")
        if isinstance(act, ErrorCode):
            return Failure(message.request_id, act, "wait", 10)
        self.messages.append(message)
        new = {item.event.event_id for item in message.events} - self.ids
        self.ids |= new
        if act == "break after":
            return ConnectionLostError("/s", "broke")
        return Ingested(
            message.request_id, len(self.messages), len(new), len(message.events) - len(new), len(message.rejects), "dl"
        )


def delivered(engine: Engine, parts: Iterable[feed.Part], retry_s: float = 5.0) -> tuple[feed.Summary, list[float]]:
    slept: list[float] = []
    summary = feed.Summary()
    feed.deliver(engine, feed.batches(parts), summary, Silent(), retry_s=retry_s, sleep=slept.append)  # type: ignore[arg-type]
    return summary, slept


def test_messages_stay_within_bounds():
    parts = [part(0, 1_200), part(1_200, 10, raw=1 << 20), part(2_000, 3, rejects=1_100), part(3_000, 1, format="eve")]
    made = list(feed.batches(parts))
    assert sum(len(b.events) for b in made) == 1_214 and sum(len(b.rejects) for b in made) == 1_100
    assert all(len(b.events) <= MOST and len(b.rejects) <= MOST for b in made)
    assert all(len(encode(Ingest(1, b.format, b.events, b.rejects, b.source))) < FRAME_BYTES_MAX for b in made)
    assert [b.format for b in made][-1] == "eve" and {b.format for b in made[:-1]} == {"ndjson"}
    order = [item.event.event_id for b in made for item in b.events]
    assert order == [item.event.event_id for p in parts for item in p.events]
    assert list(feed.batches([])) == []


def test_actions_go_along_within_bounds_and_what_became_of_them_is_counted():
    actions = [FirewallAction(n, "10.0.0.1", "10.0.0.2", "DDoS", "BLOCK") for n in range(1_300)]
    made = list(feed.batches([part(0, 3)._replace(actions=actions[:700]), part(3, 1)._replace(actions=actions[700:])]))
    assert all(0 < len(b.actions) <= MOST for b in made)
    assert [action for b in made for action in b.actions] == actions
    assert sum(len(b.events) for b in made) == 4
    assert list(feed.batches([feed.Part("f", "s", [], [], actions[:1])]))[0].actions == actions[:1]
    summary = feed.Summary()
    for joined, waiting in ((3, 9), (4, 2)):
        summary.add(Ingested(1, 5, 0, 0, 0, "", joined, waiting))
    document = summary.document()
    assert (document["joined"], document["waiting"]) == (7, 2)  # in all; now


def test_small_parts_are_joined():
    assert len(list(feed.batches([part(i, 1) for i in range(MOST)]))) == 1


def test_packets_that_are_no_ip_go_along_once_with_whatever_is_sent():
    def of(*parts: feed.Part) -> list[tuple[str, int, int]]:
        return [(b.source, len(b.events), b.not_ip) for b in feed.batches(parts)]

    def named(source: str, events: int, not_ip: int) -> feed.Part:
        return feed.Part("pcap", source, items(0, events), [], (), not_ip)

    assert of(named("a", 0, 5)) == [("a", 0, 5)]
    assert of(named("a", 0, 5), named("a", 3, 0), named("a", 0, 2)) == [("a", 3, 7)]
    assert of(named("a", 0, 5), named("b", 1, 0), named("a", 0, 0)) == [("a", 0, 5), ("b", 1, 0)]
    assert of(named("a", MOST + 1, 4)) == [("a", MOST, 4), ("a", 1, 0)]


def test_everything_is_delivered_and_counted():
    summary, slept = delivered(Engine(), [part(0, 5_000, rejects=3)])
    assert (summary.accepted, summary.duplicates, summary.rejected, slept) == (5_000, 0, 3, [])
    document = summary.document()
    names = [
        "accepted",
        "duplicates",
        "rejected",
        "dead_letters",
        "joined",
        "waiting",
        "generation",
        "seconds",
        "parse_cpu_s",
    ]
    assert list(document) == names
    assert document["dead_letters"] == "dl" and document["generation"] == -(-5_000 // MOST)


@pytest.mark.parametrize("code", [ErrorCode.OVERLOADED, ErrorCode.NO_SPACE, ErrorCode.NOT_READY, ErrorCode.DEADLINE])
def test_told_to_wait_it_waits_as_long_as_it_was_told_and_sends_again(code):
    engine = Engine([None, code, code, None, code])
    summary, slept = delivered(engine, [part(0, 5_000)])
    assert summary.accepted == 5_000 and summary.duplicates == 0 and len(engine.ids) == 5_000
    assert len(slept) == 3 and all(0.007 < s < 0.013 for s in slept)


@pytest.mark.parametrize("act", ["break", "break after"])
def test_a_broken_connection_costs_nothing(act):
    engine = Engine([None, None, act, None, None, None, act])
    summary, _ = delivered(engine, [part(0, 10_000)])
    assert len(engine.ids) == 10_000 and engine.connects == 3
    assert summary.accepted + summary.duplicates == 10_000  # stored and not acknowledged: counts once


def test_an_engine_that_is_restarting_is_waited_for_but_a_missing_one_is_not():
    engine = Engine([None, "break", "refused", "refused"])
    assert delivered(engine, [part(0, 3_000)])[0].accepted >= 2_000 and len(engine.ids) == 3_000
    assert delivered(Engine(["break", "refused"]), [part(0, 10)])[0].accepted == 10  # broke before the first answer
    with pytest.raises(ConnectError):
        delivered(Engine(["refused"]), [part(0, 10)])


@pytest.mark.parametrize("act", [ErrorCode.OVERLOADED, ErrorCode.NOT_READY, "break", "full"])
def test_retrying_ends(act):
    with pytest.raises(ClientError, match="gave up after 0 s") as e:
        delivered(Engine([None, *[act] * 10_000]), [part(0, 2 * MOST)], retry_s=0.0)
    assert str(e.value).count("gave up") == 1


@pytest.mark.parametrize("act", [ErrorCode.OVERLOADED, ErrorCode.NO_SPACE, "break", "full"])
def test_retrying_begins_with_a_failure_however_late_the_events_came(act):
    """No patience at all: a second failure without an acknowledgement between would be too much."""
    summary, slept = delivered(Engine([act, None, act, None, act]), [part(0, 3 * MOST)], retry_s=0.0)
    assert summary.accepted + summary.duplicates == 3 * MOST and len(slept) >= 2


def test_a_hello_that_is_refused_for_want_of_room_is_said_again_later(tmp_path):
    """A server of one connection, which another peer holds until we are told to wait."""
    server = test_client.Engine(tmp_path, Bounds(connections_max=1))
    summary, slept = feed.Summary(), []

    def sleep(s: float) -> None:
        slept.append(s)
        other.sock.close()
        eventually(lambda: not server.open)

    try:
        with test_client.Raw(server.write) as other, Client(server.query, server.write) as client:
            feed.deliver(client, feed.batches([part(0, 10)]), summary, Silent(), sleep=sleep)  # type: ignore[arg-type]
    finally:
        server.stop()
    assert summary.accepted == 10 and slept


def test_a_failed_ingest_says_what_is_stored(monkeypatch, tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    monkeypatch.setattr(feed, "parts", lambda paths, how: iter([part(0, 2 * MOST)]))
    engine = Engine([None, ErrorCode.INTERNAL])
    engine.ping = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(ClientError, match=r"1,024 events are stored; the same command again"):
        feed.ingest(engine, [tmp_path / "f"], feed.How("ndjson"), Silent())  # type: ignore[arg-type]


def test_a_refusal_for_good_is_raised():
    with pytest.raises(ClientError) as e:
        delivered(Engine([ErrorCode.DENIED]), [part(0, 10)])
    assert e.value.exit_status == 4


def test_what_was_read_before_a_file_failed_is_stored():
    def parts() -> Iterator[feed.Part]:
        yield part(0, 512)
        yield part(512, 600)
        raise OSError(5, "disk on fire")

    engine = Engine([None, ErrorCode.OVERLOADED])
    with pytest.raises(OSError, match="fire"):
        delivered(engine, parts())
    assert len(engine.ids) == 1_024  # the whole batches


class Asked:
    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def query_events(self, events: list[FeaturedEvent], *, options: Options, session: int, timeout_ms: int) -> Answers:
        assert all(item.raw == b"" for item in events)
        self.calls.append((len(events), session))
        return Answers(1, 7, [Answer("fused", "v", "l2", True, 0, 0, 1, item.event, []) for item in events])


def test_events_are_asked_about_in_one_session_and_in_order():
    client = Asked()
    answers = list(feed.ask(client, items(0, 1_000), Options(), None))  # type: ignore[arg-type]
    assert [a.query.event_id for a, _ in answers] == [f"e{i}" for i in range(1_000)]  # type: ignore[union-attr]
    assert [n for n, _ in client.calls] == [256, 256, 256, 232] and len({s for _, s in client.calls}) == 1
    assert client.calls[0][1] > 0


def test_large_answers_are_asked_for_in_smaller_messages():
    assert feed.per_message(Options(top_k=10)) == 256
    assert feed.per_message(Options(top_k=1_000)) == 3
    assert feed.per_message(Options(top_k=1_000, explain=True)) == 1


def test_peeked_loses_nothing():
    for n in range(4):
        several, answers = feed.peeked(iter([(None, i) for i in range(n)]))  # type: ignore[misc]
        assert several == (n > 1) and [i for _, i in answers] == list(range(n))
