"""Growth of the catalog against the bytes of its records, with idle readers: `python -m bench.growth [--minutes 2]`.

Single events come in at a steady rate, open loop, while readers that were asked once hold idle connections: one that
kept a read transaction would pin old pages, and the catalog would grow without bound. ratio: used bytes (up to the last
page in use, free pages included: LMDB never gives any back) to the bytes of the records, at the end; slope_ratio: the
same for what was added after the first fifth. A rate that the engine cannot keep shows in events and acknowledged.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any

from bench.feed import Feed
from bench.harness import arguments, engine, percentiles_ms, report, sample, synthetic
from ipc.messages import Options

SAMPLES = 10
READERS = 4


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--minutes", type=float, default=2.0)
    parse.add_argument("--rate", type=float, default=200.0, help="events a second, one a message")
    parse.add_argument("--seed", type=int, default=9)
    args = parse.parse_args()
    series: list[dict[str, int]] = []
    with engine(READERS) as running, ExitStack() as stack:
        clients = [stack.enter_context(running.client()) for _ in range(READERS)]
        for client in clients:
            client.ping()  # one after the other, so each reader has one
        with Feed(running, synthetic(1 << 40, args.seed, texts=False), args.rate) as feed:
            start_s = time.monotonic()
            for i in range(SAMPLES):
                time.sleep(max(0.0, start_s + (i + 1) * args.minutes * 60 / SAMPLES - time.monotonic()))
                if not i:  # each has held a snapshot from now on, if it ever does
                    (name,) = sample(running, 1, args.seed)
                    for client in clients:
                        client.query_similar(name, options=Options(space="fused"))
                series.append(look(running.stats()))
    first, last = series[SAMPLES // 5 - 1], series[-1]
    figures: dict[str, Any] = {
        "events": last["events"], "generations": last["generation"],
        "ratio": round(last["used_bytes"] / last["record_bytes"], 3),
        "slope_ratio": round(
            (last["used_bytes"] - first["used_bytes"]) / max(1, last["record_bytes"] - first["record_bytes"]), 3
        ),
        "free_share": round(last["free_pages"] * 4096 / last["used_bytes"], 3),
        "acknowledged": percentiles_ms(feed.acknowledged_s),
        "series": {key: [s[key] for s in series] for key in last},
    }  # fmt: skip
    return report("growth", args, figures)


def look(stats: dict[str, Any]) -> dict[str, int]:
    """The catalog at one moment."""
    catalog = stats["catalog"]
    return {
        "events": stats["events"], "generation": stats["generation"], "used_bytes": catalog["used_bytes"],
        "record_bytes": catalog["record_bytes"], "free_pages": catalog["free_pages"],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
