"""What measuring costs: `python -m bench.health [--events 20000 100000]`.

An engine is filled with synthetic events and indexed, then asked to measure (client.measure), three times. seconds and
cpu_s: of the measurement in the niced child, most of it comparing the sample with every row. quiet, meanwhile: latency
of queries by id (one connection, attack) before that and while it runs. recall_by_nprobe: the engine stopped, its
indexes named again with fewer lists to look at, and measured from the directory: does the figure see it?
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from bench.harness import Engine, arguments, engine, fill, percentiles_ms, report, sample, settle, synthetic
from engine.config import load
from engine.layout import Layout
from engine.maintain import quality
from engine.store.recover import open_store
from ipc.messages import Options

RUNS = 3
NPROBES = (1, 2, 4, 8)
WINDOW, SAMPLE = 10_000, 500
QUIET_S = 4.0


def queries(running: Engine, names: list[str], until: threading.Event) -> list[float]:
    """One after the other, seconds each."""
    latency_s: list[float] = []
    options = Options(space="attack")
    with running.client() as client:
        while not until.is_set():
            start_s = time.perf_counter()
            client.query_similar(names[len(latency_s) % len(names)], options=options)
            latency_s.append(time.perf_counter() - start_s)
    return latency_s


def while_quiet(running: Engine, names: list[str]) -> list[float]:
    until = threading.Event()
    timer = threading.Timer(QUIET_S, until.set)
    timer.start()
    return queries(running, names, until)


def while_measuring(running: Engine, names: list[str], seed: int) -> tuple[dict[str, Any], list[float]]:
    until = threading.Event()
    latency_s: list[float] = []
    asking = threading.Thread(target=lambda: latency_s.extend(queries(running, names, until)))
    asking.start()
    try:
        with running.client(timeout_ms=600_000) as client:
            return client.measure(seed=seed).facts, latency_s
    finally:
        until.set()
        asking.join()


def recall_by_nprobe(folder: Path) -> dict[str, dict[str, float | None]]:
    """Of a stopped engine, by space."""
    layout, out = Layout(folder), {}
    publisher = open_store(layout, load(env={}, flags={"data_dir": str(folder)}))
    try:
        for nprobe in NPROBES:
            indexes = publisher.manifest.indexes
            publisher.swap_in([msgspec.structs.replace(i, nprobe=nprobe) for i in indexes])
            found = quality.measure(layout, publisher.catalog, window=WINDOW, sample=SAMPLE, seed=0)
            out[f"nprobe_{nprobe}"] = {space: s.recall_at_10 for space, s in found.spaces.items()}
    finally:
        publisher.close()
        publisher.catalog.close()
    return out


def measured(folder: Path, n: int) -> dict[str, Any]:
    with engine(readers=2, data_dir=folder, settings=["quality.every_s=0"]) as running:
        fill(running, synthetic(n, 1, texts=False), n)
        settle(running)
        names = sample(running, 200, 1)
        quiet = while_quiet(running, names)
        runs = [while_measuring(running, names, seed) for seed in range(RUNS)]
    found = [facts for facts, _ in runs]
    return {
        "seconds": [facts["seconds"] for facts in found], "cpu_s": [facts["cpu_s"] for facts in found],
        "sample": found[0]["sample"],
        "recall_at_10": [round(facts["gauges"]["recall_at_10"]["value"], 4) for facts in found],
        "same_family_at_5": [round(facts["gauges"]["same_family_at_5"]["value"], 4) for facts in found],
        "quiet": percentiles_ms(quiet), "meanwhile": percentiles_ms([s for _, some in runs for s in some]),
        "recall_by_nprobe": recall_by_nprobe(folder),
    }  # fmt: skip


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, nargs="+", default=[20_000, 100_000])
    args = parse.parse_args()
    figures: dict[str, Any] = {}
    for n in args.events:
        with tempfile.TemporaryDirectory(prefix="flowkin-bench-") as folder:
            figures[f"events_{n}"] = measured(Path(folder), n)
    return report("health", args, figures)


if __name__ == "__main__":
    sys.exit(main())
