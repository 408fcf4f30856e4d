"""What the benches share: a real engine on a temporary directory, helpers in processes of their own, figures, and
results that are kept.

Always true
  - A bench measures real processes over real sockets and prints what it saw; it asserts nothing about speed.
  - What measures (queries, refreshes) runs apart from what feeds the engine: two threads of one Python process would
    charge each other's work to the engine.
  - Each run appends one JSON line to bench/results/NAME.jsonl: commit, machine, configuration, figures.
    FLOWKIN_BENCH_RESULTS=DIR puts it elsewhere: trial runs leave no line behind.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import Config
from engine.layout import Layout
from engine.sources.synthetic import generate
from engine.store.catalog import Catalog
from engine.store.recover import map_size
from engine.store.tiers import early, mergeable, unindexed
from ipc.client import Client
from ipc.errors import error_of
from ipc.event import Event, FeaturedEvent
from ipc.messages import Failure, Ingest, Ingested

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("FLOWKIN_BENCH_RESULTS") or ROOT / "bench" / "results")
FLOWKIN = Path(sys.executable).with_name("flowkin")
START_S_MAX = 60.0
STOP_S_MAX = 60.0
SETTLE_S_MAX = 120.0
BATCH_EVENTS = 500
WINDOW_BATCHES = 8  # of fill, under way; together fewer than the engine's queue holds
MIB = 1 << 20
LOAD_BEFORE = round(os.getloadavg()[0], 2)  # the bench's own load is not in it yet
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


class Engine:
    """A running engine and its clients. started_s: from the start of the process to READY."""

    def __init__(self, data_dir: Path, process: subprocess.Popen[str], started_s: float) -> None:
        self.data_dir, self.process, self.started_s = data_dir, process, started_s

    def client(self, timeout_ms: int = 60_000) -> Client:
        return Client.for_data_dir(str(self.data_dir), timeout_ms=timeout_ms)

    def stats(self) -> dict[str, Any]:
        with self.client() as client:
            return client.stats().facts


@contextmanager
def engine(readers: int = 2, *, data_dir: Path | None = None, settings: Sequence[str] = ()) -> Iterator[Engine]:
    """`flowkin serve` on a new temporary directory (or `data_dir`, which stays), stopped at the end, also where the
    bench is terminated. From the main thread only."""
    commit()  # of the tree as it is now, not as it is at the end of the run
    ended_with_us()
    with tempfile.TemporaryDirectory(prefix="flowkin-bench-") as folder:
        where = data_dir or Path(folder)
        words = [str(FLOWKIN), "serve", "--data-dir", str(where), "--readers", str(readers)]
        for setting in settings:
            words += ["--set", setting]
        start_s = time.monotonic()
        process = subprocess.Popen(
            words, stderr=subprocess.PIPE, text=True, env={**os.environ, "FLOWKIN_LOG__LEVEL": "warning"}
        )
        drain: subprocess.Popen[bytes] | None = None
        try:
            _until_ready(process)
            started_s = time.monotonic() - start_s
            drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=sys.stderr.fileno())
            yield Engine(where, process, started_s)
        finally:
            process.terminate()
            try:
                process.wait(timeout=STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if drain is not None:
                drain.wait()  # it ends with the engine's stderr
            if process.stderr is not None:
                process.stderr.close()


def ended_with_us() -> None:
    """From now on SIGTERM leaves every `with` and `finally`, which end what this bench started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _until_ready(process: subprocess.Popen[str]) -> None:
    """Raises RuntimeError where it ends first, or says nothing for START_S_MAX."""
    assert process.stderr is not None
    while select.select([process.stderr], [], [], START_S_MAX)[0] and (line := process.stderr.readline()):
        if line.startswith("READY"):
            return
        sys.stderr.write(line)
    raise RuntimeError(f"the engine did not start: status {process.poll()}")


# ---- what is stored and asked for -----------------------------------------------------------------------------------


def synthetic(n: int, seed: int, *, texts: bool) -> Iterator[FeaturedEvent]:
    """Synthetic events; without their free text they share a few hundred sentences, as flows do."""
    for item in generate(n, seed):
        item.event.source = f"synthetic-{seed}"  # every seed numbers its events from 0
        if not texts:
            item.event.text = ""
        yield item


def fill(running: Engine, events: Iterator[FeaturedEvent], n: int, source_format: str = "synthetic") -> float:
    """Ingest n events, batch after batch without waiting in between; events a second, generator included."""

    def make(batch: list[FeaturedEvent], request_id: int, _left_ms: int) -> Ingest:
        return Ingest(request_id, source_format, batch)

    def makes() -> Iterator[Callable[[int, int], Ingest]]:
        left = n
        while batch := list(islice(events, min(BATCH_EVENTS, left))):
            left -= len(batch)
            yield partial(make, batch)

    start_s, done = time.perf_counter(), 0
    with running.client() as client:
        for reply in client.pipeline(makes(), window=WINDOW_BATCHES):
            if isinstance(reply, Failure):
                raise error_of(reply)
            assert isinstance(reply, Ingested)
            done += reply.accepted
    return done / (time.perf_counter() - start_s)


def settle(running: Engine, within_s: float = SETTLE_S_MAX) -> float:
    """Wait until all rows that are to be indexed are, and the indexes that can be are merged; seconds waited."""
    start_s = time.monotonic()
    while not indexed(running.data_dir):
        if time.monotonic() - start_s > within_s:
            raise RuntimeError(f"row files are not indexed after {within_s:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - start_s


def indexed(data_dir: Path) -> bool:
    """Are no rows left to be indexed, and no indexes to be merged?"""
    catalog = Catalog(Layout(data_dir).catalog, write=False, map_size=map_size(Config()))
    with catalog.read() as view:
        manifest = view.manifest()
    catalog.close()
    assert manifest is not None
    return not unindexed(manifest) and mergeable(manifest) is None and early(manifest) is None


def sample(running: Engine, n: int, seed: int) -> list[str]:
    """source/event_id of up to n stored events, drawn from all of them: the newest alone would be one flood."""
    with running.client() as client:
        count = int(client.info().facts["events"])
        chosen = np.random.default_rng(seed).choice(count, min(n, count), replace=False)
        found = [client.list(after_seq=int(seq) - 1, limit=1).events[0].event for seq in chosen]
    return [f"{event.source}/{event.event_id}" for event in found if isinstance(event, Event)]


# ---- helpers in processes of their own ------------------------------------------------------------------------------


class Child:
    """`python -m MODULE --child` with a job on its stdin; see ChildSide for its side. It is ready when this returns,
    works until `stop`, and leaves its result as one JSON line."""

    def __init__(self, module: str, job: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--child"], cwd=ROOT, env={**os.environ, **ONE_THREAD},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "READY\n":
            raise RuntimeError(f"{module} --child did not start: status {self._process.wait()}")

    def stop(self) -> Any:
        """Tell it to end, wait, and return its result; also where it has ended by itself."""
        try:
            out, _ = self._process.communicate(timeout=STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        if self._process.returncode:
            raise RuntimeError(f"a helper process failed with status {self._process.returncode}")
        return json.loads(out)

    def result(self) -> Any:
        """The result of one that ends by itself, without telling it to."""
        assert self._process.stdout is not None
        out = self._process.stdout.readline()
        self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"a helper process failed with status {self._process.returncode}")
        return json.loads(out)


class ChildSide:
    """What runs in a helper process: job -> ready() -> work while not asked_to_stop() -> done(result)."""

    def __init__(self) -> None:
        self.job: dict[str, Any] = json.loads(sys.stdin.readline())

    def ready(self) -> None:
        print("READY", flush=True)

    def asked_to_stop(self, wait_s: float = 0.0) -> bool:
        """Is stdin at its end? Sleeps up to wait_s before it says no."""
        return bool(select.select([sys.stdin.fileno()], [], [], wait_s)[0])

    def done(self, result: Any) -> None:
        print(json.dumps(result), flush=True)


# ---- figures --------------------------------------------------------------------------------------------------------


def percentiles_ms(latency_s: Sequence[float]) -> dict[str, float]:
    """p50, p99, p99.9 and max in ms, and of how many; empty without samples."""
    if not len(latency_s):
        return {}
    ms = np.asarray(latency_s) * 1e3
    p50, p99, p999 = np.percentile(ms, (50, 99, 99.9))
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3), "p999_ms": round(float(p999), 3),
            "max_ms": round(float(ms.max()), 3), "samples": len(ms)}  # fmt: skip


def flat(figures: Any, path: str = "") -> dict[str, float]:
    """Every number in a result by its dotted path; a list's by their places."""
    if isinstance(figures, bool) or figures is None or isinstance(figures, str):
        return {}
    if isinstance(figures, int | float):
        return {path: float(figures)}
    items = figures.items() if isinstance(figures, dict) else enumerate(figures)
    return {k: v for name, of in items for k, v in flat(of, f"{path}.{name}" if path else str(name)).items()}


def machine() -> dict[str, Any]:
    """What the figures were taken on, without the name of the host. load_before: when the bench began."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.machine(), "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / (1 << 20), 1) if memory else None, "python": platform.python_version(),
        "load_before": LOAD_BEFORE, "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip


@cache
def commit() -> str:
    """The commit that is measured, with a + where the tree has changes (results apart)."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def keep(name: str, config: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """Append one line to bench/results/NAME.jsonl; the line."""
    line = {
        "bench": name, "at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "machine": machine(),
        "config": {k: v for k, v in config.items() if k not in ("json", "child")}, **figures,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True, parents=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A bench's parser, with what all benches take."""
    parse = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--json", action="store_true", help="print the line that is kept, instead of a table")
    parse.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parse


def print_table(figures: dict[str, Any], path: str = "") -> None:
    """One row a dict that holds figures, under its dotted path."""
    plain = {k: v for k, v in figures.items() if not isinstance(v, dict)}
    if plain:
        print(f"{path:36} " + "  ".join(f"{k} {v}" for k, v in plain.items()))
    for key, of in figures.items():
        if isinstance(of, dict):
            print_table(of, f"{path}.{key}" if path else key)


def report(name: str, args: argparse.Namespace, figures: dict[str, Any]) -> int:
    """Keep the result and print it: a JSON line, or one row a figure; the exit status."""
    line = keep(name, vars(args), figures)
    if args.json:
        print(json.dumps(line))
        return 0
    print_table(figures)
    print(f"load {line['machine']['load_before']} before, {line['machine']['load_average']} at the end")
    return 0
