"""The context of events that are only asked about: the same tracker code on a read-only copy of the published state.

Always true
  - Nothing here is stored or published. The state is the stored checkpoint and every record since, as at ingest.
  - Events of one session continue each other's context; a session is an overlay, thrown away when it ends.
  - The published state moves on only while no session is open, because an overlay is good until its parent changes.
  - Used from one thread.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence

from engine.catalog import Catalog
from engine.context import Tracker
from engine.features import F32
from engine.publish import featurize
from engine.recover import catch_up, replayed
from ipc.event import Event

SESSION_IDLE_S = 60.0
SESSIONS_MAX = 64


class QueryContext:
    def __init__(self, catalog: Catalog, internal: list[str]) -> None:
        self.catalog, self.internal = catalog, internal
        self._tracker: Tracker | None = None
        self._seq = 0
        self._sessions: dict[Hashable, tuple[Tracker, float]] = {}

    def fill(self, events: Sequence[Event], features: F32, session: Hashable | None) -> None:
        """Fill derived and context columns of events, in order of time, into features [n, 105] in place."""
        now = time.monotonic()
        self._sessions = {k: (t, s) for k, (t, s) in self._sessions.items() if now - s < SESSION_IDLE_S}
        known = self._sessions.get(session) if session is not None else None
        overlay = known[0] if known else self._published().overlay()
        featurize(events, features, overlay)
        if session is not None:
            if len(self._sessions) >= SESSIONS_MAX:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[session] = (overlay, now)

    def end(self, sessions: Sequence[Hashable]) -> None:
        for session in sessions:
            self._sessions.pop(session, None)

    def _published(self) -> Tracker:
        if self._tracker is None:
            self._tracker, self._seq = replayed(self.catalog, Tracker(self.internal), self.internal)
        elif not self._sessions:
            done = False
            while not done:
                self._seq, done = catch_up(self.catalog, self._tracker, self._seq)
        return self._tracker
