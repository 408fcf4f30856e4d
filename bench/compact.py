"""What a compaction costs: `python -m bench.compact [--events 50000] [--readers 1 2 4 8]`.

A directory is filled with synthetic events and indexed. Then, for each number of readers, not confined and confined
(these are replaced one by one before it ends), while `flowkin compact` runs: a sender stores one event after the other,
and a client asks for the neighbours of one after the other, each as soon as the one before is answered.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from bench.backup import command, sent
from bench.harness import Engine, arguments, engine, fill, percentiles_ms, report, sample, settle, synthetic

ASKED = 200


def asked(running: Engine, names: list[str], until: threading.Event) -> list[float]:
    """Seconds of each question; a connection that a reader closed is made again within it."""
    latency_s: list[float] = []
    with running.client(timeout_ms=60_000) as client:
        for name in cycle(names):
            if until.is_set():
                break
            start_s = time.perf_counter()
            client.query_similar(name)
            latency_s.append(time.perf_counter() - start_s)
    return latency_s


def compacted(running: Engine, events: Any, names: list[str]) -> dict[str, Any]:
    until, stored, answered = threading.Event(), list[float](), list[float]()

    def go(work: Callable[[], list[float]], into: list[float]) -> threading.Thread:
        thread = threading.Thread(target=lambda: into.extend(work()))
        thread.start()
        return thread

    threads = [
        go(lambda: sent(running, events, until), stored), go(lambda: asked(running, names, until), answered),
    ]  # fmt: skip
    try:
        start_s = time.monotonic()
        told = command("compact", "--data-dir", str(running.data_dir))
        seconds = round(time.monotonic() - start_s, 2)
    finally:
        until.set()
        for thread in threads:
            thread.join()
    assert told["waits_for"] == []
    return {
        "seconds": seconds, "bytes_before": told["bytes_before"], "bytes_after": told["bytes_after"],
        "acknowledged": percentiles_ms(stored), "answered": percentiles_ms(answered),
    }  # fmt: skip


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, default=50_000)
    parse.add_argument("--readers", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parse.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="flowkin-bench-") as folder:
        events = synthetic(args.events * 10, 1, texts=False)
        for confine in ("off", "require"):
            for readers in args.readers:
                settings = ["quality.every_s=0", f"readers.confine={confine}"]
                with engine(readers=readers, data_dir=Path(folder), settings=settings) as running:
                    if not figures:
                        fill(running, events, args.events)
                    settle(running)
                    figures[f"{confine}_{readers}"] = compacted(running, events, sample(running, ASKED, 1))
    return report("compact", args, figures)


if __name__ == "__main__":
    sys.exit(main())
