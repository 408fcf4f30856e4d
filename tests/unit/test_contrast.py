"""Networks that are trained by contrast, as ONNX: what they learn, what they promise, and which ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.embed import contrast, fit, fusion, models, reference
from engine.embed.base import F32
from engine.embed.fit import NOT_CALIBRATED
from engine.embed.linear import LinearEmbedder
from engine.embed.models import CARD, NETWORKS, Data
from engine.embed.network import SEEN_MAX, Layer, Network, graphs
from engine.embed.neural import NeuralEmbedder
from engine.embed.text import TextEmbedder
from engine.errors import ModelError
from engine.features import unpack
from ipc.event import Event
from tests.events import several

INPUTS, WIDTH = 20, 4
A, B = 92, 94  # two features, not heavy ones
DATA = Data(description="a test")

Numbers = NDArray[np.int64]
Sample = tuple[list[Event], F32]


def layers(sizes: tuple[int, ...], seed: int = 1) -> list[Layer]:
    rng = np.random.default_rng(seed)
    drawn = [(rng.normal(0, a**-0.5, (b, a)), rng.normal(0, 0.1, b)) for a, b in pairwise(sizes)]
    return [Layer(weights.astype(np.float32), bias.astype(np.float32)) for weights, bias in drawn]


def scaler() -> LinearEmbedder:
    """Leaves the values of a few features as they are."""
    n = INPUTS // 2
    nothing = np.zeros((1, INPUTS), np.float32)
    return LinearEmbedder("attack", "t", list(range(A, A + n)), np.zeros(n), np.ones(n), nothing, NOT_CALIBRATED)


def neural(space: str, features: F32, seed: int = 1) -> NeuralEmbedder:
    """Of a fitted map and a network that learned nothing."""
    flat = fit.linear(space, "t1", features, np.full(len(features), -1))
    inputs, width = 2 * len(flat.columns), fit.NETWORK_DIMS[space]
    network = Network(*graphs(layers((inputs, 32, 16, width), seed), 2.0), inputs, width)
    return NeuralEmbedder(flat, network)


@pytest.fixture(scope="module")
def sample() -> Sample:
    items = several(200)
    features = unpack([item.features for item in items])
    features[np.random.default_rng(2).random(features.shape) < 0.2] = np.nan
    return [item.event for item in items], features


@pytest.fixture(scope="module")
def chronos(sample: Sample) -> NeuralEmbedder:
    return neural("chronos", sample[1])


@pytest.fixture(scope="module")
def files(sample: Sample) -> dict[str, bytes]:
    """A whole version with networks."""
    embedders = {space: neural(space, sample[1]) for space in models.LINEAR}
    text = TextEmbedder("t1", NOT_CALIBRATED)
    return models.to_files({**embedders, "sbert": text}, fusion=fusion.EVEN, data=DATA, metrics={}, seed=1)


# what is learned


def told(n: int, seed: int) -> tuple[F32, Numbers]:
    """Events of two groups, in which A and B both say which; all other features are noise."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n)
    features = rng.normal(0, 1, (n, 105)).astype(np.float32)
    features[:, (A, B)] = (2.0 * group[:, None] - 1.0) + rng.normal(0, 0.3, (n, 2))
    return features, group


def learned(incidental: tuple[int, ...], seed: int = 3, steps: int = 100) -> Network:
    features, group = told(400, seed=1)
    trained = contrast.train(scaler(), features, group, WIDTH, seed, [(incidental, 0.5)], steps)
    return Network(*graphs(trained, 1.0), INPUTS, WIDTH)


def right(network: Network, asked: F32, group: Numbers) -> float:
    """Share of the 10 nearest that are of the group."""
    past, of = told(400, seed=1)
    rows, _ = fit.nearest(network.vectors(scaler().scaled(asked)), network.vectors(scaler().scaled(past)), 10)
    return float((of[rows] == group[:, None]).mean())


def test_what_is_alike_comes_near() -> None:
    assert right(learned(()), *told(100, seed=2)) > 0.95


def test_what_is_incidental_says_nothing() -> None:
    """Where A and B disagree, who was told that B is incidental goes by A."""
    asked, group = told(100, seed=2)
    asked[:, B] = (1.0 - 2.0 * group) + np.random.default_rng(5).normal(0, 0.3, 100)
    assert right(learned((B,)), asked, group) > 0.95
    assert right(learned((A,)), asked, group) < 0.05


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, again, other = (learned((B,), seed, steps=8) for seed in (3, 3, 4))
    assert (one.forward, one.gradient) == (again.forward, again.gradient)
    assert one.forward != other.forward and one.gradient != other.gradient


def test_a_version_is_fitted_twice_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "STEPS_MIN", 3)
    monkeypatch.setattr(contrast, "STEPS_MAX", 3)
    items, rng = several(240, src_ip="10.0.0.1", kind="flow"), np.random.default_rng(1)
    events, features = [item.event for item in items], unpack([item.features for item in items])
    for i, event in enumerate(events):  # four conversations by the clock, four not
        event.dst_ip, event.dst_port = f"192.0.2.{i % 8}", 443
        event.ts_start += round(8e9 * rng.exponential()) * (i % 2)
    order = rng.permutation(len(events))
    first = fit.fit(events, features, version="t", seed=3, data=DATA, trained=True)
    second = fit.fit([events[i] for i in order], features[order], version="t", seed=3, data=DATA, trained=True)
    assert set(first) == {*models.FILES, reference.FILE, *NETWORKS["chronos"], *NETWORKS["attack"]}
    assert first == second
    models.vetted(first)


# what a network promises


def plain(of: list[Layer], x: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """The same in numpy, in double precision."""
    x = np.clip(x, -SEEN_MAX, SEEN_MAX)
    for i, (weights, bias) in enumerate(of):
        x = x @ weights.T.astype(np.float64) + bias
        x = np.maximum(x, 0) if i < len(of) - 1 else x
    return share * x / np.linalg.norm(x, axis=1, keepdims=True)


@given(st.integers(0, 1_000))
def test_the_gradient_is_that_of_finite_differences(seed: int) -> None:
    rng, made = np.random.default_rng(seed), layers((INPUTS, 16, 8, WIDTH))
    network = Network(*graphs(made, 1.5), INPUTS, WIDTH)
    x, direction, step = rng.uniform(-3, 3, (1, INPUTS)), rng.normal(0, 1, WIDTH), 1e-6
    x = x.astype(np.float32).astype(np.float64)
    assert np.allclose(network.vectors(x), plain(made, x, 1.5), atol=1e-5)
    moved = x + step * np.eye(INPUTS), x - step * np.eye(INPUTS)
    sides = [plain(made, np.vstack((a, a)), 1.5) @ direction for a in moved]
    expected = ((sides[0] - sides[1]) / (2 * step))[:INPUTS]
    assert np.allclose(network.pulled(x, direction)[0], expected, rtol=1e-3, atol=1e-4)


@given(rows=st.integers(1, 200), first=st.integers(0, 199))
def test_any_batch_gives_the_same_bytes(chronos: NeuralEmbedder, sample: Sample, rows: int, first: int) -> None:
    part = slice(first, first + rows)
    assert chronos.embed_features(sample[1][part]).tobytes() == chronos.embed_features(sample[1])[part].tobytes()


@pytest.mark.parametrize("space", models.LINEAR)
def test_an_explanation_adds_up(space: str, sample: Sample) -> None:
    events, features = sample
    made = neural(space, features)
    vectors = made.embed(events, features).astype(np.float64)
    for i, j in np.random.default_rng(4).integers(0, len(events), (100, 2)).tolist():
        distance = float(np.linalg.norm(vectors[i] - vectors[j]))
        parts = made.explain(events[i], features[i], events[j], features[j])
        assert sum(part.contribution for part in parts) == pytest.approx(distance, rel=0.01, abs=1e-6)


# what comes from outside


def rewritten(files: dict[str, bytes], change: Callable[[onnx.ModelProto], None]) -> dict[str, bytes]:
    """The version with a changed graph, and a card that says so."""
    name = NETWORKS["attack"][0]
    model = onnx.load_model_from_string(files[name])
    change(model)
    return sealed({**files, name: model.SerializeToString()})


def sealed(files: dict[str, bytes]) -> dict[str, bytes]:
    card = msgspec.json.decode(files[CARD], type=models.Card)
    digests = {name: models.sha256(blob).hexdigest() for name, blob in files.items() if name != CARD}
    return {**files, CARD: msgspec.json.encode(msgspec.structs.replace(card, sha256=digests))}


def foreign(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Sin", ["before"], ["vectors"]))


def foreign_domain(model: onnx.ModelProto) -> None:
    model.graph.node[-1].domain = "elsewhere"


def external(model: onnx.ModelProto) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "/etc/passwd")
    model.graph.initializer[0].ClearField("raw_data")


def not_a_number(model: onnx.ModelProto) -> None:
    old = onnx.numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full_like(old, np.nan), "weights_0"))


def narrower(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def test_a_whole_version_is_taken(files: dict[str, bytes], sample: Sample) -> None:
    loaded = models.vetted(files)
    for space in models.LINEAR:
        expected = neural(space, sample[1]).embed(*sample)
        assert loaded.embedders[space].embed(*sample).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (foreign, "not of the form that ours have"),
        (foreign_domain, "not of the form that ours have"),
        (external, "keeps weights in another file"),
        (not_a_number, "not finite"),
        (narrower, "not of the form that ours have"),
        (fixed_batch, "not of the form that ours have"),
    ],
)
def test_a_network_that_is_not_ours_is_refused(
    files: dict[str, bytes], change: Callable[[onnx.ModelProto], None], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        models.vetted(rewritten(files, change))


@given(st.binary(max_size=200))
def test_garbage_is_refused(blob: bytes) -> None:
    with pytest.raises(ModelError):
        Network(blob, blob, INPUTS, WIDTH).prove()


def test_one_graph_of_two_is_refused(files: dict[str, bytes]) -> None:
    half = {name: blob for name, blob in files.items() if name != NETWORKS["attack"][1]}
    with pytest.raises(ModelError):
        models.vetted(sealed(half))
