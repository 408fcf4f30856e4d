"""Taking over: `python -m bench.reload [--events 10000 100000]`.

A new generation: a process opens the data directory as a reader does and takes over what an engine publishes at 200
single events a second, with the reader's own code (Snapshots.refresh in a read transaction). generation_N.refresh: of
each refresh that found a new generation; with_transaction: from before the transaction began.

A new index: a process asks one query after the other (one connection, chronos, no collapse) while 400 single events a
second fill a row file up, which is then indexed and swapped in. The answer's plan says how many rows were compared
exactly: fewer from the first query on that saw the index. How many indexes there are says nothing, as it takes the
place of those over parts of the row file (engine/store/tiers.py), which are there before the feeding begins. `near` is
the second around that query (half before, half after), `before` the seconds until the row file was full, as the
manifest has it, `build` what lies between (the child takes its share of the cores). stall: the slowest query near a
swap less the median of the slowest ones of each second before, one a swap; before_worst: the same for the worst of
those seconds, which is how much of it is noise. indexes, rows_exact: what the last query before the swap and the first
after it were searched in. acknowledged: of the events fed meanwhile.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.feed import Feed
from bench.harness import (
    Child,
    ChildSide,
    Engine,
    arguments,
    engine,
    fill,
    percentiles_ms,
    report,
    sample,
    settle,
    synthetic,
)
from engine.config import Config
from engine.layout import Layout
from engine.limits import ROW_FILE_ROWS
from engine.search.snapshot import Snapshots
from engine.store.catalog import Catalog
from engine.store.counter import Counter
from engine.store.manifest import Manifest
from engine.store.recover import map_size
from ipc.client import Client
from ipc.event import FeaturedEvent
from ipc.messages import Options

TRICKLE_EPS = 200
FEED_EPS = 400
BEFORE_S = 4.0  # of feeding before the row file is full
FULL_S_MAX = 40.0  # from the beginning of the feeding
AFTER_S = 2.0
SWAP_S_MAX = 40.0  # from when the row file is full until the index must have been named
NEAR_S = 0.5  # on either side of a swap
LOOK_S = 0.0005
WAIT_S = 0.1  # between two looks at the manifest
PLAN = re.compile(r"chronos: (?:exact, )?(\d+) indexes \+ (\d+) rows exact")

Times = NDArray[np.float64]


# ---- in a process of its own ----------------------------------------------------------------------------------------


def observe(side: ChildSide) -> dict[str, Any]:
    """Take over every generation as soon as the counter moves, until told to stop."""
    layout = Layout(Path(side.job["data_dir"]))
    catalog = Catalog(layout.catalog, write=False, map_size=map_size(Config()))
    counter, snapshots = Counter(layout.generation, write=False), Snapshots(layout)
    refresh_s: list[float] = []
    whole_s: list[float] = []
    with catalog.read() as view:
        seen = snapshots.refresh(view).generation
    while snapshots.opening():
        time.sleep(0.01)
        with catalog.read() as view:
            seen = snapshots.refresh(view).generation
    side.ready()
    while not side.asked_to_stop(LOOK_S):
        if counter.value == seen:
            continue
        begin_s = time.perf_counter()
        with catalog.read() as view:
            start_s = time.perf_counter()
            snapshot = snapshots.refresh(view)
            end_s = time.perf_counter()
        if snapshot.generation != seen:
            seen = snapshot.generation
            refresh_s.append(end_s - start_s)
            whole_s.append(end_s - begin_s)
    snapshots.close()
    catalog.close()
    return {"refresh": percentiles_ms(refresh_s), "with_transaction": percentiles_ms(whole_s)}


def stream(side: ChildSide) -> list[tuple[float, float, int, int]]:
    """One query after the other until told to stop: (asked at, seconds, indexes that it was searched in, rows that it
    was compared with exactly)."""
    names, options = side.job["names"], Options(space="chronos", collapse=False)
    asked: list[tuple[float, float, int, int]] = []
    with Client.for_data_dir(side.job["data_dir"], timeout_ms=60_000) as client:
        for name in names[:50]:
            client.query_similar(name, options=options)
        side.ready()
        while not side.asked_to_stop():
            start_s = time.perf_counter()
            reply = client.query_similar(names[len(asked) % len(names)], options=options)
            took_s = time.perf_counter() - start_s
            asked.append((start_s, took_s, *searched(reply.answers[0].plan)))
    return asked


def searched(plan: str) -> tuple[int, int]:
    """(indexes, rows compared exactly) in chronos. Raises RuntimeError where a plan does not say it."""
    found = PLAN.search(plan)
    if found is None:
        raise RuntimeError(f"a plan that says nothing of indexes: {plan}")
    return int(found[1]), int(found[2])


# ---- the bench ------------------------------------------------------------------------------------------------------


def generations(running: Engine, events: Iterator[FeaturedEvent], seconds: float) -> dict[str, Any]:
    """What taking over a generation takes while single events come in."""
    child = Child("bench.reload", {"what": "observe", "data_dir": str(running.data_dir)})
    with Feed(running, events, TRICKLE_EPS) as feed:
        time.sleep(seconds)
    figures: dict[str, Any] = child.stop()
    return figures | {"acknowledged": percentiles_ms(feed.acknowledged_s)}


def edge_after(stored: int) -> int:
    """Events stored when the row file is full that BEFORE_S of feeding end in."""
    return -(-(stored + int(FEED_EPS * BEFORE_S)) // ROW_FILE_ROWS) * ROW_FILE_ROWS


def swap(running: Engine, events: Iterator[FeaturedEvent], names: list[str]) -> dict[str, Any]:
    """Fill a row file up to its edge and over it; queries and acknowledgements meanwhile."""
    stored = running.stats()["events"]
    edge = edge_after(stored)
    fill(running, events, edge - stored - int(FEED_EPS * BEFORE_S))
    settle(running)  # what is left of this row file gets no index of its own before it is full
    child = Child("bench.reload", {"what": "stream", "data_dir": str(running.data_dir), "names": names})
    with (
        closing(Catalog(Layout(running.data_dir).catalog, write=False, map_size=map_size(Config()))) as catalog,
        Feed(running, events, FEED_EPS) as feed,
    ):
        full_s = until(catalog, lambda manifest: manifest.count >= edge, FULL_S_MAX, "the row file is not full")
        until(catalog, lambda manifest: reaches(manifest, edge), SWAP_S_MAX, "no index was named")
        time.sleep(AFTER_S)
    asked = np.array(child.stop())
    return judge(asked[:, 0], asked[:, 1], asked[:, 2:], full_s) | {"acknowledged_s": feed.acknowledged_s}


def until(catalog: Catalog, so: Callable[[Manifest], bool], within_s: float, otherwise: str) -> float:
    """When the manifest was first seen to be so, WAIT_S late at most. It is read from the catalog, not asked for, as an
    answer would come from the reader that is measured. Raises RuntimeError after within_s."""
    end_s = time.perf_counter() + within_s
    while time.perf_counter() < end_s:
        with catalog.read() as view:
            manifest = view.manifest()
        if manifest is not None and so(manifest):
            return time.perf_counter()
        time.sleep(WAIT_S)
    raise RuntimeError(f"{otherwise} within {within_s:.0f} s")


def reaches(manifest: Manifest, edge: int) -> bool:
    """Has chronos an index whose last row is the one before `edge`? Those over parts of a row file end before."""
    return any(index.space == "chronos" and index.lo < edge <= index.hi for index in manifest.indexes)


def judge(at_s: Times, latency_s: Times, searched: Times, full_s: float) -> dict[str, Any]:
    """The queries around the first that was compared with fewer rows exactly, once the row file was full. searched:
    [n, 2], indexes and rows compared exactly. Raises RuntimeError where there is none."""
    fewer = np.flatnonzero((np.diff(searched[:, 1]) < 0) & (at_s[1:] >= full_s - WAIT_S))
    if not len(fewer):
        raise RuntimeError(f"no index was swapped in within {AFTER_S:.0f} s after it was named")
    last = int(fewer[0])  # query that did not see it
    swap_s = at_s[last + 1]
    before = at_s < min(full_s, swap_s - NEAR_S) - 2 * WAIT_S
    near = np.abs(at_s - swap_s) <= NEAR_S
    seconds = np.floor(at_s[before] - at_s[0])
    worst = [float(latency_s[before][seconds == s].max()) for s in np.unique(seconds)]
    usual = float(np.median(worst))
    return {
        "before_s": latency_s[before], "near_s": latency_s[near],
        "build_s": latency_s[(at_s >= full_s) & (at_s < swap_s - NEAR_S)],
        "stall_ms": round((float(latency_s[near].max()) - usual) * 1e3, 3),
        "before_worst_ms": round((max(worst) - usual) * 1e3, 3),
        "build_to_swap_s": round(float(swap_s - full_s), 2),
        "indexes": searched[last : last + 2, 0].astype(int).tolist(),
        "rows_exact": searched[last : last + 2, 1].astype(int).tolist(),
    }  # fmt: skip


def swaps(running: Engine, events: Iterator[FeaturedEvent], n: int, seed: int) -> dict[str, Any]:
    """`n` swaps, one after the other."""
    names = sample(running, 500, seed)
    runs = [swap(running, events, names) for _ in range(n)]
    together = {
        name: percentiles_ms(np.concatenate([r[f"{name}_s"] for r in runs]).tolist())
        for name in ("before", "build", "near", "acknowledged")
    }
    return together | {
        key: [r[key] for r in runs]
        for key in ("stall_ms", "before_worst_ms", "build_to_swap_s", "indexes", "rows_exact")
    }


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, nargs="+", default=[10_000, 100_000])
    parse.add_argument("--seconds", type=float, default=10.0)
    parse.add_argument("--swaps", type=int, default=3, help="index swap-ins, at the smallest number of events; 0: none")
    parse.add_argument("--seed", type=int, default=5)
    args = parse.parse_args()
    if args.child:
        side = ChildSide()
        side.done(observe(side) if side.job["what"] == "observe" else stream(side))
        return 0
    figures: dict[str, Any] = {}
    for n in args.events:
        with engine(1) as running:
            events = synthetic(1 << 40, args.seed, texts=False)
            figures[f"fill_eps_{n}"] = round(fill(running, events, n), 1)
            settle(running)
            figures[f"generation_{n}"] = generations(running, events, args.seconds)
            if n == min(args.events) and args.swaps:
                figures[f"index_{n}"] = swaps(running, events, args.swaps, args.seed)
    return report("reload", args, figures)


if __name__ == "__main__":
    sys.exit(main())
