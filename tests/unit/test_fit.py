"""Fitting, and model versions on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.embed import fit as fitting
from engine.embed import models
from engine.embed.base import DIMS, F32, SPACES
from engine.embed.certainty import Seen
from engine.embed.fusion import EVEN
from engine.embed.models import CARD, FILES, Data
from engine.errors import ModelError
from engine.features import unpack
from ipc.event import Event
from ipc.messages import FRAME_BYTES_MAX, AddModel, encode
from tests.events import several
from tests.unit.test_embed import shipped_version  # noqa: F401  (a fixture: it makes the text model if it is missing)

pytestmark = pytest.mark.usefixtures("shipped_version")
DATA = Data(description="a test", sha256={"x": "0" * 64})


def labelled(n: int) -> tuple[list[Event], F32]:
    items = several(n)
    return [item.event for item in items], unpack([item.features for item in items])


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    return fitting.fit(*labelled(400), version="t1", seed=3, data=DATA)


def test_the_same_events_and_seed_give_the_same_bytes(files: dict[str, bytes]) -> None:
    assert fitting.fit(*labelled(400), version="t1", seed=3, data=DATA) == files
    other = fitting.fit(*labelled(400), version="t1", seed=4, data=DATA)
    assert other[CARD] != files[CARD]


def test_the_order_of_arrival_does_not_matter(files: dict[str, bytes]) -> None:
    events, features = labelled(400)
    order = np.random.default_rng(1).permutation(400)
    assert fitting.fit([events[i] for i in order], features[order], version="t1", seed=3, data=DATA) == files


def test_fitted_families_lie_apart(files: dict[str, bytes]) -> None:
    version = models.from_files(files)
    events, features = labelled(400)
    families, _ = fitting.family_numbers(events)
    for space, share in (("chronos", 0.8), ("attack", 0.95)):
        vectors = version.embedders[space].embed(events, features)
        rows, _ = fitting.nearest(vectors[300:], vectors[:300], 10)
        assert (families[rows] == families[300:, None]).mean() > share
    card = models.card_of(files)
    assert card.metrics["attack.held_out_same_family_at_10"] > 0.95
    assert card.data.events == 400 and sum(card.data.families.values()) == 400
    for calibration in (e.calibration for e in version.embedders.values()):
        assert (np.diff(calibration.pair_quantiles) >= 0).all() and calibration.precedent_bound > 0
        assert calibration.percentile(np.array([0.0, 1e9])).tolist() == [0.0, 100.0]


@pytest.mark.parametrize("family", ["DDoS", "", "Unknown"])
def test_one_family_or_none(family: str) -> None:
    events, features = labelled(150)
    for event in events:
        event.family = family
    version = models.from_files(fitting.fit(events, features, version="one", seed=1, data=DATA))
    vectors = version.embedders["attack"].embed(events, features)
    assert np.isfinite(vectors).all() and vectors.std(axis=0).max() > 0


def test_constant_and_missing_features() -> None:
    events, features = labelled(150)
    features[:, :50], features[:, 60:] = np.nan, 7.0
    version = models.from_files(fitting.fit(events, features, version="flat", seed=1, data=DATA))
    assert all(np.isfinite(version.embedders[s].embed(events, features)).all() for s in models.LINEAR)


def test_too_little_to_fit_on() -> None:
    events, features = labelled(120)
    with pytest.raises(ModelError, match="99 events are too few"):
        fitting.fit(events[:99], features[:99], version="t", seed=1, data=DATA)
    with pytest.raises(ModelError, match="do not belong"):
        fitting.fit(events, features[:, :10], version="t", seed=1, data=DATA)
    with pytest.raises(ModelError, match="nothing to fit on"):
        fitting.fit(events, np.full_like(features, np.nan), version="t", seed=1, data=DATA)
    with pytest.raises(ModelError, match=r"model version '\.\./x'"):
        fitting.fit(events, features, version="../x", seed=1, data=DATA)


def test_facts_and_columns() -> None:
    assert len(fitting.attack_columns()) == 105
    chronos = fitting.chronos_columns()
    assert len(chronos) == len(set(chronos)) and 2 * len(chronos) >= DIMS["chronos"]
    weights = fitting.input_weights(fitting.attack_columns())
    assert weights[60] == weights[21] == weights[88] == pytest.approx(1 / np.sqrt(3))


def test_save_and_load(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = models.save(tmp_path, files)
    assert path == tmp_path / "t1" and models.versions(tmp_path) == ["t1"]
    assert models.save(tmp_path, files) == path  # again: nothing to do
    loaded, direct = models.load(path), models.from_files(files)
    assert loaded.version == "t1" and loaded.sha256 == direct.sha256 and set(loaded.embedders) == set(SPACES)
    assert sum(loaded.fusion.values()) == pytest.approx(1)
    events, features = labelled(50)
    for space in models.LINEAR:
        a, b = (m.embedders[space].embed(events, features) for m in (loaded, direct))
        assert a.tobytes() == b.tobytes()
    other = fitting.fit(*labelled(200), version="t1", seed=9, data=DATA)
    with pytest.raises(ModelError, match=r"exists .* with other content"):
        models.save(tmp_path, other)
    assert [p.name for p in tmp_path.iterdir()] == ["t1"]


@pytest.mark.parametrize("name", FILES)
def test_damage_is_named(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    path = models.save(tmp_path, files)
    for at in (0, len(files[name]) // 2, len(files[name]) - 1):
        blob = bytearray(files[name])
        blob[at] ^= 0xFF
        (path / name).write_bytes(blob)
        with pytest.raises(ModelError, match=name):
            models.load(path)
    (path / name).write_bytes(files[name][:-9])
    with pytest.raises(ModelError, match=name):
        models.load(path)
    (path / name).unlink()
    with pytest.raises(ModelError, match=f"{name} cannot be read"):
        models.load(path)


def changed(files: dict[str, bytes], change: Callable[[dict[str, object]], object]) -> dict[str, bytes]:
    card = msgspec.json.decode(files[CARD])
    change(card)
    return files | {CARD: msgspec.json.encode(card)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(features_version=99), "features 99"),
        (lambda c: c.update(version="../../x"), "lower-case"),
        (lambda c: c["text_model"].update(wording=99), "another text model"),
        (lambda c: c["fusion"].update(attack=0.9), "add up"),
        (lambda c: c["fusion"].pop("attack"), "fusion weights must be for"),
        (lambda c: c["spaces"].pop("sbert"), "spaces must be for"),
        (lambda c: c["spaces"]["attack"].update(dim=65), "not 64"),
        (lambda c: c["spaces"]["attack"]["pair_quantiles"].reverse(), "not in order"),
        (lambda c: c["spaces"]["attack"]["nearest_quantiles"].reverse(), "nearest quantiles of attack"),
        (lambda c: c["spaces"]["attack"]["nearest_quantiles"].pop(), "nearest quantiles of attack"),
        (lambda c: c["spaces"]["attack"]["certainty"].reverse(), "certainty of attack"),
        (lambda c: c["spaces"]["attack"]["certainty"].append([0.5, 1.5]), r"card.json .*certainty"),
        (lambda c: c["features"].update(attack=["nonsense"]), "not such a model"),
        (lambda c: c["features"].update(attack=c["features"]["chronos"]), "not such a model"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(files: dict[str, bytes], change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=message):
        models.from_files(changed(files, change))


def test_what_is_fitted_is_calibrated_and_survives_the_card(files: dict[str, bytes]) -> None:
    for space, embedder in models.from_files(files).embedders.items():
        calibration = embedder.calibration
        assert len(calibration.nearest_quantiles) == 101 and len(calibration.certainty) > 1, space
        bound = calibration.precedent_bound
        assert calibration.novelty(bound) <= 0.95 < calibration.novelty(bound * 1.01)
    assert models.from_files(files).embedders["attack"].calibration.probability(1.0) > 0.9


def test_a_card_made_before_votes_were_measured_still_loads(files: dict[str, bytes]) -> None:
    def without(card: dict[str, object]) -> None:
        for space in card["spaces"].values():  # type: ignore[attr-defined]
            del space["nearest_quantiles"], space["certainty"]

    old = models.from_files(changed(files, without)).embedders["attack"].calibration
    assert old.probability(0.7) == 0.7
    assert old.novelty(old.precedent_bound) <= 0.95 < old.novelty(old.precedent_bound * 1.01)


def test_other_files_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(ModelError, match="these are"):
        models.from_files({name: files[name] for name in FILES[1:]})
    with pytest.raises(ModelError, match="larger than"):
        models.from_files(files | {FILES[0]: b"x" * (models.FILE_BYTES_MAX + 1)})


def test_families_too_small_to_hold_anything_out_are_fitted() -> None:
    items = several(120)
    for i, item in enumerate(items):
        item.event.family = f"family-{i % 60}"
    events = [item.event for item in items]
    features = unpack([item.features for item in items])
    files = fitting.fit(events, features, version="small", seed=1, data=Data(description="small"))
    assert models.from_files(files).version == "small"


@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_spaces_count_the_same_where_hardly_anything_came_before(earlier: int) -> None:
    events, features = labelled(20)
    families, out = np.zeros(20, np.int64), np.arange(20) >= earlier
    vectors = features[:, :8]
    seen = dict.fromkeys(SPACES, Seen(vectors, vectors))
    fused = fitting.mixed(seen, events, families, out, seed=1)
    assert fused.weights == EVEN and fused.shares == {}


def test_the_newest_version_ships_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "__file__", str(tmp_path / "models.py"))
    for name in ("v4", "v9", "v10", "v10-b", "v2026.9", "v2026.10"):
        (tmp_path / "shipped" / name).mkdir(parents=True)
        (tmp_path / "shipped" / name / CARD).touch()
        assert models.shipped().name == name


def test_what_ships() -> None:
    path = models.shipped()
    files = models.read(path)
    card = models.card_of(files)
    assert models.vetted(files).version == card.version == path.name
    assert sum(map(len, files.values())) < 10_000_000
    assert {"attack.onnx", "attack.gradient.onnx", "chronos.onnx", "chronos.gradient.onnx"} <= card.sha256.keys()
    taught = {file.path for file in card.data.files} | set(card.data.sha256)
    assert taught == {"lab.pcap.gz", "eve.json.gz", "labels.ndjson"}
    assert all(models.valid_version(v) for v in ("v1", "2026.1-a_b")) and not models.valid_version("A/../b")


# ---- a directory from anybody ---------------------------------------------------------------------------------------


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swell(path: Path) -> None:
    os.truncate(path, models.FILE_BYTES_MAX + 1)


@pytest.mark.parametrize("name", ["card.json", "attack.safetensors", "chronos.onnx"])
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (link, "is a link, not a plain file"), (dangle, "is a link, not a plain file"), (pipe, "is not a plain file"),
        (folder, "is not a plain file"), (swell, f"has {models.FILE_BYTES_MAX + 1} bytes, at most"),
    ],
)  # fmt: skip
def test_only_plain_files_of_a_bounded_size_are_read(
    tmp_path: Path, harm: Callable[[Path], None], said: str, name: str
) -> None:
    """Without waiting: nobody writes into that pipe."""
    path = tmp_path / models.shipped().name
    shutil.copytree(models.shipped(), path)
    harm(path / name)
    with pytest.raises(ModelError, match=f"{name} {said}"):
        models.load(path)


def test_a_version_that_no_frame_holds_is_refused_by_its_size(files: dict[str, bytes]) -> None:
    more = {name: bytes(models.FILE_BYTES_MAX) for names in models.NETWORKS.values() for name in names}
    with pytest.raises(ModelError, match=f"at most {models.VERSION_BYTES_MAX} bytes, these files have"):
        models.card_of(files | more)
    largest = {str(n) * 64: bytes(models.VERSION_BYTES_MAX // 8) for n in range(8)}
    assert len(encode(AddModel(2**53 - 1, "v" * 64, largest))) <= FRAME_BYTES_MAX
