"""What the benches share: a real engine on a temporary directory, figures, and results that are kept.

Always true
  - A bench measures real processes over real sockets and prints what it saw; it asserts nothing.
  - Each run appends one JSON line to bench/results/NAME.jsonl: commit, machine, configuration, seed, figures.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from engine.sources.synthetic import generate
from ipc.client import Client
from ipc.event import FeaturedEvent

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
FLOWKIN = Path(sys.executable).with_name("flowkin")
START_S_MAX = 60.0
BATCH_EVENTS = 500


class Engine:
    """A running engine and its clients."""

    def __init__(self, data_dir: Path, process: subprocess.Popen[str]) -> None:
        self.data_dir, self.process = data_dir, process

    def client(self, timeout_ms: int = 60_000) -> Client:
        return Client.for_data_dir(str(self.data_dir), timeout_ms=timeout_ms)

    def stats(self) -> dict[str, Any]:
        with self.client() as client:
            return client.stats().facts


@contextmanager
def engine(readers: int = 2, *, data_dir: Path | None = None, settings: Sequence[str] = ()) -> Iterator[Engine]:
    """`flowkin serve` on a new temporary directory (or `data_dir`), stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="flowkin-bench-") as folder:
        where = data_dir or Path(folder)
        words = [str(FLOWKIN), "serve", "--data-dir", str(where), "--readers", str(readers)]
        for setting in settings:
            words += ["--set", setting]
        process = subprocess.Popen(
            words, stderr=subprocess.PIPE, text=True, env={**os.environ, "FLOWKIN_LOG__LEVEL": "warning"}
        )
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("READY"):
                    break
                sys.stderr.write(line)
            else:
                raise RuntimeError(f"the engine did not start: status {process.wait()}")
            drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=sys.stderr.fileno())
            yield Engine(where, process)
            drain.terminate()
            drain.wait()
        finally:
            process.terminate()
            process.wait(timeout=60)
            process.stderr and process.stderr.close()


def synthetic(n: int, seed: int, *, texts: bool) -> Iterator[FeaturedEvent]:
    """Synthetic events; without their free text they share a few hundred sentences, as flows do."""
    for item in generate(n, seed):
        item.event.source = f"synthetic-{seed}"  # every seed numbers its events from 0
        if not texts:
            item.event.text = ""
        yield item


def fill(running: Engine, events: Iterator[FeaturedEvent], n: int, source_format: str = "synthetic") -> float:
    """Ingest n events; events a second."""
    start = time.perf_counter()
    with running.client() as client:
        done = 0
        while batch := list(islice(events, min(BATCH_EVENTS, n - done))):
            done += client.ingest(source_format, batch).accepted
    return done / (time.perf_counter() - start)


def percentiles_ms(latency_s: Sequence[float]) -> dict[str, float]:
    """p50, p99, p99.9 and max in ms; empty without samples."""
    if not len(latency_s):
        return {}
    ms = np.asarray(latency_s) * 1e3
    p50, p99, p999 = np.percentile(ms, (50, 99, 99.9))
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3), "p999_ms": round(float(p999), 3),
            "max_ms": round(float(ms.max()), 3)}  # fmt: skip


def machine() -> dict[str, Any]:
    """What the figures were taken on, without the name of the host."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.machine(), "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / (1 << 20), 1) if memory else None, "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def commit() -> str:
    """The commit that was measured, with a + where the tree had changes."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + (
        "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    )


def keep(name: str, config: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """Append one line to bench/results/NAME.jsonl; the line."""
    line = {
        "bench": name, "at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "machine": machine(),
        "config": config, **figures,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line
