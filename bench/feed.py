"""Events that come in while something else is measured: single ones, by the clock.

Open loop: each event is sent when it is due, whatever has become of those before, and its latency runs from then. The
feed has a thread and a loop of its own; what is measured beside it belongs into another process. The first event that
is refused, or not acknowledged in a minute, ends it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Self

import uvloop

from bench.harness import Engine
from ipc.aio import AsyncClient
from ipc.event import FeaturedEvent


class Feed:
    """`with Feed(...) as feed`: from the start to the end of the block. acknowledged_s: from due to acknowledged."""

    def __init__(self, running: Engine, events: Iterator[FeaturedEvent], rate_eps: float) -> None:
        self.running, self.events, self.rate_eps = running, events, rate_eps
        self.acknowledged_s: list[float] = []
        self.error: BaseException | None = None
        self._since_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises what ended the feed, if something did."""
        if self.error is not None:
            raise self.error

    def anew(self) -> None:
        """Only events that are due from now on count: what starts beside it takes the cores for a moment."""
        self._since_s, self.acknowledged_s = time.perf_counter(), []

    def _work(self) -> None:
        try:
            uvloop.run(self._feed())
        except BaseExceptionGroup as e:
            self.error = e.exceptions[0]
        except BaseException as e:
            self.error = e

    async def _feed(self) -> None:
        async with (
            AsyncClient.for_data_dir(str(self.running.data_dir), timeout_ms=60_000) as client,
            asyncio.TaskGroup() as group,
        ):
            start_s = time.perf_counter()
            for sent, event in enumerate(self.events):
                due_s = start_s + sent / self.rate_eps
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))  # late or not, replies are read
                if self._stopping.is_set():
                    break
                group.create_task(self._one(client, event, due_s))

    async def _one(self, client: AsyncClient, event: FeaturedEvent, due_s: float) -> None:
        await client.ingest("synthetic", [event])
        if due_s >= self._since_s:
            self.acknowledged_s.append(time.perf_counter() - due_s)
