"""When quality is measured: on request, after a switch of models, and where events came, every `quality.every_s`.

Always true
  - A niced child measures (engine/maintain/build.py) and no event waits for it; one at a time, beside upkeep.
  - What was measured is what stats shows from then on, until the next time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable

import msgspec

from engine.errors import EngineError, OverloadedError
from engine.maintain import gauges
from engine.maintain.build import QualityJob
from engine.maintain.gauges import Measured
from engine.maintain.jobs import Jobs
from engine.run.worker import Worker
from engine.store.manifest import Manifest
from engine.store.recover import map_size

log = logging.getLogger(__name__)

LOOK_S = 60.0  # how often to see whether it is due; the first time so long after a start, which has other work


class Measuring:
    """Owned by the ingest worker; runs on its loop. manifest: the newest one."""

    def __init__(self, worker: Worker, manifest: Callable[[], Manifest]) -> None:
        self.worker, self.manifest, self.settings = worker, manifest, worker.config.quality
        self.jobs = Jobs()
        self._one = asyncio.Lock()
        self._asked = False

    async def always(self) -> None:
        """Measure when it is due, for ever; what fails is reported and tried again later."""
        if not self.settings.every_s:
            return
        while True:
            await asyncio.sleep(min(self.settings.every_s, LOOK_S))
            if self._due():
                async with self._one:
                    await self._measure(self.settings.sample, 0)

    def _due(self) -> bool:
        manifest = self.manifest()
        last = gauges.of_model(gauges.read(self.worker.layout.quality), manifest.model)
        if last is None:
            return True
        if last.generation == manifest.generation:
            return False
        age_s = time.time() - last.measured_at / 1e9  # below 0: the clock was put back since
        return not 0 <= age_s < self.settings.every_s

    async def ask(self, sample: int, seed: int) -> Measured:
        """Measure now, or after the one that is under way by itself. sample: 0 is the setting. Raises OverloadedError
        where another was asked for, EngineError."""
        if self._asked:
            raise OverloadedError("a measurement is under way that was asked for; try again")
        self._asked = True
        try:
            async with self._one:
                measured = await self._measure(sample or self.settings.sample, seed)
        finally:
            self._asked = False
        if measured is None:
            raise EngineError("the measurement failed, nothing was changed; the engine's log says why")
        return measured

    async def _measure(self, sample: int, seed: int) -> Measured | None:
        config, layout = self.worker.config, self.worker.layout
        job = QualityJob(
            data_dir=str(layout.data_dir), parent_pid=os.getpid(), map_size=map_size(config),
            window=self.settings.window_events, sample=sample, seed=seed,
        )  # fmt: skip
        try:
            built = await self.jobs.run(job)
        except (OSError, msgspec.DecodeError) as e:
            log.error("quality was not measured: %s; it is tried again", e)
            return None
        if built is None or built.measured is None:
            return None
        try:
            gauges.write(layout.quality, built.measured)
        except OSError as e:
            log.error("%s cannot be written: %s; stats shows what was measured before", layout.quality, e)
        return built.measured

    def kill(self) -> None:
        self.jobs.kill()
