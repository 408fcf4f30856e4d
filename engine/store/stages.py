"""Where the time of storing goes: seconds of each stage, on one mapped page that stats of either socket reads.

Always true
  - The ingest worker writes the page, from zero at its start. It is the truth about nothing: losing it loses figures.
  - A stage gets the time since the last start() or lap(), by the wall clock and of this thread's CPU: what is between
    two laps is counted once. sync and commit mostly wait for the disk, so their CPU is far below their wall clock.
  - What lies between two publishes (messages read and decoded, replies) is in no stage but "parse"; it is the worker's
    own CPU (/proc) without all stages but "index", which is the child's.
"""

from __future__ import annotations

import time
from typing import Any

from engine.layout import Layout
from engine.run.heartbeat import Page

STAGES = (
    "parse",  # of followed files and listening sockets; `flowkin ingest` parses in its own process
    "admit",  # events completed, known identities looked up, firewall actions held against them
    "features",  # what follows from other features
    "context",  # windows and histories, and taking them over
    "chronos", "sbert", "attack",
    "append",  # columns, checksums, rows written
    "sync",  # fdatasync of rows and dead letters
    "records",  # events encoded, source records compressed, put into the transaction
    "checkpoint",  # the context's state written down, in slices, once a row file
    "commit",
    "publish",  # the new generation announced, acknowledgements
    "index",  # builds over full row files
)  # fmt: skip
_SLOTS = ("events", "commits", *(f"{stage}_{clock}_ns" for stage in STAGES for clock in ("wall", "cpu")))


class Stages:
    """The writing side, for one thread."""

    def __init__(self, layout: Layout) -> None:
        """Raises OSError."""
        self._page = Page(layout.stages, _SLOTS, create=True)
        self._page.put(**dict.fromkeys(_SLOTS, 0))
        self.start()

    def start(self) -> None:
        self._wall_ns, self._cpu_ns = time.perf_counter_ns(), time.thread_time_ns()

    def lap(self, stage: str) -> None:
        """What passed since the last lap or start was this."""
        wall_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        self.add(stage, wall_ns - self._wall_ns, cpu_ns - self._cpu_ns)
        self._wall_ns, self._cpu_ns = wall_ns, cpu_ns

    def add(self, stage: str, wall_ns: int, cpu_ns: int) -> None:
        self._page.add(f"{stage}_wall_ns", wall_ns)
        self._page.add(f"{stage}_cpu_ns", cpu_ns)

    def stored(self, events: int) -> None:
        """One more commit."""
        self._page.add("events", events)
        self._page.add("commits")


def facts(layout: Layout) -> dict[str, Any]:
    """events and commits since the ingest worker's start, and seconds of each stage; {} where no worker ran yet."""
    try:
        page = Page(layout.stages, _SLOTS)
    except (OSError, ValueError):
        return {}
    try:
        found = page.values()
    finally:
        page.close()
    return {
        "events": found["events"],
        "commits": found["commits"],
        "stages": [
            {"stage": stage, "wall_s": found[f"{stage}_wall_ns"] / 1e9, "cpu_s": found[f"{stage}_cpu_ns"] / 1e9}
            for stage in STAGES
        ],
    }
