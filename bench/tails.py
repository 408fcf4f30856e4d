"""What the slowest batches of ingest take: `python -m bench.tails [--against DIR]`.

The publisher of an ingest worker in this process, on a new data directory: --events stored as a bulk, then --small
commits of --batch single events each, as they come at a few hundred a second. Of these, in us of this thread's CPU,
which a loaded machine does not touch: each stage (mean, p50, p99, max), all of a batch, and the --slowest by stage.
wall_us is of all of a batch. collector: passes of Python's garbage collector, by generation (count, us in all, the
longest). The start of a worker is in it: first_us is of the first batch. Without index builds, messages and readers.
--against DIR: the code of another worktree takes turns with this one; this file measures both.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import ONE_THREAD, ROOT, arguments, report, synthetic
from engine import ingest
from engine.config import Config
from engine.layout import Layout
from engine.limits import YOUNG_OBJECTS_MAX
from engine.store.publish import Publisher, Submission
from engine.store.recover import open_store

BULK_EVENTS = 1_024


class Collector:
    """Passes of the garbage collector since the last `taken`."""

    def __init__(self) -> None:
        self._cpu_s = 0.0
        self.passes: list[tuple[int, float]] = []  # generation, us
        gc.callbacks.append(self._seen)

    def _seen(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._cpu_s = time.thread_time()
        else:
            self.passes.append((info["generation"], (time.thread_time() - self._cpu_s) * 1e6))

    def figures(self) -> dict[str, Any]:
        by: dict[int, list[float]] = defaultdict(list)
        for generation, us in self.passes:
            by[generation].append(us)
        return {f"generation_{g}": [len(us), round(sum(us)), round(max(us))] for g, us in sorted(by.items())}


class Laps:
    """In the place of the publisher's stages: CPU of each stage of each batch."""

    def __init__(self) -> None:
        self.batch: dict[str, float] = defaultdict(float)
        self.start()

    def start(self) -> None:
        self._cpu_s = time.thread_time()

    def lap(self, stage: str) -> None:
        now_s = time.thread_time()
        self.batch[stage] += (now_s - self._cpu_s) * 1e6
        self._cpu_s = now_s

    def add(self, stage: str, wall_ns: int, cpu_ns: int) -> None: ...

    def stored(self, events: int) -> None: ...


def publish(publisher: Publisher, events: list[Any]) -> None:
    """Each a message of its own."""
    outcomes = publisher.publish([Submission("synthetic", [event], [], lambda _: None) for event in events])
    assert all(outcome.accepted == 1 for outcome in outcomes)


def quantiles(values: Any) -> list[int]:
    """mean, p50, p99, max."""
    return [round(float(v)) for v in (np.mean(values), *np.percentile(values, (50, 99, 100)))]


def measure(folder: Path, args: Any) -> dict[str, Any]:
    layout = Layout(folder)
    layout.make()
    events = synthetic(1 << 40, args.seed, texts=False)
    gc.set_threshold(YOUNG_OBJECTS_MAX)
    publisher = open_store(layout, Config(data_dir=str(folder)))
    for at in range(0, args.events, BULK_EVENTS):
        batch = list(islice(events, min(BULK_EVENTS, args.events - at)))
        publisher.publish([Submission("synthetic", batch, [], lambda _: None)])
    publisher.checkpoint()
    publisher.close()
    publisher.catalog.close()
    started_s = time.process_time()
    publisher = open_store(layout, Config(data_dir=str(folder)))  # as a worker that was started again
    if hasattr(publisher, "warm"):  # as engine/ingest.py does; an older tree has none of it
        publisher.warm()
        publisher.load_text()
        ingest.settle()  # type: ignore[attr-defined]  # older trees define it there
    start_s = time.process_time() - started_s
    laps, collector = Laps(), Collector()
    publisher.stages = laps  # type: ignore[assignment]
    publisher._rows.lap = laps.lap
    batches: list[tuple[float, float, dict[str, float]]] = []
    for _ in range(args.small):
        some = list(islice(events, args.batch))
        laps.batch = defaultdict(float)
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        checkpointed = publisher.checkpointed
        publish(publisher, some)
        if publisher.checkpointed != checkpointed and hasattr(ingest, "settle"):
            ingest.settle()
        batches.append(((time.thread_time() - cpu_s) * 1e6, (time.perf_counter() - wall_s) * 1e6, laps.batch))
    publisher.close()
    publisher.catalog.close()
    stages = sorted({stage for _, _, batch in batches for stage in batch})
    slowest = sorted(batches[1:], key=lambda batch: -batch[0])[: args.slowest]
    return {
        "start_cpu_s": round(start_s, 3), "first_us": round(batches[0][0]),
        "batch_us": quantiles([cpu for cpu, _, _ in batches[1:]]),
        "p999_us": round(float(np.percentile([cpu for cpu, _, _ in batches[1:]], 99.9))),
        "wall_us": quantiles([wall for _, wall, _ in batches[1:]]),
        "stages_us": {s: quantiles([batch.get(s, 0.0) for _, _, batch in batches[1:]]) for s in stages},
        "collector": collector.figures(),
        "slowest": [
            {"us": round(cpu), "wall": round(wall)}
            | {s: round(us) for s, us in sorted(batch.items(), key=lambda kv: -kv[1])[:3]}
            for cpu, wall, batch in slowest
        ],
    }  # fmt: skip


def elsewhere(tree: Path, words: list[str]) -> dict[str, Any]:
    """`measure` with the code of a worktree, in a process of its own."""
    paths = os.pathsep.join((str(tree), os.environ.get("PYTHONPATH", "")))
    out = subprocess.run(
        [sys.executable, str(Path(__file__)), "--child", *words], cwd=tree,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(out.stdout)
    return found


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, default=100_000)
    parse.add_argument("--small", type=int, default=4_000, help="commits")
    parse.add_argument("--batch", type=int, default=5, help="events of each")
    parse.add_argument("--slowest", type=int, default=10)
    parse.add_argument("--turns", type=int, default=1)
    parse.add_argument("--seed", type=int, default=1)
    parse.add_argument("--against", default="", help="another worktree")
    args = parse.parse_args()
    if args.child:
        with tempfile.TemporaryDirectory(prefix="flowkin-bench-") as folder:
            print(json.dumps(measure(Path(folder), args)))
        return 0
    words = [
        w for name in ("events", "small", "batch", "slowest", "seed") for w in (f"--{name}", str(vars(args)[name]))
    ]
    trees = {"now": ROOT} | ({"before": Path(args.against)} if args.against else {})
    turns = [{side: elsewhere(tree, words) for side, tree in trees.items()} for _ in range(args.turns)]
    return report("tails", args, {"turns": turns})


if __name__ == "__main__":
    sys.exit(main())
