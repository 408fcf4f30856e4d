"""attack in two levels: who is told in detail, and that who is not is found by what every source tells."""

from __future__ import annotations

from hashlib import sha256

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from engine.embed import contrast, fit, models
from engine.embed.base import DIMS, F32
from engine.embed.nested import COMMON, NestedEmbedder, detailed
from engine.embed.ship import lab
from engine.errors import ModelError
from engine.features import FEATURES, INDEX, pack, unpack
from tests.events import several
from tests.store_fixture import ROWS, Store

Told = tuple[F32, F32, NDArray[np.int64]]
FLAGS = [f.column for f in FEATURES if f.group == "flags"]
LENGTHS = [f.column for f in FEATURES if f.group in ("length", "header")]
GAPS = [f.column for f in FEATURES if "inter_arrival" in f.name]


@pytest.fixture(scope="module")
def told() -> Told:
    """The flows of the lab as packets tell them, as EVE tells the same ones, and their families."""
    (ours, features), (theirs, of_eve) = lab()
    eve = {(e.src_ip, e.src_port, e.dst_ip, e.dst_port, e.ts_start // 10**6): i for i, e in enumerate(theirs)}
    keys = [(e.src_ip, e.src_port, e.dst_ip, e.dst_port, e.ts_start // 10**6) for e in ours]
    both = [(i, eve[key]) for i, key in enumerate(keys) if key in eve]
    mine, other = (np.array(rows) for rows in zip(*both, strict=True))
    return features[mine], of_eve[other], fit.family_numbers([ours[i] for i in mine])[0]


@pytest.fixture(scope="module")
def nested(told: Told) -> NestedEmbedder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrast, "STEPS_MIN", 20)
        patch.setattr(contrast, "STEPS_MAX", 20)
        made = fit.fitted("attack", "t1", told[0], told[2], told[2])
    assert isinstance(made, NestedEmbedder) and made.dim == DIMS["attack"]
    return made


def test_packets_tell_in_detail_and_a_poorer_source_does_not(told: Told) -> None:
    assert len(told[0]) > 1_000
    assert detailed(told[0]).all()
    assert not detailed(told[1]).any()


def test_a_gap_that_cannot_be_is_not_missing(told: Told) -> None:
    flow = told[0][:1].copy()
    flow[:, GAPS] = np.nan
    flow[:, (INDEX["total_forward_packets"], INDEX["total_backward_packets"])] = 1, 0
    assert detailed(flow).all()
    flow[:, INDEX["total_forward_packets"]] = 9
    assert not detailed(flow).any()
    flow[:, INDEX["total_forward_packets"]] = np.nan
    assert not detailed(flow).any()


def test_the_detail_is_as_long_in_all_events(nested: NestedEmbedder, told: Told) -> None:
    vectors = nested.embed_features(np.vstack(told[:2])).astype(np.float64)
    lengths = np.linalg.norm(vectors[:, nested.common :], axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-6)


def test_an_event_without_detail_is_asked_by_what_is_common(nested: NestedEmbedder, told: Told) -> None:
    rich, poor = (nested.embed_features(of) for of in told[:2])
    assert np.isfinite(nested.asked(rich)).all()
    asked = nested.asked(poor)
    assert np.isnan(asked[:, nested.common :]).all() and np.isfinite(asked[:, : nested.common]).all()
    assert np.isfinite(poor).all(), "what is stored stays as it is"
    # zeros in an index of whole vectors give the order of the common level
    sought, by_common = np.nan_to_num(asked[:50]).astype(np.float64), poor[:50, : nested.common]
    whole = np.square(sought[:, None] - rich).sum(axis=2)
    common = np.square(by_common[:, None].astype(np.float64) - rich[:, : nested.common]).sum(axis=2)
    np.testing.assert_allclose(whole - common, (whole - common)[0, 0], rtol=1e-5)


def test_a_flow_finds_itself_as_another_source_tells_it(nested: NestedEmbedder, told: Told) -> None:
    rich, poor = (nested.embed_features(of) for of in told[:2])
    for asked, stored in ((poor, rich), (rich, rich)):
        _, far = fit.nearest(nested.asked(asked), stored, 10)
        itself = np.linalg.norm(np.nan_to_num(nested.asked(asked).astype(np.float64) - stored), axis=1)
        assert (itself <= far[:, 9] + 1e-6).mean() > 0.9


@given(st.integers(0, 1_000), st.integers(0, 1_000), st.booleans(), st.booleans())
def test_contributions_add_up(
    nested: NestedEmbedder, told: Told, a: int, b: int, query_is_rich: bool, hit_is_rich: bool
) -> None:
    query, hit = told[not query_is_rich][a], told[not hit_is_rich][b]
    event = several(1)[0].event
    ours, theirs = nested.embed_features(np.stack((query, hit)))
    distance = float(np.linalg.norm(np.nan_to_num(nested.asked(ours[None, :])[0].astype(np.float64) - theirs)))
    parts = nested.explain(event, query, event, hit)
    assert sum(p.contribution for p in parts) == pytest.approx(distance, rel=0.01, abs=1e-6)
    if query_is_rich and hit_is_rich and a == b:
        assert all(p.contribution == 0 for p in parts)
    if not query_is_rich:
        common = {FEATURES[c].fact for c in COMMON}
        assert {p.feature for p in parts if abs(p.contribution) > 1e-9} <= common


def test_what_the_hit_does_not_tell_is_named(nested: NestedEmbedder, told: Told) -> None:
    event = several(1)[0].event
    for row in range(0, 200, 20):
        parts = nested.explain(event, told[0][row], event, told[1][row])
        leading = parts[0]
        assert leading.query is not None and leading.hit is None, leading


def test_any_batch_gives_the_same_bytes(nested: NestedEmbedder, told: Told) -> None:
    features = np.vstack((told[0][:300], told[1][:300]))[np.random.default_rng(1).permutation(600)]
    whole = nested.embed_features(features)
    for lo, hi in ((0, 1), (7, 8), (3, 100), (99, 600)):
        assert nested.embed_features(features[lo:hi]).tobytes() == whole[lo:hi].tobytes()


def test_events_told_poorly_are_fitted_in_one_level(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "STEPS_MIN", 2)
    monkeypatch.setattr(contrast, "STEPS_MAX", 2)
    made = fit.fitted("attack", "t1", told[1], told[2], told[2])
    assert not isinstance(made, NestedEmbedder)
    vectors = made.embed_features(told[1][:10])
    assert made.asked(vectors) is vectors


def test_a_reader_compares_over_what_is_asked(store: Store) -> None:
    """By index and exactly: every other event also comes from a source that tells no lengths, gaps and flags."""
    items = several(ROWS + 40)
    for item in items[1::2]:
        row = unpack([item.features])[0]
        row[[*FLAGS, *GAPS, *LENGTHS]] = np.nan
        item.features = pack(row)
    store.publish(items)
    store.index()
    attack, snapshot = store.publisher.models.embedders["attack"], store.snapshot()
    assert isinstance(attack, NestedEmbedder)
    vectors = snapshot.vectors("attack", np.arange(len(items)))
    asked = attack.asked(vectors)
    assert np.isnan(asked[1::2, -1]).all() and np.isfinite(asked[::2]).all()
    for seq in (2, 3, ROWS + 2, ROWS + 3):
        far = np.linalg.norm(np.nan_to_num(asked[seq].astype(np.float64) - vectors), axis=1)
        nearest = np.sort(np.delete(far, seq))[:8]
        answer = store.ask(f"e{seq:06d}", space="attack", top_k=8, collapse=False)
        assert (f"asked in {attack.common} of 64 dimensions" in answer.plan) == (seq % 2 == 1)
        hits = answer.hits
        np.testing.assert_allclose([hit.distance for hit in hits], nearest, rtol=1e-6)
        for hit in hits:
            assert hit.distance == pytest.approx(far[hit.seq], rel=1e-6)


@pytest.mark.parametrize("levels", [[0.0, 0.7], [51.0, 0.7], [24.0, 0.0], [24.0, np.nan], [np.inf, 0.7], [24.0], []])
def test_levels_that_do_not_fit_are_refused(levels: list[float]) -> None:
    files = models.read(models.shipped())
    models.from_files(files)
    tensors = load(files["attack.safetensors"]) | {"levels": np.array(levels)}
    files["attack.safetensors"] = save(tensors)
    card = msgspec.json.decode(files[models.CARD])
    card["sha256"]["attack.safetensors"] = sha256(files["attack.safetensors"]).hexdigest()
    with pytest.raises(ModelError, match="not such a model"):
        models.from_files(files | {models.CARD: msgspec.json.encode(card)})
