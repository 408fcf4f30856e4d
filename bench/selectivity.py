"""Filters that few events pass, and many: `python -m bench.selectivity [--events 100000] [--shares 1e-5 ... 1]`.

At each share of all events two filters that about so many pass: `ports`, ranges of source ports, whose events lie
scattered; `time`, a stretch of time, whose events lie together. Asked are stored events drawn from all, most of which
do not pass themselves, one after the other over one connection, in chronos without collapse; none: without a filter.

matched: events that pass; short: answers with fewer than min(10, matched) hits; exact: share of answers that say so;
recall_at_10 against float64 brute force over the events that pass, ties by distance; scanned: of the last question.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness import Engine, arguments, engine, fill, percentiles_ms, report, sample, settle, synthetic
from bench.recall import SAME, TOP, columns, stored
from engine.features import F32
from ipc.client import Client
from ipc.messages import Filter, Options

SPACE = "chronos"
SHARES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0)

Passing = NDArray[np.int64]


def filters(ports: NDArray[Any], ts: NDArray[Any], share: float) -> Iterator[tuple[str, Filter, Passing]]:
    """(name, filter, seqs that pass it) of about `share` of all events."""
    wanted = max(1, round(share * len(ts)))
    numbers, counts = np.unique(ports[ports >= 0], return_counts=True)
    order = np.random.default_rng(7).permutation(len(numbers))  # not all of one application
    taken = numbers[order][: int(np.searchsorted(np.cumsum(counts[order]), wanted)) + 1][:64]
    if counts.sum() and share < 1:
        ranges = [(int(p), int(p)) for p in taken]
        if counts[np.isin(numbers, taken)].sum() < wanted / 2:  # more than 64 ports: one range of them
            upto = int(np.searchsorted(np.cumsum(counts), wanted))
            ranges = [(int(numbers[0]), int(numbers[min(upto, len(numbers) - 1)]))]
        passing = np.zeros(len(ports), np.bool_)
        for lo, hi in ranges:
            passing |= (ports >= lo) & (ports <= hi)
        yield "ports", Filter(src_ports=ranges), np.flatnonzero(passing)
    ordered = np.sort(ts)
    first = (len(ts) - wanted) // 3
    since, until = int(ordered[first]), int(ordered[min(first + wanted, len(ts)) - 1]) + 1
    yield "time", Filter(since=since, until=until), np.flatnonzero((ts >= since) & (ts < until))


def asked(
    client: Client, names: list[str], seqs: list[int], vectors: F32, wanted: Filter | None, passing: Passing
) -> Any:
    latency_s, recalled, short, exact, scanned = list[float](), list[float](), 0, 0, 0
    rows = vectors[passing]
    for name, seq in zip(names, seqs, strict=True):
        start_s = time.perf_counter()
        options = Options(space=SPACE, top_k=TOP, collapse=False, filter=wanted)
        (answer,) = client.query_similar(name, options=options).answers
        latency_s.append(time.perf_counter() - start_s)
        others = passing != seq
        k = min(TOP, int(others.sum()))
        short += len(answer.hits) < k
        exact += answer.exact
        scanned = answer.scanned
        if k:
            distances = np.sqrt(((rows[others] - vectors[seq].astype(np.float64)) ** 2).sum(1))
            bound = np.partition(distances, k - 1)[k - 1] * (1 + SAME) + 1e-9
            found = {hit.seq for hit in answer.hits} & set(passing.tolist())
            near = [np.sqrt(((vectors[hit] - vectors[seq].astype(np.float64)) ** 2).sum()) <= bound for hit in found]
            recalled.append(min(1.0, sum(map(bool, near)) / k))
    return {
        "matched": len(passing), "short": short, "exact": round(exact / len(names), 3), "scanned": scanned,
        "recall_at_10": round(float(np.mean(recalled)), 4) if recalled else None, **percentiles_ms(latency_s),
    }  # fmt: skip


def measure(running: Engine, args: Any) -> dict[str, Any]:
    settle(running, 600.0)
    names = sample(running, args.queries, args.seed)
    seqs, parts = stored(names, SPACE, running.data_dir)
    vectors = np.concatenate(parts)
    ports, ts = columns(("src_port", "ts"), running.data_dir)
    figures: dict[str, Any] = {}
    with running.client() as client:
        everything = np.arange(len(vectors))
        asked(client, names[:5], seqs[:5], vectors, None, everything)  # warm
        figures["none"] = asked(client, names, seqs, vectors, None, everything)
        for share in args.shares:
            for name, wanted, passing in filters(ports, ts, share):
                figures[f"{name}_{share:g}".replace(".", "_")] = asked(client, names, seqs, vectors, wanted, passing)
    return figures


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, default=100_000)
    parse.add_argument("--data-dir", help="a data directory that is there, instead")
    parse.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parse.add_argument("--queries", type=int, default=40)
    parse.add_argument("--seed", type=int, default=1)
    args = parse.parse_args()
    with engine(2, data_dir=Path(args.data_dir) if args.data_dir else None) as running:
        if not args.data_dir:
            fill(running, synthetic(args.events, args.seed, texts=False), args.events)
        return report("selectivity", args, measure(running, args))


if __name__ == "__main__":
    sys.exit(main())
