"""What moved between two commits' result lines: `python -m bench.compare A B [--all]`.

A and B are commits (the beginning of one, as the lines have it, + and all) or files of result lines. Lines of one bench
and one configuration are compared. The lines of a side give a figure a range, and it may have moved where the ranges
lie apart. They do so by chance, though nothing moved, in 2 of C(a + b, a) cases with a against b lines: of two against
two in 1 of 3, of three in 1 of 10, of four in 1 of 35, figure by figure. Below 5 % (four against four, three against
five) it is sure; with fewer lines it is said to have moved from --single on (30 %: these machines are not quiet). Lines
taken at other load averages are marked.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from bench.harness import RESULTS, flat

NOT_FIGURES = ("bench", "at", "commit", "machine", "config")
LOAD_APART = 1.0  # of the load averages before the runs
CHANCE_MAX = 0.05  # that ranges lie apart though nothing moved, and it is sure nevertheless

Runs = dict[tuple[str, str], list[dict[str, Any]]]  # by bench and configuration


class Moved(NamedTuple):
    """One figure on both sides. ratio: of the middles, b over a; infinite where a was 0. chance: that ranges of so many
    lines lie apart though nothing moved; sure: it is small."""

    figure: str
    a: tuple[float, float]
    b: tuple[float, float]
    ratio: float
    moved: bool
    sure: bool
    chance: float


def runs_of(what: str) -> Runs:
    """The lines of a file, or of a commit in bench/results. Raises SystemExit where there are none."""
    path = Path(what)
    given = path.is_file()
    found: Runs = defaultdict(list)
    for file in [path] if given else sorted(RESULTS.glob("*.jsonl")):
        for text in file.read_text().splitlines():
            line = json.loads(text)
            if given or _is_of(line.get("commit", ""), what):
                config = {k: v for k, v in line["config"].items() if k not in ("json", "child")}
                found[line["bench"], json.dumps(config, sort_keys=True)].append(line)
    if not found:
        raise SystemExit(f"{what}: no such file, and no line of such a commit in {RESULTS}")
    return found


def _is_of(commit: str, wanted: str) -> bool:
    """abc1 matches abc123 but not abc123+, which was measured with changes on top."""
    return commit.startswith(wanted.rstrip("+")) and commit.endswith("+") == wanted.endswith("+")


def ranges(lines: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Least and largest of each figure."""
    values: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        for path, value in flat({k: v for k, v in line.items() if k not in NOT_FIGURES}).items():
            values[path].append(value)
    return {path: (min(of), max(of)) for path, of in values.items()}


def chance(a: int, b: int) -> float:
    """That all of a values lie on one side of all of b others, in any order alike; ties apart."""
    return 2 / math.comb(a + b, a)


def compare(a: list[dict[str, Any]], b: list[dict[str, Any]], single: float) -> list[Moved]:
    """Figures that both sides have."""
    of_a, of_b = ranges(a), ranges(b)
    by_chance = chance(len(a), len(b))
    sure = by_chance < CHANCE_MAX
    out = []
    for figure in sorted(of_a.keys() & of_b.keys()):
        (a_lo, a_hi), (b_lo, b_hi) = of_a[figure], of_b[figure]
        middle_a, middle_b = (a_lo + a_hi) / 2, (b_lo + b_hi) / 2
        ratio = middle_b / middle_a if middle_a else (1.0 if middle_b == middle_a else float("inf"))
        apart = a_hi < b_lo or b_hi < a_lo
        moved = apart and (sure or abs(ratio - 1) >= single)
        out.append(Moved(figure, (a_lo, a_hi), (b_lo, b_hi), ratio, moved, sure, by_chance))
    return out


def _text(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g}..{high:g}"


def _load(lines: list[dict[str, Any]]) -> float:
    loads = [line["machine"].get("load_before", line["machine"].get("load_average", 0.0)) for line in lines]
    return float(max(loads))


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("a")
    parse.add_argument("b")
    parse.add_argument("--all", action="store_true", help="also what did not move")
    parse.add_argument("--single", type=float, default=0.3, help="share from which a figure of few runs has moved")
    parse.add_argument("--json", action="store_true")
    args = parse.parse_args()
    runs_a, runs_b = runs_of(args.a), runs_of(args.b)
    both = sorted(runs_a.keys() & runs_b.keys())
    if not both:
        print("no bench was run with the same configuration on both sides", file=sys.stderr)
    out: list[dict[str, Any]] = []
    for key in both:
        a, b = runs_a[key], runs_b[key]
        moved = compare(a, b, args.single)
        shown = [m for m in moved if m.moved or args.all]
        if args.json:
            out += [{"bench": key[0], "config": json.loads(key[1]), **m._asdict()} for m in shown]
            continue
        load_a, load_b = _load(a), _load(b)
        print(f"== {key[0]} {key[1]}: {len(a)} against {len(b)} runs, {len(shown)} of {len(moved)} figures shown")
        print(f"   ranges of so many runs lie apart by chance in 1 of {1 / chance(len(a), len(b)):g} figures")
        if abs(load_a - load_b) > LOAD_APART:
            print(f"   the load averages differ ({load_a} and {load_b}): times do not compare")
        for m in shown:
            doubt = "" if m.sure or not m.moved else f"  (not sure: chance {m.chance:.0%})"
            print(f"   {m.figure:48} {_text(*m.a):>20} -> {_text(*m.b):>20}  x{m.ratio:.2f}{doubt}")
    if args.json:
        print(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
