"""What the figures are held against, as information: `python -m bench.targets` reads the newest line of each bench.

A target names a figure by its dotted path in a result line, with * for any one part; the worst of what matches counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from bench.harness import RESULTS, flat


class Target(NamedTuple):
    """figure at most (or at least) bound."""

    bench: str
    figure: str
    bound: float
    at_least: bool = False


# fmt: off
TARGETS = (
    Target("spread", "uneven.*", 0.2),
    Target("acknowledge", "single.acknowledged.p50_ms", 10), Target("acknowledge", "single.acknowledged.p99_ms", 60),
    Target("acknowledge", "single.visible.p99_ms", 60),
    Target("acknowledge", "batches_of_10.acknowledged.p50_ms", 10),
    Target("acknowledge", "batches_of_10.acknowledged.p99_ms", 60),
    Target("acknowledge", "*.first_try", 1.0, at_least=True),
    Target("reload", "generation_*.refresh.p99_ms", 1), Target("reload", "index_*.stall_ms.*", 5),
    Target("memory", "events_*.queries.private.*", 60), Target("memory", "events_*.text.private.*", 120),
    Target("memory", "events_*.text_growth.*", 60), Target("growth", "ratio", 2),
    Target("text", "cic.distinct", 2_000), Target("text", "*.speed.per_s_wall", 250, at_least=True),
    Target("text", "*.quality.top10_overlap", 0.85, at_least=True),
    Target("text", "search.*.p99_ms", 60),
    Target("ingest", "cic.events_per_s", 10_000, at_least=True),
    Target("ingest", "eve.events_per_s", 10_000, at_least=True),
    Target("ingest", "*.whole.warm.events_per_s", 5_000, at_least=True),
    Target("ingest", "*.whole.queried.events_per_s", 3_000, at_least=True),
    Target("load", "recall_at_10", 0.99, at_least=True), Target("load", "limit_share", 0.35, at_least=True),
    Target("load", "client_cpu_share", 0.7),
    Target("peers", "peers.*.at.32.ratio", 3, at_least=True), Target("peers", "limit_share", 0.35, at_least=True),
    Target("scale", "events_*.half.p99_ms", 10), Target("scale", "events_*.half.p999_ms", 25),
    Target("scale", "events_*.acknowledged.p99_ms", 60), Target("scale", "events_*.private.*", 60),
    Target("scale", "events_*.disk.all", 6_500), Target("scale", "events_*.start_s.killed", 3),
    Target("scale", "events_*.recall_at_10", 0.99, at_least=True),
    Target("selectivity", "*.short", 0), Target("selectivity", "*.recall_at_10", 0.99, at_least=True),
    Target("slow", "p99_ratio", 1.2), Target("slow", "*.lost", 0), Target("slow", "*.unanswered", 0),
    Target("restart", "query_similar_s.median", 0.15),
)
# fmt: on


def newest(bench: str) -> dict[str, Any] | None:
    """The last line kept."""
    path = RESULTS / f"{bench}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return found


def matching(figures: dict[str, float], pattern: str) -> list[float]:
    """Figures whose path has as many parts as the pattern, each part matching its own."""
    parts = pattern.split(".")
    return [
        value
        for path, value in figures.items()
        if len(of := path.split(".")) == len(parts) and all(map(fnmatchcase, of, parts))
    ]


def summary(targets: Iterable[Target] = TARGETS) -> list[str]:
    """One line a target: yes, no, or that there is no figure."""
    lines = []
    for target in targets:
        line = newest(target.bench)
        values = matching(flat(line), target.figure) if line else []
        sign = ">=" if target.at_least else "<="
        wanted = f"{target.bench:12} {target.figure:36} {sign} {target.bound:<6g}"
        if not values or line is None:
            lines.append(f"  ?  {wanted} no figure")
            continue
        worst = min(values) if target.at_least else max(values)
        met = worst >= target.bound if target.at_least else worst <= target.bound
        load = line["machine"].get("load_before", line["machine"].get("load_average"))
        lines.append(f"{'yes' if met else ' NO'}  {wanted} is {worst:<10g} {line['at']} {line['commit']} load {load}")
    return lines


if __name__ == "__main__":
    print("\n".join(summary()))
    sys.exit(0)
