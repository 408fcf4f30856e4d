"""Load over many connections: `python -m bench.load --events N --connections C --readers R --seconds S [--rate Q]`.

With --rate the loop is open: requests are sent by the clock, not by the last reply, and each latency runs from when
its request was due, so that a stall is charged in full. Without, each connection sends its next request at its reply.
The load runs in a process of its own (bench/generator.py) and decodes nothing. Queries are by id, of up to 1,000 events
drawn from all. With --ingest-rate events come in at the same time; their acknowledgements are timed, too.

limit_qps: what FAISS does in process with the same vectors (bench/limit.py), in the same run; limit_share: qps over it.
The generator takes its share of the cores: client_cpu_share. open_loop_limit_qps, with --open-loop-limit: the highest
rate of an open loop, within 5 %, at which p99 stays below --limit-p99-ms and nothing is refused; null without.
recall_at_10: bench/recall.py, before the load.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from bench.feed import Feed
from bench.harness import Child, Engine, arguments, engine, fill, percentiles_ms, report, sample, settle, synthetic
from bench.limit import limit
from bench.recall import recall, stored
from engine.embed.base import SPACES

NAMES = 1_000
RECALL_NAMES = 100
LIMIT_S = 3.0  # of each try
LIMIT_TRIES = 8
LIMIT_WITHIN = 0.05


def run(
    running: Engine, names: list[str], options: dict[str, Any], rate_qps: float, seconds: float,
    began: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """One load from start to end. began: called when its process is there and the load begins."""
    job = options | {
        "path": str(running.data_dir / "run/query.sock"), "names": names, "rate_qps": rate_qps, "seconds": seconds,
    }  # fmt: skip
    child = Child("bench.generator", job)
    began()
    figures: dict[str, Any] = child.result()
    return figures


def holds(found: dict[str, Any], p99_ms: float) -> bool:
    """Was everything answered, and in time?"""
    missed = found["failures"] or found["lost"] or found["unanswered"]
    return not missed and found.get("p99_ms", float("inf")) <= p99_ms


def open_loop_limit(
    running: Engine, names: list[str], options: dict[str, Any], closed_qps: float, p99_ms: float
) -> float | None:
    """The highest rate that holds p99_ms, found by halving below twice what a closed loop reached. A rate that fails is
    tried once more: a stall of the machine must not halve the answer."""
    low, high, best = 0.0, 2.0 * closed_qps, None
    for _ in range(LIMIT_TRIES):
        rate = (low + high) / 2
        if any(holds(run(running, names, options, rate, LIMIT_S), p99_ms) for _ in range(2)):
            low = best = rate
        else:
            high = rate
        if high - low < LIMIT_WITHIN * high:
            break
    return None if best is None else round(best, 1)


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, default=10_000)
    parse.add_argument("--connections", type=int, default=32)
    parse.add_argument("--readers", type=int, default=2)
    parse.add_argument("--seconds", type=float, default=10.0)
    parse.add_argument("--rate", type=float, default=0.0, help="queries a second; 0: as fast as replies come")
    parse.add_argument("--ingest-rate", type=float, default=0.0, help="events a second stored meanwhile")
    parse.add_argument("--space", default="chronos")
    parse.add_argument("--collapse", action="store_true")
    parse.add_argument("--texts", action="store_true", help="events keep their free text: many new sentences to embed")
    parse.add_argument("--open-loop-limit", action="store_true", help="find the highest rate that holds --limit-p99-ms")
    parse.add_argument("--limit-p99-ms", type=float, default=20.0)
    parse.add_argument("--seed", type=int, default=1)
    args = parse.parse_args()
    options = {
        "space": args.space, "collapse": args.collapse, "connections": args.connections, "deadline_ms": 60_000,
    }  # fmt: skip
    with engine(args.readers) as running, ExitStack() as stack:
        events = synthetic(1 << 40, args.seed, texts=args.texts)
        ingest_eps = fill(running, events, args.events)
        settle(running)
        names = sample(running, NAMES, args.seed)
        client = stack.enter_context(running.client())
        recall_at_10 = recall(client, names[:RECALL_NAMES], args.space, running.data_dir)
        if args.space in SPACES:
            seqs, parts = stored(names, args.space, running.data_dir)
        run(running, names, options, 0.0, 1.0)  # warm: every reader has its pages
        acknowledged: dict[str, float] = {}
        if args.ingest_rate:
            with Feed(running, events, args.ingest_rate) as feed:
                found = run(running, names, options, args.rate, args.seconds, feed.anew)
            acknowledged = percentiles_ms(feed.acknowledged_s)
        else:
            found = run(running, names, options, args.rate, args.seconds)
        held_qps = None
        if args.open_loop_limit:
            held_qps = open_loop_limit(running, names, options, found["qps"], args.limit_p99_ms)
    limits = limit(parts, seqs) if args.space in SPACES else {"limit_qps": None}
    limit_share = round(found["qps"] / limits["limit_qps"], 3) if limits["limit_qps"] else None
    figures = found | limits | {
        "recall_at_10": round(recall_at_10, 4), "limit_share": limit_share, "open_loop_limit_qps": held_qps,
        "bulk_ingest_eps": round(ingest_eps, 1), "acknowledged": acknowledged,
    }  # fmt: skip
    return report("load", args, figures)


if __name__ == "__main__":
    sys.exit(main())
