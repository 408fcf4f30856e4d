"""Steps of cases in processes that may die of them: one that did is told by its signal, and replaced."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.scrub.case import Case, Mended, copied, mend, send
from tests.scrub.damage import Damage, Places
from tests.scrub.look import Seen, look
from tests.scrub.store import Known

_SPAWN = multiprocessing.get_context("spawn")
STEP_S_MAX = 60.0  # one that takes longer is stuck


def _work(pipe: Connection, known: Known) -> None:
    while True:
        try:
            step, data_dir = pipe.recv()
        except EOFError:
            return
        match step:
            case "look" | "again":
                pipe.send(look(data_dir, known))
            case "mend":
                pipe.send(mend(data_dir))
            case "send":
                pipe.send(send(data_dir))


class Doer:
    """One process, and the next one where it died."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self._begin()

    def _begin(self) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_work, args=(theirs, self.known), daemon=True)
        self.process.start()
        theirs.close()

    def do(self, step: str, data_dir: Path) -> tuple[Any, str]:
        """What the step gave, and how it killed its process."""
        self.pipe.send((step, data_dir))
        how = ""
        try:
            if self.pipe.poll(STEP_S_MAX):
                return self.pipe.recv(), ""
            how = f"stuck for {STEP_S_MAX:.0f} s"
        except (EOFError, ConnectionResetError):
            pass
        if how:
            self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        self._close()
        self._begin()
        return None, how or (signal.Signals(-code).name if code < 0 else f"exit status {code}")

    def _close(self) -> None:
        self.pipe.close()
        self.process.join(10)
        self.process.close()

    def close(self) -> None:
        self._close()


def cases(whole: Path, known: Known, damages: Sequence[Damage], folder: Path, processes: int) -> Iterator[Case]:
    """Each damage from beginning to end, on a copy of the whole directory; in order."""
    places = Places(whole)
    free: SimpleQueue[Doer] = SimpleQueue()

    def run(numbered: tuple[int, Damage]) -> Case:
        number, damage = numbered
        doer, data_dir = free.get(), folder / str(number)
        died: dict[str, str] = {}
        given: dict[str, Any] = {}
        try:
            copied(whole, data_dir, damage)
            for step in ("look", "mend", "again", "send"):
                given[step], how = doer.do(step, data_dir)
                if how:
                    died[step] = how
        finally:
            free.put(doer)
            shutil.rmtree(data_dir, ignore_errors=True)
        return Case(
            damage, places.of(damage), given["look"] or Seen(), given["mend"] or Mended(), given["again"] or Seen(),
            given["send"] or Mended(), died,
        )  # fmt: skip

    with ExitStack() as stack:
        for _ in range(processes):
            doer = Doer(known)
            stack.callback(doer.close)
            free.put(doer)
        yield from stack.enter_context(ThreadPoolExecutor(processes)).map(run, enumerate(damages))
