"""Memory of each reader by /proc smaps: `python -m bench.memory [--events 10000 100000] [--readers 4]`.

After queries in every space on every reader, and after each reader's first text query. Private bytes are what one more
reader costs; the mapped row files and indexes are shared.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from typing import Any

from bench.harness import Engine, engine, fill, keep, synthetic
from ipc.event import Event
from ipc.messages import Options

MIB = 1 << 20


def readers_mib(running: Engine) -> dict[str, list[float]]:
    readers = running.stats()["readers"]
    return {kind: [round(r[f"{kind}_bytes"] / MIB, 1) for r in readers] for kind in ("private", "pss")}


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--events", type=int, nargs="+", default=[10_000, 100_000])
    parse.add_argument("--readers", type=int, default=4)
    parse.add_argument("--seed", type=int, default=7)
    parse.add_argument("--json", action="store_true")
    args = parse.parse_args()
    figures: dict[str, Any] = {}
    for n in args.events:
        with engine(args.readers) as running, ExitStack() as stack:
            figures[f"fill_eps_{n}"] = round(fill(running, synthetic(n, args.seed, texts=False), n), 1)
            clients = [stack.enter_context(running.client()) for _ in range(args.readers)]
            for client in clients:  # opened one after the other, so each has a reader of its own
                client.ping()
            for client in clients:
                names = [s.event.event_id for s in client.recent(limit=50).events if isinstance(s.event, Event)]
                for name in names:
                    for space in ("chronos", "sbert", "attack", "fused"):
                        client.query_similar(name, options=Options(space=space))
            figures[f"before_text_{n}"] = readers_mib(running)
            for client in clients:
                client.search_text("dns query to an external server")
            figures[f"after_text_{n}"] = readers_mib(running)
            stats = running.stats()
            figures[f"disk_bytes_per_event_{n}"] = round(stats["disk_bytes"] / n, 1)
            figures[f"ingest_private_mib_{n}"] = round(stats["ingest"]["private_bytes"] / MIB, 1)
    line = keep("memory", vars(args), figures)
    print(json.dumps(line) if args.json else "\n".join(f"{k:28} {v}" for k, v in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
