"""The vote of neighbours and what it was measured to be worth, by hand-worked numbers and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.embed import fit as fitting
from engine.embed.base import NEAREST_QUANTILES, QUANTILES, Calibration
from engine.embed.certainty import BLOCKS, KNOTS, PRIOR, Seen, Votes, ascending, certainty, looks_back, votes
from engine.embed.vote import places, vote
from engine.families import NORMAL, UNKNOWN, labelled
from engine.search.classify import probabilities

PAIRS = np.linspace(0.0, 10.0, QUANTILES)
NEAREST = np.linspace(0.0, 2.0, NEAREST_QUANTILES)  # the bound, 1.9, is its 95 % quantile
MEASURED = Calibration(PAIRS, 1.9, 0.05, NEAREST, np.array([(0.0, 0.0), (0.5, 0.4), (1.0, 0.9)]))
OLD = Calibration(PAIRS, 1.9, 0.05)  # a version that was made before any of it was measured


def test_a_vote_worked_by_hand() -> None:
    """Weights 1/(d + near)^2: 1, 1/4 and 1/4; doubt, at the bound, 1/16."""
    ballot = vote([0.5, 1.5, 1.5], [{"A": 1.0}, {"B": 1.0}, {"A": 0.5, "B": 0.5}], 0.5, 3.5)
    total = 1 + 1 / 4 + 1 / 4 + 1 / 16
    assert ballot.shares == pytest.approx({"A": (1 + 1 / 8) / total, "B": (1 / 4 + 1 / 8) / total})
    assert list(ballot.shares) == ["A", "B"]
    assert ballot.doubt == pytest.approx(1 / 16 / total)
    assert ballot.weights == pytest.approx([1 / total, 1 / 4 / total, 1 / 4 / total])


def test_nobody_votes() -> None:
    ballot = vote([], [], 0.5, 3.5)
    assert ballot.shares == {} and ballot.weights == [] and ballot.doubt == 1.0
    assert probabilities({}, MEASURED) == {}


def test_equal_shares_are_in_order_of_name_and_a_distance_of_0_is_no_division_by_0() -> None:
    ballot = vote([0.0, 0.0], [{"B": 1.0}, {"A": 1.0}], 0.0, 0.0)
    assert list(ballot.shares) == ["A", "B"] and sum(ballot.shares.values()) + ballot.doubt == pytest.approx(1)


DISTANCES = st.lists(st.floats(0, 1e6), min_size=1, max_size=8)


@given(DISTANCES, st.data())
def test_shares_and_doubt_are_all_of_it_whatever_the_order_and_the_unit(
    distances: list[float], data: st.DataObject
) -> None:
    n = len(distances)
    words = data.draw(st.lists(st.sampled_from("ABC"), min_size=n, max_size=n))
    near, bound = data.draw(st.floats(1e-3, 10)), data.draw(st.floats(0, 1e3))
    parts = [{word: 1.0} for word in words]
    ballot = vote(distances, parts, near, bound)
    assert all(0 <= share <= 1 for share in (*ballot.shares.values(), *ballot.weights, ballot.doubt))
    assert math.isclose(sum(ballot.shares.values()) + ballot.doubt, 1.0)
    assert math.isclose(sum(ballot.weights) + ballot.doubt, 1.0)
    order = data.draw(st.permutations(range(n)))
    assert vote([distances[i] for i in order], [parts[i] for i in order], near, bound).shares == pytest.approx(
        ballot.shares
    )
    unit = data.draw(st.sampled_from([2.0**-10, 0.125, 8.0, 1024.0]))
    scaled = vote([unit * d for d in distances], parts, unit * near, unit * bound)
    assert scaled.shares == pytest.approx(ballot.shares) and scaled.doubt == pytest.approx(ballot.doubt)


@given(st.dictionaries(st.sampled_from("ABCDEF"), st.floats(1e-6, 1), min_size=1), st.booleans())
def test_probabilities_add_up_to_at_most_1_and_keep_the_order(raw: dict[str, float], measured: bool) -> None:
    total = sum(raw.values()) * 1.01
    shares = dict(sorted(((f, s / total) for f, s in raw.items()), key=lambda item: -item[1]))
    chances = probabilities(shares, MEASURED if measured else OLD)
    assert list(chances) == list(shares)
    assert all(0 <= p <= 1 for p in chances.values()) and sum(chances.values()) <= 1 + 1e-9
    assert list(chances.values()) == sorted(chances.values(), reverse=True)
    if not measured:
        assert chances == pytest.approx(shares)


def test_probability_lies_between_the_knots() -> None:
    assert MEASURED.probability(0.25) == pytest.approx(0.2)
    assert MEASURED.probability(0.75) == pytest.approx(0.65)
    assert OLD.probability(0.75) == 0.75
    leading_first = probabilities({"A": 0.5, "B": 0.3, "C": 0.2}, MEASURED)
    assert leading_first == pytest.approx({"A": 0.4, "B": 0.24, "C": 0.16})
    crowded = Calibration(PAIRS, 1.9, 0.05, NEAREST, np.array([(0.0, 0.0), (0.5, 0.9), (1.0, 0.9)]))
    assert probabilities({"A": 0.5, "B": 0.5}, crowded) == pytest.approx({"A": 0.9, "B": 0.1})


@pytest.mark.parametrize("calibration", [MEASURED, OLD], ids=["measured", "old"])
def test_novelty_passes_the_false_alarm_rate_just_beyond_the_bound(calibration: Calibration) -> None:
    assert calibration.novelty(0.0) == 0.0
    assert calibration.novelty(0.95) == pytest.approx(0.475)
    assert calibration.novelty(1.9) <= 0.95 < calibration.novelty(1.9001)
    assert calibration.novelty(1e12) == pytest.approx(1.0)
    rising = [calibration.novelty(d) for d in np.linspace(0, 4, 201)]
    assert rising == sorted(rising) and min(rising) >= 0 and max(rising) <= 1


def test_most_known_events_have_a_twin() -> None:
    """Half of the distances are 0: a twin is no news, and what is just beyond is newer than half."""
    quantiles = np.maximum(0.0, np.linspace(-2.0, 2.0, NEAREST_QUANTILES))
    twins = Calibration(PAIRS, 1.8, 0.05, quantiles)
    assert twins.novelty(0.0) <= 0.51
    assert twins.novelty(0.01) >= 0.5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 40), st.booleans())
def test_places_are_those_that_comparing_every_row_with_each_of_them_gives(
    seed: int, n: int, most: int, of_kinds: bool
) -> None:
    """Most rows are left out by their length, or by another space, before they are compared."""
    rng = np.random.default_rng(seed)
    floods = rng.integers(0, max(1, n // 4), n)
    spaces = []
    for dim, scale in ((8, 1.0), (3, 1e4), (16, 1e-3)):
        centers = scale * rng.standard_normal((n, dim)) * rng.choice([0.0, 1.0, 30.0], (n, 1))
        near = scale * float(rng.choice([0.0, 0.1, 1.0]))
        rows = centers[floods] + near / dim * rng.standard_normal((n, dim)) * rng.choice([0.0, 1.0, 2.0], (n, 1))
        spaces.append((rows.astype(np.float32), near))
    kinds = rng.integers(0, 3, n) if of_kinds else None
    expected: list[list[int]] = []
    left = np.arange(n)
    while len(left) and len(expected) < most:
        like = np.ones(len(left), np.bool_) if kinds is None else kinds[left] == kinds[left[0]]
        for of, near in spaces:
            difference = of[left] - of[left[0]]
            like &= np.einsum("ij,ij->i", difference, difference) <= near * near
        like[0] = True
        expected.append(left[like].tolist())
        left = left[~like]
    assert [place.tolist() for place in places(spaces, most, kinds)] == expected


def test_places_are_of_near_rows_and_of_one_kind() -> None:
    rows = np.array([[0.0], [0.05], [1.0], [0.1], [1.05], [9.0]], np.float32)
    assert [p.tolist() for p in places([(rows, 0.11)], 9)] == [[0, 1, 3], [2, 4], [5]]
    assert [p.tolist() for p in places([(rows, 0.11)], 2)] == [[0, 1, 3], [2, 4]]
    kinds = np.array([1, 2, 1, 1, 1, 1])
    assert [p.tolist() for p in places([(rows, 0.11)], 9, kinds)] == [[0, 3], [1], [2, 4], [5]]
    apart = np.array([[0.0], [5.0], [0.0], [0.0], [0.0], [0.0]], np.float32)
    assert places([(rows, 0.11), (apart, 0.11)], 9)[0].tolist() == [0, 3]


def test_a_flood_of_asked_events_is_measured_once() -> None:
    """Ninety wrong votes of one kind weigh as one: what they would say alone was said by one event."""
    share, right = np.full(100, 0.8), np.arange(100) >= 90
    worth = np.array([1 / 90] * 90 + [1.0] * 10)
    knots = certainty([Votes(share, right, worth)])
    assert knots[1:] == pytest.approx(np.array([(0.8, (10 + PRIOR * 0.8) / (11 + PRIOR))]), abs=1e-9)
    assert (certainty([Votes(share, right, np.ones(100))])[-1, 1]) < 0.3


def test_values_that_fall_are_pooled() -> None:
    assert ascending([(0.1, 0.2, 1), (0.2, 0.6, 1), (0.3, 0.4, 3), (0.4, 0.9, 1)]) == [
        (0.1, 0.2), (0.2, pytest.approx(0.45)), (0.3, pytest.approx(0.45)), (0.4, 0.9),
    ]  # fmt: skip


def test_certainty_is_what_was_right() -> None:
    """Votes with share 0.5 are right half of the time, those with 1.0 nine times of ten."""
    share = np.array([0.5] * 100 + [1.0] * 100)
    right = np.array([True, False] * 50 + [True] * 90 + [False] * 10)
    knots = certainty(
        [Votes(part, so, np.ones(len(part))) for part, so in ((share[:50], right[:50]), (share[50:], right[50:]))]
    )
    assert knots[0].tolist() == [0.0, 0.0] and len(knots) <= KNOTS + 1
    assert knots[1:] == pytest.approx(np.array([(0.5, 0.5), (1.0, (90 + PRIOR) / (100 + PRIOR))]), abs=1e-9)
    assert certainty([]).shape == (0, 2)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=200))
def test_certainty_ascends_and_is_a_probability(measured: list[tuple[float, bool]]) -> None:
    share, right = np.array([s for s, _ in measured]), np.array([r for _, r in measured])
    knots = certainty([Votes(share, right, np.ones(len(share)))])
    assert len(knots) <= KNOTS + 1 and (knots >= 0).all() and (knots <= 1).all()
    assert (np.diff(knots[:, 0]) > 0).all() and (np.diff(knots[:, 1]) >= 0).all()


def test_the_later_part_looks_back_never_the_other_way() -> None:
    families = np.array([0, 1, -1] * 40)
    looks = list(looks_back(families))
    assert len(looks) == BLOCKS - 1
    for earlier, later in looks:
        assert earlier.max() < later.min() and (families[later] >= 0).all()
        assert set(families[earlier]) == {-1, 0, 1}


def test_votes_of_two_heaps() -> None:
    """Families 0 and 1 lie at 0 and at 10; rows of no family lie between and say nothing."""
    rng = np.random.default_rng(1)
    families = np.array([0, 1, -1] * 40)
    vectors = (np.where(families == 1, 10.0, 0.0)[:, None] + rng.normal(0, 0.1, (120, 2))).astype(np.float32)
    seen = Seen(vectors[:60], vectors[:60])
    found = votes(seen, families[:60].clip(0), vectors, families, 1e-3, 5.0, fitting.nearest)
    assert found.right[families[:60] >= 0].all() and (found.share > 0.9).all()
    assert found.worth.tolist() == [1.0] * 60
    partly = Seen(vectors[:60], np.where([True, False], vectors[:60], np.float32(np.nan)))
    assert votes(partly, families[:60].clip(0), vectors, families, 1e-3, 5.0, fitting.nearest).right.all()
    four = np.repeat(vectors[:3], 4, axis=0)
    again = votes(Seen(four, four), np.zeros(12), vectors, families, 1e-3, 5.0, fitting.nearest)
    assert again.worth.tolist() == [0.25] * 12
    few = Seen(vectors[:5], vectors[:5])
    none = votes(few, families[:5], vectors[:3], np.array([-1, -1, -1]), 1e-3, 5.0, fitting.nearest)
    assert not none.right.any() and none.share.tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("label", "family"),
    [
        ("DoS Hulk", "DoS"), ("ransomware", "Ransomware"), ("Cobalt Strike", "Cobalt Strike"),
        ("benign: backup", NORMAL),
        ("true_positive", "DDoS"), ("TP", "DDoS"), ("false positive: backup job", NORMAL), ("false-negative", UNKNOWN),
        ("no idea", "no idea"), ("suspicious", UNKNOWN), (": only a remark", "DDoS"),
    ],
)  # fmt: skip
def test_what_a_label_makes_of_an_event(label: str, family: str) -> None:
    assert labelled(label, "DDoS") == family
