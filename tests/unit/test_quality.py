"""What the quality bench counts and how it splits, on examples small enough to reckon by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.quality.data import NAMELESS, Labelled, label, numbered
from bench.quality.measure import (
    Figure,
    Found,
    auroc,
    auroc_figure,
    calibration_error,
    confusion,
    judged,
    neighbours,
    of_confusion,
    possible,
    scores,
    share_figure,
    vote,
)
from bench.quality.methods import METHODS, Classifier, Novelty, Space
from bench.quality.run import bars, compare, novelty
from bench.quality.splits import (
    EARLIER,
    Episodes,
    Split,
    by_capture,
    by_group,
    capped,
    groups,
    sides,
    split,
    twins,
)
from engine.config import CIDRS_INTERNAL
from engine.features import FEATURES, unpack
from engine.normalize import complete
from ipc.event import FeaturedEvent
from tests.events import T0, S, several

NAN = float("nan")


def labelled(items: list[FeaturedEvent], how: str = "time", captures: list[str] | None = None) -> Labelled:
    for item in items:
        complete(item)
    items = sorted(items, key=lambda item: (item.event.ts, item.event.event_id))
    halves = np.array([1 + (i >= len(items) // 2) for i in range(len(items))], np.int64)
    return Labelled("test", items, captures or ["a"] * len(items), halves, CIDRS_INTERNAL, how)


# ---- labels ---------------------------------------------------------------------------------------------------------


def test_an_event_is_what_its_source_says_and_nothing_where_nobody_said() -> None:
    items = several(1, family="DDoS") + several(1, family="Unknown", classification="MALICIOUS")
    items += several(1, family="Unknown", classification="UNKNOWN") + several(1, family="", classification="BENIGN")
    assert [label(complete(item)) for item in items] == ["DDoS", NAMELESS, "", "Normal"]
    families, names = numbered([item.event for item in items])
    assert names == ["DDoS", NAMELESS, "Normal"] and families.tolist() == [0, 1, -1, 2]


# ---- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["time", "episodes", "captures", "groups"])
def test_every_split_has_each_event_on_one_side_in_order_of_time(how: str) -> None:
    data = labelled(several(400), how, ["a"] * 200 + ["b"] * 200)
    past, asked = split(data)
    assert not set(past) & set(asked) and len(past) + len(asked) == 400
    assert len(past) and len(asked)
    at = sides(data, Split(past, asked))
    for side in (at.past, at.asked):
        times = [event.ts for event in side.events]
        assert times == sorted(times)
        assert [at.families[f] for f in side.families] == [label(event) for event in side.events]


def test_by_time_the_past_of_each_family_answers_for_its_future() -> None:
    data = labelled(several(400))
    at = sides(data, split(data))
    for f in range(len(at.families)):
        known = [event.ts for event, of in zip(at.past.events, at.past.families, strict=True) if of == f]
        asked = [event.ts for event, of in zip(at.asked.events, at.asked.families, strict=True) if of == f]
        assert len(known) == EARLIER * 100 and max(known) < min(asked)


def test_by_capture_whole_captures_answer_for_others() -> None:
    """b has nothing that a has not; c brings family 2, which d has as well; only e has family 3."""
    families = [0] * 60 + [1] * 60 + [0] * 60 + [2] * 60 + [2] * 60 + [0] * 10 + [3] * 100 + [0] * 5
    captures = ["a"] * 120 + ["b"] * 60 + ["c"] * 60 + ["d"] * 70 + ["e"] * 105
    known = by_capture(np.array(families, np.int64), captures)
    assert known[:120].sum() == 36 + 36  # family 1 is nowhere else: a is split in itself, by time
    assert not known[120:180].any() and known[180:240].all() and not known[240:310].any()
    assert known[310:370].all() and not known[370:410].any()  # e: the first 60 of family 3
    shared = by_capture(np.array([0] * 60 + [1] * 60 + [0] * 60 + [1] * 20, np.int64), ["a"] * 120 + ["b"] * 80)
    assert shared[:120].all() and not shared[120:].any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_near_duplicates_fall_on_one_side(seed: int) -> None:
    """Ten values far apart, each thirty times with a trace of noise; a feature that half of them lack doubles that."""
    plain = next(f.column for f in FEATURES if not f.heavy)
    own = np.full((300, 105), np.nan, np.float32)
    own[:, plain] = np.repeat(np.arange(10.0), 30) + np.tile(np.linspace(0.0, 1e-5, 30), 10)
    own[::2, plain + 1] = 3.0
    families = np.repeat([0, 1], 150)
    keys = groups(own)
    assert len(set(keys)) == 20
    known = by_group(own, families, seed)
    for key in set(keys):
        assert len({bool(k) for k, at in zip(known, keys, strict=True) if at == key}) == 1
    assert known.tolist() == by_group(own, families, seed).tolist()
    for f in (0, 1):
        assert known[families == f].sum() == 90  # six groups of fifteen


def test_twins_are_equal_to_the_bit_whatever_their_nan_and_zero_look_like() -> None:
    past = np.array([[1.0, NAN, 0.0], [2.0, 1.0, 1.0]], np.float32)
    other_nan = np.array([0x7FC00001], np.uint32).view(np.float32)[0]
    asked = np.array([[1.0, other_nan, -0.0], [2.0, 1.0, np.nextafter(np.float32(1), np.float32(2))]], np.float32)
    assert twins(past, asked).tolist() == [True, False]


def test_a_twin_is_found_by_its_own_features_whatever_its_context() -> None:
    items = several(100)
    again = several(1, first=3)[0]
    again.event.event_id, again.event.ts = "again", T0 + 500 * S
    data = labelled([*items, again])
    at = sides(data, Split(np.arange(100), np.array([100])))
    assert at.twins.tolist() == [True] and unpack([again.features]).shape == (1, 105)


def test_other_episodes_are_those_of_the_engine() -> None:
    """Same pair, either way round, same family, within ten minutes."""
    query = several(1, src_ip="10.0.0.1", dst_ip="192.0.2.1", family="C2")[0].event
    there = {"src_ip": "10.0.0.1", "dst_ip": "192.0.2.1", "family": "C2"}
    back = {"src_ip": "192.0.2.1", "dst_ip": "10.0.0.1", "family": "C2"}
    past = [
        several(1, **(there | {"ts": T0 - 600 * S}))[0].event,
        several(1, **(back | {"ts": T0 + 600 * S}))[0].event,
        several(1, **(there | {"ts": T0 - 601 * S}))[0].event,
        several(1, **(there | {"family": "DoS"}))[0].event,
        several(1, **(there | {"dst_ip": "192.0.2.2"}))[0].event,
    ]
    assert Episodes(past, [query]).same(slice(0, 1)).tolist() == [[True, True, False, False, False]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(1, 60))
def test_capping_keeps_small_families_whole_and_takes_the_others_evenly(drawn: list[int], rows_max: int) -> None:
    families = np.array(drawn, np.int64)
    kept = capped(families, rows_max)
    assert kept.tolist() == sorted(set(kept.tolist()))
    sizes, left = np.bincount(families, minlength=5), np.bincount(families[kept], minlength=5)
    assert len(kept) <= max(rows_max, len(np.unique(families)))
    assert len(kept) == len(families) or rows_max < len(families)
    assert ((left == sizes) | (left == left.max())).all()  # whole, or as many as any
    assert ((left > 0) == (sizes > 0)).all()


# ---- neighbours, votes, figures -------------------------------------------------------------------------------------

LINE = np.array([[0.0], [1.0], [2.0], [10.0]], np.float32)
FAMILIES = np.array([0, 0, 1, 1], np.int64)


def test_neighbours_are_exact_and_some_may_not_answer() -> None:
    found = neighbours(np.array([[1.2]], np.float32), LINE, FAMILIES, k=3)
    assert found.families.tolist() == [[0, 1, 0]]
    assert found.distances[0] == pytest.approx([0.2, 0.8, 1.2], abs=1e-6)
    gone = np.array([[True, True, False, True]])
    found = neighbours(np.array([[1.2]], np.float32), LINE, FAMILIES, k=3, without=lambda _: gone)
    assert found.families.tolist() == [[1, -1, -1]] and np.isinf(found.distances[0, 1:]).all()
    asked = np.array([1], np.int64)
    assert possible(FAMILIES, asked, k=3).tolist() == [2 / 3]
    assert possible(FAMILIES, asked, k=3, without=lambda _: gone).tolist() == [1 / 3]


def test_equal_vectors_are_at_distance_0_however_large() -> None:
    large = np.array([[1e9, 3.0], [1e9, 4.0]], np.float32)
    assert neighbours(large, large, np.array([0, 1]), k=1).distances.tolist() == [[0.0], [0.0]]


def test_a_vote_weighs_by_distance_and_what_is_equal_decides() -> None:
    found = Found(
        np.array([[0, 1, 1], [1, 0, 0], [-1, -1, -1]]), np.array([[1.0, 2.0, 4.0], [0.0, 1.0, 1.0], [np.inf] * 3])
    )
    assert vote(found, 2).tolist() == [pytest.approx([1 / 1.75, 0.75 / 1.75]), [0.0, 1.0], [0.0, 0.0]]
    assert vote(found, 2, k=1)[0].tolist() == [1.0, 0.0]


def test_f1_by_hand() -> None:
    """Truth 0 0 0 1 1, answers 0 0 1 1 and none."""
    proba = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.0, 0.0]])
    truth = np.array([0, 0, 0, 1, 1], np.int64)
    table = confusion(proba, truth, 2)
    assert table.tolist() == [[2, 1, 0], [0, 1, 1]]
    precision, recall, f1 = of_confusion(table)
    assert precision.tolist() == [1.0, 0.5] and recall == pytest.approx([2 / 3, 1 / 2])
    assert f1 == pytest.approx([0.8, 0.5])
    of = scores(proba, truth, truth, ["a", "b"], np.array([True, True]))
    assert of.macro["f1"].value == pytest.approx(0.65) and of.macro["f1"].low < 0.65 < of.macro["f1"].high
    assert np.isnan(of.rows[0].at_10) and of.rows[0].recall == pytest.approx(2 / 3)
    assert scores(proba, truth, truth, ["a", "b"], np.array([True, False])).macro["f1"].value == pytest.approx(0.8)


def test_share_of_neighbours_by_hand() -> None:
    found = Found(np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]), np.ones((2, 5)))
    of = scores(vote(found, 2), FAMILIES, np.array([0, 1]), ["a", "b"], np.array([True, True]), found)
    assert [(row.at_1, row.at_5) for row in of.rows] == [(1.0, 0.4), (1.0, 0.8)]
    assert of.macro["at_5"].value == pytest.approx(0.6)


def test_families_with_few_events_are_not_judged() -> None:
    ours, asked = np.repeat([0, 1, 2], [40, 30, 60]), np.repeat([0, 1, 2], [10, 19, 9])
    assert judged(ours, asked, 3).tolist() == [True, False, False]


def test_an_interval_is_drawn_within_families_by_the_seed() -> None:
    asked = np.repeat([0, 1], [400, 100])
    values = np.concatenate((np.tile([0.0, 1.0], 200), np.ones(100)))
    figures = [share_figure(values, asked, np.array([True, True]), np.random.default_rng(s)) for s in (1, 1, 2)]
    assert figures[0] == figures[1] != figures[2]
    assert figures[0].value == 0.75
    spread = 1.96 * 0.025 / 2  # deviation of the mean of 400 halves; the other family has none
    assert figures[0].low == pytest.approx(0.75 - spread, abs=0.006)
    assert figures[0].high == pytest.approx(0.75 + spread, abs=0.006)


def test_calibration_error_by_hand() -> None:
    """Four answers at 0.9, three of them right; one at 0.5, wrong."""
    proba = np.array([[0.9, 0.1]] * 4 + [[0.5, 0.5]])
    truth = np.array([0, 0, 0, 1, 1], np.int64)
    assert calibration_error(proba, truth) == pytest.approx(0.8 * 0.15 + 0.2 * 0.5)


def test_auroc_by_hand() -> None:
    new = np.array([True, True, False, False])
    assert auroc(np.array([4.0, 3.0, 2.0, 1.0]), new) == 1.0
    assert auroc(np.array([1.0, 1.0, 1.0, 1.0]), new) == 0.5
    assert auroc(np.array([3.0, 1.0, 2.0, 0.0]), new) == 0.75
    assert auroc(np.array([3.0, 1.0, 2.0, 0.0]), new, np.array([1, 0, 1, 1])) == 1.0
    assert np.isnan(auroc(np.array([1.0]), np.array([True])))
    values, macro = auroc_figure({0: np.array([4.0, 3.0, 2.0, 1.0]), 1: np.zeros(4)}, np.array([0, 0, 1, 1]))
    assert values == {0: 1.0, 1: 0.5} and macro == Figure(0.75, 0.75, 0.75)


# ---- methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_tells_families_apart_that_lie_apart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.quality.methods.TREES", 20)
    monkeypatch.setattr("engine.embed.contrast.STEPS_MIN", 60)
    data = labelled(several(200))
    at = sides(data, split(data))
    fitted = METHODS[name](at.past.features, at.past.families, 1)
    again = METHODS[name](at.past.features, at.past.families, 1)
    match fitted, again:
        case Space(embed), Space(same):
            vectors = embed(at.asked.features)
            assert vectors.dtype == np.float32 and np.isfinite(vectors).all()
            assert np.array_equal(vectors, same(at.asked.features))
        case Classifier(proba), Classifier(same):
            table = proba(at.asked.features)
            assert table.shape == (80, 4) and table.sum(axis=1) == pytest.approx(np.ones(80))
            assert np.array_equal(table, same(at.asked.features))
        case Novelty(score), Novelty(same):
            assert score(at.asked.features).shape == (80,)
            assert np.array_equal(score(at.asked.features), same(at.asked.features))
    results = compare(at, [name], other_episodes=False, seed=1)
    if name in results and name != "raw-projection":  # unscaled: that is its fault
        assert results[name].without_twins.macro["f1"].value > 0.9


def test_novelty_of_a_family_left_out_and_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.quality.measure.DRAWS", 20)
    monkeypatch.setattr("bench.quality.methods.TREES", 20)
    data = labelled(several(200))
    at = sides(data, split(data))
    novel = novelty(at, ["log-z", "isolation"], seed=1)
    assert set(novel["log-z"].families) == set(at.families)
    assert novel["log-z"].families["Normal"] > 0.9  # the farthest out
    results = compare(at, ["log-z", "attack-linear", "boosting"], other_episodes=True, seed=1)
    assert [met for what, met in bars(results, "attack-linear") if "min(" in what] == [True]
    worse = results | {"attack-linear": compare(at, ["raw-projection"], False, 1)["raw-projection"]}
    assert not all(met for _, met in bars(worse, "attack-linear"))
