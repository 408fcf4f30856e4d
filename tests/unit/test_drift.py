"""Bins of the training data, the population stability index and the two-sample test over them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from engine.embed import reference
from engine.embed.base import DIMS
from engine.embed.reference import BINS, EDGES, Bins, Reference, binned, bins, from_bytes, to_bytes
from engine.errors import ModelError
from engine.maintain import drift
from engine.maintain.drift import KNOWN_MIN, chi_square_above, p_value, psi, shift, shifts
from ipc.event import FEATURE_COUNT

F32 = NDArray[np.float32]
VALUES = arrays(
    np.float32, st.tuples(st.integers(1, 60), st.integers(1, 3)),
    elements=st.floats(-100, 100, width=32) | st.sampled_from([0.0, 1.0, math.nan]),
)  # fmt: skip
COUNTS = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 5_000), min_size=n, max_size=n), min_size=2, max_size=2)
)


def column(*values: float) -> F32:
    return np.array(values, np.float32)[:, None]


def made(seed: int = 0) -> Reference:
    rng = np.random.default_rng(seed)
    of = {}
    for name, m in {"x": FEATURE_COUNT, **DIMS}.items():
        values = rng.normal(size=(300, m)).astype(np.float32)
        values[:, 7] = 1.0  # fewer edges than others
        of[name] = bins(values)
    return Reference(of.pop("x"), of)


# ---- bins


@given(VALUES)
def test_every_value_is_in_one_bin_and_a_recount_is_the_same(values: F32) -> None:
    edges, counts = bins(values)
    assert edges.shape == (values.shape[1], EDGES) and counts.shape == (values.shape[1], BINS + 1)
    assert (counts.sum(1) == len(values)).all()
    assert (counts[:, -1] == (~np.isfinite(values)).sum(0)).all()
    assert np.array_equal(binned(values, edges), counts)
    assert all((np.diff(row[np.isfinite(row)]) > 0).all() for row in edges)
    again = bins(values[::-1])
    assert np.array_equal(again.edges, edges) and np.array_equal(again.counts, counts)


def test_deciles_of_many_values_hold_a_tenth_each() -> None:
    counts = bins(np.random.default_rng(1).permutation(10_000).astype(np.float32)[:, None]).counts[0]
    assert counts.tolist() == [1_000] * 10 + [0]


def test_what_was_constant_has_a_bin_of_its_own_so_that_smaller_and_larger_are_seen() -> None:
    edges, counts = bins(column(*[7.0] * 400))
    assert counts[0].tolist() == [0, 400, *[0] * 9]
    for other in (6.9999, 7.0001):
        now = binned(column(*[other] * 400), edges)
        assert now[0, 1] == 0
        assert shift(now[0], counts[0]).major
    assert shift(binned(column(*[7.0] * 300), edges)[0], counts[0]).psi == 0.0


def test_a_value_that_covers_two_deciles_is_told_from_its_neighbourhood() -> None:
    values = np.concatenate((np.zeros(500), np.linspace(0.001, 1, 500))).astype(np.float32)[:, None]
    edges, counts = bins(values)
    assert counts[0].max() == 500
    small = np.full((500, 1), 0.0005, np.float32)  # in the same tenth, and not the same
    assert shift(binned(small, edges)[0], counts[0]).major


def test_what_training_never_knew_says_nothing() -> None:
    (found,) = shifts(np.ones((500, 1), np.float32), bins(np.full((500, 1), np.nan, np.float32)))
    assert found == (None, None, 500) and not found.major


# ---- on disk


def test_a_reference_comes_back_and_the_same_gives_the_same_bytes() -> None:
    blob = to_bytes(made())
    assert blob == to_bytes(made()) != to_bytes(made(1))
    back = from_bytes(blob)
    assert np.array_equal(back.features.edges, made().features.edges)
    assert all(np.array_equal(back.spaces[s].counts, made().spaces[s].counts) for s in DIMS)
    assert len(blob) < 100_000


def broken(what: str) -> Reference:
    good = made()
    edges, counts = good.features.edges.copy(), good.features.counts.copy()
    match what:
        case "order":
            edges[3, :2] = edges[3, 1::-1]
        case "nan":
            edges[3, 2] = np.nan
        case "negative":
            counts[0, 0] = -1
        case "none":
            counts[0] = 0
        case "type":
            counts = counts.astype(np.float64)  # type: ignore[assignment]
        case "shape":
            edges = edges[:, :5]
    return good._replace(features=Bins(edges, counts))


@pytest.mark.parametrize("what", ["order", "nan", "negative", "none", "type", "shape"])
def test_a_reference_that_cannot_be_is_refused(what: str) -> None:
    with pytest.raises(ModelError, match=reference.FILE):
        from_bytes(to_bytes(broken(what)))


def test_other_files_are_no_reference() -> None:
    with pytest.raises(ModelError, match="is not a reference"):
        from_bytes(b"none")
    with pytest.raises(ModelError, match="is not a reference"):
        from_bytes(reference.bytes_of({"x": np.zeros(3)}))


# ---- index and test


@given(COUNTS)
def test_the_index_is_symmetric_never_negative_and_0_for_equal_shares(pair: list[list[int]]) -> None:
    now, then = (np.array(c, np.int64) for c in pair)
    assert psi(now, then) == pytest.approx(psi(then, now))
    assert psi(now, then) >= 0.0
    assert psi(now, now) == 0.0


def test_the_index_is_the_formula() -> None:
    now, then = np.array([300, 700]), np.array([500, 500])
    assert psi(now, then) == pytest.approx(0.2 * math.log(5 / 3) + 0.2 * math.log(7 / 5), abs=1e-3)
    empty = psi(np.array([1_000, 0]), np.array([900, 100]))  # half an event, not an infinity
    assert empty == pytest.approx(0.0995 * (math.log(0.1 / 0.0005) + math.log(0.9995 / 0.9)), rel=0.01)


@pytest.mark.parametrize(
    ("x", "freedom", "p"),
    [(3.841, 1, 0.05), (5.991, 2, 0.05), (7.815, 3, 0.05), (16.919, 9, 0.05), (18.307, 10, 0.05), (29.588, 10, 0.001),
     (10.828, 1, 0.001), (0.0, 1, 1.0), (0.0, 4, 1.0), (5.0, 0, 1.0)],
)  # fmt: skip
def test_chi_square_is_that_of_the_tables(x: float, freedom: int, p: float) -> None:
    """Critical values of NIST/SEMATECH e-Handbook, 1.3.6.7.4."""
    assert chi_square_above(x, freedom) == pytest.approx(p, rel=2e-3)


def test_without_a_change_p_is_as_often_below_5_percent_as_it_says() -> None:
    rng = np.random.default_rng(5)
    of = bins(rng.normal(size=(5_000, 1)).astype(np.float32))
    ps = [shifts(rng.normal(size=(600, 1)).astype(np.float32), of)[0].p for _ in range(400)]
    assert 0.02 < np.mean([p < 0.05 for p in ps if p is not None]) < 0.09


def test_a_large_change_of_few_values_may_be_chance_and_a_small_one_of_many_is_not_major() -> None:
    assert shift(np.array([0, KNOWN_MIN - 1]), np.array([500, 500])).psi is None
    few = drift.Shift(0.3, 0.01, 210)
    assert not few.major
    many = shift(np.array([48_000, 52_000]), np.array([50_000, 50_000]))
    assert many.p is not None and many.p < 1e-6 and not many.major
    assert p_value(np.array([48, 52]), np.array([50_000, 50_000])) > 0.5
