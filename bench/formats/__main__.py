"""One model across formats: `python -m bench.formats [--models DIR] [--stored FORMAT ...] [--why]`.

The same flows of real captures as our own flow path, Suricata, Zeek and CICFlowMeter tell them. They are stored as one
format tells them, among BASE_EVENTS events in all, and asked about as another does, in the attack space of the version
that ships or of DIR. Found: fewer than 10 others are strictly nearer than the flow itself. Target: 90 % of the flows.

Features and vectors are made by the code of ingest and query_event; the search is exact, as the engine's distances are.
`others` are the captures that the shipped version was not fitted on; `cut alike` are those of their flows of which both
tools count the same packets, and the strata below are of these. --why: for the flows that were missed, how many are
found once the asked has a cause's cells as they are stored.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.formats.corpus import FORMATS, Capture, captures
from bench.formats.measure import BASE_EVENTS, NEARER_MAX, Base, Maps, mended, others, pairs, share, strata
from bench.harness import arguments, report
from engine.embed import models
from engine.embed.linear import LinearEmbedder

CAUSES_MAX = 12


def measured(args: argparse.Namespace) -> dict[str, Any]:
    embedder = models.load(args.models or models.shipped()).embedders["attack"]
    assert isinstance(embedder, LinearEmbedder)
    embed, asked_as = embedder.embed_features, embedder.asked
    found = list(captures())
    beside = embed(others(BASE_EVENTS, args.seed))
    figures: dict[str, Any] = {"model": embedder.version, "flows": sum(len(c.of["pcap"]) for c in found)}
    figures["matched"] = {form: sum(int((c.of[form] >= 0).sum()) for c in found) for form in FORMATS}
    figures["events"] = {form: sum(len(c.told[form].events) for c in found) for form in FORMATS}
    for stored in args.stored:
        ours = np.vstack([embed(c.told[stored].features) for c in found])
        base = Base(np.vstack((ours, beside[: BASE_EVENTS - len(ours)])))
        figures[stored] = {
            asked: across(found, stored, asked, base, (embed, asked_as), args) for asked in FORMATS if asked != stored
        }
    return figures


def across(
    found: Sequence[Capture], stored: str, asked: str, base: Base, maps: Maps, args: argparse.Namespace
) -> dict[str, Any]:
    of = pairs(found, stored, asked, args.seed)
    embed, asked_as = maps
    start_s = time.perf_counter()
    nearer, distinct = base.nearer(asked_as(embed(of.asked)), embed(of.stored))
    is_found = nearer < NEARER_MAX
    sorts = strata(found, asked, of)
    shares = {name: share(is_found[rows], of.capture[rows]) for name, rows in sorts.items()}
    out: dict[str, Any] = {name: s._asdict() for name, s in shares.items() if s is not None}
    rows = sorts["others"]
    out["nearer"] = {"median": float(np.median(nearer[rows])), "p90": float(np.quantile(nearer[rows], 0.9))}
    out["distinct"] = {"found": round(float((distinct[rows] < NEARER_MAX).mean()), 4)}
    out["by capture"] = {"found": round(float(np.mean([is_found[of.capture == c].mean() for c in
                                                       np.unique(of.capture[rows])])), 4)}  # fmt: skip
    if args.why and (missed := rows & ~is_found).any():
        ranked = sorted(mended(maps, base, of.of(missed)), key=lambda cause: -cause[2])
        out["why"] = {name: {"missed": n, "found": again} for name, n, again in ranked[:CAUSES_MAX]}
    out["seconds"] = round(time.perf_counter() - start_s, 1)
    return out


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models", type=Path, help="a version's directory instead of the one that ships")
    parser.add_argument("--stored", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--why", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    figures = measured(args)
    args.models = str(args.models or "")
    return report("formats", args, figures)


if __name__ == "__main__":
    raise SystemExit(main())
