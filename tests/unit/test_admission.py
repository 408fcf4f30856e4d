"""Who is answered next, and who is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.admission import HEAVY_EVENTS, Pending, Turns, is_heavy
from ipc.messages import Classify, Get, List, Options, QueryEvent, QuerySimilar, Voting
from tests.events import several
from tests.unit.test_messages import REQUESTS, SAMPLES


def waiting(connection: Any, number: int, *, heavy: bool = False) -> Pending:
    request = List(number, limit=HEAVY_EVENTS + heavy)
    assert is_heavy(request) == heavy
    return Pending(connection, request, 0.0, heavy)


def dealt(turns: Turns, most: int = 64) -> list[list[tuple[Any, int]]]:
    out = []
    while turns:
        out.append([(p.connection, p.request.request_id) for p in turns.batch(most)])
    return out


@pytest.mark.parametrize(
    "request_", [one for one in SAMPLES if isinstance(one, REQUESTS)], ids=lambda r: type(r).__name__
)
def test_every_request_is_light_or_heavy(request_: Any) -> None:
    assert is_heavy(request_) in (True, False)


def test_what_is_answered_with_many_events_is_heavy() -> None:
    events = [several(1)[0]] * 5
    for light, heavy in (
        (Get(1, ["a"] * 64), Get(1, ["a"] * 65)),
        (QuerySimilar(1, "a", Options(top_k=64)), QuerySimilar(1, "a", Options(top_k=65))),
        (QueryEvent(1, events, Options(top_k=12)), QueryEvent(1, events, Options(top_k=13))),
        (Classify(1, ["a"], options=Voting(k=15)), Classify(1, ["a"] * 5, options=Voting(k=15))),
        (Classify(1, [], events[:1], Voting(k=15)), Classify(1, [], events, Voting(k=15))),
    ):
        assert not is_heavy(light) and is_heavy(heavy)


def test_who_sends_many_at_once_waits_for_itself() -> None:
    turns = Turns()
    for number in range(1, 5):
        turns.append(waiting("greedy", number))
    turns.append(waiting("modest", 1))
    assert [turns.ahead(waiting(who, 9)) for who in ("greedy", "modest", "new")] == [5, 4, 2]
    assert dealt(turns, 3) == [[("greedy", 1), ("modest", 1), ("greedy", 2)], [("greedy", 3), ("greedy", 4)]]
    assert turns.batch(3) == []


def test_between_two_heavy_ones_come_the_light_ones() -> None:
    turns = Turns()
    for number in range(1, 4):
        turns.append(waiting("pages", number, heavy=True))
        turns.append(waiting("more pages", number, heavy=True))
    assert turns.ahead(waiting("modest", 1)) == 0
    turns.append(waiting("modest", 1))
    turns.append(waiting("modest", 2))
    assert dealt(turns) == [
        [("modest", 1), ("modest", 2)], [("pages", 1)], [("more pages", 1)], [("pages", 2)], [("more pages", 2)],
        [("pages", 3)], [("more pages", 3)],
    ]  # fmt: skip
    turns.append(waiting("pages", 4, heavy=True))
    turns.append(waiting("pages", 5))
    turns.append(waiting("modest", 3))
    assert dealt(turns) == [[("modest", 3)], [("pages", 4)], [("pages", 5)]]  # a connection's own order stays


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=60), st.integers(0, 4), st.integers(1, 5))
def test_a_connection_keeps_its_order_and_waits_for_one_of_each_other(
    sent: list[tuple[int, bool]], asking: int, most: int
) -> None:
    turns = Turns()
    for number, (sender, heavy) in enumerate(sent):
        turns.append(waiting(sender, number, heavy=heavy))
    light_only = not any(heavy for _, heavy in sent)
    ahead = turns.ahead(waiting(asking, len(sent)))
    turns.append(waiting(asking, len(sent)))
    batches = dealt(turns, most)
    order = [one for batch in batches for one in batch]
    assert not turns and sorted(n for _, n in order) == list(range(len(sent) + 1))
    heavy_ones = {number for number, (_, heavy) in enumerate(sent) if heavy}
    for batch in batches:
        assert len(batch) <= most and (len(batch) == 1 or not heavy_ones & {n for _, n in batch})
    for sender in {of for of, _ in order}:
        mine = [n for of, n in order if of == sender]
        assert mine == sorted(mine)
        if light_only:  # between two turns of one that waits, nobody else has two
            turn = [i for i, (of, _) in enumerate(order) if of == sender]
            for a, b in pairwise(turn):
                between = [of for of, _ in order[a + 1 : b]]
                assert len(between) == len(set(between))
    if light_only:
        assert order.index((asking, len(sent))) <= ahead
