"""Connections opened in a burst, counted by reader: `python -m bench.spread`. Target: even within 20 %."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from threading import Thread

from bench.harness import engine, keep
from ipc.client import Client


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--connections", type=int, default=32)
    parse.add_argument("--readers", type=int, default=4)
    parse.add_argument("--bursts", type=int, default=5)
    parse.add_argument("--json", action="store_true")
    args = parse.parse_args()
    counts: list[list[int]] = []
    with engine(args.readers) as running, running.client() as other:
        other.ping()
        idle = [r["connections"] for r in other.stats().facts["readers"]]
        for _ in range(args.bursts):
            with ExitStack() as stack:
                clients: list[Client] = [stack.enter_context(running.client()) for _ in range(args.connections)]
                threads = [Thread(target=client.ping) for client in clients]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                now = [r["connections"] for r in other.stats().facts["readers"]]
                counts.append([a - b for a, b in zip(now, idle, strict=True)])
    line = keep("spread", vars(args), {"connections_by_reader": counts})
    print(json.dumps(line) if args.json else counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
