"""Drift figures on data that moved and on data that did not: `python -m bench.drift [--data lab unsw_nb15_stime ...]`.

`random` and `halves` ask the thresholds: a reference of half of a set, at random (nothing moved; the mean of three
draws) or the earlier half (what moves within a recording), and the other half against it. `shipped` asks the rules: the
set, its last 10,000 events, against what the shipped model was trained on. major: share of the judged features with PSI
above 0.25 and p below 0.001; minor: above 0.1; psi_SPACE: mean PSI of the dimensions; coverage: as coverage_ratio.
The shipped model embeds throughout; sbert, which needs seconds a hundred events, is left out.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from bench.harness import arguments, report
from bench.quality.data import load
from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.embed import models, ship
from engine.embed.base import F32
from engine.embed.linear import LinearEmbedder
from engine.embed.reference import Bins, bins
from engine.maintain import drift
from engine.maintain.drift import Shift, shifts
from engine.sources.synthetic import generate

DATA = ("lab", "unsw_nb15_stime", "cicids2017", "iot23")
SEEDS = (1, 2, 3)
WINDOW = 10_000
MINOR = 0.1

Compared = dict[str, Bins]


class Measure:
    """Compares with the eyes of the shipped model."""

    def __init__(self) -> None:
        embedders = models.load(models.shipped()).embedders
        self.spaces = {name: e for name, e in embedders.items() if isinstance(e, LinearEmbedder)}

    def reference(self, features: F32) -> Compared:
        """Of training events, float32 [n, 105]."""
        return {name: bins(values) for name, values in self._parts(features).items()}

    def against(self, reference: Compared, features: F32) -> dict[str, Any]:
        found = {name: shifts(v, reference[name]) for name, v in self._parts(features).items()}
        judged = [s for s in found["features"] if s.psi is not None]
        counts = reference["features"].counts
        trained = (counts[:, :-1].sum() / counts[0].sum()).item()
        return {
            "events": len(features), "judged": len(judged), "major": round(_share(s.major for s in judged), 4),
            "minor": round(_share((s.psi or 0) > MINOR for s in judged), 4),
            **{f"psi_{space}": round(_mean(found[space]), 4) for space in self.spaces},
            "coverage": round(float(np.isfinite(features).sum(1).mean()) / trained, 4),
        }  # fmt: skip

    def _parts(self, features: F32) -> dict[str, F32]:
        vectors = {space: e.asked(e.embed_features(features)) for space, e in self.spaces.items()}
        return {"features": features, **vectors}


def _share(of: Any) -> float:
    found = list(of)
    return sum(found) / len(found) if found else 0.0


def _mean(of: list[Shift]) -> float:
    return float(np.mean([s.psi for s in of if s.psi is not None]))


def random_halves(measure: Measure, features: F32) -> dict[str, Any]:
    runs = []
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(features))
        half = len(features) // 2
        runs.append(measure.against(measure.reference(features[order[:half]]), features[order[half:]][:WINDOW]))
    return {key: round(float(np.mean([run[key] for run in runs])), 4) for key in runs[0]}


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--data", nargs="+", default=list(DATA))
    args = parse.parse_args()
    assert drift.MAJOR == 0.25 and drift.CHANCE == 0.001  # what the text above says
    measure = Measure()
    recorded = ship.lab()
    generated = ship.observed(generate(ship.SYNTHETIC_EVENTS, ship.SEED), Tracker(CIDRS_INTERNAL))
    shipped = measure.reference(np.vstack([features for _, features in (*recorded, generated)]))
    figures: dict[str, Any] = {}
    for name in args.data:
        data = load(name)
        features = ship.observed(data.items, Tracker(data.internal))[1]
        half = len(features) // 2
        figures[name] = {
            "random": random_halves(measure, features),
            "halves": measure.against(measure.reference(features[:half]), features[half:][:WINDOW]),
            "shipped": measure.against(shipped, features[-WINDOW:]),
        }
    figures["demo"] = {"shipped": measure.against(shipped, np.vstack([features for _, features in recorded]))}
    return report("drift", args, figures)


if __name__ == "__main__":
    sys.exit(main())
