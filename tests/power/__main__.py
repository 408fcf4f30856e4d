"""Explore by hand: python -m tests.power --states 100000 --seed 7

Records an engine (or takes one that was recorded) and prints one line; exit status 1 and the findings where a promise
was not kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from tests.power import migration
from tests.power.explore import explore, windows, without
from tests.power.oracle import Oracle, scratch
from tests.power.trace import Sync, SyncRange, why_not
from tests.power.workload import record, recorded


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.power", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--states", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--durability", choices=("full", "meta"), default="full")
    parser.add_argument("--migration", action="store_true", help="what it leaves is encrypted and decrypted")
    parser.add_argument("--recorded", type=Path, help="a folder that tests.power.workload.record wrote")
    parser.add_argument("--without", default="", help="as if files that match were never synced: findings are due")
    parser.add_argument("--no-exhaustive", action="store_true", help="drawn states only")
    parser.add_argument("--keep", action="store_true", help="append a line to bench/results/power.jsonl")
    parser.add_argument("--scratch", type=Path, help="where states are laid out; otherwise in memory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, scratch(args.scratch) as checked:
        if args.recorded is None and (reason := why_not(Path(folder))):
            sys.exit(f"nothing can be recorded: {reason}")
        recording = recorded(args.recorded) if args.recorded else record(Path(folder) / "engine", args.durability)
        oracle = Oracle(recording, checked, may_lose=int(args.durability == "meta"))
        places: Collection[int] = windows(recording)
        if args.migration:
            recording = migration.record(Path(folder) / "migrated", recording)
            oracle, places = migration.MigrationOracle(recording, checked), migration.commit_window(recording)
        if args.without:
            kept = without(without(recording.operations, Sync, args.without), SyncRange, args.without)
            recording = recording._replace(operations=kept)
        start = time.monotonic()
        found = explore(recording, oracle, args.states, args.seed, exhaustive=() if args.no_exhaustive else places)
    seconds = round(time.monotonic() - start)
    if args.keep:
        from bench.harness import keep

        given = {name: getattr(args, name) for name in ("states", "seed", "durability", "migration", "without")}
        figures = {"exhaustive": found.exhaustive, "operations": len(recording.operations), "seconds": seconds}
        keep("power", given, {"states": found.states, **figures, "findings": found.findings})
    print(
        f"{found.states} states, {found.exhaustive} of them all of a few windows, of "
        f"{len(recording.operations)} operations, in {seconds} s: {len(found.findings)} findings"
    )
    print(*found.findings, sep="\n", end="\n" if found.findings else "")
    return 1 if found.findings else 0


if __name__ == "__main__":
    sys.exit(main())
