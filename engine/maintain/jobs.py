"""Runs the child (engine/maintain/build.py), one job at a time, niced or only where a core is free.

Always true
  - The child dies with the ingest worker. It publishes nothing: what it made is named by the worker's next commit.
  - However a child ends, nothing half written of its stays: it may hold what a purge is to remove.
  - A failure is reported every time. Who tries again by itself pauses before it, each time twice as long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from pathlib import Path

import msgspec

from engine.layout import Layout
from engine.maintain.build import Built, Job
from engine.store import gc

log = logging.getLogger(__name__)

NICENESS = 10
IDLE_S_A_ROW_FILE = 30.0  # so long a job over one row file may wait for a free core; it takes 2 s of one
RETRY_S_MAX = 300.0


class Jobs:
    def __init__(self) -> None:
        self.running: str = ""
        self.failures, self._pause_s = 0, 0.0
        self._child: asyncio.subprocess.Process | None = None
        self._called_off = self._killed = False

    async def run(self, job: Job, *, niceness: int = NICENESS, idle_s: float = 0.0) -> Built | None:
        """What the child built; None where it failed or was called off. idle_s: it has only what no other process
        wants of the cores, and is killed after so long, as it may not raise itself: raises TimeoutError."""
        self.running, self._called_off, self._killed = type(job).__name__, False, False
        start, self._pause_s = time.monotonic(), 0.0
        try:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "engine.maintain.build", msgspec.json.encode(job).decode(),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            _step_back(self._child.pid, niceness, idle=idle_s > 0)
            if self._killed:  # while it was being started
                self._child.kill()
            try:
                async with asyncio.timeout(idle_s or None):
                    out, _ = await self._child.communicate()
            except TimeoutError:
                if self._child.returncode is None:
                    self._child.kill()
                await self._child.communicate()
                if self._killed:
                    return None
                log.warning("%s found no free core for %.0f s and begins again, niced", self.running, idle_s)
                raise
            if self._child.returncode == 0:
                built = msgspec.json.decode(out, type=Built)
                built.seconds = time.monotonic() - start
                self.failures = 0
                return built
            if self._called_off:
                return None
            self.failures += 1
            self._pause_s = min(RETRY_S_MAX, 2.0 ** min(self.failures, 32))
            log.error(
                "%s failed with status %s after %.1f s (%d in a row)",
                self.running, self._child.returncode, time.monotonic() - start, self.failures,
            )  # fmt: skip
            return None
        finally:
            if self._child is not None and self._child.returncode:
                gc.remove_half(Layout(Path(job.data_dir)), self._child.pid)
            self.running, self._child = "", None

    async def pause(self) -> None:
        """Before the next try, where the last one failed."""
        if self._pause_s:
            log.info("it is tried again in %.0f s", self._pause_s)
        await asyncio.sleep(self._pause_s)

    def call_off(self, kind: type[Job]) -> None:
        """Nobody wants it any more, if that is what runs. Its files stay for who waits for it."""
        if self.running == kind.__name__:
            self._called_off = True
            self.kill()

    def kill(self) -> None:
        self._killed = True
        if self._child is not None and self._child.returncode is None:
            self._child.kill()


def _step_back(pid: int, niceness: int, *, idle: bool) -> None:
    """Let others go first. idle: by SCHED_IDLE. A core that runs nothing else counts as free to what wakes up, which
    takes it at once; beside a child that is niced only, readers stood in line for the other (docs/PERFORMANCE.md)."""
    with contextlib.suppress(OSError):  # it has ended
        if idle:
            with contextlib.suppress(PermissionError):  # of a system that lets nobody choose: niced, then
                os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
                return
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
