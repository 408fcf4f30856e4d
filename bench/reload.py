"""Taking over: `python -m bench.reload [--events 10000 100000]`.

A new generation: this process opens the data directory as a reader does and takes over what an engine publishes,
with the reader's own code (Snapshots.refresh in a read transaction). A new index: a steady stream of queries on one
connection while row files fill up at 400 events/s and their indexes are swapped in: the queries in the half second
after a swap against all others (a build in the child takes its share of the cores before it).
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from typing import Any

import numpy as np

from bench.harness import Engine, engine, fill, keep, percentiles_ms, synthetic
from engine.catalog import Catalog
from engine.layout import Layout
from engine.limits import ROW_FILE_ROWS
from engine.snapshot import Snapshots
from ipc.event import Event
from ipc.messages import Options

TRICKLE_EPS = 200
FEED_EPS = 400
SWAPS = 3
NEAR_S = 0.5  # after a swap


def trickle(running: Engine, events: Any, rate: int, seconds: float) -> threading.Thread:
    """Single events at `rate` a second, in a thread."""

    def work() -> None:
        with running.client() as client:
            start_s = time.perf_counter()
            for i in range(int(seconds * rate)):
                time.sleep(max(0.0, start_s + i / rate - time.perf_counter()))
                client.ingest("synthetic", [next(events)])

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def generations(running: Engine, events: Any, seconds: float) -> dict[str, Any]:
    """Seconds that each refresh took which found a new generation."""
    layout = Layout(running.data_dir)
    catalog, snapshots = Catalog(layout.catalog, write=False, map_size=1 << 30), Snapshots(layout)
    thread = trickle(running, events, TRICKLE_EPS, seconds)
    took_s: list[float] = []
    seen = 0
    while thread.is_alive():
        with catalog.read() as view:
            start_s = time.perf_counter()
            snapshot = snapshots.refresh(view)
            took = time.perf_counter() - start_s
        if snapshot.generation != seen:
            seen = snapshot.generation
            took_s.append(took)
        time.sleep(0.0005)
    snapshots.close()
    catalog.close()
    return {"taken_over": len(took_s), **percentiles_ms(took_s[1:])}


def swaps(running: Engine, events: Any, stored: int) -> dict[str, Any]:
    """Latency of queries on one connection, closed loop, while SWAPS row files fill up at FEED_EPS and are indexed."""
    layout = Layout(running.data_dir)
    catalog = Catalog(layout.catalog, write=False, map_size=1 << 30)
    at_s: list[float] = []
    latency_s: list[float] = []
    swapped_s: list[float] = []
    with running.client() as client:
        ids = [s.event.event_id for s in client.recent(limit=500).events if isinstance(s.event, Event)]
        for _ in range(SWAPS):
            edge = -(-stored // ROW_FILE_ROWS) * ROW_FILE_ROWS
            fill(running, events, edge - stored - FEED_EPS)
            stored = edge + 8 * FEED_EPS
            with catalog.read() as view:
                manifest = view.manifest()
            assert manifest is not None
            seen = len(manifest.indexes)
            thread = trickle(running, events, FEED_EPS, 9.0)
            i = 0
            while thread.is_alive():
                start_s = time.perf_counter()
                client.query_similar(ids[i % len(ids)], options=Options(space="chronos", collapse=False))
                at_s.append(start_s)
                latency_s.append(time.perf_counter() - start_s)
                i += 1
                with catalog.read() as view:
                    manifest = view.manifest()
                if manifest is not None and len(manifest.indexes) > seen:
                    seen = len(manifest.indexes)
                    swapped_s.append(time.perf_counter())
    catalog.close()
    at, latency = np.array(at_s), np.array(latency_s)
    near = np.zeros(len(at), bool)
    for swap_s in swapped_s:
        near |= (at > swap_s - 0.05) & (at < swap_s + NEAR_S)
    return {
        "swaps": len(swapped_s), "near": percentiles_ms(latency[near].tolist()),
        "away": percentiles_ms(latency[~near].tolist()),
    }  # fmt: skip


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--events", type=int, nargs="+", default=[10_000, 100_000])
    parse.add_argument("--seconds", type=float, default=10.0)
    parse.add_argument("--seed", type=int, default=5)
    parse.add_argument("--json", action="store_true")
    args = parse.parse_args()
    figures: dict[str, Any] = {}
    for n in args.events:
        with engine(1) as running:
            more = int(TRICKLE_EPS * args.seconds) + (SWAPS + 1) * ROW_FILE_ROWS
            events = synthetic(n + more, args.seed, texts=False)
            figures[f"fill_eps_{n}"] = round(fill(running, events, n), 1)
            figures[f"generation_{n}"] = generations(running, events, args.seconds)
            if n == args.events[0]:
                figures[f"index_{n}"] = swaps(running, events, running.stats()["events"])
    line = keep("reload", vars(args), figures)
    print(json.dumps(line) if args.json else "\n".join(f"{k:20} {v}" for k, v in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
