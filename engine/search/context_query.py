"""The context of events that are only asked about: the same tracker code on a read-only copy of the published state.

Always true
  - Nothing here is stored or published. The state is the stored checkpoint and every record since, as at ingest.
  - Events of one session continue each other's context; a session is an overlay, thrown away when it ends.
  - The published state moves on only while no session is open, because an overlay is good until its parent changes.
  - Used from one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from engine.context import Tracker
from engine.features import F32
from engine.featurize import featurize
from engine.store.catalog import Catalog
from engine.store.recover import catch_up, replayed
from ipc.event import Event

SESSION_IDLE_S = 60.0
SESSIONS_MAX = 64
Session = tuple[object, int]  # connection, the client's number


class QueryContext:
    def __init__(self, catalog: Catalog, internal: list[str]) -> None:
        self.catalog, self.internal = catalog, internal
        self._tracker: Tracker | None = None
        self._seq = 0
        self._purges = 0  # of the manifest, as the state is
        self._sessions: dict[Session, tuple[Tracker, float]] = {}

    def fill(self, events: Sequence[Event], features: F32, session: Session | None) -> None:
        """Fill derived and context columns of events, in order of time, into features [n, 105] in place."""
        now = time.monotonic()
        self._sessions = {k: (t, s) for k, (t, s) in self._sessions.items() if now - s < SESSION_IDLE_S}
        known = self._sessions.get(session) if session is not None else None
        overlay = known[0] if known else self._published().overlay()
        order = np.argsort([e.ts for e in events], kind="stable")
        in_order = features[order]
        featurize([events[i] for i in order], in_order, overlay)
        features[order] = in_order
        if session is not None:
            if session not in self._sessions and len(self._sessions) >= SESSIONS_MAX:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[session] = (overlay, now)

    def forget(self, over: Callable[[Session], bool]) -> None:
        """End the sessions that are over: as long as any is open, the published state stands still."""
        self._sessions = {key: value for key, value in self._sessions.items() if not over(key)}

    def _published(self) -> Tracker:
        if self._tracker is None:
            self._tracker, self._seq, _ = replayed(self.catalog, Tracker(self.internal), self.internal)
        elif not self._sessions:
            begun, done = self._seq, False
            while not done:
                self._seq, done = catch_up(self.catalog, self._tracker, self._seq)
            with self.catalog.read() as view:
                manifest = view.manifest()
            if manifest is not None and (begun < manifest.first_seq or manifest.purges != self._purges):
                # events left that this state has not seen, or that it shall not remember
                self._purges = manifest.purges
                self._tracker, self._seq, _ = replayed(self.catalog, Tracker(self.internal), self.internal)
        return self._tracker
