"""Does anything grow? `python -m bench.soak --hours H [--rate 50]`: everything that an engine does, for long.

Single events come in at a steady rate, open loop, while the oldest leave (retention.bytes_max is reached after a short
while). They are of the same hosts, ROUND_EVENTS after ROUND_EVENTS: with ever new ones the context, and with it the
ingest worker, grows for hours until its bounds are reached (engine/context/state.py), and hides what else does. A
process beside it asks at a steady rate and connects anew every RECONNECT_EVERY questions. SAMPLES times, over
supervisor, workers and their children:
  private_mib      bytes that no other process maps; of supervisor, ingest, readers each
  fds, threads     of the supervisor and of the workers that live on; children: processes that come and go
  zombies, shm     must not be there; a zombie is a child that is one at two samples
  lmdb_mib, free_pages, disk_mib, events
  p50_ms, p99_ms   of the questions answered since the sample before, from when they were due: a machine that cannot
                   keep up shows here as a slope, and in fewer questions asked than were due
After warm-up (the first third) each has a slope by least squares, in percent of its mean an hour, and the standard
error of that, by how far the means of BLOCKS parts miss the line: samples beside each other are alike. SLOPE_MAX is
judged where HOURS_JUDGED are left after warm-up: in minutes a single index build is a slope. It is broken where the
slope is above it by more than twice the error, and undecided where by less: the p99 of a sample rests on a few
questions, and its slope is off by tens of percent. The bounds below are always judged; exit status 1 where one is
broken. --picture writes docs/soak.svg.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.feed import Feed
from bench.harness import MIB, ROOT, Child, ChildSide, Engine, arguments, engine, percentiles_ms, report
from bench.picture import Panel, svg
from engine.run.process import memory_bytes
from engine.sources.synthetic import START_NS, generate
from ipc.client import Client
from ipc.errors import ClientError, NotFoundError
from ipc.event import Event, FeaturedEvent
from ipc.messages import Options

SAMPLES = 120
SAMPLE_S_MIN = 1.0
QUESTIONS_PER_S = 20
RECONNECT_EVERY = 50
ANEW_EVERY = 10  # questions, then the newest events are asked for again
SLOPE_MAX = 1.0  # percent an hour
BLOCKS = 10
HOURS_JUDGED = 0.75  # `make soak` has 0.8
ROUND_EVENTS = 50_000
FDS_MORE_MAX, THREADS_MORE_MAX = 16, 8  # than after warm-up
SHM = Path("/dev/shm")
JUDGED = ("private_mib", "fds", "threads", "lmdb_mib", "disk_mib", "p99_ms")


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def look(running: Engine, dead: set[int]) -> dict[str, float]:
    """One sample. dead: as in `zombies`."""
    stats = running.stats()
    lasting = {"supervisor": [running.process.pid], "ingest": [stats["ingest"]["pid"]],
               "readers": [reader["pid"] for reader in stats["readers"]]}  # fmt: skip
    everybody, queue = [], [running.process.pid]
    while queue:
        everybody.append(queue.pop())
        queue += children(everybody[-1])
    out: dict[str, float] = {"events": stats["events"], "generation": stats["generation"], "fds": 0, "threads": 0}
    for role, pids in lasting.items():
        out[f"{role}_mib"] = round(sum((memory_bytes(pid) or {}).get("private_bytes", 0) for pid in pids) / MIB, 2)
        for pid in pids:
            with suppress(OSError):
                out["fds"] += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
                out["threads"] += sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    out["private_mib"] = round(sum(out[f"{role}_mib"] for role in lasting), 2)
    out["children"] = len(everybody) - sum(map(len, lasting.values()))
    out["zombies"] = zombies(everybody, dead)
    out["shm"] = len(set[str]().union(*(_shared(pid, running.data_dir) for pid in everybody)))
    out["lmdb_mib"] = round(stats["catalog"]["used_bytes"] / MIB, 2)
    out["free_pages"] = stats["catalog"]["free_pages"]
    out["disk_mib"] = round(_disk_bytes(running.data_dir) / MIB, 2)
    return out


def _shared(pid: int, data_dir: Path) -> set[str]:
    """What it has mapped in /dev/shm, other than a data directory that lies there."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        names = {line.split(None, 5)[5] for line in lines if f" {SHM}/" in line}
        return {name for name in names if not Path(name).is_relative_to(data_dir)}
    return set()


def zombies(pids: list[int], dead: set[int]) -> int:
    """How many have ended and are still not waited for, as they were at the sample before: a child that ends is one for
    a moment. dead: those of the sample before, then those of this one."""
    ended = set(filter(_is_zombie, pids))
    lasting = len(ended & dead)
    dead.clear()
    dead |= ended
    return lasting


def _is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def _disk_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # some leave while we look
            total += path.lstat().st_blocks * 512
    return total


def asking() -> None:
    """The process beside it: questions, and what they took, sample by sample."""
    side = ChildSide()
    job, names, asked = side.job, list[str](), 0
    client: Client | None = None
    bins: list[list[float]] = [[] for _ in range(job["samples"])]
    failed = gone = connected = 0
    side.ready()
    while not side.asked_to_stop(max(0.0, job["start_s"] + asked / QUESTIONS_PER_S - time.monotonic())):
        due_s = job["start_s"] + asked / QUESTIONS_PER_S
        try:
            if client is None or asked % RECONNECT_EVERY == 0:
                if client is not None:
                    client.close()
                client = Client.for_data_dir(job["data_dir"], timeout_ms=20_000)
                connected += 1
            if not names or asked % ANEW_EVERY == 0:
                found = [stored.event for stored in client.recent(limit=20).events]
                names = [f"{event.source}/{event.event_id}" for event in found if isinstance(event, Event)]
            if names:
                client.query_similar(names[asked % len(names)], options=Options())
        except NotFoundError:
            gone += 1
        except ClientError:
            failed += 1
        now_s = time.monotonic()
        place = min(int((now_s - job["start_s"]) / job["every_s"]), len(bins) - 1)
        bins[place].append(now_s - due_s)
        asked += 1
    if client is not None:
        client.close()
    figures = [percentiles_ms(latencies) for latencies in bins]
    side.done({"figures": figures, "asked": asked, "failed": failed, "gone": gone, "connected": connected})


def rounds(seed: int) -> Iterator[FeaturedEvent]:
    """The same traffic without end, later each time, without free text. The generator is not told the later time: who
    talks to whom would go by that, and new pairs would come without end."""
    later_ns = 0
    for turn in itertools.count():
        for item in generate(ROUND_EVENTS, seed):
            event = item.event
            event.event_id, event.text = f"{turn}-{event.event_id}", ""
            event.ts, event.ts_start = event.ts + later_ns, event.ts_start + later_ns
            yield item
        later_ns = event.ts - START_NS


class Slope(NamedTuple):
    """In percent of the mean an hour, and its standard error."""

    percent: float
    error: float


def slopes(series: dict[str, list[float]], hours: list[float]) -> dict[str, Slope]:
    """After warm-up."""
    first = len(hours) // 3
    at = np.array(hours[first:], np.float64)
    out = {}
    for name in JUDGED:
        ys = np.array(series[name][first:], np.float64)
        if len(at) < 3:
            out[name] = Slope(0.0, 0.0)
            continue
        per_hour, start = np.polyfit(at, ys, 1)
        blocks = np.array_split(np.arange(len(at)), min(BLOCKS, len(at)))
        middles = np.array([at[block].mean() for block in blocks])
        missed = np.array([(ys[block] - per_hour * at[block] - start).mean() for block in blocks])
        error = math.sqrt(float(missed @ missed) / (len(blocks) - 2) / float(((middles - middles.mean()) ** 2).sum()))
        mean = max(float(ys.mean()), 1e-9)
        out[name] = Slope(round(float(per_hour) / mean * 100, 3), round(error / mean * 100, 3))
    return out


def undecided(sloped: dict[str, Slope], hours: float) -> list[str]:
    """Slopes above the bound by no more than they are uncertain."""
    too_steep = [name for name, slope in sloped.items() if slope.percent > SLOPE_MAX >= slope.percent - 2 * slope.error]
    return too_steep if hours * 2 / 3 >= HOURS_JUDGED else []


def broken(series: dict[str, list[float]], sloped: dict[str, Slope], hours: float, asked: dict[str, Any]) -> list[str]:
    """What does not hold."""
    warm = len(series["fds"]) // 3
    out = [f"{name}: {series[name]}" for name in ("zombies", "shm") if series[name][-1]]
    for name, more in (("fds", FDS_MORE_MAX), ("threads", THREADS_MORE_MAX)):
        if series[name][-1] > series[name][warm] + more:
            out.append(f"{name}: {series[name][warm]} after warm-up, {series[name][-1]} at the end")
    if asked["failed"]:
        out.append(f"{asked['failed']} questions of {asked['asked']} have no answer")
    if hours * 2 / 3 >= HOURS_JUDGED:
        steep = {name: slope for name, slope in sloped.items() if slope.percent - 2 * slope.error > SLOPE_MAX}
        out += [f"{name} grows by {slope.percent} % an hour (+- {slope.error})" for name, slope in steep.items()]
    return out


def draw(series: dict[str, list[float]], minutes: list[float]) -> str:
    curves = {
        "private MiB": ("supervisor_mib", "ingest_mib", "readers_mib"), "descriptors and threads": ("fds", "threads"),
        "LMDB and disk MiB": ("lmdb_mib", "disk_mib"), "questions ms": ("p50_ms", "p99_ms"), "events": ("events",),
        "free LMDB pages": ("free_pages",),
    }  # fmt: skip
    panels = [Panel(title, {name.partition("_")[0]: series[name] for name in names}) for title, names in curves.items()]
    return svg(panels, minutes, "minutes", linear=True)


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--hours", type=float, default=24.0)
    parse.add_argument("--rate", type=float, default=50.0, help="events a second, one a message")
    parse.add_argument("--rows", type=int, default=16_384, help="events in a row file")
    parse.add_argument("--bytes-max", type=int, default=1 << 30, help="retention.bytes_max")
    parse.add_argument("--readers", type=int, default=2)
    parse.add_argument("--seed", type=int, default=3)
    parse.add_argument("--picture", action="store_true", help="write docs/soak.svg")
    args = parse.parse_args()
    if args.child:
        asking()
        return 0
    samples = max(3, min(SAMPLES, int(args.hours * 3600 / SAMPLE_S_MIN)))
    every_s = args.hours * 3600 / samples
    settings = [f"store.row_file_rows={args.rows}", f"retention.bytes_max={args.bytes_max}"]
    taken: list[dict[str, float]] = []
    dead: set[int] = set()
    with (
        engine(args.readers, settings=settings) as running,
        Feed(running, rounds(args.seed), args.rate) as feed,
    ):
        start_s = time.monotonic()
        job = {"data_dir": str(running.data_dir), "start_s": start_s, "every_s": every_s, "samples": samples}
        beside = Child("bench.soak", job)
        for i in range(samples):
            time.sleep(max(0.0, start_s + (i + 1) * every_s - time.monotonic()))
            feed.check()  # a machine that cannot keep up says so now
            taken.append(look(running, dead) | {"hours": (time.monotonic() - start_s) / 3600})
        asked = beside.stop()
    for sample, of in zip(taken, asked.pop("figures"), strict=True):
        sample |= {"p50_ms": of.get("p50_ms", 0.0), "p99_ms": of.get("p99_ms", 0.0)}
    series = {name: [sample[name] for sample in taken] for name in taken[0]}
    hours = series.pop("hours")
    sloped = slopes(series, hours)
    wrong = broken(series, sloped, args.hours, asked)
    figures = {
        "stored": len(feed.acknowledged_s), "row_files": len(feed.acknowledged_s) // args.rows,
        "acknowledged": percentiles_ms(feed.acknowledged_s), "questions": asked,
        "slope_percent_an_hour": {name: slope.percent for name, slope in sloped.items()},
        "slope_error_percent_an_hour": {name: slope.error for name, slope in sloped.items()},
        "broken": wrong, "undecided": undecided(sloped, args.hours),
        "series": {"minutes": [round(h * 60, 2) for h in hours], **series},
    }  # fmt: skip
    if args.picture:
        (ROOT / "docs/soak.svg").write_text(draw(series, [round(h * 60, 1) for h in hours]))
    if not_known := undecided(sloped, args.hours):
        sys.stderr.write(f"above {SLOPE_MAX} % an hour, but not for certain: {', '.join(not_known)}\n")
    return report("soak", args, figures) or int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
