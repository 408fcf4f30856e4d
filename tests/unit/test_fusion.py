"""How the spaces weigh in the fused one: what tells families apart counts, what does not loses weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.embed.base import QUANTILES, SPACES, Calibration
from engine.embed.fit import nearest
from engine.embed.fusion import EVEN, Fusion, View, fitted

FAMILIES, PAIRS, EACH = 4, 6, 10


def view(told: float, rng: np.random.Generator, asked: np.ndarray, earlier: np.ndarray) -> View:
    """A space of 8 dimensions in which families lie `told` apart, in noise of deviation 1."""
    centers = rng.standard_normal((FAMILIES, 8)) * told
    vectors = [(centers[of] + rng.standard_normal((len(of), 8))).astype(np.float32) for of in (asked, earlier)]
    apart = np.linalg.norm(vectors[1][:, None] - vectors[1][None, ::7], axis=2).reshape(-1)
    return View(*vectors, Calibration(np.quantile(apart, np.linspace(0, 1, QUANTILES)), 1.0, 0.05))


def weighed(told: dict[str, float], seed: int, flood: int = 1) -> Fusion:
    """flood: how often the events of the first pair of each family are asked about."""
    rng = np.random.default_rng(seed)
    families = np.repeat(np.arange(FAMILIES), PAIRS * EACH)
    pairs = np.tile(np.repeat(np.arange(PAIRS), EACH), FAMILIES)
    views = {space: view(told[space], rng, families, families) for space in SPACES}
    rows = np.repeat(np.arange(len(families)), np.where(pairs == 0, flood, 1))
    views = {space: v._replace(asked=v.asked[rows]) for space, v in views.items()}
    return fitted(views, families[rows], families, pairs[rows], nearest)


@pytest.mark.parametrize("space", SPACES)
def test_a_space_that_tells_nothing_loses_its_weight(space: str) -> None:
    found = weighed({**dict.fromkeys(SPACES, 1.0), space: 0.0}, 1)
    assert found.weights[space] < min(w for name, w in found.weights.items() if name != space)
    assert found.shares["fused"] > found.shares[space] + 0.2


def test_spaces_that_tell_the_same_count_nearly_the_same() -> None:
    found = weighed(dict.fromkeys(SPACES, 3.0), 2)
    assert max(found.weights.values()) <= 0.5


def test_a_flood_between_one_pair_of_hosts_is_one_observation() -> None:
    told = dict(zip(SPACES, (0.3, 0.6, 1.0), strict=True))
    assert weighed(told, 3).weights == pytest.approx(weighed(told, 3, flood=20).weights)


@settings(max_examples=15)
@given(told=st.tuples(*[st.floats(0, 3)] * 3), seed=st.integers(0, 1_000))
def test_weights_add_up_and_are_no_worse_than_the_measured_error(told: tuple[float, ...], seed: int) -> None:
    found = weighed(dict(zip(SPACES, told, strict=True)), seed)
    assert sum(found.weights.values()) == pytest.approx(1)
    assert all(w > 0 for w in found.weights.values())
    assert set(found.shares) == {"fused", *SPACES}
    assert found == weighed(dict(zip(SPACES, told, strict=True)), seed)


def test_one_family_says_nothing_of_weights() -> None:
    one = np.zeros(30, np.int64)
    rng = np.random.default_rng(4)
    assert fitted({space: view(1.0, rng, one, one) for space in SPACES}, one, one, one, nearest) == Fusion(EVEN, {})


def test_families_of_one_pair_each_leave_the_weights_nearly_even() -> None:
    families = np.repeat(np.arange(FAMILIES), EACH)
    rng = np.random.default_rng(5)
    told = dict(zip(SPACES, (0.0, 3.0, 3.0), strict=True))
    views = {space: view(told[space], rng, families, families) for space in SPACES}
    found = fitted(views, families, families, np.zeros(len(families), np.int64), nearest)
    assert max(found.weights.values()) <= 0.5
