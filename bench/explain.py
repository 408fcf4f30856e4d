"""Do explanations add up, and do they tell what matters: `python -m bench.explain [--data lab] [--pairs N] [--keep]`.

Always true
  - Pairs are an asked event and a known one of a split of bench.quality, at random with the seed, of any family; the
    spaces are trained and fitted on the known side.
  - An explanation is faithful where the three features that it says add most, given to the hit as the query has them,
    bring it nearer than three others at random of those that differ do. As near is a tie, counted apart; a pair in
    which no other feature differs says nothing.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from statistics import median
from typing import Any

import numpy as np

from bench.harness import arguments, report
from bench.quality import data as sets
from bench.quality import splits
from engine.embed.base import F32
from engine.embed.fit import fitted
from engine.embed.linear import LinearEmbedder
from engine.features import FEATURES

TOP = 3
PAIRS = 1_000
COLUMNS: dict[str, list[int]] = defaultdict(list)
for _feature in FEATURES:
    COLUMNS[_feature.fact].append(_feature.column)


def explained(embedder: LinearEmbedder, at: splits.Sides, pairs: int, seed: int) -> dict[str, float]:
    """error_max, error_p99: of the sum over the distance; within_1_percent: share of the pairs; faithful, tied: shares
    of the `compared` ones."""
    rng = np.random.default_rng(seed)
    errors: list[float] = []
    gained: list[float] = []  # how much nearer the leading features bring it than others do
    took_ms: list[float] = []
    while len(errors) < pairs:
        i, j = rng.integers(len(at.asked.events)), rng.integers(len(at.past.events))
        query, hit = at.asked.features[i], at.past.features[j]
        distance = apart(embedder, query, hit)
        if not distance:
            continue
        start = time.perf_counter()
        parts = embedder.explain(at.asked.events[i], query, at.past.events[j], hit)
        took_ms.append((time.perf_counter() - start) * 1e3)
        errors.append(abs(sum(p.contribution for p in parts) - distance) / distance)
        most = [p.feature for p in sorted(parts, key=lambda p: -p.contribution)[:TOP]]
        others = [fact for fact in COLUMNS if fact not in most and differs(query, hit, COLUMNS[fact])]
        if others:
            some = rng.choice(others, min(TOP, len(others)), replace=False).tolist()
            near, nearer = (apart(embedder, query, given(hit, query, facts)) for facts in (some, most))
            gained.append(near - nearer)
    return {
        "pairs": len(errors),
        "error_max": float(np.max(errors)),
        "error_p99": float(np.quantile(errors, 0.99)),
        "within_1_percent": float(np.mean(np.array(errors) <= 0.01)),
        "compared": len(gained),
        "faithful": float(np.mean(np.array(gained) > 0.0)),
        "tied": float(np.mean(np.array(gained) == 0.0)),
        "ms_p50": median(took_ms),
    }


def differs(a: F32, b: F32, columns: list[int]) -> bool:
    return not np.array_equal(a[columns], b[columns], equal_nan=True)


def given(hit: F32, query: F32, facts: list[str]) -> F32:
    """The hit with these facts as the query has them."""
    changed = hit.copy()
    for fact in facts:
        changed[COLUMNS[fact]] = query[COLUMNS[fact]]
    return changed


def apart(embedder: LinearEmbedder, a: F32, b: F32) -> float:
    """Of an asked event and a hit."""
    asked, hit = embedder.embed_features(np.stack((a, b)))
    return float(np.linalg.norm(np.nan_to_num(embedder.asked(asked[None, :])[0].astype(np.float64) - hit)))


def measured(args: argparse.Namespace) -> dict[str, Any]:
    of = sets.load(args.data)
    at = splits.sides(of, splits.split(of, args.seed))
    families = at.past.families
    made = {
        "attack": fitted("attack", "bench", at.past.features, families, families, args.seed),
        "attack-linear": fitted("attack", "bench", at.past.features, families, None, args.seed),
    }
    return {name: explained(embedder, at, args.pairs, args.seed) for name, embedder in made.items()}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--data", choices=sorted(sets.SETS), default="lab")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    return report("explain", args, measured(args))


if __name__ == "__main__":
    raise SystemExit(main())
