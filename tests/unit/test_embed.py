"""What every embedder promises, and that explanations of the linear ones are exact."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.embed import linear, models
from engine.embed.base import DIMS, F32, SPACES, Embedder, ModelSet
from engine.embed.linear import LinearEmbedder
from engine.embed.neural import NeuralEmbedder
from engine.embed.text import TextEmbedder, TextModel, check, memo_key, text_dir
from engine.errors import ModelError
from engine.features import FEATURES, INDEX, empty
from ipc.event import FEATURE_COUNT, Event
from tests.events import several

HUGE = float(np.finfo(np.float32).max)


@pytest.fixture(scope="session")
def shipped_version() -> ModelSet:
    """The version that ships; the text model is made where `make setup` has not (15 s)."""
    try:
        check(text_dir())
    except ModelError:
        subprocess.run([sys.executable, "-m", "engine.embed.export"], check=True, capture_output=True)
    return models.load(models.shipped())


@pytest.fixture(params=SPACES)
def embedder(request: pytest.FixtureRequest, shipped_version: ModelSet) -> Embedder:
    return shipped_version.embedders[request.param]


@pytest.fixture(scope="session")
def sample() -> Iterator[tuple[list[Event], F32]]:
    """60 events; rows of all kinds of gaps: none, some, all missing."""
    events = [item.event for item in several(60)]
    rng = np.random.default_rng(3)
    features = np.exp(rng.normal(2, 3, (60, FEATURE_COUNT))).astype(np.float32)
    features[rng.random(features.shape) < rng.random((60, 1))] = np.nan
    features[0] = np.nan
    yield events, features


def test_shape_and_type(embedder: Embedder, sample: tuple[list[Event], F32]) -> None:
    vectors = embedder.embed(*sample)
    assert vectors.dtype == np.float32 and vectors.shape == (60, embedder.dim) == (60, DIMS[embedder.name])
    assert vectors.flags.c_contiguous and vectors.flags.owndata and vectors.flags.writeable
    assert np.isfinite(vectors).all()
    assert embedder.metric == "l2" and embedder.version
    assert embedder.embed([], empty(0)).shape == (0, embedder.dim)


def test_the_same_input_gives_the_same_bytes_in_any_batch(embedder: Embedder, sample: tuple[list[Event], F32]) -> None:
    events, features = sample
    whole = embedder.embed(events, features)
    order = np.random.default_rng(1).permutation(60)
    assert (embedder.embed([events[i] for i in order], features[order])[np.argsort(order)] == whole).all()
    for lo, hi in ((0, 1), (1, 8), (8, 25), (25, 60)):
        assert embedder.embed(events[lo:hi], features[lo:hi]).tobytes() == whole[lo:hi].tobytes()
    strided = np.asfortranarray(np.repeat(features, 2, axis=0))[::2]
    assert embedder.embed(events, strided).tobytes() == whole.tobytes()


@pytest.mark.parametrize("value", [np.nan, HUGE, -HUGE, np.inf, -np.inf, 1e-38, -0.0])
def test_any_value_is_finite(embedder: Embedder, value: float) -> None:
    event = several(1)[0].event
    vectors = embedder.embed([event], np.full((1, FEATURE_COUNT), value, np.float32))
    assert np.isfinite(vectors).all()


def test_input_is_not_changed(embedder: Embedder, sample: tuple[list[Event], F32]) -> None:
    before = sample[1].copy()
    embedder.embed(*sample)
    np.testing.assert_array_equal(sample[1], before)


def test_contributions_add_up_to_the_distance(embedder: Embedder, sample: tuple[list[Event], F32]) -> None:
    events, features = sample
    vectors = embedder.embed(events, features).astype(np.float64)
    within = 0.01 if isinstance(embedder, NeuralEmbedder) else 1e-4
    for a, b in ((1, 2), (0, 5), (7, 30)):
        parts = embedder.explain(events[a], features[a], events[b], features[b])
        sizes = [abs(part.contribution) for part in parts]
        assert sizes == sorted(sizes, reverse=True)
        apart = np.nan_to_num(embedder.asked(vectors[[a]].astype(np.float32))[0] - vectors[b])
        assert sum(p.contribution for p in parts) == pytest.approx(np.linalg.norm(apart), rel=within, abs=1e-6)
        same = embedder.explain(events[a], features[a], events[a], features[a])
        assert all(part.contribution == 0.0 for part in same)


values = st.one_of(st.just(float("nan")), st.floats(0, 1e9, width=32), st.floats(0, 1, width=32))
rows = st.lists(values, min_size=FEATURE_COUNT, max_size=FEATURE_COUNT).map(lambda v: np.array(v, np.float32))


@settings(max_examples=60)
@given(rows, rows)
def test_linear_explanations_are_exact(a: F32, b: F32) -> None:
    event = several(1)[0].event
    for space in models.LINEAR:
        embedder = shipped_linear(space)
        vectors = embedder.embed_features(np.stack((a, b))).astype(np.float64)
        parts = embedder.explain(event, a, event, b)
        distance = float(np.linalg.norm(vectors[0] - vectors[1]))
        assert sum(p.contribution for p in parts) == pytest.approx(distance, rel=1e-4, abs=1e-5)
        assert {p.feature for p in parts} == {FEATURES[c].fact for c in embedder.columns}
        for part in parts:
            assert (part.z is None) == (part.query is None or part.hit is None)


def shipped_linear(space: str) -> LinearEmbedder:
    """The linear part of what ships."""
    e = models.load(models.shipped()).embedders[space]
    assert isinstance(e, LinearEmbedder)
    return LinearEmbedder(space, e.version, e.columns.tolist(), e.center, e.scale, e.weights, e.calibration)


def test_a_fact_counts_once_and_z_is_in_robust_deviations() -> None:
    embedder = shipped_linear("attack")
    a, b = empty(2)
    for name in ("packet_length_mean", "average_packet_size"):
        a[INDEX[name]], b[INDEX[name]] = 100.0, 900.0
    event = several(1)[0].event
    (part,) = [p for p in embedder.explain(event, a, event, b) if p.contribution]
    assert part.feature == "packet_length_mean" and (part.query, part.hit) == (100.0, 900.0)
    i = INDEX["packet_length_mean"]
    assert part.z == pytest.approx((np.log1p(100) - np.log1p(900)) / embedder.scale[i], abs=1e-4)


def test_weights_on_the_grid_are_exact_in_float64() -> None:
    rng = np.random.default_rng(5)
    w = linear.on_grid(rng.normal(size=(64, 210)) * 10.0 ** rng.integers(-6, 6, (64, 210)))
    step = np.abs(w).max() * 2.0**-linear._WEIGHT_BITS
    whole = w.astype(np.float64) / 2.0 ** np.ceil(np.log2(step))
    assert (whole == np.rint(whole)).all() and np.abs(whole).max() <= 2**linear._WEIGHT_BITS
    assert linear.CLIP / linear._STEP < 2**20
    assert 20 + linear._WEIGHT_BITS + linear._INPUTS_BITS <= 53


def test_torch_is_not_imported(shipped_version: ModelSet) -> None:
    code = (
        "import sys, numpy as np; from engine.embed import models; from tests.events import several;"
        "m = models.load(models.shipped()); e = [several(1)[0].event]; f = np.ones((1, 105), np.float32);"
        "assert 'onnxruntime' not in sys.modules;"
        "[x.embed(e, f) for x in m.embedders.values()];"
        "assert not {'torch', 'transformers', 'scipy', 'sklearn'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_texts(shipped_version: ModelSet) -> None:
    """Alone or together, the same bytes; near in meaning is near in space."""
    model = TextModel()
    texts = [
        "port scan of many hosts",
        "network sweep looking for open ports",
        "a recipe for apple cake",
        "x" * 5_000,
        "",
    ]
    vectors = model.embed_texts(texts)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert all((model.embed_texts([text])[0] == vector).all() for text, vector in zip(texts, vectors, strict=True))
    assert vectors[0] @ vectors[1] > 0.4 > 0.3 > vectors[0] @ vectors[2]


def test_texts_of_two_threads_are_those_of_one(shipped_version: ModelSet) -> None:
    """A model that two threads wake at the same moment is loaded once, and gives what it gives to one."""
    loads: list[int] = []

    class Counted(TextModel):
        @cached_property
        def _loaded(self) -> tuple[Any, Any]:
            loads.append(1)
            return TextModel(self.directory)._loaded

    texts = [f"connection number {'x' * i}" for i in range(24)]
    together = Counted()
    with ThreadPoolExecutor(2) as pool:
        left, right = pool.map(together.embed_texts, (texts, texts))
    assert loads == [1]
    alone = [TextModel().embed_texts([text])[0] for text in texts[:2]]
    assert (left == right).all() and (left[:2] == alone).all()


def test_a_missing_or_damaged_text_model_says_what_to_do(tmp_path, shipped_version: ModelSet) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=r"card\.json is not there; make it with: .* -m engine\.embed\.export"):
        TextModel(tmp_path).embed_texts(["x"])
    for name in ("card.json", "model.onnx", "model.bin", "tokenizer.json"):
        (tmp_path / name).write_bytes((text_dir() / name).read_bytes())
    check(tmp_path)
    blob = bytearray((tmp_path / "model.bin").read_bytes())
    blob[1_000] ^= 1
    (tmp_path / "model.bin").write_bytes(blob)
    with pytest.raises(ModelError, match=r"model\.bin is damaged"):
        TextModel(tmp_path).embed_texts(["x"])


class FakeMemo:
    def __init__(self, stored: dict[bytes, bytes]) -> None:
        self.stored, self.asked = stored, 0

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        self.asked += len(keys)
        return [self.stored.get(key) for key in keys]


def test_memo(shipped_version: ModelSet) -> None:
    """A text runs once; what is fresh is handed over once; a stored vector is used as it is."""
    from engine.embed.text import TextEmbedder

    calibration = shipped_version.embedders["sbert"].calibration
    first = TextEmbedder("v", calibration)
    vectors = first.embed_texts(["one", "two", "one"])
    assert (vectors[0] == vectors[2]).all()
    fresh = dict(first.take_fresh())
    assert fresh == {memo_key(t): v.tobytes() for t, v in zip(("one", "two"), vectors, strict=False)}
    assert first.take_fresh() == []
    memo = FakeMemo(fresh)
    second = TextEmbedder("v", calibration, memo=memo)
    second.model = None  # type: ignore[assignment]  # would raise if it were run
    assert (second.embed_texts(["two", "one"]) == vectors[[1, 0]]).all()
    assert second.embed_texts(["one"]).shape == (1, 384) and memo.asked == 2
    assert second.take_fresh() == []


def test_many_new_texts_are_signs_of_life(shipped_version: ModelSet) -> None:
    """A batch of new texts takes seconds, in which the worker must not be taken for dead."""
    text = shipped_version.embedders["sbert"]
    assert isinstance(text, TextEmbedder)
    fresh = TextEmbedder("v", text.calibration, text.model)
    signs: list[int] = []
    fresh.alive = lambda: signs.append(1)
    fresh.embed_texts(["one", "two", "one", "three"])
    assert len(signs) == 3
    fresh.embed_texts(["one", "two"])
    assert len(signs) == 3


def test_words_that_match(shipped_version: ModelSet, sample: tuple[list[Event], F32]) -> None:
    from engine.embed.text import REST, TextEmbedder

    text = shipped_version.embedders["sbert"]
    assert isinstance(text, TextEmbedder)
    events, features = sample
    words = text.words(events[1], features[1], events[2], features[2])
    a, b = (set(text.sentence(events[i], features[i]).replace(",", "").split()) for i in (1, 2))
    assert {word for word, _ in words} <= a & b and REST not in dict(words)
    assert [w for _, w in words] == sorted((w for _, w in words), reverse=True)
