"""What can be asked: one function a message, for both clients (ipc/client.py waits, ipc/aio.py awaits).

Always true
  - A function makes a Call and sends nothing. What it was given is copied: a call that is sent again is the same.
  - The deadline of a call travels in its request: `make` is given the milliseconds that are left when it is sent.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Generic, NamedTuple, TypeVar, get_args

from msgspec.structs import replace

from ipc.errors import ClientError, OverloadedError, VersionError
from ipc.event import FeaturedEvent, FirewallAction
from ipc.messages import (
    AddModel,
    Answers,
    Cancel,
    Classified,
    Classify,
    Compact,
    Done,
    ErrorCode,
    Explain,
    Explained,
    Facts,
    Filter,
    ForgetModel,
    Found,
    Get,
    Info,
    Ingest,
    Ingested,
    Label,
    List,
    Measure,
    Models,
    Options,
    Ping,
    Pong,
    Purge,
    QueryEvent,
    QuerySimilar,
    QueryVector,
    Recent,
    Reject,
    Reply,
    Request,
    RollbackModel,
    Scrub,
    SearchText,
    Stats,
    UseModel,
    Voting,
    Write,
)

LATE_MS = 500  # what an answer may take on its way beyond the deadline the engine was given
QUERY_SOCKET, WRITE_SOCKET = "run/query.sock", "run/write.sock"  # below a data directory, as engine/layout.py has it
WRITES = get_args(Write)
DEFAULT, TEXT, VOTING = Options(), Options(space="sbert"), Voting()

Path = str | PathLike[str]
Make = Callable[[int, int], Request]  # (request id, milliseconds left) -> the request
R = TypeVar("R", bound=Reply)
How = TypeVar("How", Options, Voting)


class Refused:
    """How often one call was refused for want of room, and when to try again. Nothing of it was done, so a write may be
    sent again, too."""

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s, self.times = deadline_s, 0

    def pause_s(self, error: OverloadedError) -> float:
        """What the engine asks for, twice as long each time, and not the same for all who were refused together. Raises
        the error where the engine does not ask for it, or no time is left."""
        pause_s: float = error.retry_after_ms / 1_000 * (1 << self.times) * random.uniform(0.8, 1.2)
        if pause_s == 0 or time.monotonic() + pause_s >= self.deadline_s:
            raise error
        self.times += 1
        return pause_s


class Call(NamedTuple, Generic[R]):
    """A request, the kind of reply that is due, and milliseconds until then (None: the client's own)."""

    kind: type[R]
    make: Make
    timeout_ms: int | None

    def checked(self, reply: Reply) -> R:
        """The reply. Raises VersionError where it is another kind."""
        if not isinstance(reply, self.kind):
            raise unexpected(reply, self.kind)
        return reply


def ping(*, timeout_ms: int | None = None) -> Call[Pong]:
    return Call(Pong, lambda i, ms: Ping(i), timeout_ms)


def info(*, timeout_ms: int | None = None) -> Call[Facts]:
    return Call(Facts, lambda i, ms: Info(i), timeout_ms)


def stats(*, features: Sequence[str] = (), timeout_ms: int | None = None) -> Call[Facts]:
    """features: sources whose every feature is asked for, at most 64."""
    return Call(Facts, lambda i, ms: Stats(i, list(features)), timeout_ms)


def models(*, timeout_ms: int | None = None) -> Call[Facts]:
    return Call(Facts, lambda i, ms: Models(i), timeout_ms)


def get(
    ids: Sequence[str],
    *,
    features: bool = False,
    raw: bool = False,
    min_generation: int = 0,
    timeout_ms: int | None = None,
) -> Call[Found]:
    wanted = list(ids)
    return Call(Found, lambda i, ms: Get(i, wanted, features, raw, min_generation, ms), timeout_ms)


def listed(
    *,
    filter: Filter | None = None,
    after_seq: int = -1,
    limit: int = 100,
    features: bool = False,
    raw: bool = False,
    min_generation: int = 0,
    timeout_ms: int | None = None,
) -> Call[Found]:
    return Call(Found, lambda i, ms: List(i, filter, after_seq, limit, features, raw, min_generation, ms), timeout_ms)


def recent(
    *,
    limit: int = 20,
    filter: Filter | None = None,
    by_event_time: bool = False,
    min_generation: int = 0,
    timeout_ms: int | None = None,
) -> Call[Found]:
    return Call(Found, lambda i, ms: Recent(i, limit, filter, by_event_time, min_generation, ms), timeout_ms)


def query_similar(id: str, *, options: Options = DEFAULT, timeout_ms: int | None = None) -> Call[Answers]:
    return Call(Answers, lambda i, ms: QuerySimilar(i, id, within(options, ms)), timeout_ms)


def query_events(
    events: Sequence[FeaturedEvent],
    *,
    options: Options = DEFAULT,
    session: int = 0,
    timeout_ms: int | None = None,
) -> Call[Answers]:
    asked = list(events)
    return Call(Answers, lambda i, ms: QueryEvent(i, asked, within(options, ms), session), timeout_ms)


def classify(
    ids: Sequence[str] = (),
    events: Sequence[FeaturedEvent] = (),
    *,
    options: Voting = VOTING,
    session: int = 0,
    timeout_ms: int | None = None,
) -> Call[Classified]:
    """Of stored events by id, then of events that are not stored."""
    names, asked = list(ids), list(events)
    return Call(Classified, lambda i, ms: Classify(i, names, asked, within(options, ms), session), timeout_ms)


def query_vector(
    vector: bytes, model: str, *, options: Options = DEFAULT, timeout_ms: int | None = None
) -> Call[Answers]:
    """vector: little-endian float32 [dim] in options.space, from the model of that name."""
    return Call(Answers, lambda i, ms: QueryVector(i, vector, model, within(options, ms)), timeout_ms)


def search_text(text: str, *, options: Options = TEXT, timeout_ms: int | None = None) -> Call[Answers]:
    return Call(Answers, lambda i, ms: SearchText(i, text, within(options, ms)), timeout_ms)


def explain(query: str, hit: str, *, space: str = "attack", timeout_ms: int | None = None) -> Call[Explained]:
    return Call(Explained, lambda i, ms: Explain(i, query, hit, space, ms), timeout_ms)


def label(id: str, label: str, *, by: str = "", timeout_ms: int | None = None) -> Call[Done]:
    return Call(Done, lambda i, ms: Label(i, id, label, by), timeout_ms)


def ingest(
    format: str,
    events: Sequence[FeaturedEvent],
    *,
    rejects: Sequence[Reject] = (),
    source: str = "",
    actions: Sequence[FirewallAction] = (),
    timeout_ms: int | None = None,
) -> Call[Ingested]:
    """Durable and visible when this returns."""
    batch, refused, done = list(events), list(rejects), list(actions)
    return Call(Ingested, lambda i, ms: Ingest(i, format, batch, refused, source, done), timeout_ms)


def use_model(version: str, *, timeout_ms: int | None = None) -> Call[Done]:
    return Call(Done, lambda i, ms: UseModel(i, version), timeout_ms)


def add_model(version: str, files: dict[str, bytes], *, timeout_ms: int | None = None) -> Call[Done]:
    return Call(Done, lambda i, ms: AddModel(i, version, files), timeout_ms)


def rollback_model(*, timeout_ms: int | None = None) -> Call[Done]:
    return Call(Done, lambda i, ms: RollbackModel(i), timeout_ms)


def forget_model(*, timeout_ms: int | None = None) -> Call[Done]:
    return Call(Done, lambda i, ms: ForgetModel(i), timeout_ms)


def purge(
    *, filter: Filter | None = None, ids: Sequence[str] = (), dry_run: bool = False, timeout_ms: int | None = None
) -> Call[Done]:
    """Remove events by a filter, or by ids. facts: how many events, dead letters and waiting firewall actions."""
    names = list(ids)
    return Call(Done, lambda i, ms: Purge(i, filter, names, dry_run), timeout_ms)


def compact(*, timeout_ms: int | None = None) -> Call[Done]:
    """facts: bytes_before and bytes_after of the catalog; waits_for: readers that still hold the old one."""
    return Call(Done, lambda i, ms: Compact(i), timeout_ms)


def measure(*, sample: int = 0, seed: int = 0, timeout_ms: int | None = None) -> Call[Done]:
    """Quality, now; facts: as `quality` in stats, with the drift of each feature. sample: 0 as the engine is set. It
    may take a minute."""
    return Call(Done, lambda i, ms: Measure(i, sample, seed), timeout_ms)


def scrub(*, timeout_ms: int | None = None) -> Call[Done]:
    """Everything against its checksums, now, and mend what can be; facts: as `scrub` in stats. It may take long."""
    return Call(Done, lambda i, ms: Scrub(i), timeout_ms)


def cancel(target: int, *, timeout_ms: int | None = None) -> Call[Done]:
    """facts["cancelled"]: whether a request of that id was still under way on the query connection."""
    return Call(Done, lambda i, ms: Cancel(i, target), timeout_ms)


def within(options: How, left_ms: int) -> How:
    """The same options with the call's own deadline."""
    return replace(options, deadline_ms=left_ms)


def unexpected(reply: Reply, kind: type[object]) -> ClientError:
    return VersionError(ErrorCode.VERSION, f"{type(reply).__name__} came where {kind.__name__} was due")
