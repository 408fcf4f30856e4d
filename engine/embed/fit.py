"""Fit a model version on labelled events: two maps, what is far, and how the spaces weigh.

Always true
  - The same events in the same order, features and seed give the same files, on the same machine.
  - Families count the same, however many events each has; a family nobody named ("", Unknown) teaches chronos only.
  - Precedent bounds come from the later part of the data looking back at the earlier part, never the other way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from engine.config import CIDRS_INTERNAL
from engine.embed import contrast, fusion
from engine.embed.base import DIMS, F32, NEAREST_QUANTILES, QUANTILES, Calibration, Embedder
from engine.embed.certainty import BLOCKS, Embed, Seen, Votes, certainty, looks_back, votes
from engine.embed.linear import F64, LinearEmbedder, transformed
from engine.embed.models import Data, to_files
from engine.embed.nested import COMMON, NestedEmbedder, detailed
from engine.embed.network import Network, graphs
from engine.embed.neural import NeuralEmbedder
from engine.embed.reference import reference_of
from engine.embed.rhythm import rhythms
from engine.embed.text import TextEmbedder, TextModel
from engine.embed.thin import thinned
from engine.embed.vote import within
from engine.errors import ModelError
from engine.features import FEATURES, INDEX
from ipc.event import FEATURE_COUNT, Event

EVENTS_MIN = 100
FALSE_ALARM = 0.05  # of held-out events with a precedent that the bound calls without
HELD_OUT = 0.3  # the later part, in time
PAIRS = 20_000
NEIGHBOURS_MAX = 4_000  # held-out events looked up in the calibration
FUSED_MAX = 2_000  # and of those by which the fusion is fitted
SENTENCES_MAX = 600  # distinct ones embedded for the calibration of sbert: 3 s
MASK_WEIGHT = 0.3
RHYTHM_WEIGHT = 8.0  # in chronos, of how regular the flows of a pair are: no other feature tells a beacon
FLOW_WEIGHT = 0.5  # in chronos, of what a flow is like by itself
SHRINK = 0.3  # of the within-family scatter towards its mean variance: less suits CIC-2017, more the lab recording
PLAIN = 0.5  # weight of a direction in which families do not differ: more and one feature hides behind others
NOISE = 0.01  # how much the scatter of missing features counts within a family
NETWORK_DIMS = {"chronos": 32, "attack": 24}  # of the space's dimensions; the rest is linear
COMMON_DIMS, DETAIL_DIMS = 20, 31  # of attack in two levels, linear; one is the pole, and the rest the network's
DETAILED_SHARE_MIN = 0.5  # of the events; where fewer are told in detail there is one level
WINDOW_WEIGHT = 0.3  # in the common level, of what else goes on: tools differ in the flows that they see
COMMON_LENGTH = 0.7  # of the median distance of random pairs in the common level, over that in the detail
RADIUS = 1.0  # of the sphere, over the latter
SHARE = {"chronos": 0.5, "attack": 0.25}  # length of a network's vectors over the median distance of random pairs
_EXACT_ROWS = 512  # of a distance matrix at a time

_CHRONOS_GROUPS = {"time", "count", "length", "rate", "ratio", "bulk"}
_CHRONOS_FACTS = {
    "packet_symmetry",
    "network_activity",
    "data_volume",
    "temporal_consistency",
    "packet_size_consistency",
}

_RHYTHM_FACTS = {
    "temporal_pattern",
    "temporal_anomaly_score",
    "access_frequency",
    "access_pattern_entropy",
    "connection_rate",
    "dst_ip_concentration",
    "process_anomaly",
}
# What teaches chronos no rhythm: a flow by itself, and less so what else its host and its target do.
INCIDENTAL = (
    (tuple(f.column for f in FEATURES if f.scope == "flow"), 0.5),
    (tuple(f.column for f in FEATURES if f.scope != "flow" and f.fact not in _RHYTHM_FACTS), 0.25),
)

NOT_CALIBRATED = Calibration(np.zeros(QUANTILES), 0.0, FALSE_ALARM)

Families = NDArray[np.int64]  # number of each event's family, -1 where nobody named one
Rows = NDArray[np.int64]
Groups = Callable[[Rows], Families | None]  # of these rows, what a network learns to bring together; None: no network


def chronos_columns() -> list[int]:
    """Behaviour in time: timing, rates, sizes, bulk, and the recent past of host and pair."""
    facts = _CHRONOS_FACTS | {f.fact for f in FEATURES if f.group in _CHRONOS_GROUPS}
    return [f.column for f in FEATURES if f.fact in facts or f.scope.endswith(("window", "history"))]


def attack_columns() -> list[int]:
    """All 105."""
    return list(range(FEATURE_COUNT))


class Scaler(NamedTuple):
    center: F64
    scale: F64


def scaler(features: F32, columns: Sequence[int]) -> Scaler:
    """Median and IQR/1.349 of each column, after log1p where heavy; a column whose IQR says little takes its standard
    deviation, one without values or spread takes 1."""
    heavy = np.array([FEATURES[c].heavy for c in columns])
    values = transformed(features[:, columns].astype(np.float64), heavy)
    values[~np.isfinite(values)] = np.nan
    values[:, np.isnan(values).all(axis=0)] = 0.0
    low, center, high = np.nanquantile(values, [0.25, 0.5, 0.75], axis=0)
    deviation = np.nanstd(values, axis=0)
    scale = np.maximum((high - low) / 1.349, deviation / 3)
    return Scaler(center, np.where(scale > 1e-6, scale, 1.0))


def input_weights(columns: Sequence[int]) -> F64:
    """Weight of each input [2 x columns]: one fact counts once, however many features state it; masks count little."""
    sizes = Counter(FEATURES[c].fact for c in columns)
    one = np.array([1.0 / np.sqrt(sizes[FEATURES[c].fact]) for c in columns])
    return np.concatenate((one, MASK_WEIGHT * one))


def chronos_weights(columns: Sequence[int]) -> F64:
    """The same for chronos: what comes before an event counts more than what it is like."""
    weighs = np.array([FLOW_WEIGHT if FEATURES[c].scope == "flow" else 1.0 for c in columns])
    weighs[list(columns).index(INDEX["temporal_pattern"])] = RHYTHM_WEIGHT
    return np.asarray(input_weights(columns) * np.tile(weighs, 2))


def chronos_map(s: F64, weights: F64, dim: int) -> F64:
    """W [dim, inputs]: leading principal directions, as they are: whitening would take back what `weights` say."""
    _, vectors = np.linalg.eigh(np.cov(s * weights, rowvar=False))  # eigenvalues ascend
    return np.asarray(vectors[:, ::-1][:, :dim].T * weights)


def attack_map(s: F64, weights: F64, families: Families, noise: F64, dim: int) -> F64:
    """W [dim, inputs]: the directions in which families differ most for how little their own events differ.

    Generalised eigenvectors of total against within-family scatter, families counted alike; |W d| is then the distance
    in units of what is usual inside of a family, where each direction counts as far as families differ in it:
    sqrt(1 - within/total), at least PLAIN, so that events of a family can be told apart as well. noise: scatter of the
    difference that missing features make, float64 [inputs, inputs]. With fewer than two families: whitened principal
    directions.
    """
    x = s * weights
    groups = [x[families == f] for f in np.unique(families[families >= 0])]
    if len(groups) < 2:
        groups = [x]
    within = sum((np.cov(g, rowvar=False, bias=True) for g in groups), np.zeros_like(noise)) / len(groups)
    means = np.array([g.mean(axis=0) for g in groups])
    means -= means.mean(axis=0)
    total = within + means.T @ means / len(groups)
    usual = within + NOISE * noise + (SHRINK * np.trace(within) / len(within) + 1e-9) * np.eye(len(within))
    unit = np.linalg.inv(np.linalg.cholesky(usual))  # makes what is usual within a family the unit of length
    ratios, vectors = np.linalg.eigh(unit @ total @ unit.T)  # eigenvalues ascend
    worth = np.maximum(np.sqrt(np.clip(1.0 - 1.0 / np.maximum(ratios, 1e-9), 0.0, 1.0)), PLAIN)
    return np.asarray((vectors * worth)[:, ::-1][:, :dim].T @ unit * weights)


def _padded(rows: F64, dim: int) -> F64:
    """Rows of fixed sign (their largest entry positive), then zeros up to `dim`."""
    top = rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)]
    rows = rows * np.where(top < 0, -1.0, 1.0)[:, None]
    return np.vstack((rows, np.zeros((dim - len(rows), rows.shape[1]))))


def linear(name: str, version: str, features: F32, families: Families, seed: int = 0) -> LinearEmbedder:
    """The fitted embedder of a linear space, not calibrated."""
    columns = chronos_columns() if name == "chronos" else attack_columns()
    scaled_by = scaler(features, columns)
    weights = chronos_weights(columns) if name == "chronos" else input_weights(columns)
    blank = np.zeros((DIMS[name], 2 * len(columns)), np.float32)
    scaled = LinearEmbedder(name, version, columns, *scaled_by, blank, NOT_CALIBRATED).scaled
    s = scaled(features)
    if name == "chronos":
        w = chronos_map(s, weights, DIMS[name])
    else:
        d = (scaled(thinned(features, np.random.default_rng(seed))) - s) * weights
        w = attack_map(s, weights, families, d.T @ d / len(d), DIMS[name] - NETWORK_DIMS[name])
    padded = _padded(w, DIMS[name]).astype(np.float32)
    return LinearEmbedder(name, version, columns, *scaled_by, padded, NOT_CALIBRATED)


def fitted(
    name: str, version: str, features: F32, families: Families, groups: Families | None, seed: int = 0
) -> LinearEmbedder:
    """The embedder of a space, not calibrated. groups: int64 [n], of events that a network beside the linear map learns
    to bring together, -1 where nothing says so; None, or fewer than two groups: no network."""
    if name == "attack" and groups is not None:
        told = detailed(features)
        if told.mean() >= DETAILED_SHARE_MIN and len(np.unique(groups[told & (groups >= 0)])) > 1:
            return _nested(version, features, families, groups, told, seed)
    flat = linear(name, version, features, families, seed)
    if groups is None or len(np.unique(groups[groups >= 0])) < 2:
        return flat
    width = NETWORK_DIMS[name]
    share = SHARE[name] * _usual(flat.scaled(features) @ flat.weights[: DIMS[name] - width].T, seed)
    incidental = INCIDENTAL if name == "chronos" else ()
    return NeuralEmbedder(flat, _network(flat, features, groups, width, share, seed, incidental))


def _network(
    scaler: LinearEmbedder, features: F32, groups: Families, width: int, share: float, seed: int,
    incidental: Sequence[contrast.Incidental] = (),
) -> Network:  # fmt: skip
    layers = contrast.train(scaler, features, groups, width, seed, incidental)
    return Network(*graphs(layers, share), 2 * len(scaler.columns), width)


def _nested(
    version: str, features: F32, families: Families, groups: Families, told: NDArray[np.bool_], seed: int
) -> NestedEmbedder:
    """attack in two levels. told: which of the events are told in detail. The median distance of random pairs in the
    detail is 1."""
    flat = linear("attack", version, features[told], families[told], seed)
    s = flat.scaled(features)
    common = _common(s, families)
    detail = flat.weights[:DETAIL_DIMS].astype(np.float64)
    detail /= _usual(s[told] @ detail.T, seed)
    common *= COMMON_LENGTH / _usual(s @ common.T, seed)
    weights = np.vstack((common, detail)).astype(np.float32)
    both = LinearEmbedder("attack", version, flat.columns.tolist(), flat.center, flat.scale, weights, NOT_CALIBRATED)
    width = DIMS["attack"] - len(weights) - 1
    network = _network(flat, features[told], groups[told], width, SHARE["attack"], seed)
    return NestedEmbedder(both, network, COMMON_DIMS, RADIUS)


def _common(s: F64, families: Families) -> F64:
    """C of engine/embed/nested.py: float64 [COMMON_DIMS, inputs]."""
    inputs = list(COMMON)
    window = np.array([WINDOW_WEIGHT if FEATURES[c].scope.endswith("window") else 1.0 for c in inputs])
    weights = input_weights(inputs)[: len(inputs)] * window
    common = np.zeros((COMMON_DIMS, s.shape[1]))
    common[:, inputs] = attack_map(s[:, inputs], weights, families, np.zeros((len(inputs),) * 2), COMMON_DIMS)
    return common


def _usual(vectors: F64, seed: int) -> float:
    """The median distance of random pairs."""
    stored = vectors.astype(np.float32)
    return float(np.median(_apart(Seen(stored, stored), np.random.default_rng(seed)))) or 1.0


def teacher(space: str, events: Sequence[Event], families: Families, trained: bool) -> Groups:
    """What a network learns to bring together: attack, the events of a family; chronos, those of a rhythm, whatever
    they carry, for which nobody has to name anything. A rhythm is read from the rows given, never from later ones."""
    if not trained:
        return lambda rows: None
    if space == "attack":
        return lambda rows: families[rows]
    return lambda rows: rhythms([events[i] for i in rows])


def _apart(seen: Seen, rng: np.random.Generator) -> F64:
    """Distances of random pairs, never of an event and itself; float64 [PAIRS]."""
    n = len(seen.stored)
    a, b = rng.integers(0, n, PAIRS), rng.integers(1, n, PAIRS)
    difference = seen.asked[a].astype(np.float64) - seen.stored[(a + b) % n]
    return np.asarray(np.linalg.norm(np.nan_to_num(difference), axis=1))


def later(families: Families) -> NDArray[np.bool_]:
    """Which events are held out: the later ones of each family, those of no family counting as one."""
    out = np.zeros(len(families), bool)
    for f in np.unique(families):
        rows = np.flatnonzero(families == f)
        out[rows[int(np.ceil(len(rows) * (1 - HELD_OUT))) :]] = True
    return out


def held_out(embed: Embed, families: Families) -> float:
    """Share of same-family neighbours at k = 10, families counted alike, when the later part of each family looks back
    at the earlier part, on which alone `embed` was fitted. 0 with fewer than two families."""
    out = later(families)
    test, train = np.flatnonzero(out & (families >= 0)), np.flatnonzero(~out)
    if len(np.unique(families[test])) < 2:
        return 0.0
    test = test[:: max(1, len(test) // NEIGHBOURS_MAX)]
    rows, _ = nearest(embed(test).asked, embed(train).stored, 10)
    same = (families[train][rows] == families[test][:, None]).mean(axis=1)
    return float(np.mean([same[families[test] == f].mean() for f in np.unique(families[test])]))


def mixed(
    seen: Mapping[str, Seen], events: Sequence[Event], families: Families, out: NDArray[np.bool_], seed: int
) -> fusion.Fusion:
    """How the spaces fuse. seen: the events in each space, in maps fitted on those not held `out` alone."""
    rng = np.random.default_rng(seed)
    asked, earlier = np.flatnonzero(out & (families >= 0)), np.flatnonzero(~out & (families >= 0))
    asked = asked[:: max(1, len(asked) // FUSED_MAX)]
    if not len(asked) or len(earlier) < 2:  # a calibration takes a pair
        return fusion.Fusion(fusion.EVEN, {})
    views = {
        space: fusion.View(of.asked[asked], of.stored[earlier], calibration(_of(of, earlier), families[earlier], rng))
        for space, of in seen.items()
    }
    number: dict[tuple[str, ...], int] = {}
    ends = [tuple(sorted((e.src_ip, e.dst_ip))) for e in (events[i] for i in asked.tolist())]
    pairs = np.array([number.setdefault(pair, len(number)) for pair in ends], np.int64)
    return fusion.fitted(views, families[asked], families[earlier], pairs, nearest)


def family_numbers(events: Sequence[Event]) -> tuple[Families, list[str]]:
    """The number of each event's family, -1 where nobody named one, and the names."""
    names = sorted({e.family for e in events} - {"", "Unknown"})
    number = {name: i for i, name in enumerate(names)}
    return np.array([number.get(e.family, -1) for e in events], np.int64), names


def _of(seen: Seen, rows: Rows) -> Seen:
    return Seen(seen.stored[rows], seen.asked[rows])


def nearest(queries: F32, index: F32, k: int) -> tuple[NDArray[np.int64], F64]:
    """Row and distance of the k nearest in `index`, exact, nearest first: [n, k]. NaN in a query: as in Embedder.asked,
    the same dimensions in each that has any."""
    k = min(k, len(index))
    partly = np.isnan(queries).any(axis=1)
    if partly.any() and len(queries):
        told = ~np.isnan(queries[np.argmax(partly)])
        found = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
        for some, given, stored in ((partly, queries[:, told], index[:, told]), (~partly, queries, index)):
            if some.any():
                found[0][some], found[1][some] = nearest(given[some], stored, k)
        return found
    by_column = np.ascontiguousarray(index.T, np.float64)
    norms = np.einsum("ij,ij->j", by_column, by_column)
    rows, distances = [], []
    for at in range(0, len(queries), _EXACT_ROWS):
        q = queries[at : at + _EXACT_ROWS].astype(np.float64)
        square = norms - 2.0 * (q @ by_column) + np.einsum("ij,ij->i", q, q)[:, None]
        best = np.argpartition(square, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(square, best, axis=1)
        order = np.lexsort((best, near), axis=1)
        rows.append(np.take_along_axis(best, order, axis=1))
        distances.append(np.sqrt(np.maximum(np.take_along_axis(near, order, axis=1), 0.0)))
    return np.vstack(rows), np.vstack(distances)


def calibration(seen: Seen, families: Families, rng: np.random.Generator) -> Calibration:
    """Of events in order of time: distances of random pairs, and how far later events are from the nearest earlier one
    where they do have a precedent, that is where this one is of their own family."""
    n = len(families)
    distances = _apart(seen, rng)
    out = later(families)
    if not out.any():  # families too small to hold anything out
        out[-max(1, int(HELD_OUT * n)) :] = True
    train, test = np.flatnonzero(~out), np.flatnonzero(out)
    test = test[:: max(1, len(test) // NEIGHBOURS_MAX)]
    rows, gaps = nearest(seen.asked[test], seen.stored[train], 1)
    known = families[train][rows[:, 0]] == families[test]
    gaps = gaps[known] if known.any() else gaps
    return Calibration(
        np.quantile(distances, np.linspace(0, 1, QUANTILES)), float(np.quantile(gaps, 1 - FALSE_ALARM)), FALSE_ALARM,
        np.quantile(gaps, np.linspace(0, 1, NEAREST_QUANTILES)),
    )  # fmt: skip


def measured_certainty(embedder_of: Callable[[NDArray[np.int64]], Embed], families: Families, seed: int) -> F64:
    """As in Calibration. embedder_of: the rows that a throw-away map may be fitted on -> what embeds rows with it."""
    rng = np.random.default_rng(seed)
    measured: list[Votes] = []
    for earlier, asked in looks_back(families):
        asked = asked[:: max(1, BLOCKS * len(asked) // NEIGHBOURS_MAX)]
        if not len(asked) or len(earlier) < 2:
            continue
        embed = embedder_of(earlier)
        known = embed(earlier)
        trial = calibration(known, families[earlier], rng)
        scale = within(trial), trial.precedent_bound
        measured.append(votes(embed(asked), families[asked], known.stored, families[earlier], *scale, nearest))
    return certainty(measured)


def text_sample(embedder: TextEmbedder, events: Sequence[Event], features: F32, rng: np.random.Generator) -> list[int]:
    """Events picked at random until SENTENCES_MAX distinct sentences are among them, in their order."""
    seen: set[str] = set()
    picked: list[int] = []
    for i in rng.permutation(len(events))[:PAIRS]:
        seen.add(embedder.sentence(events[i], features[i]))
        if len(seen) > SENTENCES_MAX:
            break
        picked.append(int(i))
    return sorted(picked)


def seen_by(embedder: LinearEmbedder, features: F32) -> Seen:
    vectors = embedder.embed_features(features)
    return Seen(vectors, embedder.asked(vectors))


def throw_away(
    space: str, features: F32, families: Families, groups: Groups, seed: int
) -> Callable[[NDArray[np.int64]], Embed]:
    """What measured_certainty needs of a space that is fitted."""

    def embedder_of(earlier: NDArray[np.int64]) -> Embed:
        trial = fitted(space, "held-out", features[earlier], families[earlier], groups(earlier), seed)
        return lambda rows: seen_by(trial, features[rows])

    return embedder_of


def fit(
    events: Sequence[Event],
    features: F32,
    *,
    version: str,
    seed: int,
    data: Data,
    created: str = "",
    text_model: TextModel | None = None,
    internal: Sequence[str] = CIDRS_INTERNAL,
    trained: bool = False,
) -> dict[str, bytes]:
    """The files of a new model version, fitted on events and their features, float32 [n, 105].

    trained: networks beside the linear maps; that takes torch and a minute or more.
    data: its description and sha256; counts are filled in here. internal: the networks that sentences call so. Raises
    ModelError for too few events.
    """
    if len(events) < EVENTS_MIN:
        raise ModelError(f"{len(events)} events are too few to fit on: at least {EVENTS_MIN}, better some thousands")
    if features.shape != (len(events), FEATURE_COUNT):
        raise ModelError(f"features of shape {features.shape} do not belong to {len(events)} events")
    if not np.isfinite(features).any():
        raise ModelError("no event has any of the 105 features: there is nothing to fit on")
    order = np.argsort([e.ts for e in events], kind="stable")
    events, features = [events[i] for i in order], features[order]
    families, _ = family_numbers(events)
    rng = np.random.default_rng(seed)
    embedders: dict[str, Embedder] = {}
    trials: dict[str, Embed] = {}
    metrics: dict[str, float] = {}
    for space in ("chronos", "attack"):
        groups = teacher(space, events, families, trained)
        embedder = fitted(space, version, features, families, groups(np.arange(len(events))), seed)
        trial = throw_away(space, features, families, groups, seed)
        embedder.calibration = calibration(seen_by(embedder, features), families, rng)._replace(
            certainty=measured_certainty(trial, families, seed)
        )
        embedders[space] = embedder
        trials[space] = trial(np.flatnonzero(~later(families)))
        metrics[f"{space}.held_out_same_family_at_10"] = round(held_out(trials[space], families), 4)
    text = TextEmbedder(version, NOT_CALIBRATED, text_model, internal=internal)
    picked = text_sample(text, events, features, rng)
    vectors = text.embed([events[i] for i in picked], features[picked])
    texts = Seen(vectors, text.asked(vectors))
    text.calibration = calibration(texts, families[picked], rng)._replace(
        certainty=measured_certainty(lambda earlier: lambda rows: _of(texts, rows), families[picked], seed)
    )
    embedders["sbert"] = text
    spaces = {**{space: embed(np.array(picked)) for space, embed in trials.items()}, "sbert": texts}
    fused = mixed(spaces, [events[i] for i in picked], families[picked], later(families)[picked], seed)
    metrics |= {f"fusion.{of}_same_family_at_{fusion.TOP_K}": round(share, 4) for of, share in fused.shares.items()}
    counts = Counter(e.family for e in events)
    described = replace(data, events=len(events), families={name: counts[name] for name in sorted(counts)})
    return to_files(
        embedders, fusion=fused.weights, data=described, metrics=metrics, seed=seed, created=created,
        trained_on=reference_of(features, embedders, sbert=vectors),
    )  # fmt: skip
