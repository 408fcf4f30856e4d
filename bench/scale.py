"""How everything grows with the number of events: `python -m bench.scale [--events 10000 100000 300000 1000000]`.

One data directory that grows, 2 readers. At each size, when all is indexed and merged:
  fill_eps            events a second of the fill up to here, generator included
  settle_s, parts     seconds after it until the last merge; indexes of a space then. index_cpu_s: of all builds so far
  qps, p99_ms         closed loop, --connections, chronos by id, no collapse; recall_at_10: 50 of these questions
  half                open loop at half of that rate: p50, p99, p99.9
  half_fed            the same while 500 single events a second come in; acknowledged: those. fed_p99_ratio: of the p99
  qps_share           over that at 100,000, of more events
  refresh             taking over a generation (bench/reload.py)
  private, pss        MiB of each reader after all that, and of the ingest worker
  disk                bytes an event of catalog, rows, indexes
  start_s             serve -> READY, and -> the first answer over all spaces, after an orderly stop; killed: after
                      SIGKILL to all processes
--picture writes docs/scale.svg from the newest kept line, and measures nothing.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.feed import Feed
from bench.harness import ROOT, Engine, arguments, engine, fill, percentiles_ms, report, sample, settle, synthetic
from bench.load import NAMES, run
from bench.memory import mib
from bench.picture import Panel, svg
from bench.recall import recall
from bench.reload import generations
from bench.restart import first_answer, kill_all
from bench.targets import newest
from engine.layout import Layout

RECALL_NAMES = 50
COMPARED_WITH = 100_000  # events: queries/s of more over those of so many
FEED_EPS = 500
SETTLE_S_MAX = 1_200.0
REFRESH_S = 5.0


def disk(data_dir: Path, events: int) -> dict[str, float]:
    """Bytes an event that each folder takes of the disk."""
    layout = Layout(data_dir)
    folders = {"catalog": layout.catalog, "rows": layout.rows, "indexes": layout.indexes}
    sizes = {
        name: sum(path.stat().st_blocks * 512 for path in folder.iterdir()) / events for name, folder in folders.items()
    }
    return {name: round(size, 1) for name, size in (sizes | {"all": sum(sizes.values())}).items()}


def asked(running: Engine, events: Any, args: Any) -> dict[str, Any]:
    """Everything about questions."""
    names = sample(running, NAMES, args.seed)
    options = {"space": "chronos", "collapse": False, "connections": args.connections, "deadline_ms": 60_000}
    with running.client() as client:
        recalled = recall(client, names[:RECALL_NAMES], "chronos", running.data_dir)
    run(running, names, options, 0.0, 2.0)  # warm
    closed = run(running, names, options, 0.0, args.seconds)
    half = run(running, names, options, closed["qps"] / 2, args.seconds)
    with Feed(running, events, FEED_EPS) as feed:
        fed = run(running, names, options, closed["qps"] / 2, args.seconds, feed.anew)
    kept = ("p50_ms", "p99_ms", "p999_ms", "max_ms", "failures", "unanswered")
    return {
        "recall_at_10": round(recalled, 4), "qps": closed["qps"], "p99_ms": closed["p99_ms"],
"client_cpu_share": closed["client_cpu_share"],
        "half": {k: half[k] for k in kept}, "half_fed": {k: fed[k] for k in kept},
        "acknowledged": percentiles_ms(feed.acknowledged_s),
        "refresh": generations(running, events, REFRESH_S)["refresh"],
    }  # fmt: skip


def measure(data_dir: Path, args: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    events = synthetic(1 << 40, args.seed, texts=False)
    for n in args.events:
        with engine(2, data_dir=data_dir) as running:
            left = n - running.stats()["events"]
            of: dict[str, Any] = {"fill_eps": round(fill(running, events, left), 1)}
            of["settle_s"] = round(settle(running, SETTLE_S_MAX), 1)
            stats = running.stats()
            of["parts"] = stats["indexes"] // 3
            of |= asked(running, events, args)
            of |= mib(running)
            of["disk"] = disk(data_dir, running.stats()["events"])
            (name,) = sample(running, 1, args.seed)
        with engine(2, data_dir=data_dir) as running:
            of["start_s"] = {
                "clean": round(running.started_s, 3),
                "clean_answer": round(first_answer(running, name), 3),
            }
            kill_all(running)
        with engine(2, data_dir=data_dir) as running:
            of["start_s"]["killed"] = round(running.started_s, 3)
        of["fed_p99_ratio"] = round(of["half_fed"]["p99_ms"] / of["half"]["p99_ms"], 3)
        figures[f"events_{n}"] = of
        if n > COMPARED_WITH and f"events_{COMPARED_WITH}" in figures:
            of["qps_share"] = round(of["qps"] / figures[f"events_{COMPARED_WITH}"]["qps"], 3)
        print(f"{n}: {of}", file=sys.stderr, flush=True)
    return figures


def picture(line: dict[str, Any]) -> str:
    """Panels over the number of events, as SVG."""
    sizes = sorted(int(key.removeprefix("events_")) for key in line if key.startswith("events_"))

    def of(*path: str) -> list[float]:
        values = []
        for n in sizes:
            found: Any = line[f"events_{n}"]
            for key in path:
                found = found[key]
            values.append(float(max(found) if isinstance(found, list) else found))
        return values

    panels = [
        Panel("queries a second, 32 connections", {"qps": of("qps")}),
        Panel("p99 at half of that, ms", {"alone": of("half", "p99_ms"), "500 events/s": of("half_fed", "p99_ms")}),
        Panel("events stored a second", {"fill": of("fill_eps")}),
        Panel("bytes an event on disk", {k: of("disk", k) for k in ("all", "rows", "indexes", "catalog")}),
        Panel("private MiB", {"a reader": of("private"), "ingest": of("ingest_private")}),
        Panel("seconds to start", {"clean": of("start_s", "clean"), "killed": of("start_s", "killed")}),
        Panel("take over a generation, p99 ms", {"refresh": of("refresh", "p99_ms")}),
        Panel("indexes of a space", {"parts": of("parts")}),
    ]
    return svg(panels, sizes, "events")


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, nargs="+", default=[10_000, 100_000, 300_000, 1_000_000])
    parse.add_argument("--connections", type=int, default=32)
    parse.add_argument("--seconds", type=float, default=5.0)
    parse.add_argument("--seed", type=int, default=1)
    parse.add_argument("--picture", action="store_true")
    args = parse.parse_args()
    if args.picture:
        line = newest("scale", {})
        if line is None:
            sys.exit("no line of bench.scale is kept yet")
        (ROOT / "docs" / "scale.svg").write_text(picture(line))
        return 0
    with tempfile.TemporaryDirectory(prefix="flowkin-bench-") as folder:
        return report("scale", args, measure(Path(folder), args))


if __name__ == "__main__":
    sys.exit(main())
