"""A model version on disk: a directory <version>/ of chronos.safetensors, attack.safetensors and card.json, for a
trained space <space>.onnx and <space>.gradient.onnx, and reference.safetensors where it was made with one.

Always true
  - A file is used only after its bytes agreed with the card's sha256, and the card with this code: version name,
    features, wording, text model, dimensions, calibration. Otherwise ModelError says which and why.
  - A version's directory appears whole (written beside it, synced, then renamed) and never changes again.
  - Nothing is unpickled: safetensors, JSON, and ONNX graphs of our own operators (engine/embed/network.py), checked
    before a version is stored.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as bytes_of

from engine.config import CIDRS_INTERNAL
from engine.embed import reference
from engine.embed.base import DIMS, NEAREST_QUANTILES, QUANTILES, SPACES, Calibration, Embedder, ModelSet
from engine.embed.linear import LinearEmbedder
from engine.embed.nested import NestedEmbedder
from engine.embed.network import Network
from engine.embed.neural import NeuralEmbedder
from engine.embed.reference import Reference
from engine.embed.sentence import WORDING
from engine.embed.text import EXPORT, PACKAGE, WEIGHTS_SHA256, TextEmbedder
from engine.errors import ModelError
from engine.features import INDEX, NAMES
from engine.limits import FEATURES_VERSION
from ipc.event import Share
from ipc.messages import FRAME_BYTES_MAX

LINEAR = ("chronos", "attack")
CARD = "card.json"
FILES = (*(f"{space}.safetensors" for space in LINEAR), CARD)  # of every version
NETWORKS = {space: (f"{space}.onnx", f"{space}.gradient.onnx") for space in LINEAR}  # of a trained space
OPTIONAL = (*(name for names in NETWORKS.values() for name in names), reference.FILE)
KNOWN = (*FILES, *OPTIONAL)
FILE_BYTES_MAX = 1 << 20
VERSION_BYTES_MAX = FRAME_BYTES_MAX - (1 << 16)  # of all files together: they cross the socket in one frame
SCRATCH_PREFIX = ".model-"  # of a directory that is not whole yet

_VERSION = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class SpaceCard(Struct, frozen=True, kw_only=True):
    """One space. All but dim and metric: as in Calibration."""

    dim: int
    metric: str
    pair_quantiles: Annotated[list[float], Meta(min_length=QUANTILES, max_length=QUANTILES)]
    precedent_bound: Annotated[float, Meta(ge=0)]
    false_alarm: Annotated[float, Meta(ge=0, le=1)]
    nearest_quantiles: Annotated[list[float], Meta(max_length=NEAREST_QUANTILES)] = []
    certainty: Annotated[list[tuple[Share, Share]], Meta(max_length=64)] = []


class TextRef(Struct, frozen=True, kw_only=True):
    package: str = PACKAGE
    weights_sha256: str = WEIGHTS_SHA256
    export: int = EXPORT
    wording: int = WORDING


class DataFile(Struct, frozen=True):
    """A file that taught. path: from the name of the file or directory that was given, on."""

    path: str
    sha256: str
    bytes: int


class Data(Struct, frozen=True, kw_only=True):
    """What a version was fitted on. sha256: by name, in cards from before there were `files`."""

    description: str
    events: int = 0
    families: dict[str, int] = {}
    files: list[DataFile] = []
    sha256: dict[str, str] = {}


class Card(Struct, frozen=True, kw_only=True):
    """card.json. features: the columns by name, for each linear space. sha256: of each other file."""

    version: str
    created: str
    features_version: int
    seed: int
    spaces: dict[str, SpaceCard]
    features: dict[str, list[str]]
    fusion: dict[str, Annotated[float, Meta(ge=0, le=1)]]
    data: Data
    metrics: dict[str, float]
    text_model: TextRef
    sha256: dict[str, str]


def valid_version(name: str) -> bool:
    """May a version be called that? Names are directories, so they are confined."""
    return _VERSION.fullmatch(name) is not None


def versions(home: Path) -> list[str]:
    """The versions whose directories are in `home`, by name; none where it is missing."""
    return sorted(path.parent.name for path in home.glob(f"*/{CARD}") if valid_version(path.parent.name))


def shipped() -> Path:
    """The version that comes with the package, the newest by the numbers in its name: v10 is newer than v9. Raises
    ModelError where there is none."""
    home = Path(__file__).parent / "shipped"
    found = versions(home)
    if not found:
        raise ModelError(f"no model version ships in {home}; make one with: python -m engine.embed.ship")
    return home / sorted(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])[-1]


def load(path: Path, internal: Sequence[str] = CIDRS_INTERNAL) -> ModelSet:
    """The model version in directory `path`. internal: the networks that its sentences call so, CIDR.

    Raises ModelError naming what is missing or damaged.
    """
    models = from_files(read(path), internal)
    if models.version != path.name:
        raise ModelError(f"model {path}: the card says version {models.version!r}; rename the directory to that")
    return models


def read(path: Path) -> dict[str, bytes]:
    """The files of the version in directory `path`, by name, not checked. Raises ModelError where one is missing, too
    large, or anything but a plain file."""
    return {name: _read(path, name) for name in (*FILES, *(name for name in OPTIONAL if os.path.lexists(path / name)))}


def read_card(path: Path) -> bytes:
    """The card of the version in directory `path`, not checked. Raises ModelError as `read` does."""
    return _read(path, CARD)


def card_sha256(path: Path) -> bytes:
    """Of the card of the version in directory `path`. Raises ModelError."""
    return sha256(read_card(path)).digest()


def _read(path: Path, name: str) -> bytes:
    """A directory may come from anybody: no link is followed, and no pipe waited for."""
    try:
        fd = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise ModelError(f"model {path}: {name} is not a plain file")
            if found.st_size > FILE_BYTES_MAX:
                raise ModelError(f"model {path}: {name} has {found.st_size} bytes, at most {FILE_BYTES_MAX} are read")
            return os.read(fd, FILE_BYTES_MAX)
        finally:
            os.close(fd)
    except OSError as e:
        what = "is a link, not a plain file" if e.errno == errno.ELOOP else f"cannot be read: {e.strerror}"
        raise ModelError(f"model {path}: {name} {what}") from e


def from_files(files: Mapping[str, bytes], internal: Sequence[str] = CIDRS_INTERNAL) -> ModelSet:
    """The model version made of these files, by name. Raises ModelError naming what is missing or damaged."""
    card = card_of(files)
    embedders: dict[str, Embedder] = {}
    for space in SPACES:
        of = card.spaces[space]
        calibration = Calibration(
            np.array(of.pair_quantiles), of.precedent_bound, of.false_alarm, np.array(of.nearest_quantiles),
            np.array(of.certainty).reshape(-1, 2),
        )  # fmt: skip
        if space in LINEAR:
            embedders[space] = _embedder(space, card, files, calibration)
        else:
            embedders[space] = TextEmbedder(card.version, calibration, internal=internal)
    if reference.FILE in files:
        reference.from_bytes(files[reference.FILE])
    digests = {**card.sha256, CARD: sha256(files[CARD]).hexdigest()}
    return ModelSet(card.version, embedders, dict(card.fusion), digests)


def card_of(files: Mapping[str, bytes]) -> Card:
    """The checked card of a version's files. Raises ModelError."""
    optional = {name for names in NETWORKS.values() if set(names) <= set(files) for name in names} | {reference.FILE}
    if set(files) - optional != set(FILES):
        raise ModelError(
            f"a model version is {', '.join(FILES)}, for a trained space two .onnx files, and {reference.FILE} or not; "
            f"these are {', '.join(sorted(files))[:400] or 'none'}"
        )
    if large := next((name for name, blob in files.items() if len(blob) > FILE_BYTES_MAX), None):
        raise ModelError(f"model file {large} is larger than {FILE_BYTES_MAX} bytes")
    if (size := sum(map(len, files.values()))) > VERSION_BYTES_MAX:
        raise ModelError(f"a model version has at most {VERSION_BYTES_MAX} bytes, these files have {size}")
    try:
        card = msgspec.json.decode(files[CARD], type=Card)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ModelError(f"model {CARD} is damaged: {e}") from e
    if not valid_version(card.version):
        raise ModelError(f"model version {card.version[:80]!r}: lower-case letters, digits, '.', '_', '-', at most 64")
    if missing := sorted(set(card.sha256) - set(files)):
        raise ModelError(f"model {card.version}: {missing[0][:80]} is missing")
    for name, blob in files.items():
        if name != CARD and sha256(blob).hexdigest() != card.sha256.get(name):
            raise ModelError(f"model {card.version}: {name} is damaged: its sha256 is not the card's")
    if card.features_version != FEATURES_VERSION:
        raise ModelError(f"model {card.version} is for features {card.features_version}, this is {FEATURES_VERSION}")
    if card.text_model != TextRef():
        raise ModelError(f"model {card.version} is for another text model or wording: {card.text_model}; fit a new one")
    for what, table in (("spaces", card.spaces), ("fusion weights", card.fusion)):
        if set(table) != set(SPACES):
            raise ModelError(f"model {card.version}: {what} must be for {', '.join(SPACES)}")
    if abs(sum(card.fusion.values()) - 1.0) > 1e-6:
        raise ModelError(f"model {card.version}: the fusion weights add up to {sum(card.fusion.values())}, not to 1")
    for space, of in card.spaces.items():
        if (of.dim, of.metric) != (DIMS[space], "l2"):
            raise ModelError(f"model {card.version}: {space} is {of.dim} {of.metric}, not {DIMS[space]} l2")
        if of.pair_quantiles != sorted(of.pair_quantiles):
            raise ModelError(f"model {card.version}: the pair quantiles of {space} are not in order")
        nearest = of.nearest_quantiles
        if nearest != sorted(nearest) or len(nearest) not in (0, NEAREST_QUANTILES):
            raise ModelError(f"model {card.version}: the nearest quantiles of {space} are not in order, or too few")
        if any(b[0] <= a[0] or b[1] < a[1] for a, b in pairwise(of.certainty)):
            raise ModelError(f"model {card.version}: the certainty of {space} does not ascend")
    return card


def check_card(models: ModelSet, known: bytes) -> None:
    """Is it the card that came with the version? known: its sha256; empty where nobody knows. Raises ModelError."""
    if known and models.sha256[CARD] != known.hex():
        raise ModelError(f"model {models.version}: {CARD} is damaged: its sha256 is not what it was")


def ships(version: str, known: bytes) -> dict[str, bytes]:
    """The files of a version as they come with the package; none where it does not, or with another card."""
    path = Path(__file__).parent / "shipped" / version
    if not valid_version(version) or not path.is_dir():
        return {}
    files = read(path)
    return files if not known or sha256(files[CARD]).digest() == known else {}


def reference_of(path: Path) -> Reference | None:
    """What the version in directory `path` was trained on looked like; None where it was made without. Raises
    ModelError."""
    files = read(path)
    card_of(files)
    return reference.from_bytes(files[reference.FILE]) if reference.FILE in files else None


def _embedder(space: str, card: Card, files: Mapping[str, bytes], calibration: Calibration) -> LinearEmbedder:
    name = f"{space}.safetensors"
    try:
        tensors = tensors_of(files[name])
        columns = [INDEX[column] for column in card.features[space]]
        parts = tensors["center"], tensors["scale"], tensors["weights"]
        embedder = LinearEmbedder(space, card.version, columns, *parts, calibration)
        if NETWORKS[space][0] in files:
            forward, gradient = (files[graph] for graph in NETWORKS[space])
            levels = tensors.get("levels")  # of a nested space: the rows of its first level, and the radius
            width = DIMS[space] - embedder.dim - (levels is not None)
            network = Network(forward, gradient, 2 * len(columns), width)
            if levels is None:
                embedder = NeuralEmbedder(embedder, network)
            else:
                embedder = NestedEmbedder(embedder, network, int(levels[0]), float(levels[1]))
    except (SafetensorError, IndexError, KeyError, TypeError, ValueError, OverflowError) as e:
        raise ModelError(f"model {card.version}: {name} is not such a model: {e}") from e
    if embedder.dim != DIMS[space]:
        raise ModelError(f"model {card.version}: {space} has {embedder.dim} dimensions, not {DIMS[space]}")
    return embedder


def vetted(files: Mapping[str, bytes]) -> ModelSet:
    """The model version made of files that came from outside: its networks are looked through and tried, too. Raises
    ModelError."""
    models = from_files(files)
    prove(models)
    return models


def prove(models: ModelSet) -> None:
    """Look through the networks of a version that came from outside, before anything else runs them. Raises
    ModelError."""
    for embedder in models.embedders.values():
        if isinstance(embedder, NeuralEmbedder):
            embedder.network.prove()


def to_files(
    embedders: Mapping[str, Embedder],
    *,
    fusion: Mapping[str, float],
    data: Data,
    metrics: Mapping[str, float],
    seed: int,
    created: str = "",
    trained_on: Reference | None = None,
) -> dict[str, bytes]:
    """The files of a version. The same models give the same bytes. Raises ModelError where they would not load."""
    version = embedders["attack"].version
    files: dict[str, bytes] = {}
    features: dict[str, list[str]] = {}
    for space in LINEAR:
        linear = embedders[space]
        assert isinstance(linear, LinearEmbedder)
        features[space] = [NAMES[c] for c in linear.columns]
        parts = {"center": linear.center, "scale": linear.scale, "weights": linear.weights}
        if isinstance(linear, NestedEmbedder):
            parts["levels"] = np.array([linear.common, linear.radius])
        files[f"{space}.safetensors"] = bytes_of({name: np.ascontiguousarray(part) for name, part in parts.items()})
        if isinstance(linear, NeuralEmbedder):
            files |= dict(zip(NETWORKS[space], (linear.network.forward, linear.network.gradient), strict=True))
    if trained_on is not None:
        files[reference.FILE] = reference.to_bytes(trained_on)
    card = Card(
        version=version,
        created=created,
        features_version=FEATURES_VERSION,
        seed=seed,
        spaces={
            space: SpaceCard(
                dim=e.dim,
                metric=e.metric,
                pair_quantiles=_rounded(e.calibration.pair_quantiles),
                precedent_bound=_rounded([e.calibration.precedent_bound])[0],
                false_alarm=e.calibration.false_alarm,
                nearest_quantiles=_rounded(e.calibration.nearest_quantiles),
                certainty=[(share, right) for share, right in map(_rounded, e.calibration.certainty)],
            )
            for space, e in embedders.items()
        },
        features=features,
        fusion=dict(fusion),
        data=data,
        metrics=dict(metrics),
        text_model=TextRef(),
        sha256={name: sha256(blob).hexdigest() for name, blob in files.items()},
    )
    files[CARD] = msgspec.json.encode(card)
    from_files(files)
    return files


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.7g}") for value in values]


def save(directory: Path, files: Mapping[str, bytes]) -> Path:
    """Write a version's files as directory/<version> and return that path. Raises ModelError where it is there already
    with other content, or would not load; OSError."""
    version = card_of(files).version
    from_files(files)
    path = directory / version
    if path.exists():
        if read(path) == files:
            return path
        raise ModelError(f"model version {version} exists in {directory} with other content; choose another name")
    scratch = Path(tempfile.mkdtemp(dir=directory, prefix=SCRATCH_PREFIX))
    try:
        for name, blob in files.items():
            with (scratch / name).open("wb") as f:
                f.write(blob)
                f.flush()
                os.fsync(f.fileno())
        _sync(scratch)
        scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    _sync(directory)
    return path


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
