"""Sent -> acknowledged, durable and visible on another connection: `python -m bench.acknowledge [--rate 500]`.

Open loop: messages are sent by the clock, and each latency runs from when its message was due. Once a message is
acknowledged, its last event is asked for on another connection, in turn with the generation of the acknowledgement
("visible": due -> answered) and without it ("first_try": the share that is there all the same). Events without free
text share a few hundred sentences, most of which a warm-up has embedded; text-heavy ones bring new sentences, which
cost some 4 ms each, and are reported apart. sent_late: how late the bench itself was. Default save policy.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import uvloop

from bench.harness import Engine, arguments, engine, fill, percentiles_ms, report, settle, synthetic
from ipc.aio import AsyncClient
from ipc.event import FeaturedEvent

WARM_EVENTS = 17_000  # with the default rates no row file is filled meanwhile; its edge is bench.reload's
TEXT_HEAVY_EPS = 50.0


class Measuring:
    """One run over given batches."""

    def __init__(self, writer: AsyncClient, reader: AsyncClient) -> None:
        self.writer, self.reader = writer, reader
        self.late_s: list[float] = []
        self.acknowledged_s: list[float] = []
        self.visible_s: list[float] = []
        self.tried = self.first_try = 0

    async def one(self, due_s: float, batch: list[FeaturedEvent], *, at_first_try: bool) -> None:
        """Send a batch that is due now, and look for its last event."""
        self.late_s.append(time.perf_counter() - due_s)
        reply = await self.writer.ingest("synthetic", batch)
        self.acknowledged_s.append(time.perf_counter() - due_s)
        last = batch[-1].event
        name = f"{last.source}/{last.event_id}"
        found = await self.reader.get([name], min_generation=0 if at_first_try else reply.generation)
        if at_first_try:
            self.tried += 1
            self.first_try += not found.missing
            return
        self.visible_s.append(time.perf_counter() - due_s)
        if found.missing:
            raise RuntimeError(f"{name} was acknowledged in generation {reply.generation} and is not there")

    def figures(self) -> dict[str, Any]:
        return {
            "acknowledged": percentiles_ms(self.acknowledged_s), "visible": percentiles_ms(self.visible_s),
            "first_try": round(self.first_try / max(1, self.tried), 5), "first_tries": self.tried,
            "sent_late": percentiles_ms(self.late_s),
        }  # fmt: skip


async def measure(running: Engine, batches: Sequence[list[FeaturedEvent]], rate_messages: float) -> dict[str, Any]:
    """Latencies of messages sent at `rate_messages` a second."""
    where = str(running.data_dir)
    async with (
        AsyncClient.for_data_dir(where, timeout_ms=60_000) as writer,
        AsyncClient.for_data_dir(where, timeout_ms=60_000) as reader,
    ):
        await reader.ping()
        await writer.ingest("synthetic", [])  # both are connected
        measuring = Measuring(writer, reader)
        start_s = time.perf_counter()
        tasks = []
        for i, batch in enumerate(batches):
            due_s = start_s + i / rate_messages
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))  # late or not, replies are read
            tasks.append(asyncio.create_task(measuring.one(due_s, batch, at_first_try=i % 2 == 0)))
        await asyncio.gather(*tasks)
    return measuring.figures()


def batches_of(events: Iterator[FeaturedEvent], n: int, size: int) -> list[list[FeaturedEvent]]:
    return [[next(events) for _ in range(size)] for _ in range(n // size)]


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--rate", type=float, default=500.0, help="events a second")
    parse.add_argument("--seconds", type=float, default=15.0, help="of each of the three parts")
    parse.add_argument("--seed", type=int, default=3)
    args = parse.parse_args()
    most = int(args.rate * args.seconds)
    figures: dict[str, Any] = {}
    with engine(2) as running:
        events = synthetic(WARM_EVENTS + 2 * most, args.seed, texts=False)
        heavy = synthetic(most, args.seed + 1, texts=True)
        fill(running, events, WARM_EVENTS)
        parts = (
            ("single", 1, events, args.rate), ("batches_of_10", 10, events, args.rate),
            ("text_heavy_10", 10, heavy, min(args.rate, TEXT_HEAVY_EPS)),
        )  # fmt: skip
        for label, size, source, rate in parts:
            settle(running)
            batches = batches_of(source, int(rate * args.seconds), size)
            before = running.stats()
            figures[label] = uvloop.run(measure(running, batches, rate / size))
            after = running.stats()
            figures[label] |= {
                "events_per_s": rate,
                "events_per_commit": round(
                    (after["events"] - before["events"]) / max(1, after["generation"] - before["generation"]), 2
                ),
                "unseen_texts_per_s": round((after["catalog"]["texts"] - before["catalog"]["texts"]) / args.seconds, 1),
            }
    return report("acknowledge", args, figures)


if __name__ == "__main__":
    sys.exit(main())
