"""When the scrub runs: at a start, every `store.scrub_hours`, when it is asked for, and when damage was met.

Always true
  - A niced child looks (scrub.py), the ingest worker mends what it found (upkeep.py); one scrub at a
    time. Where readers crashed the files that they map are looked at at once, whatever else is under way.
  - What was found and mended last stands in DATA_DIR/run/scrub.json, for stats and the doctor. It is the truth about
    nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from engine.errors import EngineError
from engine.files import replace
from engine.layout import Layout
from engine.maintain.build import ScrubJob
from engine.maintain.jobs import Jobs
from engine.maintain.scrub import BYTES_PER_S, Report
from engine.maintain.upkeep import Upkeep
from engine.run.worker import Worker
from engine.store.recover import map_size

log = logging.getLogger(__name__)

AGAIN_S = 60.0  # after one that failed
MET_AGAIN_S = 600.0  # between two for damage that readers met: what cannot be mended is met again and again
LEFT_MAX = 100  # named one by one


class Mended(Struct, frozen=True):
    """A scrub and what came of it. left: what is still damaged, by name, LEFT_MAX of left_count; mended: how many files
    and values."""

    report: Report
    mended: int
    left: list[str]
    left_count: int


def read(path: Path) -> Mended | None:
    """The last scrub; None where there is none to be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Mended)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def facts(path: Path) -> dict[str, Any] | None:
    """The last scrub as stats shows it; times are ns."""
    last = read(path)
    if last is None:
        return None
    r = last.report
    return {
        "finished_at": r.finished_at, "seconds": r.seconds,
        "generation": r.generation, "files": r.files, "values": r.values, "read_bytes": r.read_bytes,
        "damaged": r.damaged, "mended": last.mended, "left": last.left_count, "left_names": last.left,
        "structure": r.structure, "unchecked": r.unchecked,
    }  # fmt: skip


class Scrubbing:
    """Owned by the ingest worker; runs on its loop."""

    def __init__(self, worker: Worker, upkeep: Upkeep) -> None:
        self.worker, self.upkeep = worker, upkeep
        upkeep.scrub_soon = self.soon
        self.jobs, self._urgent = Jobs(), Jobs()
        self._one = asyncio.Lock()
        self._soon = asyncio.Event()
        self._met_s = -MET_AGAIN_S

    async def always(self) -> None:
        """Scrub at once, then whenever it is due; what fails is reported and tried again."""
        while True:
            done = await self._tried(BYTES_PER_S)
            after_s = self.worker.config.store.scrub_hours * 3_600.0 if done else AGAIN_S
            try:
                await asyncio.wait_for(self._soon.wait(), after_s)
            except TimeoutError:
                continue
            self._soon.clear()

    def soon(self) -> None:
        """Nobody waits for it, but before it is due."""
        self._soon.set()

    def met(self) -> None:
        """Damage was met by somebody who answers or stores."""
        if time.monotonic() - self._met_s >= MET_AGAIN_S:
            self._met_s = time.monotonic()
            self.soon()

    async def ask(self) -> dict[str, Any]:
        """Scrub now, as fast as the disk goes; what it found. Raises EngineError."""
        if not await self._tried(0):
            raise EngineError("the scrub failed; nothing was changed; the engine's log says why")
        return facts(self.worker.layout.scrub) or {}

    async def check_files(self) -> None:
        """Readers crashed: look at what they map, and no longer name what is damaged."""
        built = await self._urgent.run(self._job(0, files_only=True))
        if built is not None and built.scrubbed is not None:
            self.upkeep.drop(built.scrubbed)

    async def _tried(self, bytes_per_s: int) -> bool:
        async with self._one:
            try:
                built = await self.jobs.run(self._job(bytes_per_s))
                if built is None or built.scrubbed is None:
                    return False
                tell(self.worker.layout, built.scrubbed, *await self.upkeep.mend(built.scrubbed))
            except (EngineError, OSError, msgspec.DecodeError) as e:
                log.error("the scrub: %s; again in %.0f s", e, AGAIN_S)
                return False
        return True

    def _job(self, bytes_per_s: int, *, files_only: bool = False) -> ScrubJob:
        return ScrubJob(
            data_dir=str(self.worker.layout.data_dir), parent_pid=os.getpid(),
            map_size=map_size(self.worker.config), bytes_per_s=bytes_per_s, files_only=files_only,
        )  # fmt: skip

    def kill(self) -> None:
        self.jobs.kill()
        self._urgent.kill()


def tell(layout: Layout, report: Report, mended: int, left: list[str]) -> None:
    """To the log, and to scrub.json."""
    if report.damaged:
        some = "; ".join(left[:3]) or "none"
        log.error("scrubbed: %d damaged, %d mended; left: %s", report.damaged, mended, some)
    if report.unchecked:
        log.warning("the catalog's structure was not looked at: %s", report.unchecked)
    try:
        replace(layout.scrub, msgspec.json.encode(Mended(report, mended, left[:LEFT_MAX], len(left))))
    except OSError as e:
        log.error("%s cannot be written: %s; stats shows the scrub before", layout.scrub, e)
