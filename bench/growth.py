"""Growth of the catalog against the bytes of its records, with idle readers connected: `python -m bench.growth`.

A reader that held a snapshot would pin old pages, and the catalog would grow without bound. Target: at most twice the
bytes of the records.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack

from bench.harness import engine, keep, synthetic

SAMPLES = 10


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--minutes", type=float, default=2.0)
    parse.add_argument("--rate", type=float, default=200.0, help="events a second, one a message")
    parse.add_argument("--seed", type=int, default=9)
    parse.add_argument("--json", action="store_true")
    args = parse.parse_args()
    n = int(args.minutes * 60 * args.rate)
    series: list[tuple[int, int, int]] = []
    with engine(2) as running, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(running.client()).ping()  # connected, and idle from now on
        events = synthetic(n, args.seed, texts=False)
        with running.client() as client:
            start_s = time.perf_counter()
            for i in range(n):
                time.sleep(max(0.0, start_s + i / args.rate - time.perf_counter()))
                client.ingest("synthetic", [next(events)])
                if (i + 1) % (n // SAMPLES) == 0:
                    catalog = running.stats()["catalog"]
                    series.append((i + 1, catalog["used_bytes"], catalog["record_bytes"]))
    figures = {
        "events": n, "ratio": round(series[-1][1] / series[-1][2], 3),
        "slope_ratio": round((series[-1][1] - series[4][1]) / (series[-1][2] - series[4][2]), 3),
        "series_events_used_records": series,
    }  # fmt: skip
    line = keep("growth", vars(args), figures)
    print(json.dumps(line) if args.json else "\n".join(f"{k:28} {v}" for k, v in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
