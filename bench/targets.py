"""What the figures are held against, as information: `python -m bench.targets` reads the kept line of each bench.

A target names a figure by its dotted path in a result line, with * for any one part; the worst of what matches counts.
It is held against the newest line of the configuration that it is meant for, whatever else was run since. A line
without the figure is no yes: it counts as not met, as does a target without a line. A peer's figures count where its
recall@10 is as good as ours has to be; those left out are named.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from bench.harness import RESULTS, flat

RECALL_MIN = 0.99  # of a peer whose queries a second are worth comparing
# A run may be longer than meant, and looks at more then; anything else in a configuration is as meant.
AT_LEAST = frozenset({"bursts", "kills", "minutes", "queries", "quality_texts", "rounds", "runs", "seconds", "texts"})

Config = Mapping[str, Any]


class Target(NamedTuple):
    """figure at most (or at least) bound, in a line whose config has these values (`is_of`)."""

    bench: str
    figure: str
    bound: float
    config: Config
    at_least: bool = False


# The best of the peers are among these: a run with --peers milvus_lite alone would meet any bar.
PEERS = {"redis_float32", "pgvector_hnsw", "pgvector_ivfflat"}
PEERS_10K = {"data": "synthetic", "events": 10_000, "peers": PEERS, "rounds": 2}
PEERS_100K = {"data": "synthetic", "events": 100_000, "peers": PEERS, "rounds": 2}
ACKNOWLEDGE = {"rate": 500, "seconds": 10}
RELOAD = {"events": {10_000, 100_000}, "seconds": 5}
MEMORY = {"events": {10_000, 100_000}}
TEXT = {"only": [], "events": 20_000, "texts": 300, "quality_texts": 500, "queries": 200}
INGEST = {"only": {"cic", "eve"}, "runs": 3}
WHOLE = {"only": {"cic", "eve"}, "runs": 1}
# A closed loop: a share of what the machine could do is none where the clock says how much is asked for.
LOAD = {"events": 20_000, "connections": 32, "rate": 0, "ingest_rate": 0, "space": "chronos", "seconds": 5}
# A million events: in a store of 10,000 the row file that is made ahead is a third of the bytes of an event.
SCALE = {"events": {1_000_000}, "connections": 32, "seconds": 3}
SCALE_SHARE = SCALE | {"events": {100_000, 1_000_000}}
SELECTIVITY = {"events": 100_000, "queries": 40}
SLOW = {"events": 10_000, "connections": 32, "rate": 400, "bad": 20, "asks": 4, "seconds": 12, "rounds": 3}

# fmt: off
TARGETS = (
    Target("spread", "uneven.*", 0.2, {"connections": 32, "readers": 4, "bursts": 5}),
    Target("acknowledge", "single.acknowledged.p50_ms", 10, ACKNOWLEDGE),
    Target("acknowledge", "single.acknowledged.p99_ms", 60, ACKNOWLEDGE),
    Target("acknowledge", "single.visible.p99_ms", 60, ACKNOWLEDGE),
    Target("acknowledge", "batches_of_10.acknowledged.p50_ms", 10, ACKNOWLEDGE),
    Target("acknowledge", "batches_of_10.acknowledged.p99_ms", 60, ACKNOWLEDGE),
    Target("acknowledge", "*.first_try", 1.0, ACKNOWLEDGE, at_least=True),
    Target("reload", "generation_*.refresh.p99_ms", 1, RELOAD), Target("reload", "index_*.stall_ms.*", 5, RELOAD),
    Target("memory", "events_*.queries.private.*", 60, MEMORY),
    Target("memory", "events_*.text.private.*", 120, MEMORY),
    Target("memory", "events_*.text_growth.*", 60, MEMORY), Target("growth", "ratio", 2, {"rate": 200, "minutes": 1.5}),
    Target("text", "cic.distinct", 2_000, TEXT), Target("text", "*.speed.per_s_wall", 250, TEXT, at_least=True),
    Target("text", "*.quality.top10_overlap", 0.85, TEXT, at_least=True),
    Target("text", "search.*.p99_ms", 60, TEXT),
    Target("ingest", "cic.events_per_s", 10_000, INGEST, at_least=True),
    Target("ingest", "eve.events_per_s", 10_000, INGEST, at_least=True),
    Target("whole", "*.warm.events_per_s", 5_000, WHOLE, at_least=True),
    Target("whole", "*.queried.events_per_s", 3_000, WHOLE, at_least=True),
    Target("load", "recall_at_10", 0.99, LOAD, at_least=True),
    Target("load", "limit_share", 0.35, LOAD, at_least=True), Target("load", "client_cpu_share", 0.7, LOAD),
    Target("peers", "peers.*.at.32.ratio", 3, PEERS_100K, at_least=True),
    Target("peers", "peers.*.at.32.ratio", 2, PEERS_10K, at_least=True),
    Target("peers", "peers.*.at.64.ratio", 3, PEERS_10K, at_least=True),
    Target("peers", "limit_share", 0.35, PEERS_100K, at_least=True),
    Target("scale", "events_*.half.p99_ms", 10, SCALE), Target("scale", "events_*.half.p999_ms", 25, SCALE),
    # Acknowledged is visible (`first_try` above); here beside queries at half of the peak, where both take longest.
    Target("scale", "events_*.acknowledged.p99_ms", 60, SCALE), Target("scale", "events_*.private.*", 60, SCALE),
    Target("scale", "events_1000000.disk.all", 6_500, SCALE), Target("scale", "events_*.start_s.killed", 3, SCALE),
    Target("scale", "events_*.recall_at_10", 0.99, SCALE, at_least=True),
    Target("scale", "events_1000000.qps_share", 0.5, SCALE_SHARE, at_least=True),
    Target("scale", "events_*.fed_p99_ratio", 2, SCALE),
    Target("selectivity", "*.short", 0, SELECTIVITY),
    Target("selectivity", "*.recall_at_10", 0.99, SELECTIVITY, at_least=True),
    Target("slow", "p99_ratio", 1.2, SLOW), Target("slow", "*.lost", 0, SLOW), Target("slow", "*.unanswered", 0, SLOW),
    Target("restart", "query_similar_s.median", 0.15, {"events": 1_000_000}),
)
# fmt: on


def is_of(config: Config, wanted: Config) -> bool:
    """Has `config` these values? Of a set each one is among them, where none was named all are; of how long and how
    often there may be more."""
    for key, value in wanted.items():
        if key not in config:
            return False
        found = config[key]
        if isinstance(value, set):
            good = not found or value <= set(found)
        else:
            good = found >= value if key in AT_LEAST else found == value
        if not good:
            return False
    return True


def newest(bench: str, wanted: Config) -> dict[str, Any] | None:
    """The last line kept of that configuration."""
    path = RESULTS / f"{bench}.jsonl"
    lines: list[dict[str, Any]] = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    return next((line for line in reversed(lines) if is_of(line["config"], wanted)), None)


def matching(figures: Mapping[str, float], pattern: str) -> list[float]:
    """Figures whose path has as many parts as the pattern, each part matching its own."""
    parts = pattern.split(".")
    return [
        value
        for path, value in figures.items()
        if len(of := path.split(".")) == len(parts) and all(map(fnmatchcase, of, parts))
    ]


def without_poor_peers(line: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The line with the peers that find what we have to find, and the others: which, and why."""
    peers: dict[str, Any] = line["peers"]
    good = {name: peer for name, peer in peers.items() if peer.get("recall_at_10", 0.0) >= RECALL_MIN}
    poor = {name: peers[name] for name in peers if name not in good}
    why = {name: peer.get("left_out") or f"recall@10 {peer.get('recall_at_10')}" for name, peer in poor.items()}
    return line | {"peers": good}, [f"{name} ({of})" for name, of in why.items()]


def words(wanted: Config, found: Config) -> str:
    """What was wanted of a configuration, as the run has it; as it is wanted where there is none."""
    shown = []
    for key, value in wanted.items():
        of = found.get(key, value)
        if isinstance(of, set | list):
            text = ",".join(map(str, sorted(of))) or "all"
        else:
            text = f"{of:.10g}" if isinstance(of, int | float) and not isinstance(of, bool) else str(of or "all")
        shown.append(f"{key}={text}")
    return " ".join(shown)


def summary(targets: Iterable[Target] = TARGETS) -> list[str]:
    """One line a target: yes, no, or ? where there is no figure; and how many of them are met."""
    lines, signs = [], []
    for target in targets:
        line = newest(target.bench, target.config)
        left_out: list[str] = []
        if line is not None and target.figure.startswith("peers."):
            line, left_out = without_poor_peers(line)
        values = matching(flat(line), target.figure) if line else []
        sign = ">=" if target.at_least else "<="
        wanted = f"{target.bench:12} {target.figure:36} {sign} {target.bound:<6g}"
        if not values or line is None:
            why = "no such run is kept" if line is None else f"not in the run of {line['at']} {line['commit']}"
            signs.append("?")
            lines.append(f"  ?  {wanted} no figure: {why} ({words(target.config, line['config'] if line else {})})")
        else:
            worst = min(values) if target.at_least else max(values)
            met = worst >= target.bound if target.at_least else worst <= target.bound
            load = line["machine"].get("load_before", line["machine"].get("load_average"))
            signs.append("yes" if met else " NO")
            lines.append(
                f"{signs[-1]}  {wanted} is {worst:<10g} {line['at']} {line['commit']} load {load} "
                f"({words(target.config, line['config'])})"
            )
        if left_out:
            lines.append(f"     left out, no peer with a recall@10 of {RECALL_MIN:g}: {', '.join(left_out)}")
    met_count, unknown = signs.count("yes"), signs.count("?")
    lines.append(f"{met_count} of {len(signs)} met, {len(signs) - met_count} not, {unknown} of these without a figure")
    return lines


if __name__ == "__main__":
    print("\n".join(summary()))
    sys.exit(0)
