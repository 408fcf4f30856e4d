"""What a configured source may claim: how old its events may be, and how many it may bring a second.

Always true
  - An event older than its source's window (`past_s`) is a dead letter, never stored: whose sensor it is cannot write
    history. That holds for the engine's own files and sockets, and for clients that name such a source; an import by
    the role admin is not held to it. A firewall action likewise.
  - A source that brings more than `rate_max` waits: its file is read later, its socket's records wait as others do
    (engine/run/drain.py), a client is told when to come again. Nothing is dropped here. A second's worth may come at
    once.
  - A source without these settings is held to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from engine.config import Source
from ipc.event import FeaturedEvent, FirewallAction
from ipc.messages import Reject

RECORD_BYTES = 1 << 16  # of a refused event's record that are kept, as in other dead letters


class Guard:
    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._windows_ns = {name: source.past_s * 1_000_000_000 for name, source in sources.items() if source.past_s}
        self._rates = {name: source.rate_max for name, source in sources.items() if source.rate_max}
        self._free_s: dict[str, float] = {}  # when a source may bring more

    def within(
        self, name: str, events: list[FeaturedEvent], actions: list[FirewallAction]
    ) -> tuple[list[FeaturedEvent], list[FirewallAction], list[Reject]]:
        """Those that may be written, and a reject for each other. name: of the source that brings them."""
        if not self._windows_ns:
            return events, actions, []
        now_ns = time.time_ns()
        rejects: list[Reject] = []
        kept, done = [], []
        for item in events:  # who brings it, and who it says it is of
            late = next((s for s in (name, item.event.source) if self._late(s, item.event.ts, now_ns)), None)
            if late is not None:
                rejects.append(Reject(name, -1, self._why(late), item.raw[:RECORD_BYTES]))
            else:
                kept.append(item)
        for action in actions:
            if self._late(name, action.ts, now_ns):
                rejects.append(Reject(name, -1, self._why(name)))
            else:
                done.append(action)
        return kept, done, rejects

    def wait_s(self, name: str, count: int) -> float:
        """0: `count` events may come now, and are counted; otherwise so long until some may."""
        rate = self._rates.get(name)
        if rate is None or not count:
            return 0.0
        now_s = time.monotonic()
        free_s = self._free_s.get(name, 0.0)
        if now_s < free_s:
            return free_s - now_s
        self._free_s[name] = max(free_s, now_s - 1.0) + count / rate
        return 0.0

    def _late(self, source: str, ts: int, now_ns: int) -> bool:
        window_ns = self._windows_ns.get(source)
        return window_ns is not None and ts < now_ns - window_ns

    def _why(self, source: str) -> str:
        return f"older than source {source!r} may write ({self._windows_ns[source] // 1_000_000_000} s, past_s)"
