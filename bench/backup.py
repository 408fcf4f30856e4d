"""What a backup costs: `python -m bench.backup [--events 50000] [--dir DIR]`.

An engine is filled with synthetic events and indexed. A sender stores one event after the other, each as soon as the
one before is acknowledged: before anything else (quiet), then while `flowkin backup create` runs, first to a new
directory, then to the same one. Then verify and restore. DIR: where the backups go; if not given, the disk of the data,
which is the worst case.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.harness import Engine, arguments, engine, fill, percentiles_ms, report, settle, synthetic
from ipc.event import FeaturedEvent

QUIET_S = 5.0
LATER = 2  # backups to the same directory after the first
KEPT = ("seconds", "bytes", "copied_bytes", "linked_bytes")


def command(*words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "cli", *words, "--json"], capture_output=True, check=True)
    found: dict[str, Any] = msgspec.json.decode(done.stdout)
    return found


def sent(running: Engine, events: Iterator[FeaturedEvent], until: threading.Event) -> list[float]:
    """Seconds from an event to its acknowledgement."""
    latency_s: list[float] = []
    with running.client(timeout_ms=60_000) as client:
        while not until.is_set():
            event = next(events)
            start_s = time.perf_counter()
            client.ingest("synthetic", [event])
            latency_s.append(time.perf_counter() - start_s)
    return latency_s


def backed_up(running: Engine, events: Iterator[FeaturedEvent], home: Path) -> tuple[dict[str, Any], list[float]]:
    until, latency_s = threading.Event(), list[float]()
    sender = threading.Thread(target=lambda: latency_s.extend(sent(running, events, until)))
    sender.start()
    try:
        made = command("backup", "create", str(home), "--data-dir", str(running.data_dir))
    finally:
        until.set()
        sender.join()
    return made, latency_s


def timed(*words: str) -> float:
    start_s = time.monotonic()
    command(*words)
    return round(time.monotonic() - start_s, 3)


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, default=50_000)
    parse.add_argument("--dir")
    args = parse.parse_args()
    figures: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="flowkin-bench-") as folder,
        tempfile.TemporaryDirectory(prefix="flowkin-bench-", dir=args.dir) as home,
    ):
        with engine(readers=1, data_dir=Path(folder), settings=["quality.every_s=0"]) as running:
            events = synthetic(args.events * 3, 1, texts=False)
            fill(running, events, args.events)
            settle(running)
            until = threading.Event()
            timer = threading.Timer(QUIET_S, until.set)
            timer.start()
            figures["acknowledged_quiet"] = percentiles_ms(sent(running, events, until))
            made, latency_s = backed_up(running, events, Path(home))
            figures["first"] = {key: made[key] for key in KEPT} | {"acknowledged": percentiles_ms(latency_s)}
            for number in range(LATER):
                made, latency_s = backed_up(running, events, Path(home))
                figures[f"later_{number}"] = {key: made[key] for key in KEPT} | {
                    "acknowledged": percentiles_ms(latency_s)
                }
        figures["verify_s"] = timed("backup", "verify", made["path"])
        figures["restore_s"] = timed("backup", "restore", made["path"], str(Path(folder) / "restored"))
    return report("backup", args, figures)


if __name__ == "__main__":
    sys.exit(main())
