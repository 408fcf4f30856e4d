"""Which requests a reader takes on: a request that it could not answer in time is refused when it comes.

Always true
  - What waits in a reader is bounded; who sends most is refused first.
  - A request that would wait for most of its deadline is not taken on: served in turn, all would come just too late.
  - Connections take turns, one request each, in the order in which they came: who sends many at once waits for itself.
    A request for more than HEAVY_EVENTS events is answered alone, and what is light comes between two such.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from engine.errors import OverloadedError
from engine.limits import PENDING_PER_CONNECTION_CROWDED, PENDING_REQUESTS_MAX, WAIT_SHARE_MAX
from engine.search.query import Question
from ipc.messages import (
    Classify,
    Get,
    List,
    QueryEvent,
    QuerySimilar,
    QueryVector,
    Recent,
    Request,
    SearchText,
)
from ipc.server import Connection

RETRY_AFTER_MS = 20
HEAVY_EVENTS = 64


class Pending(NamedTuple):
    """A request under way. questions: what a thread has prepared of it, with the model of that version."""

    connection: Connection
    request: Request
    arrived_s: float
    heavy: bool
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


def is_heavy(request: Request) -> bool:
    """May it be answered with more than HEAVY_EVENTS events, those that are compared for a vote among them?"""
    match request:
        case List() | Recent():
            return request.limit > HEAVY_EVENTS
        case Get():
            return len(request.ids) > HEAVY_EVENTS
        case QuerySimilar() | QueryVector() | SearchText():
            return request.options.top_k > HEAVY_EVENTS
        case QueryEvent():
            return len(request.events) * request.options.top_k > HEAVY_EVENTS
        case Classify():
            return (len(request.ids) + len(request.events)) * request.options.k > HEAVY_EVENTS
    return False


class Turns:
    """Requests that wait. Of a connection the oldest is next, of connections the one whose last turn is longest ago."""

    def __init__(self) -> None:
        self._queues: dict[Connection, deque[Pending]] = {}
        self._light: OrderedDict[Connection, None] = OrderedDict()  # by what is next of them, in the order of turns
        self._heavy: OrderedDict[Connection, None] = OrderedDict()
        self._count = 0
        self._light_last = False

    def __len__(self) -> int:
        return self._count

    def append(self, pending: Pending) -> None:
        queue = self._queues.get(pending.connection)
        if queue is None:
            queue = self._queues[pending.connection] = deque()
            self._ring(pending)[pending.connection] = None
        queue.append(pending)
        self._count += 1

    def batch(self, most: int) -> list[Pending]:
        """What is answered together: light ones, as many turns; or one heavy, next time."""
        heavy = bool(self._heavy) and (self._light_last or not self._light)
        self._light_last = not heavy
        ring, out = self._heavy if heavy else self._light, list[Pending]()
        while ring and len(out) < (1 if heavy else most):
            connection, _ = ring.popitem(last=False)
            queue = self._queues[connection]
            out.append(queue.popleft())
            if queue:
                self._ring(queue[0])[connection] = None
            else:
                del self._queues[connection]
        self._count -= len(out)
        return out

    def ahead(self, pending: Pending) -> int:
        """How many of its kind would be answered before it, if no more came; or a few more."""
        own = len(self._queues.get(pending.connection, ()))
        return min(self._count, len(self._ring(pending)) * (own + 1))

    def _ring(self, pending: Pending) -> OrderedDict[Connection, None]:
        return self._heavy if pending.heavy else self._light


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
