"""Which requests a reader takes on: a request that it could not answer in time is refused when it comes.

Always true
  - What waits in a reader is bounded; who sends most is refused first.
  - A request that would wait for most of its deadline is not taken on: served in turn, all would come just too late.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.errors import OverloadedError
from engine.limits import PENDING_PER_CONNECTION_CROWDED, PENDING_REQUESTS_MAX, WAIT_SHARE_MAX
from engine.query import Question
from ipc.messages import Request
from ipc.server import Connection

RETRY_AFTER_MS = 20


class Pending(NamedTuple):
    """A request under way. questions: what a thread has prepared of it, with the model of that version."""

    connection: Connection
    request: Request
    arrived_s: float
    questions: list[Question] | None = None
    model: str = ""

    @property
    def min_generation(self) -> int:
        options = getattr(self.request, "options", None)
        return int(getattr(options or self.request, "min_generation", 0))

    def deadline_s(self, limit_ms: int) -> float:
        options = getattr(self.request, "options", None)
        return min(int(getattr(options or self.request, "deadline_ms", limit_ms)), limit_ms) / 1_000

    def overdue(self, limit_ms: int, now_s: float) -> bool:
        return now_s - self.arrived_s > self.deadline_s(limit_ms)


def places(waiting: int) -> int:
    """How many requests one connection may have under way while so many wait. Asked before a request is decoded."""
    if waiting < PENDING_REQUESTS_MAX // 2:
        return PENDING_REQUESTS_MAX
    return PENDING_PER_CONNECTION_CROWDED if waiting < PENDING_REQUESTS_MAX else 0


def in_time(pending: Pending, wait_s: float, limit_ms: int) -> bool:
    """False: it is refused, as it would wait too long. What it waited unread is not known, hence a share."""
    if wait_s <= WAIT_SHARE_MAX * pending.deadline_s(limit_ms):
        return True
    wait_ms = round(wait_s * 1_000)
    error = OverloadedError(f"it would wait {wait_ms} ms in this reader, for most of its deadline; try again")
    pending.connection.fail(pending.request.request_id, error, retry_after_ms=max(RETRY_AFTER_MS, wait_ms // 2))
    return False


def mean(so_far: float, new: float) -> float:
    """A mean that forgets: the last ones weigh most."""
    return so_far + (new - so_far) / 8 if so_far else new
