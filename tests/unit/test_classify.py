"""From an event to what it is, in one process."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from engine.embed.base import SPACES
from engine.embed.vote import VOTERS
from engine.errors import BadRequestError, NotFoundError
from engine.features import unpack
from engine.normalize import complete
from engine.search.classify import Classifying, options_of
from engine.search.query import Question, stored_question
from engine.store.rows import _offsets
from ipc.event import FEATURE_COUNT, Event, FeaturedEvent
from ipc.messages import Classified, Filter, Judgement, Voting, decode_reply, encode
from tests.events import FAMILIES, S, make, several
from tests.store_fixture import ROWS, Store, flip


def judged(store: Store, questions: list[Question]) -> list[Judgement]:
    snapshot = store.snapshot()
    with store.catalog.read() as view:
        found = Classifying(snapshot, store.publisher.models, view).judge(questions)
    for one in found:
        if isinstance(one, Exception):
            raise one
    reply = decode_reply(encode(Classified(1, snapshot.generation, found)))  # type: ignore[arg-type]
    assert isinstance(reply, Classified)
    return reply.judgements


def classify(store: Store, name: str, **options: object) -> Judgement:
    with store.catalog.read() as view:
        wanted = options_of(Voting(**options))  # type: ignore[arg-type]
        question = stored_question(name, wanted, store.snapshot(), view, store.publisher.models)
    return judged(store, [question])[0]


def sent(store: Store, item: FeaturedEvent, **options: object) -> Judgement:
    """Of an event that is not stored."""
    event, features = complete(item), unpack([item.features])
    wanted = options_of(Voting(**options))  # type: ignore[arg-type]
    vectors = {s: store.publisher.models.embedders[s].embed([event], features)[0] for s in (wanted.space,)}
    head = msgspec.msgpack.encode(event)
    return judged(store, [Question(wanted, vectors, head=head, features=features[0], decoded=event)])[0]


def label(store: Store, name: str, word: str) -> None:
    store.publisher.annotate(name, word, "ana")


def ids_of(judgement: Judgement) -> list[str]:
    return [p.hit.event.event_id for p in judgement.precedents]  # type: ignore[union-attr]


def test_an_event_is_of_the_family_of_its_neighbours(full: Store) -> None:
    for number in range(300, 340):
        j = classify(full, f"e{number:06d}")
        assert j.family == FAMILIES[number % 4]
        assert j.k == VOTERS == len(j.precedents)
        assert not j.no_close_precedent and 0 <= j.novelty <= 1 - j.false_alarm
        assert sum(j.votes.values()) + j.doubt == pytest.approx(1)
        assert sum(p.weight for p in j.precedents) == pytest.approx(1 - j.doubt)
        assert j.probability + sum(p for _, p in j.runners_up) <= 1 + 1e-9
        distances = [p.hit.distance for p in j.precedents]
        assert distances == sorted(distances)
        assert j.distances == pytest.approx([distances[0], distances[2], distances[4]])
        assert j.percentiles == sorted(j.percentiles)


def test_the_detectors_word_about_the_query_is_not_looked_at(full: Store) -> None:
    """Nor its label: the same event under other names gives the same judgement."""
    same = make(2_000).features
    words = (("C2", "BENIGN"), ("", "UNKNOWN"))
    items = [FeaturedEvent(make(2_000, family=f, classification=c).event, same) for f, c in words]
    first, second = (sent(full, item, other_episodes=True) for item in items)
    first.query = second.query = None
    first.took_us = second.took_us = 0
    assert first == second


@pytest.mark.parametrize("space", SPACES)
def test_every_space_votes_and_says_so(full: Store, space: str) -> None:
    j = classify(full, "e000300", space=space)
    assert j.space == space and j.k == VOTERS and j.model == full.publisher.models.version


def test_before_is_the_default_and_can_be_switched_off(full: Store) -> None:
    seqs = [p.hit.seq for p in classify(full, "e000010", k=50).precedents]
    assert sorted(seqs) == list(range(10))
    assert classify(full, "e000010").matched == 10
    assert classify(full, "e000010", before=False).matched == 399


def test_before_an_event_without_a_time_are_all(store: Store) -> None:
    """Tables without a time (UNSW-NB15): nothing came before 1970, and nobody could ever be classified."""
    store.publish([*several(40), make(50, ts=0, ts_start=0)])
    assert classify(store, "e000050").matched == 40


def test_nothing_before_is_nothing_to_go_by(full: Store) -> None:
    j = classify(full, "e000000")
    assert (j.family, j.probability, j.runners_up, j.precedents, j.k) == ("", 0.0, [], [], 0)
    assert j.novelty == 1.0 and j.no_close_precedent and j.doubt == 1.0
    assert j.distances == j.percentiles == []


def test_what_is_far_from_everything_is_new(full: Store) -> None:
    item = make(5_000)
    row = np.full((1, 105), np.nan, np.float32)
    row[:, :65] = 1e12
    j = sent(full, FeaturedEvent(item.event, row.tobytes()))
    assert j.no_close_precedent and j.novelty > 1 - j.false_alarm
    assert j.doubt > 0.1 and j.precedents


def test_events_of_no_family_do_not_vote(store: Store) -> None:
    store.publish([make(n, family="", classification="UNKNOWN") for n in range(20)] + several(3, 20))
    j = classify(store, "e000000", before=False, k=20)
    assert j.matched == 3 and {p.family for p in j.precedents} <= set(FAMILIES)


def test_a_label_counts_in_the_next_answer(store: Store) -> None:
    store.publish([make(4 * n) for n in range(10)])  # all DDoS
    assert classify(store, "e000036").votes.keys() == {"DDoS"}
    nearest = ids_of(classify(store, "e000036"))[0]
    label(store, nearest, "C&C: seen at the proxy")
    j = classify(store, "e000036")
    assert j.precedents[0].family == "C2" and j.precedents[0].labelled
    assert j.precedents[0].hit.event.family == "DDoS"  # type: ignore[union-attr]
    assert set(j.votes) == {"C2", "DDoS"}
    label(store, nearest, "true_positive")
    assert classify(store, "e000036").votes.keys() == {"DDoS"}
    label(store, nearest, "false positive: backup job")
    assert "Normal" in classify(store, "e000036").votes
    label(store, nearest, "false negative")
    assert nearest not in ids_of(classify(store, "e000036"))
    label(store, nearest, "")
    assert not any(p.labelled for p in classify(store, "e000036").precedents)


def test_a_labelled_event_of_no_family_votes(store: Store) -> None:
    store.publish([make(4 * n, family="", classification="UNKNOWN") for n in range(10)])
    assert classify(store, "e000036").family == ""
    label(store, "e000004", "Cobalt Strike")
    j = classify(store, "e000036")
    assert (j.family, ids_of(j), j.matched) == ("Cobalt Strike", ["e000004"], 1)


@pytest.mark.parametrize(
    "options",
    [{"filter": Filter(kinds=["flow"])}, {"before": False}, {"other_episodes": True}, {"k": 7}, {"collapse": False}],
    ids=lambda o: next(iter(o)),
)
def test_a_vote_that_was_never_measured_is_not_said_to_be(full: Store, options: dict[str, Any]) -> None:
    """A filter leaves only some to vote, and the share of the rest was told as a measured probability."""
    assert classify(full, "e000300").calibrated
    assert not classify(full, "e000300", **options).calibrated


def flood(count: int, **more: object) -> list[FeaturedEvent]:
    """The same event again and again, before all others."""
    return [make(0, event_id=f"f{i:05d}", **more) for i in range(count)]


def test_a_flood_is_one_precedent(store: Store) -> None:
    store.publish(flood(500) + several(40, 1))
    j = classify(store, "e000040")
    spoken = [p for p in j.precedents if p.hit.event.event_id.startswith("f")]  # type: ignore[union-attr]
    assert len(spoken) <= 1 and j.k == VOTERS
    assert all(p.hit.count > 50 for p in spoken)
    each = classify(store, "e000040", collapse=False)
    assert sum(i.startswith("f") for i in ids_of(each)) >= len(spoken)
    assert not each.calibrated


def test_one_label_speaks_for_all_of_a_flood(store: Store) -> None:
    """Though it lies deeper in the flood than candidates are looked at."""
    store.publish(flood(1_500) + several(8, 1))
    probe = make(0, event_id="probe", ts=make(2_000).event.ts, ts_start=make(2_000).event.ts)
    before = sent(store, probe)
    assert before.family == "DDoS" and before.precedents[0].hit.count > 1_000
    label(store, "f00003", "false positive: load test")
    after = sent(store, probe)
    assert after.family == "Normal"
    assert ids_of(after)[0] == "f00003" and after.precedents[0].hit.count > 1_000
    assert after.precedents[0].weight == pytest.approx(before.precedents[0].weight)


def test_identical_events_that_were_called_two_things_divide_their_vote(store: Store) -> None:
    called = [make(0, event_id=f"t{i}", family="C2" if i < 3 else "DDoS").event for i in range(4)]
    store.publish([FeaturedEvent(event, make(0).features) for event in called])
    j = sent(store, make(0, event_id="probe", ts=make(9).event.ts, ts_start=make(9).event.ts))
    assert j.k == 1 and [p.family for p in j.precedents].count("C2") == 1
    assert j.votes["C2"] == pytest.approx(3 * j.votes["DDoS"])
    assert {p.family: p.hit.count for p in j.precedents} == {"C2": 3, "DDoS": 1}


def test_other_episodes_leaves_out_the_pair_of_whatever_family(full: Store) -> None:
    own = make(200).event
    pair = {own.src_ip, own.dst_ip}
    j = classify(full, "e000200", k=200, other_episodes=True, before=False)
    assert j.precedents
    for p in j.precedents:
        event = p.hit.event
        assert isinstance(event, Event)
        assert {event.src_ip, event.dst_ip} != pair or abs(event.ts - own.ts) > 600 * S


def test_a_filter_says_who_may_vote(full: Store) -> None:
    j = classify(full, "e000300", filter=Filter(families=["C2"]))
    assert (j.family, set(j.votes)) == ("C2", {"C2"})


def test_what_cannot_be_asked(full: Store) -> None:
    with pytest.raises(BadRequestError, match="one space: chronos, sbert, attack, not 'fused'"):
        classify(full, "e000300", space="fused")
    with pytest.raises(NotFoundError, match="no event"):
        classify(full, "nobody")


def test_a_damaged_row_does_not_vote(store: Store) -> None:
    store.publish([make(4 * n) for n in range(10)])
    first = ids_of(classify(store, "e000036"))[0]
    with store.catalog.read() as view:
        seq = view.find(first)
    assert seq is not None
    flip(store.layout.row_file(0, 0), _offsets(ROWS)["features"] + 4 * FEATURE_COUNT * seq)
    assert first not in ids_of(classify(store, "e000036"))


def test_one_bad_question_costs_the_others_nothing(full: Store) -> None:
    options = options_of(Voting())
    with full.catalog.read() as view:
        good = stored_question("e000300", options, full.snapshot(), view, full.publisher.models)
        found = Classifying(full.snapshot(), full.publisher.models, view).judge([good, Question(options, {}), good])
    assert isinstance(found[1], BadRequestError)
    assert isinstance(found[0], Judgement) and isinstance(found[2], Judgement)
    assert found[0].votes == found[2].votes
