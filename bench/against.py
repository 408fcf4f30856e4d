"""flowkin beside NFStream on one capture: `python -m bench.flows --against nfstream` runs this.

Each run is a process of its own, the tools take turns (A B A B A B), and each figure is the median of a tool's runs.
flowkin: bytes to events, with names, ids and records, then the context: all 105 features. NFStream: its statistical
features, payload bytes, no dissection, equal timeouts, one meter; the meter and the process that takes its flows are
two, and their CPU seconds are added.
"""

from __future__ import annotations

import gc
import resource
import tempfile
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from bench.harness import Child, ChildSide, commit, keep, print_table
from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.features import unpack
from engine.featurize import featurize
from engine.flows.split import Limits
from engine.limits import YOUNG_OBJECTS_MAX
from engine.sources.base import Parsed, SourceSpec
from engine.sources.pcap import PcapAdapter

FEED_BYTES = 1 << 20
RUNS = 3


def flowkin(path: Path) -> dict[str, float]:
    """context_cpu_s: what of it went into the context."""
    gc.set_threshold(YOUNG_OBJECTS_MAX)  # as the ingest worker does
    adapter, tracker = PcapAdapter(SourceSpec("bench")), Tracker(CIDRS_INTERNAL)
    figures = {"flows": 0.0, "context_cpu_s": 0.0}

    def take(parsed: Parsed) -> None:
        since_s = time.process_time()
        features = unpack([item.features for item in parsed.events])
        featurize([item.event for item in parsed.events], features, tracker)
        figures["flows"] += len(features)
        figures["context_cpu_s"] += time.process_time() - since_s

    with path.open("rb") as file:
        while data := file.read(FEED_BYTES):
            take(adapter.feed(data, file.tell() - len(data)))
    take(adapter.finish())
    return figures


def nfstream(path: Path) -> dict[str, float]:
    from nfstream import NFStreamer

    limits = Limits()
    flows = sum(
        1
        for _ in NFStreamer(
            source=str(path),
            accounting_mode=3,
            statistical_analysis=True,
            n_dissections=0,
            idle_timeout=limits.idle_s,
            active_timeout=limits.active_s,
            snapshot_length=1 << 16,
            n_meters=1,
        )
    )
    return {"flows": flows}


TOOLS = {"flowkin": flowkin, "nfstream": nfstream}
OTHERS = sorted(TOOLS.keys() - {"flowkin"})


def in_time(records: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """bench.flows.load's, in the order in which a lap of bench.flows.repeat plays them: clocks do not go back."""
    first = min(second for second, _ in records)
    return sorted(records, key=lambda r: ((r[0] - first) % 3600, int.from_bytes(r[1][:4], "little")))


def against(tool: str, capture: Iterable[bytes], packets: int, kept: bool) -> None:
    """Run both on the capture, print the figures and keep them."""
    if find_spec(tool) is None:
        raise SystemExit(f"{tool} is not installed: pip install {tool}")
    commit()  # of the tree as it is now
    taken: dict[str, list[dict[str, float]]] = {"flowkin": [], tool: []}
    with tempfile.NamedTemporaryFile(prefix="flowkin-bench-", suffix=".pcap") as file:
        file.writelines(capture)
        file.flush()
        size = file.tell()
        for name in [*taken] * RUNS:
            taken[name].append(Child(__name__, {"tool": name, "path": file.name}).result())
    out: dict[str, Any] = {"packets": packets, "bytes": size}
    for name, results in taken.items():
        out[name] = {key: median(result[key] for result in results) for key in results[0]}
        out[name]["packets_per_cpu_s"] = round(packets / out[name]["cpu_s"])
        out[name]["packets_per_wall_s"] = round(packets / out[name]["wall_s"])
        out[name]["cpu_s_runs"] = [result["cpu_s"] for result in results]
    for clock in ("cpu", "wall"):
        out[f"ratio_{clock}"] = round(out[tool][f"{clock}_s"] / out["flowkin"][f"{clock}_s"], 2)
    ours = out["flowkin"]
    out["ratio_cpu_without_context"] = round(out[tool]["cpu_s"] / (ours["cpu_s"] - ours["context_cpu_s"]), 2)
    print_table(out)
    if kept:
        keep("flows", {"packets": packets, "against": tool, "runs": RUNS}, out)


def child() -> None:
    side = ChildSide()
    run = TOOLS[side.job["tool"]]
    side.ready()
    start_s, cpu_s = time.perf_counter(), cpu()
    figures = run(Path(side.job["path"]))
    taken = {"wall_s": time.perf_counter() - start_s, "cpu_s": cpu() - cpu_s, **figures}
    side.done({name: round(value, 3) for name, value in taken.items()})


def cpu() -> float:
    """CPU seconds of this process and of those that it started and that ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    child()
