"""Damage a directory in many ways: python -m tests.scrub --bits 1000 --truncations 200 --seed 1

Prints how many damages ended in which way, and every broken promise; exit status 1 where there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.scrub.damage import draw
from tests.scrub.pool import cases
from tests.scrub.store import build


def scrubbed(folder: Path, bits: int, truncations: int, seed: int, processes: int, only: str = "") -> dict[str, Any]:
    """All of it, in an empty folder."""
    begun_s = time.monotonic()
    whole = folder / "whole"
    known = build(whole)
    damages = [d for d in draw(whole, seed, bits, truncations) if only in d.file]
    outcomes: dict[str, Counter[str]] = {}
    kinds: Counter[str] = Counter()
    died: Counter[str] = Counter()
    findings: list[str] = []
    for case in cases(whole, known, damages, folder / "cases", processes):
        way = "cut" if case.damage.bit < 0 else "flip"
        kinds[f"{case.damage.kind} {way}"] += 1
        outcomes.setdefault(way, Counter())[case.outcome] += 1
        died.update(f"{case.damage.kind} {step} {how}" for step, how in case.died.items())
        findings += [f"{tuple(case.damage)} ({case.place}): {what}" for what in case.broken()]
    return {
        "seconds": round(time.monotonic() - begun_s, 1), "damages": len(damages), "of": dict(sorted(kinds.items())),
        "outcomes": {way: dict(sorted(of.items())) for way, of in outcomes.items()}, "died": dict(died),
        "findings": findings,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scrub", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--bits", type=int, default=1_000, help="flips")
    parser.add_argument("--truncations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="damages of files with this in their name")
    parser.add_argument("--json", action="store_true", help="one line")
    parser.add_argument("--keep", action="store_true", help="append the line to bench/results/scrub.jsonl")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flowkin-scrub-") as folder:
        figures = scrubbed(Path(folder), args.bits, args.truncations, args.seed, args.processes, args.only)
    if args.keep:
        from bench.harness import keep

        keep("scrub", {"bits": args.bits, "truncations": args.truncations, "seed": args.seed}, figures)
    if args.json:
        print(json.dumps(figures))
    else:
        findings = figures.pop("findings")
        outcomes = figures.pop("outcomes")
        print(*(f"{name:12} {value}" for name, value in figures.items()), sep="\n")
        for way, of in outcomes.items():
            print(way, *(f"  {n:5} {outcome}" for outcome, n in of.items()), sep="\n")
        print(f"{len(findings)} broken promises", *findings, sep="\n")
        return 1 if findings else 0
    return 1 if figures["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
