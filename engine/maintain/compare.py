"""Two model versions on the events of a data directory: what each finds, what it costs, what a switch would take.

Always true
  - Reads only, in short read transactions: beside a running engine it takes CPU, nothing else.
  - Both are asked the same: a sampled event looks back at the sampled events before it, exactly. The same directory,
    versions and seed give the same figures, times apart.
  - An event is asked about where TOP_K events of its family came before it, so that all TOP_K could be right.

Drawn are events of known family (an analyst's label first) that have features, so that no family takes more than its
share: from the smallest up, each gets all its events, or an equal part of what is left.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.embed import models as embed_models
from engine.embed.base import F32, FUSED, ModelSet
from engine.embed.models import LINEAR, Card
from engine.errors import BadRequestError, NotFoundError
from engine.families import UNKNOWN, labelled
from engine.features import unpack
from engine.files import free_bytes
from engine.layout import Layout
from engine.search.classify import LABEL
from engine.store import switch
from engine.store.catalog import Catalog
from engine.store.cipher import Cipher
from engine.store.manifest import Manifest
from engine.store.memo import load_models
from engine.store.rebuild import rows_of
from engine.store.rows import RowMap
from ipc.event import Event

TOP_K = 10
NEAR_K = 5
FAMILY_ASKED_MIN = 10  # of a family that counts in a macro figure
TIMED_EVENTS = 1_024
QUANTILES = (0.05, 0.5, 0.95)
_READ_EVENTS = 256  # in one transaction

Numbers = NDArray[np.int64]
F64 = NDArray[np.float64]


class Sample(NamedTuple):
    """Events in order of time. families: int64 [n], numbers in `names`; ts: int64 [n]; known: how many there were."""

    events: list[Event]
    features: F32
    families: Numbers
    ts: Numbers
    names: list[str]
    known: int


class Side(NamedTuple):
    """One version. vectors: float32 [n, dim] by space; us: of CPU an event, by space."""

    models: ModelSet
    vectors: dict[str, F32]
    us: dict[str, float]


class Found(NamedTuple):
    """The neighbours of what was asked, nearest first: int64 and float64 [asked, TOP_K]."""

    rows: Numbers
    distances: F64


def directory(layout: Layout, name: str) -> Path:
    """Of a version in the data directory, one that ships, or a path (with a "/"). Raises NotFoundError."""
    homes = [] if "/" in name else [layout.models, embed_models.shipped().parent]
    for path in [Path(name).resolve()] if "/" in name else [home / name for home in homes]:
        if (path / embed_models.CARD).exists():
            return path
    known = sorted({v for home in homes for v in embed_models.versions(home)})
    raise NotFoundError(f"no model version {name!r}" + (f"; there are {', '.join(known)}" if known else " there"))


def compare(
    layout: Layout, names: tuple[str, str], internal: Sequence[str], map_size: int, count: int, seed: int,
    cipher: Cipher | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The figures, as `flowkin models compare --json` prints them. Raises NotFoundError, ModelError, BootError
    (KeyFileError without the right key), and BadRequestError where too few events are stored to compare anything."""
    paths = [directory(layout, name) for name in names]
    catalog = Catalog(layout.catalog, write=False, map_size=map_size, cipher=cipher)
    try:
        with catalog.read() as view:
            manifest = view.manifest()
        assert manifest is not None
        sample = drawn(layout, catalog, manifest, count, seed)
        loaded = [load_models(path, catalog, internal) for path in paths]
        for models, name in zip(loaded, names, strict=True):
            if "/" in name:  # it may be anybody's
                embed_models.prove(models)
        text = loaded[0].embedders["sbert"].embed(sample.events, sample.features)  # the same in all versions
        a, b = (_side(models, sample, text) for models in loaded)
        asked = _asked(sample)
        if not len(asked):
            raise BadRequestError(
                f"of {len(sample.events)} events of known family none has {TOP_K} of its family before it; label some, "
                "or ingest more"
            )
        cards = [embed_models.card_of(embed_models.read(path)) for path in paths]
        return {
            "data": {
                "generation": manifest.generation, "events": manifest.events, "known": sample.known,
                "sampled": len(sample.events), "asked": len(asked), "seed": seed, "since": int(sample.ts[0]),
                "until": int(sample.ts[-1]),
            },
            "a": _described(a, cards[0], paths[0]),
            "b": _described(b, cards[1], paths[1]),
            "spaces": _agreement(a, b, sample, asked),
            "switch": _switch(layout, catalog, manifest, b.models),
        }  # fmt: skip
    finally:
        catalog.close()


def drawn(layout: Layout, catalog: Catalog, manifest: Manifest, count: int, seed: int) -> Sample:
    """Raises CorruptionError, and OSError where the engine removed a row file meanwhile."""
    rows, first = manifest.row_file_rows, manifest.first_seq
    files = [RowMap(layout.row_file(*manifest.row_file(n)), n, rows) for n in manifest.numbers]
    columns = [file.columns[: manifest.count - file.first_seq] for file in files]
    numbers = np.concatenate([c["family"] for c in columns] or [np.empty(0, "<u2")]).astype(np.int64)
    with catalog.read() as view:
        names = list(view.names().families)
        for key, _ in view.scan("marks", prefix=LABEL):
            at = int.from_bytes(key[-8:], "big") - first
            if 0 <= at < len(numbers):
                family = labelled(key[len(LABEL) : -9].decode(), names[numbers[at]])
                if family not in names:
                    names.append(family)
                numbers[at] = names.index(family)
    numbers[numbers == names.index(UNKNOWN)] = -1
    places = _shared_out(numbers, count, np.random.default_rng(seed))
    events: list[Event] = []
    blobs: list[bytes] = []
    kept: list[int] = []
    for begin in range(0, len(places), _READ_EVENTS):
        with catalog.read() as view:
            for at in places[begin : begin + _READ_EVENTS].tolist():
                record = view.record(first + at)
                if record is not None and record.features:
                    events.append(msgspec.msgpack.decode(record.head, type=Event))
                    blobs.append(record.features)
                    kept.append(at)
    ts = np.array([e.ts for e in events], np.int64)
    order = np.lexsort((np.array(kept, np.int64), ts))
    return Sample(
        [events[i] for i in order], unpack([blobs[i] for i in order]), numbers[kept][order], ts[order], names,
        int((numbers >= 0).sum()),
    )  # fmt: skip


def _shared_out(families: Numbers, count: int, rng: np.random.Generator) -> Numbers:
    """Ascending places of at most `count` events of known family, the smallest families first and whole."""
    found, sizes = np.unique(families[families >= 0], return_counts=True)
    picked: list[Numbers] = []
    left = count
    for i, f in enumerate(np.argsort(sizes, kind="stable").tolist()):
        part = min(int(sizes[f]), left // (len(found) - i))
        picked.append(rng.choice(np.flatnonzero(families == found[f]), part, replace=False))
        left -= part
    return np.sort(np.concatenate(picked)) if picked else np.empty(0, np.int64)


def _side(models: ModelSet, sample: Sample, text: F32) -> Side:
    vectors, us = {"sbert": text}, {}
    for space in LINEAR:
        began_s = time.process_time()
        vectors[space] = models.embedders[space].embed(sample.events, sample.features)
        us[space] = round((time.process_time() - began_s) / max(1, len(sample.events)) * 1e6, 1)
    return Side(models, vectors, us)


def _asked(sample: Sample) -> Numbers:
    """Places of the events with TOP_K of their family before them."""
    out = []
    for family in np.unique(sample.families):
        places = np.flatnonzero(sample.families == family)
        earlier = np.searchsorted(sample.ts[places], sample.ts[places], "left")
        out.append(places[earlier >= TOP_K])
    return np.sort(np.concatenate(out)) if out else np.empty(0, np.int64)


def _neighbours(side: Side, sample: Sample, asked: Numbers) -> dict[str, Found]:
    """By space: chronos, attack and what the version makes of all three."""
    spaces = (*LINEAR, FUSED)
    rows = {space: np.empty((len(asked), TOP_K), np.int64) for space in spaces}
    distances = {space: np.empty((len(asked), TOP_K)) for space in spaces}
    for at, place in enumerate(asked.tolist()):
        end = int(np.searchsorted(sample.ts, sample.ts[place], "left"))
        far: dict[str, F64] = {FUSED: np.zeros(end)}
        for space, vectors in side.vectors.items():
            asked_as = side.models.embedders[space].asked(vectors[place][None, :])
            d = np.nan_to_num(vectors[:end] - asked_as)
            far[space] = np.sqrt(np.einsum("ij,ij->i", d, d)).astype(np.float64)
            percentiles = side.models.embedders[space].calibration.percentile(far[space])
            far[FUSED] += side.models.fusion[space] * percentiles
        for space in spaces:
            bound = np.partition(far[space], TOP_K - 1)[TOP_K - 1]
            near = np.flatnonzero(far[space] <= bound)
            near = near[np.lexsort((-near, far[space][near]))][:TOP_K]  # of equals the newest, in both versions
            rows[space][at], distances[space][at] = near, far[space][near]
    return {space: Found(rows[space], distances[space]) for space in spaces}


def _agreement(a: Side, b: Side, sample: Sample, asked: Numbers) -> dict[str, Any]:
    ours, theirs = _neighbours(a, sample, asked), _neighbours(b, sample, asked)
    families = sample.families[asked]
    out: dict[str, Any] = {}
    for space in ours:
        same = [sample.families[found[space].rows] == families[:, None] for found in (ours, theirs)]
        shares = {
            f"{side}_at_{k}": right[:, :k].mean(axis=1)
            for side, right in zip("ab", same, strict=True)
            for k in (NEAR_K, TOP_K)
        }
        right_a, right_b = (right.sum(axis=1) for right in same)
        shares |= {
            "overlap": (ours[space].rows[:, :, None] == theirs[space].rows[:, None, :]).any(axis=2).mean(axis=1),
            "better": right_b > right_a, "worse": right_b < right_a,
        }  # fmt: skip
        rows = []
        for family in np.unique(families).tolist():
            of = families == family
            figures = {name: round(float(values[of].mean()), 4) for name, values in shares.items()}
            rows.append({"family": sample.names[family], "asked": int(of.sum()), **figures})
        judged = [row for row in rows if row["asked"] >= FAMILY_ASKED_MIN]
        macro = {n: round(sum(row[n] for row in judged) / len(judged), 4) for n in shares} if judged else None
        out[space] = {
            "macro": macro, "families_judged": len(judged),
            "distances": {"a": _spread(a, space, ours[space]), "b": _spread(b, space, theirs[space])},
            "families": rows,
        }  # fmt: skip
    return out


def _spread(side: Side, space: str, found: Found) -> dict[str, list[float]]:
    """Quantiles of the distance to the nearest and to the TOP_K-th neighbour, and the same as percentiles among the
    version's random pairs, which two versions have in common. Fused distances are such."""
    out = {}
    for name, column in (("nearest", 0), (f"nearest_{TOP_K}", TOP_K - 1)):
        values = np.quantile(found.distances[:, column], QUANTILES)
        out[name] = [round(v, 4) for v in values.tolist()]
        if space != FUSED:
            values = side.models.embedders[space].calibration.percentile(values)
        out[f"{name}_percentile"] = [round(v, 3) for v in values.tolist()]
    return out


def _described(side: Side, card: Card, path: Path) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in path.iterdir())
    return {
        "version": card.version, "path": str(path), "created": card.created, "fitted_on": card.data.description,
        "fitted_events": card.data.events, "metrics": card.metrics, "file_bytes": size, "us_per_event": side.us,
    }  # fmt: skip


def _switch(layout: Layout, catalog: Catalog, manifest: Manifest, models: ModelSet) -> dict[str, Any] | None:
    """What `models use` of that version would take now; None where it is in use. seconds: to embed, at the speed of the
    newest events, here and now, indexes not included."""
    if manifest.model == models.version:
        return None
    to = switch.target(layout, manifest, models.version)
    lo, hi = max(manifest.first_seq, manifest.count - TIMED_EVENTS), manifest.count
    began_s = time.perf_counter()
    rows_of(catalog, models, lo, hi)
    each_s = (time.perf_counter() - began_s) / (hi - lo)
    events = manifest.count - to.count
    return {
        "version": models.version, "events": events, "disk_bytes": switch.needed_bytes(manifest, to),
        "free_bytes": free_bytes(layout.rows), "us_per_event": round(each_s * 1e6, 1),
        "seconds": round(each_s * events, 3),
    }  # fmt: skip
