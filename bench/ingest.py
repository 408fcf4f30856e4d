"""From the bytes of a source to events with all that can be known of them, and to events that are stored:
`python -m bench.ingest`.

One row a kind of source, in one process without an engine: CPU of parse (the adapter), sort (by time, as for finished
files), complete (families, ids, scores), features (what follows from other features), context (windows and histories,
an overlay for each batch as in a publish). events_per_s is of parse + features + context, whole_events_per_s of all
that was measured. Each figure is the median of the runs, of CPU seconds of this process.
whole, of cic and eve: a real engine, `flowkin ingest` and the wall clock (bench/whole.py). --no-whole leaves it out.
--batches: microseconds of context by events a commit. --memory: how far memory grows, in processes of their own: the
generator over so many events, and the context over ten times as many hosts as it remembers.
Without ../shared/data only what needs no real data is measured.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

from bench import whole
from bench.harness import Child, ChildSide, arguments, print_table, report
from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.errors import BadRecordError
from engine.features import F32, empty, unpack
from engine.featurize import featurize
from engine.flows.derived import derive
from engine.limits import CONTEXT_HOSTS_MAX, YOUNG_OBJECTS_MAX
from engine.normalize import complete
from engine.sources import adapter_for
from engine.sources.base import Parsed, SourceSpec
from engine.sources.files import CHUNK_BYTES, sorted_by_time
from engine.sources.ndjson import dump
from engine.sources.synthetic import generate
from ipc.event import Event, FeaturedEvent
from ipc.messages import EVENTS_PER_MESSAGE_MAX

CAPTURES = (
    "cicflowmeter_official/test.pcap.gz", "pcap_stratosphere/test-cc-capture-1.pcap.gz",
    "pcap_zeek/ssh/sshguess.pcap", "pcap_zeek/wikipedia.pcap", "pcap_zeek/ftp/bruteforce.pcap",
)  # fmt: skip
BATCHES = (1, 10, 100, 1_000)
WHOLE_RUNS = 2
PARTS = 10  # of a run that looks at memory
S_NS = 1_000_000_000
T = TypeVar("T")


class Stream(NamedTuple):
    """What one row measures. format: of the adapter; files: the decompressed bytes of each."""

    format: str
    files: list[bytes]


def streams(events: int, seed: int) -> Iterator[tuple[str, Stream]]:
    """(name, stream) of everything that is here."""
    sources = {
        **whole.FILES,
        "pcap": ("pcap", [whole.SHARED / name for name in CAPTURES]),
        "zeek": ("zeek", sorted((whole.SHARED / "zeek_stratosphere").glob("*conn*"))),
        "binetflow": ("binetflow", sorted((whole.SHARED / "argus_binetflow").glob("*.gz"))),
        "netflow": ("netflow", sorted((whole.SHARED / "nf_bot_iot_v2").glob("*.gz"))),
    }
    for name, (format_name, paths) in sources.items():
        files = [content(path) for path in paths if path.exists()]
        if files:
            yield name, Stream(format_name, [b"".join(files)] if format_name == "eve" else files)
    lines = [dump(item.event, unpack([item.features])[0], raw=item.raw).rstrip() for item in generate(events, seed)]
    yield "ndjson", Stream("ndjson", [b"\n".join(lines) + b"\n"])
    yield "synthetic", Stream("synthetic", [])


def content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


class Stages:
    """CPU seconds by stage; what runs inside another stage is not counted there."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner_s = 0.0

    def run(self, stage: str, work: Callable[[], T]) -> T:
        outer_s, self._inner_s, since_s = self._inner_s, 0.0, time.process_time()
        found = work()
        took_s = time.process_time() - since_s
        self.seconds[stage] += took_s - self._inner_s
        self._inner_s = outer_s + took_s
        return found


class TimedTracker(Tracker):
    """Says what of featurize it was."""

    def __init__(self, stages: Stages) -> None:
        super().__init__(CIDRS_INTERNAL)
        self.stages = stages

    def observe(self, events: Sequence[Event], features: F32) -> None:
        self.stages.run("context", lambda: Tracker.observe(self, events, features))


def parsed(stream: Stream, events: int, seed: int) -> list[FeaturedEvent]:
    if stream.format == "synthetic":
        return list(generate(events, seed))
    found: list[FeaturedEvent] = []
    for data in stream.files:
        adapter = adapter_for(stream.format)(SourceSpec("bench"))
        for at in range(0, len(data), CHUNK_BYTES):
            found += adapter.feed(data[at : at + CHUNK_BYTES], at).events
        found += adapter.finish().events
    return found


def sorted_events(items: list[FeaturedEvent]) -> list[FeaturedEvent]:
    return [item for one in sorted_by_time([Parsed(items, [])]) for item in one.events]


def completed(items: Sequence[FeaturedEvent]) -> list[FeaturedEvent]:
    """The valid ones."""
    good = []
    for item in items:
        try:
            complete(item)
            good.append(item)
        except BadRecordError:
            continue
    return good


def features_of(batch: Sequence[FeaturedEvent], overlay: Tracker) -> F32:
    rows = unpack([item.features for item in batch])
    featurize([item.event for item in batch], rows, overlay)
    return rows


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def one_run(stream: Stream, events: int, seed: int) -> tuple[int, dict[str, float]]:
    """(events, CPU seconds by stage) of one pass over a stream."""
    gc.collect()
    stages = Stages()
    items = stages.run("parse", lambda: parsed(stream, events, seed))
    items = stages.run("sort", lambda: sorted_events(items))
    items = stages.run("complete", lambda: completed(items))
    gc.freeze()  # a real ingest does not hold a whole file: the collector must not go through it again and again
    tracker = TimedTracker(stages)
    for batch in batches(items, EVENTS_PER_MESSAGE_MAX):
        overlay = stages.run("context", tracker.overlay)
        stages.run("features", partial(features_of, batch, overlay))
        stages.run("context", partial(tracker.merge, overlay))
    gc.unfreeze()
    return len(items), dict(stages.seconds)


def row(stream: Stream, args: argparse.Namespace) -> dict[str, Any]:
    """The median run."""
    runs = [one_run(stream, args.events, args.seed) for _ in range(args.runs)]
    n = runs[0][0]
    us = {stage: median(seconds[stage] for _, seconds in runs) / n * 1e6 for stage in runs[0][1]}
    whole = sum(us.values())
    return {
        "events": n,
        "events_per_s": round(1e6 / (us["parse"] + us["features"] + us["context"])),
        "whole_events_per_s": round(1e6 / whole),
        "us_per_event": {stage: round(value, 1) for stage, value in us.items()},
        "share": {stage: round(value / whole, 3) for stage, value in us.items()},
    }


def by_batch(stream: Stream, args: argparse.Namespace) -> dict[str, float]:
    """Microseconds of overlay + observe + merge an event, by events a commit; "none": without overlays."""
    items = completed(sorted_events(parsed(stream, args.events, args.seed)))[: args.events]
    events, rows = [item.event for item in items], unpack([item.features for item in items])
    derive(rows)

    def once(size: int) -> float:
        tracker, since_s = Tracker(CIDRS_INTERNAL), time.process_time()
        for at in range(0, len(events), size or EVENTS_PER_MESSAGE_MAX):
            to = at + (size or EVENTS_PER_MESSAGE_MAX)
            target = tracker.overlay() if size else tracker
            target.observe(events[at:to], rows[at:to].copy())
            if size:
                tracker.merge(target)
        return (time.process_time() - since_s) / len(events) * 1e6

    return {str(size or "none"): round(median(once(size) for _ in range(args.runs)), 1) for size in (0, *BATCHES)}


# ---- memory -------------------------------------------------------------------------------------------------------


def memory_mib(field: str) -> float:
    """VmRSS: resident now; VmHWM: at most (ru_maxrss would be the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(field))


def grown(parts: Iterator[int]) -> dict[str, Any]:
    """Memory after each part of a job, and how many events a CPU second; a part gives its events."""
    since_s, n, rss = time.process_time(), 0, []
    for events in parts:
        n += events
        rss.append(memory_mib("VmRSS"))
    return {
        "events": n, "events_per_s": round(n / (time.process_time() - since_s)), "rss_mib": rss,
        "rss_mib_max": memory_mib("VmHWM"),
    }  # fmt: skip


def generating(events: int, seed: int) -> Iterator[int]:
    made = generate(events, seed)
    for _ in range(PARTS):
        deque(islice(made, events // PARTS), 0)
        yield events // PARTS


def crowding(hosts: int) -> Iterator[int]:
    """PARTS times as many hosts as the context remembers, each of them twice, 1,000 flows a second."""
    tracker, ts = Tracker(CIDRS_INTERNAL), 1_767_600_000 * S_NS
    for part in range(PARTS):
        for batch in batches(range(part * hosts, (part + 1) * hosts), 1_024):
            events = []
            for i in batch:
                a, b, c = i >> 16 & 255, i >> 8 & 255, i & 255
                for dst in (f"11.{a}.{b}.{c}", "10.0.0.1"):
                    ts += S_NS // 1_000
                    events.append(Event(event_id="-", source="bench", ts=ts, ts_start=ts, src_ip=f"10.{a}.{b}.{c}",
                                        dst_ip=dst, dst_port=i % 65_536, proto=6))  # fmt: skip
            tracker.observe(events, empty(len(events)))
        yield 2 * hosts


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Each in a process of its own."""
    jobs = {"generator": {"events": args.memory, "seed": args.seed}, "context": {"hosts": CONTEXT_HOSTS_MAX}}
    return {name: Child("bench.ingest", job).result() for name, job in jobs.items()}


def child() -> int:
    side = ChildSide()
    side.ready()
    side.done(grown(crowding(**side.job) if "hosts" in side.job else generating(**side.job)))
    return 0


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--only", nargs="+", help="these rows: cic eve pcap ndjson synthetic")
    parse.add_argument("--events", type=int, default=20_000, help="of the generator, and at most of --batches")
    parse.add_argument("--runs", type=int, default=5)
    parse.add_argument("--whole", action=argparse.BooleanOptionalAction, default=True, help="with a real engine, too")
    parse.add_argument("--batches", action="store_true", help="context by events a commit")
    parse.add_argument("--memory", type=int, default=0, metavar="EVENTS", help="of the generator and of the context")
    parse.add_argument("--seed", type=int, default=7)
    parse.add_argument("--keep", action="store_true", help="append a line to bench/results/ingest.jsonl")
    args = parse.parse_args()
    gc.set_threshold(YOUNG_OBJECTS_MAX)  # as the ingest worker does
    if args.child:
        return child()
    figures: dict[str, Any] = {}
    for name, stream in streams(args.events, args.seed):
        if not args.only or name in args.only:
            figures[name] = row(stream, args)
            if args.batches:
                figures[name]["context_us_by_batch"] = by_batch(stream, args)
            if args.whole and name in whole.FILES:
                figures[name]["whole"] = whole.figures_of([name], WHOLE_RUNS, args.seed)[name]
    if args.memory:
        figures["memory"] = memory(args)
    if args.keep:
        return report("ingest", args, figures)
    print(json.dumps(figures)) if args.json else print_table(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
