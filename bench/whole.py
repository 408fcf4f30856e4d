"""The whole of ingest: `python -m bench.whole [--only cic eve] [--against DIR]`; `python -m bench.ingest` has it, too.

A real engine on a new data directory with idle readers, and `flowkin ingest FILES` as anybody would say it. own_texts:
the files' sentences are new to the engine (its text model is loaded). warm: the same files once more under another
source name, so every event is new and every sentence known. queried: once more, beside questions at a quarter of what
a closed loop reached just before (peak_qps); asked: what became of them. events_per_s is by the wall clock, from the
start of the command's process to its end; command_events_per_s without the start of Python. cpu_us are of one event: of
each process, and of each stage as the engine's own stats have it (parse is the command's), what none has as other;
share: of all that CPU, index builds included. wait_us_by_stage: what a stage waited, for the disk or for a core.
--against DIR: the code of another worktree takes turns with this one, in engines of its own; ratio is this over that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.harness import (
    FLOWKIN,
    ROOT,
    Engine,
    arguments,
    ended_with_us,
    engine,
    fill,
    print_table,
    report,
    sample,
    settle,
    synthetic,
)
from bench.load import NAMES, run

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FILES = {
    "cic": ("cicflow", [SHARED / "cicids2017_improved" / "cicids2017_improved_dev.csv.gz"]),
    "eve": ("eve", sorted((SHARED / "eve_generated").rglob("*.json.gz"))),
}
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
WARM = 2  # passes over known sentences in one engine
QUERIED = 0.25  # of the peak
ASKED_FOR = 2.5  # times what the pass before took; one beside questions takes longer
CLOSED_S = 2.0


def cpu_s(pid: int) -> tuple[float, float]:
    """(its own, that of its ended children) CPU seconds of a process."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, children = (int(words[i]) + int(words[i + 1]) for i in (11, 13))
    return own * TICK_S, children * TICK_S


class Seen:
    """What the engine's processes have used by now."""

    def __init__(self, running: Engine) -> None:
        stats = running.stats()
        self.events, self.texts = stats["events"], stats["catalog"]["texts"]
        self.indexes = stats["indexes"]
        self.worker, self.built = cpu_s(stats["ingest"]["pid"])
        self.readers = sum(cpu_s(reader["pid"])[0] for reader in stats["readers"])
        self.supervisor = cpu_s(running.process.pid)[0]
        storing = stats.get("storing", {})  # an older engine does not say
        self.commits = storing.get("commits", 0)
        self.stages = {row["stage"]: (row["wall_s"], row["cpu_s"]) for row in storing.get("stages", [])}


def one_pass(running: Engine, format_name: str, files: Sequence[Path], source: str) -> dict[str, Any]:
    """One `flowkin ingest` of the files."""
    before = Seen(running)
    words = [str(FLOWKIN), "ingest", *map(str, files), "--format", format_name, "--source", source, "--json"]
    start_s = time.perf_counter()
    process = subprocess.Popen([*words, "--data-dir", str(running.data_dir)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        said = json.loads(process.stdout.read())
    _, status, used = os.wait4(process.pid, 0)
    wall_s, process.returncode = time.perf_counter() - start_s, os.waitstatus_to_exitcode(status)
    after = Seen(running)
    events = int(said["accepted"])
    if process.returncode or events != after.events - before.events:
        raise RuntimeError(f"{events} events were said to be stored, {after.events - before.events} are: {said}")

    def us(seconds: float) -> float:
        return round(seconds / events * 1e6, 1)

    command_s = used.ru_utime + used.ru_stime
    took = {
        stage: (wall - before.stages[stage][0], cpu - before.stages[stage][1])
        for stage, (wall, cpu) in after.stages.items()
    }
    worker_s, built_s = after.worker - before.worker, after.built - before.built
    processes = {
        "command": command_s, "worker": worker_s, "children": built_s,
        "readers": after.readers - before.readers, "supervisor": after.supervisor - before.supervisor,
    }  # fmt: skip
    figures = {
        "events": events, "seconds": round(wall_s, 3), "new_texts": after.texts - before.texts,
        "commits": after.commits - before.commits,
        "events_per_s": round(events / wall_s), "command_events_per_s": round(events / said["seconds"]),
        "cpu_us_by_process": {name: us(seconds) for name, seconds in processes.items()},
    }  # fmt: skip
    if took:
        stages = {stage: cpu for stage, (_, cpu) in took.items() if stage != "index"}
        stages["parse"] += said["parse_cpu_s"]
        stages["other_command"] = command_s - said["parse_cpu_s"]
        stages["other_worker"] = worker_s - sum(cpu for stage, (_, cpu) in took.items() if stage != "index")
        stages["index"] = built_s
        whole_s = sum(stages.values())
        figures["cpu_us_by_stage"] = {stage: us(cpu) for stage, cpu in stages.items()}
        figures["share"] = {stage: round(cpu / whole_s, 3) for stage, cpu in stages.items()}
        figures["wait_us_by_stage"] = {
            stage: us(wall - cpu) for stage, (wall, cpu) in took.items() if stage != "index" and wall
        }
    return figures


def one_run(name: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The passes of one engine, by condition."""
    format_name, files = FILES[name]
    with engine() as running:
        fill(running, synthetic(1, seed, texts=True), 1)  # the text model is loaded
        own_texts = one_pass(running, format_name, files, "own")
        warm = [one_pass(running, format_name, files, f"again-{i}") for i in range(WARM)]
        settle(running)
        names, options = sample(running, NAMES, seed), {"space": "chronos", "collapse": False, "connections": 32}
        ask = partial(run, running, names, options | {"deadline_ms": 60_000})
        ask(0.0, 1.0)  # warm: every reader has its pages
        peak_qps = ask(0.0, CLOSED_S)["qps"]
        with ThreadPoolExecutor(1) as beside:
            asking = beside.submit(ask, QUERIED * peak_qps, ASKED_FOR * warm[-1]["seconds"])
            queried = one_pass(running, format_name, files, "queried") | {"asked_all_the_time": not asking.done()}
            asked = {key: asking.result()[key] for key in ("qps", "p50_ms", "p99_ms", "failures", "client_cpu_share")}
        return {
            "own_texts": [own_texts], "warm": warm, "queried": [queried | {"peak_qps": peak_qps, "asked": asked}],
        }  # fmt: skip


def middle(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each figure."""
    return {
        key: middle([run[key] for run in runs])
        if isinstance(value, dict)
        else round(median(run[key] for run in runs), 3)
        for key, value in runs[0].items()
    }


def elsewhere(tree: Path, name: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    """one_run with the code of another worktree; this file measures both."""
    words = [sys.executable, str(Path(__file__)), "--child", "--only", name, "--seed", str(seed)]
    paths = os.pathsep.join((str(tree), os.environ.get("PYTHONPATH", "")))
    ended_with_us()
    child = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": paths}, cwd=tree, stdout=subprocess.PIPE)
    try:
        out, _ = child.communicate()
    finally:
        child.terminate()  # it ends its engine
        child.wait()
    if child.returncode:
        raise RuntimeError(f"a bench of {tree} failed with status {child.returncode}")
    found: dict[str, list[dict[str, Any]]] = json.loads(out)
    return found


def figures_of(names: Sequence[str], runs: int, seed: int, against: Path | None = None) -> dict[str, Any]:
    """By name and condition; names without files are left out."""
    found: dict[str, Any] = {}
    for name in names:
        if not FILES[name][1] or not all(path.exists() for path in FILES[name][1]):
            continue
        trees = [ROOT, against] if against else [ROOT]
        by_tree: dict[Path, list[dict[str, list[dict[str, Any]]]]] = {tree: [] for tree in trees}
        for turn in range(runs):
            for tree in trees if turn % 2 == 0 else reversed(trees):
                by_tree[tree].append(elsewhere(tree, name, seed))
        sides = [
            {
                condition: middle([one for passes in by_tree[tree] for one in passes[condition]])
                for condition in by_tree[tree][0]
            }
            for tree in trees
        ]
        found[name] = sides[0]
        for condition, figures in sides[0].items():
            if against:
                old = sides[1][condition]
                figures["against"] = {
                    key: old[key] for key in ("events_per_s", "command_events_per_s", "cpu_us_by_process")
                }
                figures["ratio"] = {
                    "events_per_s": round(figures["events_per_s"] / old["events_per_s"], 3),
                    **{
                        process: round(us / old["cpu_us_by_process"][process], 3)
                        for process, us in figures["cpu_us_by_process"].items()
                        if process in ("command", "worker")
                    },
                }
    return found


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--only", nargs="+", choices=list(FILES), default=list(FILES))
    parse.add_argument("--runs", type=int, default=3, help="engines; of each an own pass, two warm, one queried")
    parse.add_argument("--against", type=Path, metavar="DIR", help="another worktree of this project")
    parse.add_argument("--seed", type=int, default=7)
    parse.add_argument("--keep", action="store_true", help="append a line to bench/results/whole.jsonl")
    args = parse.parse_args()
    if args.child:
        print(json.dumps(one_run(args.only[0], args.seed)))
        return 0
    figures = figures_of(args.only, args.runs, args.seed, args.against)
    args.against = str(args.against or "")
    if args.keep:
        return report("whole", args, figures)
    print(json.dumps(figures)) if args.json else print_table(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
