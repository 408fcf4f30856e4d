"""What to do about a worker that left. No clock, no process: the caller says when things happened.

Always true
  - Exit statuses 70 to 79 mean "do not restart me": a restart would end the same way.
  - Before a role was ever ready, it may fail START_TRIES times; then the start as a whole is given up. A crash may come
    of a damaged file: CRASH_TRIES, so that the ingest worker has found and replaced it by then.
  - Once it was ready, it is restarted for ever, ever later up to DELAY_S_MAX: a degraded engine beats a stopped one.
  - A role that was up for STEADY_S has a clean sheet again.
"""

from __future__ import annotations

import signal
from typing import NamedTuple

DO_NOT_RESTART = range(70, 80)
CRASHES = frozenset({-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT})
START_TRIES = 3
CRASH_TRIES = 12  # with their delays more than two minutes
DELAY_S_MIN, DELAY_S_MAX = 0.1, 30.0
DOUBLINGS_MAX = 16
STEADY_S = 60.0
LOOP_EXITS = 5  # in a row without a steady time: no longer a mishap
SUSPECT_CRASHES, SUSPECT_WINDOW_S = 2, 10.0


class Restart(NamedTuple):
    """Start it again after so long. looping: this happens again and again, say so loudly."""

    after_s: float
    looping: bool = False


class GiveUp(NamedTuple):
    """Leave it down. status: its exit status (or 1 for a signal)."""

    reason: str
    status: int


class Policy:
    """The decisions about one role."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.was_ready = False
        self._ready_s: float | None = None
        self._in_a_row = 0

    def on_ready(self, now_s: float) -> None:
        self.was_ready = True
        self._ready_s = now_s

    def on_exit(self, status: int, now_s: float) -> Restart | GiveUp:
        """status as subprocess gives it: negative for a signal."""
        steady = self._ready_s is not None and now_s - self._ready_s >= STEADY_S
        self._ready_s = None
        self._in_a_row = 1 if steady else self._in_a_row + 1
        if status in DO_NOT_RESTART:
            return GiveUp(f"{self.role} {describe(status)}, which means: do not restart", status)
        tries = CRASH_TRIES if status in CRASHES and self.role != "ingest" else START_TRIES
        if not self.was_ready and self._in_a_row >= tries:
            reason = f"{self.role} {describe(status)}, and was not ready in {tries} tries"
            return GiveUp(reason, max(status, 1))
        doublings = min(self._in_a_row - 1, DOUBLINGS_MAX)  # it dies for ever: 2.0 ** 1,024 is no number any more
        after_s = min(DELAY_S_MAX, DELAY_S_MIN * 2.0**doublings)
        return Restart(after_s, self._in_a_row >= LOOP_EXITS)


class Suspicion:
    """Readers that crash one after the other point at a damaged file rather than at a bug in one request."""

    def __init__(self) -> None:
        self._crashes_s: list[float] = []

    def on_exit(self, status: int, now_s: float) -> bool:
        """True when the files must be checked before the next reader starts; then counting starts anew."""
        if status in CRASHES:
            self._crashes_s = [at_s for at_s in self._crashes_s if now_s - at_s <= SUSPECT_WINDOW_S] + [now_s]
            if len(self._crashes_s) >= SUSPECT_CRASHES:
                self._crashes_s.clear()
                return True
        return False


def describe(status: int) -> str:
    """ "exited with status 3" or "was killed by SIGSEGV"."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
