"""How good are the neighbours: `python -m bench.quality [--data NAME ...|all] [--methods ...] [--novel] [--engine]`.

Each set is split by time, capture or groups of near-duplicates (bench/quality/splits.py), every method learns from one
side and is asked about the other (bench/quality/methods.py), and the figures stand beside each other with 95 %
intervals. The exit status is 1 where a judged family's share of same-family neighbours in the attack space is below
0.60, with twins; the other bars are printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from statistics import mean
from typing import Any

from bench.harness import keep
from bench.quality.data import SETS, Labelled, load
from bench.quality.measure import Figure
from bench.quality.methods import METHODS
from bench.quality.run import (
    NOVEL_ROWS_MAX,
    ROWS_MAX,
    SHARE_MIN,
    Novel,
    Result,
    as_json,
    bars,
    compare,
    novelty,
    result,
)
from bench.quality.splits import Episodes, Sides, sides, split
from bench.quality.through import fitted, through_engine

ENGINE = "attack/engine"  # the attack space, asked of a running engine
ATTACK = "attack"


def measured(data: Labelled, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All figures of one split of a set, printed on the way unless they are wanted as JSON."""
    cut = split(data, seed)
    at = sides(data, cut)
    results = compare(at, args.methods, args.other_episodes, seed)
    if args.engine:
        files = fitted(at, data.internal, seed)
        found = through_engine(data, cut, at, files, other_episodes=args.other_episodes)
        without = Episodes(at.past.events, at.asked.events).same if args.other_episodes else None
        results[ENGINE] = result(at, found, past=at.past, without=without, seed=seed)
    novel = novelty(at, args.methods, seed) if args.novel else {}
    judged = next((space for space in (ENGINE, ATTACK) if space in results), None)
    held = bars(results, judged) if judged and {"boosting", "log-z"} <= results.keys() else []
    if not args.json:
        print_set(data.name, f"{data.split}, seed {seed}", at, results, novel, args.families)
        print("\n".join(f"{'yes' if met else ' NO'}  {judged}: {what}" for what, met in held), end="\n\n", flush=True)
    return {
        "set": data.name, "split": data.split, "seed": seed,
        "indexed": len(at.past.events), "queries": len(at.asked.events), "twins": int(at.twins.sum()),
        "rows_max": ROWS_MAX, "novel_rows_max": NOVEL_ROWS_MAX,
        "methods": as_json(results), "novel": as_json(novel), "bars": dict(held),
        "poor": [r.family for r in results[judged].all.rows if r.judged and r.at_10 < SHARE_MIN] if judged else [],
    }  # fmt: skip


def print_set(
    name: str, how: str, at: Sides, results: dict[str, Result], novel: dict[str, Novel], families: list[str]
) -> None:
    """One line a method; with all families of those named in `families`."""
    print(f"== {name}, by {how}: {len(at.past.events)} known, {len(at.asked.events)} asked, of which "
          f"{int(at.twins.sum())} have a twin; macro without twins (F1 with them)")  # fmt: skip
    for rows_max, what in ((ROWS_MAX, "methods learn"), (NOVEL_ROWS_MAX, "novelty is learnt") if novel else (0, "")):
        if 0 < rows_max < len(at.past.events):
            print(f"{what} from {rows_max} of them at most, small families whole")
    print(f"{'method':15} {'macro-F1':>20} {'P@10':>20} {'P@5':>6} {'P@1':>6} {'ECE':>6} {'F1 all':>7} {'fit s':>6}")
    for method, of in results.items():
        figures, every = of.without_twins, of.all
        macro = figures.macro
        p10, p5, p1 = (macro.get(f"at_{k}") for k in (10, 5, 1))
        print(
            f"{method:15} {interval(macro['f1']):>20} {interval(p10):>20} {short(p5):>6} {short(p1):>6} "
            f"{figures.ece:6.3f} {every.macro['f1'].value:7.3f} {of.fit_s:6.1f}"
        )
    for method in (m for m in results if m in families):
        print(f"{method}: family, known, asked (asked with twins), P@1 P@5 P@10 of possible; precision recall F1")
        for row, every_row in zip(results[method].without_twins.rows, results[method].all.rows, strict=True):
            print(
                f"  {row.family:26} {row.indexed:6} {row.queries:6} ({every_row.queries}) {row.at_1:6.3f} "
                f"{row.at_5:6.3f} {row.at_10:6.3f} {row.possible:6.3f}  {row.precision:6.3f} {row.recall:6.3f} "
                f"{row.f1:6.3f}"
                f"{'' if row.judged else '  (few)'}"
            )
    for method, left_out in novel.items():
        each = " ".join(f"{family} {value:.2f}" for family, value in left_out.families.items())
        print(f"novel {method:15} {interval(left_out.macro)}, attacks {interval(left_out.attacks)}: {each}")


def print_spread(name: str, lines: list[dict[str, Any]]) -> None:
    """The macro-F1 of each method over several splits: a split that moves whole groups says more than an interval."""
    for method in lines[0]["methods"]:
        values = [line["methods"][method]["without_twins"]["macro"]["f1"][0] for line in lines]
        print(f"{name}, {len(values)} splits: {method:15} {mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    print(flush=True)


def interval(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.3f} {figure.low:.3f}-{figure.high:.3f}"


def short(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.3f}"


def main() -> int:
    parse = argparse.ArgumentParser(
        prog="python -m bench.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--data", nargs="+", choices=[*SETS, "all"], default=["cicids2017"])
    parse.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parse.add_argument("--families", nargs="*", default=[ATTACK, ENGINE], help="methods whose families are shown")
    parse.add_argument("--novel", action="store_true", help="leave out each family in turn, too")
    parse.add_argument("--other-episodes", action="store_true", help="same pair and family within 10 minutes is no hit")
    parse.add_argument("--engine", action="store_true", help="ask a running engine, too, by query_event")
    parse.add_argument("--keep", action="store_true", help="append a line a set to bench/results/quality.jsonl")
    parse.add_argument("--json", action="store_true", help="a JSON line a set instead of tables")
    parse.add_argument("--seeds", type=int, nargs="+", default=[1], help="sets split by groups are split by each")
    args = parse.parse_args()
    poor = False
    for name in SETS if "all" in args.data else args.data:
        data = load(name)
        lines = [measured(data, args, seed) for seed in (args.seeds if data.split == "groups" else args.seeds[:1])]
        if not args.json and len(lines) > 1:
            print_spread(name, lines)
        for line in lines:
            poor |= bool(line["poor"])
            kept = keep("quality", vars(args) | {"data": [name]}, line) if args.keep else line
            if args.json:
                print(json.dumps(kept), flush=True)
    return 1 if poor else 0


if __name__ == "__main__":
    sys.exit(main())
