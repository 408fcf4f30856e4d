"""Memory of each process by /proc smaps_rollup: `python -m bench.memory [--events 10000 100000] [--readers 4]`.

At both numbers of events, when all row files are indexed: the readers as they are after the events came in (start),
after queries in every space on every reader (queries), after each reader's first text query (text; text_growth: by how
much private grew at it), and after new texts and new events of all lengths (events). private: bytes no other process
maps, which is what one more reader costs; pss: with its share of what is shared. The mapped row files and indexes are
shared, so private bytes must not grow with the number of events.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from itertools import islice
from typing import Any

from bench.harness import MIB, Engine, arguments, engine, fill, report, sample, settle, synthetic
from ipc.messages import Options

QUERIES = 50  # on each reader, in each space
ASKED = 50  # new events, and texts, on each reader
TEXT_MAX = 2_048


def mib(running: Engine) -> dict[str, Any]:
    """Each reader's private and pss MiB, and the ingest worker's."""
    stats = running.stats()
    figures: dict[str, Any] = {
        kind: [round(r[f"{kind}_bytes"] / MIB, 1) for r in stats["readers"]] for kind in ("private", "pss")
    }
    return figures | {f"ingest_{kind}": round(stats["ingest"][f"{kind}_bytes"] / MIB, 1) for kind in ("private", "pss")}


def measure(n: int, readers: int, seed: int) -> dict[str, Any]:
    """One engine with n events."""
    with engine(readers) as running, ExitStack() as stack:
        figures: dict[str, Any] = {"fill_eps": round(fill(running, synthetic(n, seed, texts=False), n), 1)}
        settle(running)
        names = sample(running, QUERIES, seed)
        clients = [stack.enter_context(running.client()) for _ in range(readers)]
        for client in clients:  # opened one after the other, so each has a reader of its own
            client.ping()
        figures["start"] = mib(running)
        for client in clients:
            for name in names:
                for space in ("chronos", "sbert", "attack", "fused"):
                    client.query_similar(name, options=Options(space=space))
        figures["queries"] = mib(running)
        for client in clients:
            client.search_text("dns query to an external server")
        figures["text"] = mib(running)
        before, after = figures["queries"]["private"], figures["text"]["private"]
        figures["text_growth"] = [round(b - a, 1) for a, b in zip(before, after, strict=True)]
        unseen = list(islice(synthetic(1 << 40, seed + 1, texts=True), ASKED))
        for client in clients:
            for item in unseen:
                client.query_events([item])
                client.search_text((item.event.text or "a flow without words")[:TEXT_MAX])
        figures["events"] = mib(running)
        figures["disk_bytes_per_event"] = round(running.stats()["disk_bytes"] / n, 1)
    return figures


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--events", type=int, nargs="+", default=[10_000, 100_000])
    parse.add_argument("--readers", type=int, default=4)
    parse.add_argument("--seed", type=int, default=7)
    args = parse.parse_args()
    return report("memory", args, {f"events_{n}": measure(n, args.readers, args.seed) for n in args.events})


if __name__ == "__main__":
    sys.exit(main())
