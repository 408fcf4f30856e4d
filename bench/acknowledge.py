"""Sent -> acknowledged, durable and visible to another connection: `python -m bench.acknowledge [--rate 500]`.

Open loop: messages are sent by the clock, and each latency runs from when its message was due. As soon as one is
acknowledged its last event is asked for on another connection, with the generation of the acknowledgement; "first try"
is the share that is also there without it. Events without free text share a few hundred sentences, which a warm-up has
embedded; text-heavy ones bring new sentences, which cost about 4 ms each, and are reported apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import uvloop

from bench.harness import Engine, engine, fill, keep, percentiles_ms, synthetic
from ipc.aio import AsyncClient
from ipc.event import FeaturedEvent

WARM_EVENTS = 4_000


async def measure(running: Engine, batches: Sequence[list[FeaturedEvent]], rate_messages: float) -> dict[str, Any]:
    """Latencies of messages sent at `rate_messages` a second."""
    run = running.data_dir / "run"
    writer = AsyncClient(str(run / "query.sock"), str(run / "write.sock"), timeout_ms=60_000)
    reader = AsyncClient(str(run / "query.sock"), "", timeout_ms=60_000)
    await reader.ping()
    acknowledged_s: list[float] = []
    visible_s: list[float] = []
    first_try = 0

    async def one(due_s: float, batch: list[FeaturedEvent]) -> None:
        nonlocal first_try
        reply = await writer.ingest("synthetic", batch)
        acknowledged_s.append(time.perf_counter() - due_s)
        last = batch[-1].event
        name = f"{last.source}/{last.event_id}"
        at_once = await reader.get([name])
        first_try += not at_once.missing  # not in one line with the await: others count meanwhile
        found = await reader.get([name], min_generation=reply.generation)
        visible_s.append(time.perf_counter() - due_s)
        assert not found.missing, f"{name} was acknowledged in generation {reply.generation} and is not there"

    start_s = time.perf_counter()
    tasks = []
    for i, batch in enumerate(batches):
        due_s = start_s + i / rate_messages
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due_s, batch)))
    await asyncio.gather(*tasks)
    writer.close()
    reader.close()
    return {
        "acknowledged": percentiles_ms(acknowledged_s), "visible": percentiles_ms(visible_s),
        "first_try": round(first_try / len(batches), 4),
    }  # fmt: skip


def batches_of(events: Iterator[FeaturedEvent], n: int, size: int) -> list[list[FeaturedEvent]]:
    return [[next(events) for _ in range(size)] for _ in range(n // size)]


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rate", type=float, default=500.0, help="events a second")
    parse.add_argument("--seconds", type=float, default=15.0)
    parse.add_argument("--seed", type=int, default=3)
    parse.add_argument("--json", action="store_true")
    args = parse.parse_args()
    n = int(args.rate * args.seconds)
    figures: dict[str, Any] = {}
    for label, size, texts, rate in (
        ("single", 1, False, args.rate), ("batches_of_10", 10, False, args.rate), ("text_heavy_10", 10, True, 50.0),
    ):  # fmt: skip
        with engine(2) as running:
            events = synthetic(WARM_EVENTS + n, args.seed, texts=False)
            fill(running, events, WARM_EVENTS)
            if texts:
                events, count = synthetic(n, args.seed + 1, texts=True), int(rate * args.seconds)
            else:
                count = n
            before = running.stats()["catalog"]["texts"]
            batches = batches_of(events, count, size)
            figures[label] = uvloop.run(measure(running, batches, rate / size))
            unseen = running.stats()["catalog"]["texts"] - before
            figures[label] |= {"events_per_s": rate, "unseen_texts_per_s": round(unseen / args.seconds, 1)}
    line = keep("acknowledge", vars(args), figures)
    if args.json:
        print(json.dumps(line))
    else:
        for label, of in figures.items():
            print(label, of)
    return 0


if __name__ == "__main__":
    sys.exit(main())
