"""`make bench`: every bench with moderate parameters, one after the other; results go to bench/results."""

from __future__ import annotations

import subprocess
import sys
import time

BENCHES = (
    "spread", "acknowledge", "reload --events 10000 100000", "memory --events 10000 100000", "growth --minutes 1",
    "load --events 20000 --seconds 8 --connections 32", "load --events 20000 --seconds 8 --rate 1000 --ingest-rate 200",
    "quality --data lab --engine",
)  # fmt: skip


def main() -> int:
    failed = []
    for bench in BENCHES:
        name, *words = bench.split()
        print(f"== {bench}", flush=True)
        start_s = time.monotonic()
        if subprocess.run([sys.executable, "-m", f"bench.{name}", *words], check=False).returncode:
            failed.append(bench)
        print(f"   {time.monotonic() - start_s:.0f} s", flush=True)
    if failed:
        print(f"ended with an error: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
