"""Is a probability what it says: `python -m bench.certainty [--data lab] [--linear]`.

Always true
  - Votes are those of answers (engine/embed/vote.py): the asked side of a split of bench.quality, without twins, looks
    back at the known side, on which alone the attack space is made and its certainty measured.
  - raw is the leading family's share of the vote, calibrated the probability that an answer gives for it.
  - The asked side is a third set: what is fitted on the known side's earlier events is measured on its later ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.harness import arguments, report
from bench.quality import data as sets
from bench.quality import splits
from bench.quality.measure import calibration_error
from bench.quality.run import ROWS_MAX, thinned
from engine.embed.base import Calibration
from engine.embed.certainty import Votes, votes
from engine.embed.fit import calibration, fitted, measured_certainty, nearest, seen_by, teacher, throw_away
from engine.embed.linear import F64
from engine.embed.vote import within

SPACE = "attack"


def asked(of: sets.Labelled, trained: bool, seed: int) -> tuple[Votes, Calibration]:
    """What the known side says of each asked event, and what its votes are worth."""
    at = splits.sides(of, splits.split(of, seed))
    past = thinned(at.past, ROWS_MAX)
    groups = teacher(SPACE, past.events, past.families, trained)
    every = np.arange(len(past.events))
    embedder = fitted(SPACE, "bench", past.features, past.families, groups(every), seed)
    seen = seen_by(embedder, past.features)
    known = calibration(seen, past.families, np.random.default_rng(seed))
    trial = throw_away(SPACE, past.features, past.families, groups, seed)
    known = known._replace(certainty=measured_certainty(trial, past.families, seed))
    rows = ~at.twins
    queries = seen_by(embedder, at.asked.features[rows])
    scale = within(known), known.precedent_bound
    return votes(queries, at.asked.families[rows], seen.stored, past.families, *scale, nearest), known


def figures(found: Votes, known: Calibration) -> dict[str, Any]:
    """asked, right: events and the share whose leading family is their own; ece, brier: raw and calibrated."""
    probability = np.array([known.probability(share) for share in found.share])
    both = {"raw": found.share, "calibrated": probability}
    return {
        "asked": len(found.right),
        "right": float(found.right.mean()),
        "ece": {name: error(p, found.right) for name, p in both.items()},
        "brier": {name: float(np.mean((p - found.right) ** 2)) for name, p in both.items()},
    }


def error(probability: F64, right: splits.Mask) -> float:
    """Expected calibration error, as bench.quality has it, of answers that are right or wrong."""
    return calibration_error(probability[:, None], np.where(right, 0, -1))


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--data", nargs="+", choices=sorted(sets.SETS), default=["lab"])
    parser.add_argument("--linear", action="store_true", help="without the network")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    return report("certainty", args, {n: figures(*asked(sets.load(n), not args.linear, args.seed)) for n in args.data})


if __name__ == "__main__":
    raise SystemExit(main())
