"""From a question to an answer, in one process."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import Raw
from msgspec.msgpack import Decoder
from msgspec.msgpack import encode as pack

from engine.embed.base import SPACES
from engine.embed.vote import places
from engine.errors import BadRequestError, NotFoundError, UnknownSpaceError
from engine.features import CONTEXT_INDEXES, unpack
from engine.limits import KNOWN_MIN
from engine.normalize import complete
from engine.search.context_query import SESSION_IDLE_S, QueryContext
from engine.search.query import CONTEXT, LEADING, LEADING_CONTEXT, Answering, Question
from ipc.event import Event, FeaturedEvent
from ipc.messages import Answer, Filter, Options
from tests.conftest import FILLED
from tests.events import T0, S, make, several
from tests.store_fixture import Store

unpack_event = Decoder(Event).decode


def vector(full: Store, space: str, seq: int) -> np.ndarray:  # type: ignore[type-arg]
    return full.snapshot().vectors(space, np.array([seq]))[0]


def test_fused_is_the_weighted_mean_of_percentiles(full: Store) -> None:
    answer = full.ask("e000042", top_k=10, collapse=False)
    models = full.publisher.models
    assert answer.weights == {s: pytest.approx(models.fusion[s] / sum(models.fusion.values())) for s in SPACES}
    for hit in answer.hits:
        parts = {
            s: float(np.linalg.norm(vector(full, s, 42).astype(np.float64) - vector(full, s, hit.seq))) for s in SPACES
        }
        want = sum(
            answer.weights[s] * float(models.embedders[s].calibration.percentile(np.array([parts[s]]))[0])
            for s in SPACES
        )
        assert hit.distance == pytest.approx(want, abs=1e-9)
        assert hit.percentile == hit.distance
    assert (answer.metric, answer.space, answer.model) == ("percentile", "fused", models.version)


def test_weights_of_one_space_rank_as_that_space(full: Store) -> None:
    alone = full.ask("e000042", space="attack", top_k=20, collapse=False)
    fused = full.ask("e000042", weights={"attack": 3.0}, top_k=20, collapse=False)
    assert fused.weights == {"attack": 1.0}
    percentiles = [hit.percentile for hit in alone.hits]
    assert [hit.distance for hit in fused.hits] == pytest.approx(percentiles)


@pytest.mark.parametrize("weights", [{}, {"attack": 3.0}])
def test_an_event_with_few_features_is_compared_by_its_text_whatever_the_weights(
    store: Store, weights: dict[str, float]
) -> None:
    bare = [FeaturedEvent(item.event) for item in several(20, kind="alert", src_ip="", dst_ip="")]
    store.publish(bare)
    answer = store.ask(bare[3].event.event_id, weights=weights)
    assert answer.weights == {"sbert": 1.0} and answer.hits


@pytest.mark.parametrize("space", ["chronos", "attack"])
def test_nothing_behaves_like_an_event_of_which_too_little_is_known(store: Store, space: str) -> None:
    """Nor is it said that there is no precedent: nobody knows. Fused, the counter-example is compared as hits are."""
    store.publish(several(40))
    bare = [FeaturedEvent(item.event) for item in several(20, 100, kind="alert", src_ip="", dst_ip="")]
    store.publish(bare)
    asked = store.ask(bare[3].event.event_id, space=space, explain=True)
    assert asked.hits == [] and asked.explain == [] and not asked.no_close_precedent
    assert asked.plan.startswith("fewer than 8 features are known of this event")
    flow = store.ask("e000003", space=space)
    assert flow.hits and not flow.plan.startswith("fewer")
    fused = store.ask(bare[3].event.event_id, space="fused", explain=True)
    assert fused.weights == {"sbert": 1.0} and fused.hits and fused.counter_example is not None
    text = store.ask(bare[3].event.event_id, space="sbert", explain=True)
    assert text.counter_example is not None
    assert (fused.counter_example.seq, fused.counter_example.distance) == (
        text.counter_example.seq, text.counter_example.distance,
    )  # fmt: skip


def test_an_event_of_no_family_is_held_against_what_its_hits_are(store: Store) -> None:
    """Its nearest event of any family, which is its strongest precedent, was named as the counter-example."""
    store.publish([make(i, family="C2" if i < 30 else "DDoS") for i in range(60)])
    store.publish([make(70, family="Unknown")])
    asked = store.ask("e000070", space="attack", explain=True, filter=Filter(families=["C2", "Unknown"]))
    assert asked.hits and asked.counter_example is None  # the filter leaves no other
    asked = store.ask("e000070", space="attack", explain=True)
    said = [hit.event.family for hit in asked.hits if isinstance(hit.event, Event)]
    most = max(("C2", "DDoS"), key=said.count)
    other = asked.counter_example
    assert other is not None and isinstance(other.event, Event) and other.event.family in {"C2", "DDoS"} - {most}
    store.publish([make(80 + i, family="Unknown") for i in range(3)])
    alone = store.ask("e000080", space="attack", explain=True, filter=Filter(families=["Unknown"]))
    assert alone.hits and alone.counter_example is None


@pytest.mark.parametrize("space", ["chronos", "attack"])
def test_what_is_named_as_agreeing_agrees_and_the_flow_itself_is_named_beside_what_was_around_it(
    full: Store, space: str
) -> None:
    """Features twice as large, or cut to the end of the scale, were said to agree; some were in both lists, and context
    filled them."""
    named = 0
    for i in range(0, FILLED, 37):
        for why in full.ask(f"e{i:06d}", space=space, explain=True).explain:
            by_name = {c.feature: c for c in why.contributions}
            assert not set(why.agree) & set(why.disagree)
            for c in (by_name[name] for name in why.agree):
                assert c.query is not None and c.hit is not None
                assert abs(c.query - c.hit) <= 0.1 * max(abs(c.query), abs(c.hit))
            assert all(by_name[name].contribution > 0.01 * why.distance for name in why.disagree)
            for names in (why.agree, why.disagree):
                around = [name in CONTEXT for name in names]
                assert len(names) <= LEADING and around == sorted(around)
                named += len(names)
            own = [c for c in why.contributions if c.feature not in CONTEXT and c.contribution > 0.01 * why.distance]
            own = [c for c in own if c.query != c.hit]
            assert sum(name not in CONTEXT for name in why.disagree) >= min(LEADING - LEADING_CONTEXT, len(own))
    assert named > 100


def test_a_fused_explanation_adds_up_to_its_hit_also_where_that_is_a_bare_alert(store: Store) -> None:
    bare = [FeaturedEvent(item.event) for item in several(6, 50, kind="alert", src_ip="", dst_ip="")]
    store.publish([*several(12), *bare])
    answer = store.ask("e000003", space="fused", explain=True, top_k=20, collapse=False)
    seen = 0
    for hit, why in zip(answer.hits, answer.explain, strict=True):
        assert why.distance == pytest.approx(hit.distance, abs=1e-6)
        event = hit.event if isinstance(hit.event, Event) else unpack_event(hit.event)
        if event.coverage < KNOWN_MIN:
            assert {why.spaces[space][1] for space in ("chronos", "attack") if space in why.spaces} == {100.0}
            seen += 1
    assert seen == 6


def test_an_event_that_was_sent_is_known_by_what_was_sent_though_it_is_stored(store: Store) -> None:
    """A detector that says more of it now, or less, is asked about as it says."""
    store.publish(several(40))
    bare = FeaturedEvent(make(50, kind="alert").event)
    store.publish([bare])
    embedder = store.publisher.models.embedders["attack"]

    def asked(item: FeaturedEvent, seq: int) -> Answer:
        features = unpack([item.features])
        vector = embedder.asked(embedder.embed([item.event], features))[0]
        head = pack(item.event)
        question = Question(Options(space="attack"), {"attack": vector}, seq, head, features[0], item.event)
        return store.answer([question])[0]

    known = asked(make(50), 40)
    assert known.hits and known.matched == 40
    unknown = asked(FeaturedEvent(make(7).event), 7)
    assert unknown.hits == [] and unknown.plan.startswith("fewer than 8 features")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"weights": {"attack": 0.0}}, BadRequestError, "add up to 0"),
        ({"weights": {"tea": 1.0}}, UnknownSpaceError, "no embedding space 'tea'"),
        ({"space": "tea"}, UnknownSpaceError, "chronos, sbert, attack, fused"),
        ({"filter": Filter(kinds=["tea"])}, BadRequestError, "no kind 'tea'"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(full: Store, options, error, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=said):
        full.ask("e000042", **options)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(full: Store, weight: float) -> None:
    with pytest.raises(BadRequestError, match="weight"):
        full.ask("e000042", weights={"attack": weight, "sbert": 1.0})


def test_a_question_without_an_event_has_no_before(full: Store) -> None:
    question = Question(Options(space="attack", before=True), {"attack": vector(full, "attack", 3)})
    with pytest.raises(BadRequestError, match="this is a text or a vector"):
        full.answer([question])
    with pytest.raises(BadRequestError, match="has no chronos vector"):
        full.answer([Question(Options(), {"attack": vector(full, "attack", 3)})])


def test_an_unknown_event_is_not_found(full: Store) -> None:
    for name in ("none", "test/none", "other/e000001", "", "\0"):
        with pytest.raises(NotFoundError, match="no event"):
            full.ask(name)


def test_questions_asked_together_are_answered_as_if_alone(full: Store) -> None:
    """Of one micro-batch: spaces, filters and sizes mixed; a bad one costs the others nothing."""
    from engine.search.query import Answering, stored_question

    snapshot = full.snapshot()
    wanted = [
        ("e000001", Options(space="attack", top_k=3)),
        ("e000002", Options(space="attack", top_k=3)),
        ("e000003", Options(top_k=7, filter=Filter(families=["C2"]))),
        ("e000004", Options(space="sbert", collapse=False)),
        ("e000005", Options(space="attack", top_k=3, before=True)),
    ]
    with full.catalog.read() as view:
        questions = [stored_question(name, options, snapshot, view, full.publisher.models) for name, options in wanted]
        bad = Question(Options(), {})
        together = Answering(snapshot, full.publisher.models, view).answer([questions[0], bad, *questions[1:]])
    assert isinstance(together.pop(1), BadRequestError)
    for (name, options), answer in zip(wanted, together, strict=True):
        alone = full.answer([stored(full, name, options)])[0]
        assert not isinstance(answer, Exception)
        assert [(h.seq, h.distance, h.count) for h in answer.hits] == [(h.seq, h.distance, h.count) for h in alone.hits]


def stored(full: Store, name: str, options: Options) -> Question:
    from engine.search.query import stored_question

    with full.catalog.read() as view:
        return stored_question(name, options, full.snapshot(), view, full.publisher.models)


def test_counts_of_collapsed_hits_and_the_flood_that_fills_the_candidates(store: Store) -> None:
    """A flood of 300 is one hit with its count as far as it was looked at, and the others still come."""
    flood = [make(0, event_id=f"f{i:04d}") for i in range(300)]
    store.publish(flood + several(30, 1))
    answer = store.ask("f0007", space="attack", top_k=20)
    families = [hit.event.family for hit in answer.hits]  # type: ignore[union-attr]
    assert len(answer.hits) == 20
    assert families.count("DDoS") < 20
    assert max(hit.count for hit in answer.hits) >= 250
    assert sum(hit.count for hit in answer.hits) <= 329
    all_of_it = store.ask("f0007", space="attack", top_k=329, collapse=False)
    assert len(all_of_it.hits) == 329
    assert {hit.count for hit in all_of_it.hits} == {1}


def test_ties_come_newest_first(store: Store) -> None:
    store.publish([make(0, event_id=f"f{i:04d}") for i in range(20)])
    hits = store.ask("f0000", space="sbert", top_k=19, collapse=False).hits
    assert {hit.distance for hit in hits} == {0.0}
    assert [hit.seq for hit in hits] == list(range(19, 0, -1))


def test_same_family_and_no_close_precedent(full: Store) -> None:
    answer = full.ask("e000040", space="attack", top_k=5, collapse=False)
    own = make(40).event.family
    share = sum(hit.event.family == own for hit in answer.hits) / 5  # type: ignore[union-attr]
    assert answer.same_family == share
    far = np.full(64, 1e4, np.float32)
    lonely = full.answer([Question(Options(space="attack", top_k=1), {"attack": far})])[0]
    assert lonely.no_close_precedent
    assert not answer.no_close_precedent


def test_an_event_that_is_not_stored_is_explained(full: Store) -> None:
    item = make(7_000)
    event = complete(item)
    features = unpack([item.features])
    models = full.publisher.models
    vectors = {s: models.embedders[s].embed([event], features)[0] for s in SPACES}
    question = Question(Options(explain=True, top_k=3), vectors, head=pack(event), features=features[0], decoded=event)
    answer = full.answer([question])[0]
    assert len(answer.explain) == 3
    assert isinstance(answer.query, Event | Raw)
    for why in answer.explain:
        assert set(why.spaces) == set(answer.weights)
        assert {part.space for part in why.parts} == set(answer.weights)


def test_an_empty_store_answers_with_no_hits(store: Store) -> None:
    question = Question(Options(space="attack", explain=True), {"attack": np.zeros(64, np.float32)})
    answer = store.answer([question])[0]
    assert answer.hits == []
    assert answer.no_close_precedent


def test_one_event_has_no_neighbours(store: Store) -> None:
    store.publish([make(0)])
    for options in ({}, {"space": "attack", "collapse": False}, {"explain": True}, {"before": True}):
        answer = store.ask("e000000", **options)
        assert answer.hits == []
        assert answer.matched == 0


# ---- the context of events that are not stored --------------------------------------------------------------------


def context(full: Store, items, session=None, asked: QueryContext | None = None):  # type: ignore[no-untyped-def]
    asked = asked or QueryContext(full.catalog, full.config.network.internal)
    events = [complete(item) for item in items]
    features = unpack([item.features for item in items])
    asked.fill(events, features, session)
    return features[:, list(CONTEXT_INDEXES)]


def fresh(n: int, at: int = 0) -> list:  # type: ignore[type-arg]
    """Flows of one pair after all that is stored."""
    return [
        make(1_000 + i, kind="flow", src_ip="10.9.9.9", dst_ip="192.0.2.99", ts=T0 + (FILLED + at + i) * S,
             ts_start=T0 + (FILLED + at + i) * S) for i in range(n)
    ]  # fmt: skip


def test_context_is_that_of_ingest_and_is_thrown_away(store: Store) -> None:
    store.publish(several(100))
    items = [make(n, event_id=f"q{n}") for n in range(100, 140)]
    asked = context(store, items)
    assert np.array_equal(asked, context(store, items), equal_nan=True)
    store.publish([make(n, event_id=f"q{n}") for n in range(100, 140)])
    with store.catalog.read() as view:
        ingested = unpack([record.features for _, record in view.records(100, 140)])[:, list(CONTEXT_INDEXES)]
    assert np.array_equal(asked, ingested, equal_nan=True)


def test_events_of_one_request_are_taken_in_order_of_time(full: Store) -> None:
    items = fresh(12)
    in_order = context(full, items)
    order = np.random.default_rng(1).permutation(12)
    mixed = context(full, [items[i] for i in order])
    assert np.array_equal(mixed, in_order[order], equal_nan=True)


def test_a_session_goes_on_where_it_was_and_others_know_nothing_of_it(full: Store) -> None:
    asked = QueryContext(full.catalog, full.config.network.internal)
    whole = context(full, fresh(10))
    first = context(full, fresh(5), ("a", 1), asked)
    second = context(full, fresh(5, 5), ("a", 1), asked)
    # make() numbers begin anew with each call of fresh(): give both the same features
    assert first.shape == second.shape == (5, whole.shape[1])
    assert not np.array_equal(second, context(full, fresh(5, 5), ("b", 2), asked), equal_nan=True)
    assert np.array_equal(first, context(full, fresh(5), None, asked), equal_nan=True)


def test_a_session_that_is_over_lets_the_state_move_on(store: Store) -> None:
    asked = QueryContext(store.catalog, store.config.network.internal)
    store.publish(several(50))
    probe = [make(60, event_id="probe", kind="flow")]
    context(store, fresh(1), ("closed", 1), asked)
    store.publish([make(n, kind="flow", event_id=f"n{n}") for n in range(50, 60)])
    stale = context(store, probe, None, asked)
    asked.forget(lambda session: session[0] == "closed")
    moved_on = context(store, probe, None, asked)
    assert np.array_equal(moved_on, context(store, probe), equal_nan=True)
    assert not np.array_equal(stale, moved_on, equal_nan=True)
    assert SESSION_IDLE_S > 0


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("near_share", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("kinds", [True, False])
def test_places_are_found_among_rows_about_as_near_as_among_all(
    full: Store, space: str, near_share: float, kinds: bool
) -> None:
    """What is looked at is less, what is found the same, however wide a place is."""
    snapshot, sizes = full.snapshot(), []
    with full.catalog.read() as view:
        answering = Answering(snapshot, full.publisher.models, view)
        for seq in range(0, FILLED, 37):
            query = snapshot.vectors(space, np.array([seq]))
            (ranked,) = snapshot.search(space, query, FILLED)
            near = near_share * float(np.median(ranked.distances))
            of = snapshot.column("family", ranked.seqs) if kinds else None
            expected = places([(snapshot.vectors(space, ranked.seqs), near)], 12, of)
            found = answering._places(space, ranked, near, 12, of)
            assert [place.tolist() for place in found] == [place.tolist() for place in expected]
            sizes.append(len(found[0]))
    assert near_share < 1 or max(sizes) > 1
