"""The same load over flowkin and over other vector stores: `python -m bench.peers [--data synthetic|cic] [--events N]`.

All hold the same vectors, ids and events (bench/peers/base.py); flowkin holds all three spaces and is asked in chronos,
without collapse, over its socket. flowkin and a peer take turns, round after round, with nothing else alive, each round
one closed load at each number of connections; figures are medians over the rounds. A peer searches with the least
effort that has recall@10 >= 0.99; where none has, with the most, and it is said. ratio: flowkin's queries a second in
the same rounds, over the peer's. limit_qps: bench/limit.py. What does not install or run is left out, with the reason.

--table prints the newest kept run of each size as Markdown, and measures nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from bench.harness import Engine, arguments, engine, fill, report, sample, settle, synthetic
from bench.limit import RECALL, limit
from bench.load import NAMES, RECALL_NAMES, run
from bench.peers.stores import PEERS, PeerError, Store, pss_mib
from bench.peers.table import table
from bench.quality.data import load
from bench.recall import recall, share, stored
from engine.features import F32
from ipc.event import Event, FeaturedEvent

SPACE = "chronos"
PAGE = 1_000
Runs = dict[str, list[dict[str, Any]]]  # by connections


def events_of(data: str, n: int, seed: int) -> tuple[str, Iterator[FeaturedEvent]]:
    """(format, events)."""
    if data == "synthetic":
        return "synthetic", synthetic(n, seed, texts=False)
    return "cicflow", iter(load("cicids2017").items)


def export(running: Engine, folder: Path) -> tuple[list[F32], int]:
    """What flowkin holds, for the peers: vectors from its row files, ids and events over the socket in order of seq.
    The vectors, copied (a map of them would take its share of the engine's memory), and the bytes of all events as
    JSON."""
    names, metadata, after = list[str](), list[str](), -1
    with running.client() as client:
        while page := client.list(after_seq=after, limit=PAGE).events:
            for one in page:
                assert isinstance(one.event, Event)
                names.append(f"{one.event.source}/{one.event.event_id}")
                metadata.append(msgspec.json.encode(one.event).decode())
            after = page[-1].seq
    _, parts = stored([], SPACE, running.data_dir)
    vectors = np.concatenate(parts)
    assert len(vectors) == len(names) == after + 1
    np.save(folder / "vectors.npy", vectors)
    (folder / "names.json").write_text(json.dumps(names))
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return [vectors], sum(len(text.encode()) for text in metadata)


def tuned(store: Store, parts: list[F32], seqs: list[int], numbers: dict[str, int]) -> float:
    """Leaves the store at the least effort with the recall; the recall that it has."""
    recalled = 0.0
    for effort in store.kind.efforts:
        answers = store.answers(seqs, effort)
        of = [
            share(parts, seq, {numbers[name] for name in names} - {seq}, store.kind.metric)
            for seq, names in zip(seqs, answers, strict=True)
        ]
        recalled = float(np.mean(of))
        if recalled >= RECALL:
            break
    return recalled


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure, and how far the rounds' queries a second lie apart."""
    figures: dict[str, Any] = {}
    for key in ("qps", "p50_ms", "p99_ms", "client_cpu_share"):
        if key in runs[0]:
            figures[key] = round(median(one[key] for one in runs), 3)
    return figures | {"qps_range": [min(one["qps"] for one in runs), max(one["qps"] for one in runs)]}


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--data", choices=("synthetic", "cic"), default="synthetic")
    parse.add_argument("--events", type=int, default=100_000)
    parse.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 64])
    parse.add_argument("--readers", type=int, default=2)
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--seconds", type=float, default=3.0)
    parse.add_argument("--peers", nargs="+", choices=tuple(PEERS), default=list(PEERS))
    parse.add_argument("--seed", type=int, default=1)
    parse.add_argument("--table", action="store_true")
    args = parse.parse_args()
    if args.table:
        print(table())
        return 0
    options = {"space": SPACE, "collapse": False, "connections": 0, "deadline_ms": 60_000}
    peers: dict[str, Any] = {}
    all_runs: Runs = {str(c): [] for c in args.connections}
    with engine(args.readers) as running, tempfile.TemporaryDirectory(prefix="flowkin-bench-") as folder:
        source_format, events = events_of(args.data, args.events, args.seed)
        fill(running, islice(events, args.events), args.events, source_format)
        settle(running)
        names = sample(running, NAMES, args.seed)
        parts, metadata_bytes = export(running, Path(folder))
        numbers = {name: i for i, name in enumerate(json.loads((Path(folder) / "names.json").read_text()))}
        seqs = [numbers[name] for name in names]
        with running.client() as client:
            recalled = recall(client, names[:RECALL_NAMES], SPACE, running.data_dir)

        def ours(connections: int, seconds: float) -> dict[str, Any]:
            return run(running, names, options | {"connections": connections}, 0.0, seconds)

        ours(8, 1.0)  # warm
        for name in args.peers:
            try:
                peers[name] = against(name, Path(folder), parts, seqs, numbers, ours, args, all_runs)
            except PeerError as e:
                peers[name] = {"left_out": str(e)}
            print(f"{name}: {peers[name]}", file=sys.stderr, flush=True)
        if not all_runs[str(args.connections[0])]:
            for c in args.connections:
                all_runs[str(c)] = [ours(c, args.seconds) for _ in range(args.rounds)]
        memory_mib = pss_mib([running.process.pid])
        limits = limit(parts, seqs)
    flowkin: dict[str, Any] = {c: middle(runs) for c, runs in all_runs.items()}
    most = max(one["qps"] for one in flowkin.values())
    figures = {
        "flowkin": {"recall_at_10": round(recalled, 4), "memory_mib": memory_mib, "at": flowkin},
        "peers": peers, **limits, "limit_share": round(most / limits["limit_qps"], 3), "events": len(numbers),
        "metadata_bytes_per_event": round(metadata_bytes / len(numbers), 1),
    }  # fmt: skip
    return report("peers", args, figures)


def against(
    name: str, exported: Path, parts: list[F32], seqs: list[int], numbers: dict[str, int], ours: Any, args: Any,
    all_runs: Runs,
) -> dict[str, Any]:  # fmt: skip
    """One peer, in turns with flowkin, whose runs go to all_runs too. Raises PeerError."""
    with Store(name, exported) as store:
        recalled = tuned(store, parts, seqs[:RECALL_NAMES], numbers)
        store.run(seqs, min(8, max(args.connections)), 1.0)  # warm
        theirs: Runs = {str(c): [] for c in args.connections}
        beside: Runs = {str(c): [] for c in args.connections}
        for _ in range(args.rounds):
            for c in args.connections:
                beside[str(c)].append(ours(c, args.seconds))
                theirs[str(c)].append(store.run(seqs, c, args.seconds))
        memory_mib = store.memory_mib()
    at = {c: middle(runs) for c, runs in theirs.items()}
    for c, of in at.items():
        all_runs[c] += beside[c]
        of["ratio"] = round(median(one["qps"] for one in beside[c]) / of["qps"], 2)
    return {
        "what": store.kind.what, "packages": store.kind.packages, "embedded": store.kind.embedded,
        "metric": store.kind.metric, "effort": store.effort, "recall_at_10": round(recalled, 4),
        "load_s": store.load_s, "memory_mib": memory_mib, "at": at,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
