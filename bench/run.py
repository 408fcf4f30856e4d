"""`make bench`: every bench with moderate parameters, one after the other, then the figures against their targets.

Meant for 20 minutes on 2 cores; a bench that takes longer than BENCH_S_MAX is ended and counts as broken. The
targets are information: the exit status is 0 unless a bench itself broke. Results go to bench/results. What takes
longer is not run here (a million events, peers, texts): its targets are held against the last run that was kept.
"""

from __future__ import annotations

import subprocess
import sys
import time

from bench.targets import summary

BENCH_S_MAX = 360
BENCHES = (
    "spread", "acknowledge --seconds 12", "reload --events 10000 100000 --seconds 8", "memory --events 10000 100000",
    "growth --minutes 1.5", "restart --events 20000", "load --events 20000 --seconds 8 --rate 1000 --ingest-rate 200",
    "load --events 20000 --seconds 8 --open-loop-limit", "quality --data lab --engine", "ingest --no-whole --keep",
    "whole --runs 1 --keep", "scale --events 10000 100000 --seconds 3", "selectivity", "index_choice --events 16384",
    "slow --rounds 3",
)  # fmt: skip


def run(bench: str) -> bool:
    """One bench; whether it ended well."""
    name, *words = bench.split()
    print(f"== {bench}", flush=True)
    start_s = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", f"bench.{name}", *words])
    try:
        good = process.wait(timeout=BENCH_S_MAX) == 0
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(f"   ended after {BENCH_S_MAX} s")
        good = False
    print(f"   {time.monotonic() - start_s:.0f} s", flush=True)
    return good


def main() -> int:
    start_s = time.monotonic()
    broken = [bench for bench in BENCHES if not run(bench)]
    print(f"== targets ({(time.monotonic() - start_s) / 60:.1f} min in all)")
    print("\n".join(summary()))
    if broken:
        print(f"broke: {', '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
