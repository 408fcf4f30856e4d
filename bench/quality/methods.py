"""What is compared: METHODS is the one list, a method a line.

Always true
  - A method is a function of (features float32 [n, 105] with NaN = missing, families int64 [n], none of them -1, seed)
    that gives what it has learnt: a Space, judged by its neighbours, a Classifier, or a Novelty score.
  - It sees the known side of a split and nothing else. The same input and seed give the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier

from engine.embed.base import DIMS, F32
from engine.embed.fit import Families, fitted, linear
from engine.embed.linear import F64, transformed
from engine.features import FEATURES
from ipc.event import FEATURE_COUNT

TREES = 200
_HEAVY = np.array([f.heavy for f in FEATURES])


class Space(NamedTuple):
    """embed: float32 [n, dim] of features float32 [n, 105]; neighbours are by L2. asked: as in Embedder."""

    embed: Callable[[F32], F32]
    asked: Callable[[F32], F32] = lambda vectors: vectors


class Classifier(NamedTuple):
    """predict_proba: float64 [n, largest family number + 1], rows add up to 1."""

    predict_proba: Callable[[F32], F64]


class Novelty(NamedTuple):
    """score: float64 [n], larger is more unlike what was seen."""

    score: Callable[[F32], F64]


Fitted = Space | Classifier | Novelty
Method = Callable[[F32, Families, int], Fitted]


def z_score(features: F32, _families: Families, _seed: int) -> Space:
    return Space(standardised(features, log=False))


def log_z_score(features: F32, _families: Families, _seed: int) -> Space:
    return Space(standardised(features, log=True))


def pca(features: F32, _families: Families, _seed: int) -> Space:
    """The 64 leading principal directions of log z-scores."""
    scaled = standardised(features, log=True)
    x = scaled(features).astype(np.float64)
    _, vectors = np.linalg.eigh(np.cov(x, rowvar=False))  # eigenvalues ascend
    leading = vectors[:, ::-1][:, : DIMS["attack"]].astype(np.float32)
    return Space(lambda q: scaled(q) @ leading)


def projection(_features: F32, _families: Families, seed: int) -> Space:
    """What the older system did: 64 random directions of the features as they are, missing = 0."""
    directions = np.random.default_rng(seed).standard_normal((FEATURE_COUNT, DIMS["attack"])) / np.sqrt(DIMS["attack"])
    return Space(lambda q: (np.nan_to_num(q.astype(np.float64)) @ directions).astype(np.float32))


def attack_linear(features: F32, families: Families, seed: int) -> Space:
    return Space(linear("attack", "bench", features, families, seed).embed_features)


def chronos_linear(features: F32, families: Families, seed: int) -> Space:
    return Space(linear("chronos", "bench", features, families, seed).embed_features)


def attack(features: F32, families: Families, seed: int) -> Space:
    """As `flowkin train` makes it: a network beside the linear map."""
    made = fitted("attack", "bench", features, families, families, seed)
    return Space(made.embed_features, made.asked)


def boosting(features: F32, families: Families, seed: int) -> Classifier:
    """Gradient boosting, which takes missing values as they are; a feature that is never known is left out, because it
    does not bin those. Without L2 it diverges where families are tiny (CIC-2017: macro-F1 0.20 instead of 0.97)."""
    columns = np.flatnonzero(np.isfinite(features).any(axis=0))
    model = HistGradientBoostingClassifier(l2_regularization=1.0, early_stopping=False, random_state=seed)
    model.fit(finite(features[:, columns]), families)
    return Classifier(_probabilities(model, lambda q: finite(q[:, columns])))


def forest(features: F32, families: Families, seed: int) -> Classifier:
    """Random forest on medians where a feature is missing, and the mask."""
    known = finite(features)
    known[:, np.isnan(known).all(axis=0)] = 0.0
    median = np.nanmedian(known, axis=0)

    def filled(q: F32) -> F32:
        values = finite(q)
        missing = np.isnan(values)
        return np.hstack((np.where(missing, median, values), missing)).astype(np.float32)

    model = RandomForestClassifier(TREES, random_state=seed).fit(filled(features), families)
    return Classifier(_probabilities(model, filled))


def isolation(features: F32, _families: Families, seed: int) -> Novelty:
    """Isolation forest on log z-scores."""
    scaled = standardised(features, log=True)
    model = IsolationForest(n_estimators=TREES, random_state=seed).fit(scaled(features))
    return Novelty(lambda q: -np.asarray(model.score_samples(scaled(q)), np.float64))


METHODS: dict[str, Method] = {
    "raw-projection": projection,
    "z-score": z_score,
    "log-z": log_z_score,
    "pca": pca,
    "chronos-linear": chronos_linear,
    "attack-linear": attack_linear,
    "attack": attack,
    "boosting": boosting,
    "forest": forest,
    "isolation": isolation,
}


def standardised(features: F32, log: bool) -> Callable[[F32], F32]:
    """The usual baseline: (x - mean)/std, missing = mean; heavy features by log1p first, if asked for."""
    heavy = _HEAVY & log
    values = transformed(features.astype(np.float64), heavy)
    values[:, np.isnan(values).all(axis=0)] = 0.0
    mean, deviation = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    deviation[deviation < 1e-9] = 1.0
    return lambda x: np.nan_to_num((transformed(x.astype(np.float64), heavy) - mean) / deviation).astype(np.float32)


def finite(features: F32) -> F32:
    """A copy in which what is not finite is missing."""
    return np.where(np.isfinite(features), features, np.float32(np.nan))


def _probabilities(model: object, prepared: Callable[[F32], F32]) -> Callable[[F32], F64]:
    """Columns by the number of the family, also of families that the model never saw."""
    classes: NDArray[np.int64] = model.classes_  # type: ignore[attr-defined]

    def predict_proba(features: F32) -> F64:
        out = np.zeros((len(features), int(classes.max()) + 1))
        out[:, classes] = model.predict_proba(prepared(features))  # type: ignore[attr-defined]
        return out

    return predict_proba
