"""Feed hostile bytes to everything: python -m tests.fuzz --frames 1000000 --seed 1

Prints inputs, seconds, growth and what was found of each target; exit status 1 where something was. One input again:
python -m tests.fuzz --target NAME --seed S --at N, which prints it in hex; --save keeps it in the corpus.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.harness import commit, keep
from tests.fuzz.run import Job, data_of, fuzz, work
from tests.fuzz.targets import CORPUS, TARGETS, make, scratch

SHARES = {
    "frames": 1.0, "messages": 0.5, "filter-masks": 0.1, "manifest": 0.1, "index": 0.01, "rows": 0.005,
}  # fmt: skip
SHARE = 0.02  # of the others: so many inputs for each frame


def inputs_of(name: str, frames: int) -> int:
    return max(100, round(frames * SHARES.get(name, SHARE)))


def everything(frames: int, seed: int, processes: int, names: tuple[str, ...] = TARGETS) -> dict[str, Any]:
    """Figures and findings of each target; the frames have a process of their own where there are several."""
    jobs = [Job(name, seed, 0, inputs_of(name, frames)) for name in names]
    groups = [group for group in (jobs[:1], *(jobs[i + 1 :: processes - 1] for i in range(processes - 1))) if group]
    with ThreadPoolExecutor(processes) as pool:
        done = {name: of for group in pool.map(fuzz, groups or [jobs]) for name, of in group.items()}
    return {name: done[name] for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--frames", type=int, default=50_000, help="streams of frames; other targets have a share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="at least 2")
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--at", type=int, help="this input alone, in this process")
    parser.add_argument("--save", action="store_true", help="with --at: keep it in tests/fuzz/corpus")
    parser.add_argument("--keep", action="store_true", help="append the line to bench/results/fuzz.jsonl")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        jobs, page, output = json.loads(args.child)
        work([Job(*job) for job in jobs], Path(page), Path(output))
        return 0
    if args.at is not None:
        with scratch() as folder:
            target = make(args.target, Path(folder))
            data = data_of(target, args.target, args.seed, args.at)
            print(data.hex(), flush=True)
            if args.save:
                path = CORPUS / args.target / sha256(data).hexdigest()[:12]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            try:
                target.run(data)
            except target.refuses as e:
                print(f"refused: {e}")
        return 0
    if args.keep:
        commit()  # of the tree as it is now
    figures = everything(args.frames, args.seed, args.processes, (args.target,) if args.target else TARGETS)
    findings = [found for of in figures.values() for found in of["findings"]]
    if args.keep:
        kept = {name: figures[name]["inputs"] for name in ("frames", "messages") if name in figures}
        keep("fuzz", {"frames": args.frames, "seed": args.seed}, kept | {"targets": figures, "findings": findings})
    for name, of in figures.items():
        print(f"{name:24} " + "  ".join(f"{key} {value}" for key, value in of.items() if key != "findings"))
    print(f"{len(findings)} findings", *findings, sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
