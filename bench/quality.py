"""How good are the neighbours: `python -m bench.quality [--data cicids2017|lab] [--json]`.

Always true
  - The past answers for the future: maps are fitted and indexed on the earlier 60 % of each family's events (of the lab
    recording: on the first episodes), and asked about the rest, whose context features come from an overlay of the
    tracker, as in query_event.
  - A neighbour is right when it is of the query's family. Search is exact: what is measured is the space.
  - Beside each space stands what it must beat: chance, and plain standardised features.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.harness import engine
from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.embed.base import F32
from engine.embed.fit import Families, family_numbers, fit, linear, nearest
from engine.embed.linear import transformed
from engine.embed.models import Data
from engine.embed.ship import LAB, LAB_INTERNAL, Featured, observed, read
from engine.features import FEATURES
from engine.normalize import complete
from engine.sources.base import SourceSpec
from engine.sources.labels import LabelRules
from ipc.event import Event, FeaturedEvent
from ipc.messages import Options

CIC = Path(__file__).resolve().parents[2] / "shared/data/cicids2017_improved/cicids2017_improved_dev.csv.gz"
EARLIER = 0.6
TOP_K = 10
MESSAGE_EVENTS = 128
ENGINE = "attack/engine"  # the attack space, asked of a running engine
EVENTS_MIN = 50  # families with fewer are shown and not judged
SHARE_MIN = 0.60  # of same-family neighbours in the attack space, for each family judged


class Row(NamedTuple):
    """One family in one space. share: of the neighbours that are of the family; at_1, at_5: precision."""

    space: str
    family: str
    events: int
    indexed: int
    queries: int
    share: float
    at_1: float
    at_5: float


def evaluate(events: Sequence[Event], features: F32, query_events: Sequence[Event], query_features: F32) -> list[Row]:
    """Rows for each space and family; events and queries in order of time, with their context features."""
    families, names = family_numbers([*events, *query_events])
    ours, asked = families[: len(events)], families[len(events) :]
    rows = []
    for space, embed in spaces(features, ours).items():
        found, _ = nearest(embed(query_features), embed(features), TOP_K)
        rows += _judged(space, ours[found] == asked[:, None], ours, asked, names)
    rng = np.random.default_rng(1)
    chance = ours[rng.integers(0, len(ours), (len(asked), TOP_K))] == asked[:, None]
    return [*_judged("chance", chance, ours, asked, names), *rows]


def spaces(features: F32, families: Families) -> dict[str, Callable[[F32], F32]]:
    """What is compared: the baselines and the linear spaces, each fitted on these events."""
    fitted: dict[str, Callable[[F32], F32]] = {
        "z-score": standardised(features, log=False),
        "log z-score": standardised(features, log=True),
    }
    for name in ("chronos", "attack"):
        fitted[name] = linear(name, "bench", features, families).embed_features
    return fitted


def standardised(features: F32, log: bool) -> Callable[[F32], F32]:
    """The usual baseline: (x - mean)/std, missing = mean; heavy features by log1p first, if asked for."""
    heavy = np.array([f.heavy and log for f in FEATURES])
    values = transformed(features.astype(np.float64), heavy)
    values[:, np.isnan(values).all(axis=0)] = 0.0
    mean, deviation = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    deviation[deviation < 1e-9] = 1.0
    return lambda x: np.nan_to_num((transformed(x.astype(np.float64), heavy) - mean) / deviation).astype(np.float32)


def _judged(space: str, same: NDArray[np.bool_], ours: Families, asked: Families, names: list[str]) -> list[Row]:
    rows = []
    for f in np.unique(asked[asked >= 0]):
        of = same[asked == f]
        n = int((ours == f).sum())
        rows.append(Row(space, names[f], n + len(of), n, len(of), of.mean(), of[:, 0].mean(), of[:, :5].mean()))
    return rows


def cicids2017() -> tuple[list[FeaturedEvent], Sequence[str]]:
    from engine.sources.cicflow import CicFlowAdapter

    if not CIC.exists():
        sys.exit(f"{CIC} is not here: this bench needs the shared research data")
    return read(CicFlowAdapter(SourceSpec(name="cic")), CIC), CIDRS_INTERNAL


def lab_recording() -> tuple[list[FeaturedEvent], Sequence[str]]:
    from engine.sources.pcap import PcapAdapter

    rules = LabelRules.load(LAB / "labels.ndjson")
    spec = SourceSpec(name="lab", file="lab.pcap.gz", labels=rules)
    return read(PcapAdapter(spec), LAB / "lab.pcap.gz"), LAB_INTERNAL


DATA = {"cicids2017": cicids2017, "lab": lab_recording}


def split(name: str, items: list[FeaturedEvent]) -> tuple[list[FeaturedEvent], list[FeaturedEvent]]:
    """The earlier 60 % of each family's events, and the rest (lab: first episodes, and second); in order of time."""
    ordered = sorted(items, key=lambda i: (i.event.ts, i.event.event_id))
    if name == "lab":
        rules = LabelRules.load(LAB / "labels.ndjson")
        half = [rule.half if (rule := rules.match(i.event)) else 0 for i in ordered]
        first, second = ([i for i, h in zip(ordered, half, strict=True) if h == n] for n in (1, 2))
        return first, second
    by_family: dict[str, list[FeaturedEvent]] = {}
    for item in ordered:
        by_family.setdefault(complete(item).family, []).append(item)
    earlier = [i for of in by_family.values() for i in of[: int(EARLIER * len(of))]]
    later = [i for of in by_family.values() for i in of[int(EARLIER * len(of)) :]]
    return earlier, later


def through_engine(
    earlier: list[FeaturedEvent], later: list[FeaturedEvent], past: Featured, internal: Sequence[str]
) -> list[Row]:
    """The same question put to a real engine: fit on the past and use it, ingest the past, query_event the rest."""
    data = Data(description="bench.quality", events=0, families={}, sha256={})
    files = fit(*past, version="bench", seed=1, data=data, internal=internal)
    setting = f"network.internal={json.dumps(list(internal))}"
    answers: list[list[str]] = []
    with engine(2, settings=[setting]) as running, running.client(timeout_ms=600_000) as client:
        client.add_model("bench", files)
        client.use_model("bench")
        for i in range(0, len(earlier), MESSAGE_EVENTS):
            client.ingest("bench", earlier[i : i + MESSAGE_EVENTS])
        options = Options(space="attack", top_k=TOP_K, collapse=False, deadline_ms=600_000)
        for i in range(0, len(later), MESSAGE_EVENTS):
            reply = client.query_events(later[i : i + MESSAGE_EVENTS], options=options, session=1)
            answers += [[h.event.family for h in a.hits if isinstance(h.event, Event)] for a in reply.answers]
    families, names = family_numbers([i.event for i in [*earlier, *later]])
    ours, asked = families[: len(earlier)], families[len(earlier) :]
    same = np.array([[f == item.event.family for f in found] for item, found in zip(later, answers, strict=True)])
    return _judged(ENGINE, same, ours, asked, names)


def table(rows: list[Row]) -> str:
    """For each space its families, and the mean over those with enough events (macro)."""
    lines = [f"{'space':12} {'family':14} {'indexed':>8} {'queries':>8} {'share@10':>9} {'P@1':>6} {'P@5':>6}"]
    for space in dict.fromkeys(row.space for row in rows):
        of = [row for row in rows if row.space == space]
        judged = [row for row in of if row.events >= EVENTS_MIN]
        for row in of:
            mark = "" if row in judged else "  (few)"
            lines.append(
                f"{space:12} {row.family:14} {row.indexed:8} {row.queries:8} {row.share:9.3f} {row.at_1:6.3f} "
                f"{row.at_5:6.3f}{mark}"
            )
        share, one, five = np.mean([(row.share, row.at_1, row.at_5) for row in judged], axis=0)
        indexed, queries = sum(row.indexed for row in of), sum(row.queries for row in of)
        lines.append(f"{space:12} {'macro':14} {indexed:8} {queries:8} {share:9.3f} {one:6.3f} {five:6.3f}\n")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description="How good are the neighbours.")
    parser.add_argument("--data", choices=sorted(DATA), default="cicids2017")
    parser.add_argument("--engine", action="store_true", help="ask a running engine, too, by query_event")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    args = parser.parse_args()
    items, internal = DATA[args.data]()
    earlier, later = split(args.data, items)
    tracker = Tracker(internal)
    past, asked = observed(earlier, tracker), observed(later, tracker.overlay())
    rows = evaluate(*past, *asked)
    if args.engine:
        rows += through_engine(earlier, later, past, internal)
    judged = ENGINE if args.engine else "attack"
    poor = [row for row in rows if row.space == judged and row.events >= EVENTS_MIN and row.share < SHARE_MIN]
    if args.json:
        print(json.dumps([row._asdict() for row in rows], default=float))
    else:
        print(table(rows))
        print(f"{judged}, share of same-family neighbours at least {SHARE_MIN:.2f}: {'no' if poor else 'yes'}")
    return 1 if poor else 0


if __name__ == "__main__":
    sys.exit(main())
