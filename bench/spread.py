"""Connections opened in a burst, counted by reader: `python -m bench.spread`.

One thread a connection, all let go at once; then stats tell how many connections each reader got, less those it had
before. uneven: the fullest reader's count over the even share, less one, of each burst. Target: even within 20 %.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from threading import Barrier, Thread

from bench.harness import Engine, arguments, engine, report
from ipc.client import Client

CLOSED_S_MAX = 5.0


def counts(client: Client) -> list[int]:
    """Open connections of each reader."""
    return [int(r["connections"]) for r in client.stats().facts["readers"]]


def burst(running: Engine, other: Client, n: int, idle: list[int]) -> list[int]:
    """n connections opened at once, by reader; they are closed again."""
    barrier = Barrier(n)

    def connect(client: Client) -> None:
        barrier.wait()
        client.ping()

    with ExitStack() as stack:
        clients = [stack.enter_context(running.client()) for _ in range(n)]
        threads = [Thread(target=connect, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0.3)  # readers report with their next sign of life, every 0.25 s
        found = [now - before for now, before in zip(counts(other), idle, strict=True)]
    end_s = time.monotonic() + CLOSED_S_MAX
    while counts(other) != idle and time.monotonic() < end_s:
        time.sleep(0.05)
    return found


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--connections", type=int, default=32)
    parse.add_argument("--readers", type=int, default=4)
    parse.add_argument("--bursts", type=int, default=5)
    args = parse.parse_args()
    with engine(args.readers) as running, running.client() as other:
        other.ping()
        time.sleep(0.3)
        idle = counts(other)
        found = [burst(running, other, args.connections, idle) for _ in range(args.bursts)]
    even = args.connections / args.readers
    figures = {"connections_by_reader": found, "uneven": [round(max(of) / even - 1, 3) for of in found]}
    return report("spread", args, figures)


if __name__ == "__main__":
    sys.exit(main())
