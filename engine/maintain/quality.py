"""Measure a generation: what its indexes find, what its neighbours are, how far its events left the training data.

Always true
  - It only reads: one generation of one directory, whether an engine runs on it or not.
  - The same generation, window, sample and seed give the same figures.
  - What is called exact is compared with every stored row. That is what it costs: twice `sample` times all vectors.
  - Figures are of the last `window` events, `sample` of them where neighbours are looked up. Where the model has no
    reference, drift is not measured, and that is said.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.embed import models as embed_models
from engine.embed.base import BEHAVIOUR, SPACES, Calibration, ModelSet
from engine.embed.certainty import FETCH, parts_of
from engine.embed.reference import Reference
from engine.embed.vote import VOTERS, places, within
from engine.errors import CorruptionError, NotReadyError
from engine.features import NAMES
from engine.layout import Layout
from engine.limits import KNOWN_MIN
from engine.maintain.drift import Shift, shifts
from engine.maintain.gauges import FeatureDrift, Measured, SpaceFigures
from engine.search.classify import Classifying
from engine.search.snapshot import Candidates, Seqs, Snapshot
from engine.store.catalog import Catalog, View
from engine.store.counters import Counters
from engine.store.index import MappedIndex
from engine.store.manifest import IndexFile
from engine.store.rows import RowMap
from engine.upgrade import Gauge

TOP = 10
SAME = 1e-6  # relative: an index ranks in float32, so whoever is as near as the tenth belongs there
FAMILY_MIN = 5  # events of a family in the window; of fewer its neighbours say little
WHY_NOT = {"same_family_at_5": f"fewer than two known families have {FAMILY_MIN} events"}
OPEN_TRIES = 3  # a file may be replaced between the reading of its name and its opening

Numbers = NDArray[np.int64]


class Subject(NamedTuple):
    """What is measured. exact: the same generation without its indexes. families: number of each event's family from
    first_seq on, as an analyst or its detector said, 0 where nobody knows."""

    live: Snapshot
    exact: Snapshot
    families: Numbers
    counters: Counters
    models: ModelSet
    reference: Reference | None


def measure(layout: Layout, catalog: Catalog, *, window: int, sample: int, seed: int) -> Measured:
    """Of the newest generation. Raises NotReadyError, ModelError, CorruptionError, OSError."""
    start, cpu_start = time.monotonic(), time.process_time()
    subject = _opened(layout, catalog)
    live, count = subject.live, subject.live.count
    seqs = np.array(live.some(max(live.first_seq, count - window), window), np.int64)
    rng = np.random.default_rng(seed)
    asked = np.sort(rng.choice(seqs, min(sample, len(seqs)), replace=False))
    behaved = asked[live.column("coverage", asked) >= KNOWN_MIN]  # of the others nothing is answered in these spaces
    drift, unmeasured = _drift(subject, seqs)
    spaces = {
        space: _space(subject, space, behaved if space in BEHAVIOUR else asked, drift.spaces.get(space, []))
        for space in SPACES
    }
    recalls = [s.recall_at_10 for s in spaces.values() if s.recall_at_10 is not None]
    attack = spaces["attack"]
    gauges = {
        "recall_at_10": Gauge(min(recalls, default=None), len(asked)),
        "same_family_at_5": _same_family(subject, seqs, sample, rng),
        "duplicate_share": _sent_again(subject.counters),
        "near_duplicate_share": Gauge(attack.near_duplicate_share, len(behaved)),
        "novel_share": Gauge(attack.novel_share, len(behaved)),
        **{f"psi_{space}": Gauge(s.psi_mean, len(seqs)) for space, s in spaces.items()},
        **drift.gauges,
    }
    for metric, gauge in gauges.items():
        if gauge.value is None:
            gauges[metric] = Gauge(None, 0)
            unmeasured.setdefault(metric, WHY_NOT.get(metric, "too few events"))
    return Measured(
        measured_at=time.time_ns(), seconds=round(time.monotonic() - start, 3),
        cpu_s=round(time.process_time() - cpu_start, 3), generation=live.generation, events=live.events,
        model=subject.models.version, window=len(seqs), sample=len(asked), seed=seed, gauges=gauges, spaces=spaces,
        drift=drift.features, unmeasured=unmeasured,
    )  # fmt: skip


# ---- what is measured ---------------------------------------------------------------------------------------------
def _opened(layout: Layout, catalog: Catalog) -> Subject:
    for _ in range(OPEN_TRIES - 1):
        with contextlib.suppress(FileNotFoundError), catalog.read() as view:
            return _subject(layout, view)
    with catalog.read() as view:
        return _subject(layout, view)


def _subject(layout: Layout, view: View) -> Subject:
    manifest = view.manifest()
    if manifest is None:
        raise NotReadyError("the data directory is not born yet; try again")
    names, rows = view.names(), manifest.row_file_rows
    files = [RowMap(layout.row_file(*manifest.row_file(n)), n, rows) for n in manifest.numbers]
    live = Snapshot(manifest, names, files, dict(_indexes(layout, manifest.indexes)))
    path = layout.model(manifest.model)
    models, reference = embed_models.load(path), embed_models.reference_of(path)
    families = np.concatenate([c["family"] for _, c in live.columns()] or [np.empty(0)]).astype(np.int64)
    number = {name: i for i, name in enumerate(names.families)}
    for seq, family in Classifying(live, models, view).labels.items():
        families[seq - live.first_seq] = number.setdefault(family, len(number))
    return Subject(live, Snapshot(manifest, names, files, {}), families, view.counters(), models, reference)


def _indexes(layout: Layout, named: Sequence[IndexFile]) -> Iterator[tuple[IndexFile, MappedIndex]]:
    """Those that can be opened; rows of the others are searched exactly, as a reader does it."""
    for file in named:
        try:
            path = layout.index_file(file.file)
            yield file, MappedIndex(path, file.size, file.checksum, file.lo, file.hi, file.nprobe)
        except (OSError, CorruptionError):
            continue


# ---- neighbours ---------------------------------------------------------------------------------------------------
def _space(subject: Subject, space: str, asked: Seqs, drift: Sequence[Shift]) -> SpaceFigures:
    calibration = subject.models.embedders[space].calibration
    found, near, novel = _neighbours(subject, space, asked, calibration)
    known = [s.psi for s in drift if s.psi is not None]
    chances = [s.p for s in drift if s.p is not None]
    return SpaceFigures(
        recall_at_10=found, indexed=subject.live.events - subject.live.unindexed(space), near_duplicate_share=near,
        novel_share=novel, psi_mean=float(np.mean(known)) if known else None, psi_max=max(known, default=None),
        psi_p=min(1.0, min(chances) * len(chances)) if chances else None,
    )  # fmt: skip


def _neighbours(
    subject: Subject, space: str, asked: Seqs, calibration: Calibration
) -> tuple[float | None, float | None, float | None]:
    """(recall@10, share in one place with another event, share beyond the precedent bound) of these events."""
    k = min(TOP, subject.live.events - 1)
    if k < 1 or not len(asked):
        return None, None, None
    queries = subject.models.embedders[space].asked(subject.exact.vectors(space, asked))
    exact = _others(asked, subject.exact.search(space, queries, k + 1), k)
    # one at a time, as questions come: a batch is searched exactly where an index fails one of it
    live = _others(asked, [subject.live.search(space, query[None, :], k + 1)[0] for query in queries], k)
    pairs = [(true, got) for true, got in zip(exact, live, strict=True) if len(true)]  # a damaged row is near nothing
    if not pairs:
        return None, None, None
    shares = [(got <= true[-1] * (1 + SAME) + 1e-9).sum() / k for true, got in pairs]
    nearest = np.array([true[0] for true, _ in pairs])
    near, novel = nearest <= within(calibration), nearest > calibration.precedent_bound
    return float(np.mean(shares)), float(near.mean()), float(novel.mean())


def _others(asked: Seqs, found: Sequence[Candidates], k: int) -> list[NDArray[np.float64]]:
    """Distances of the k nearest other events, ascending, of each event."""
    return [c.distances[c.seqs != seq][:k] for seq, c in zip(asked, found, strict=True)]


def _same_family(subject: Subject, seqs: Seqs, sample: int, rng: np.random.Generator) -> Gauge:
    """The share of an event's own family among its nearest places, of which each divides as its events do; the mean of
    the families' means."""
    families, exact, first = subject.families, subject.exact, subject.exact.first_seq
    seqs = seqs[exact.column("coverage", seqs) >= KNOWN_MIN]
    kinds, sizes = np.unique(families[seqs - first], return_counts=True)
    kinds = kinds[(kinds > 0) & (sizes >= FAMILY_MIN)]
    if len(kinds) < 2:
        return Gauge(None, 0)
    near, known = within(subject.models.embedders["attack"].calibration), families > 0
    means, n = [], 0
    for kind in kinds:
        own = seqs[families[seqs - first] == kind]
        asked = rng.choice(own, min(len(own), max(FAMILY_MIN, sample // len(kinds))), replace=False)
        shares = []
        queries = subject.models.embedders["attack"].asked(exact.vectors("attack", asked))
        for seq, found in zip(asked, exact.search("attack", queries, FETCH, known), strict=True):
            others = found.seqs[found.seqs != seq]
            here = places([(exact.vectors("attack", others), near)], VOTERS) if len(others) else []
            parts = [parts_of(families[others[p] - first].tolist()) for p in here]
            shares += [np.mean([part.get(kind, 0.0) for part in parts])] if parts else []
        n += len(shares)
        means += [np.mean(shares)] if shares else []
    return Gauge(float(np.mean(means)) if means else None, n)


def _sent_again(counters: Counters) -> Gauge:
    again = sum(c.duplicates for c in counters.sources.values())
    sent = again + sum(c.events for c in counters.sources.values())
    return Gauge(again / sent if sent else None, sent)


# ---- drift --------------------------------------------------------------------------------------------------------
class Drift(NamedTuple):
    features: list[FeatureDrift]
    spaces: dict[str, list[Shift]]
    gauges: dict[str, Gauge]


def _drift(subject: Subject, seqs: Seqs) -> tuple[Drift, dict[str, str]]:
    """Of the window; and by metric why not."""
    reference, n = subject.reference, len(seqs)
    metrics = ("drifted_features_share", "coverage_ratio")
    nothing = Drift([], {}, dict.fromkeys(metrics, Gauge(None, 0)))
    if reference is None:
        why = f"model {subject.models.version} has no reference of its training data; one that is fitted now has"
        return nothing, dict.fromkeys((*metrics, *(f"psi_{space}" for space in SPACES)), why)
    if not n:
        return nothing, {}
    features = subject.live.features(seqs)
    found = [
        FeatureDrift(name, s.psi, s.p, s.n, s.major)
        for name, s in zip(NAMES, shifts(features, reference.features), strict=True)
        if s.psi is not None and s.p is not None
    ]
    counts = reference.features.counts
    known = (counts[:, :-1].sum() / counts[0].sum()).item()  # features of a training event
    share = sum(f.major for f in found) / len(found) if found else None
    ratio = float(np.isfinite(features).sum(1).mean()) / known if known else None
    asked = {space: e.asked(subject.live.vectors(space, seqs)) for space, e in subject.models.embedders.items()}
    by_space = {space: shifts(asked[space], reference.spaces[space]) for space in SPACES}
    gauges = dict(zip(metrics, (Gauge(share, n), Gauge(ratio, n)), strict=True))
    return Drift(sorted(found, key=lambda f: -f.psi), by_space, gauges), {}
