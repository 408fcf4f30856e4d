"""Files to messages: parse as the caller, stream to the engine, ask about events that are not stored. No printing.

Always true
  - A batch leaves `waiting` only when the engine acknowledged it; what was sent and not acknowledged is sent again
    after a broken connection. The ids make each event exactly one, however often it is sent.
  - At most WINDOW messages are under way; while the engine says wait, nothing more is read from the files.
  - Retrying ends: RETRY_S seconds from a failure without a single acknowledgement, and the command fails saying what is
    stored.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from cli.errors import NOT_FOUND, USAGE, CommandError
from cli.text import clean
from ipc.errors import ClientError, ConnectError, DeadlineError, NotReadyError, OverloadedError, error_of
from ipc.event import FeaturedEvent, FirewallAction
from ipc.messages import (
    EVENTS_PER_MESSAGE_MAX,
    Answer,
    ErrorCode,
    Failure,
    Ingest,
    Ingested,
    Judgement,
    Options,
    Reject,
    Reply,
    Request,
    Voting,
    encode,
)

if TYPE_CHECKING:
    from cli.render import Meter
    from engine.sources.base import Parsed, SourceSpec
    from engine.sources.files import Inputs
    from engine.sources.join import Join
    from ipc.client import Client

EVENTS_MAX = EVENTS_PER_MESSAGE_MAX  # the engine stores a message in one commit
BYTES_MAX = 3 << 20
ASK_EVENTS_MAX = 256
CLASSIFY_EVENTS_MAX = 64  # each looks through all earlier events, and a reader answers a message at once
WINDOW = 4
TIMEOUT_MS = 30_000  # of one message
RETRY_S = 60.0
REJECT_RECORD_BYTES = 1 << 16
T = TypeVar("T")
RETRIED = (ErrorCode.OVERLOADED, ErrorCode.NO_SPACE, ErrorCode.NOT_READY, ErrorCode.DEADLINE, ErrorCode.CANCELLED)


class How(NamedTuple):
    """What the user said of the files."""

    format: str = "auto"
    source: str = ""
    sensor: str = ""
    timezone: str = "UTC"
    labels: Path | None = None
    hmac_key_file: Path | None = None
    idle_s: int = 120
    active_s: int = 3_600
    tunnels: str = "inner"


class Part(NamedTuple):
    """Some events, rejects and firewall actions of one file. not_ip: packets of a capture that are no IP."""

    format: str
    source: str
    events: Sequence[FeaturedEvent]
    rejects: Sequence[Reject]
    actions: Sequence[FirewallAction] = ()
    not_ip: int = 0


class Batch(NamedTuple):
    """What goes into one Ingest message."""

    format: str
    source: str
    events: list[FeaturedEvent]
    rejects: list[Reject]
    actions: list[FirewallAction]
    not_ip: int = 0


class Summary:
    """What became of the events sent so far."""

    def __init__(self) -> None:
        self.accepted = self.duplicates = self.rejected = self.generation = self.joined = self.waiting = 0
        self.dead_letters = ""
        self.parse_cpu_s = 0.0  # for reading and parsing
        self.started_s = time.monotonic()

    def add(self, reply: Ingested) -> None:
        self.accepted += reply.accepted
        self.duplicates += reply.duplicates
        self.rejected += reply.rejected
        self.joined += reply.joined
        self.waiting = reply.waiting
        self.generation = max(self.generation, reply.generation)
        self.dead_letters = reply.dead_letters or self.dead_letters

    def document(self) -> dict[str, Any]:
        return {
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "rejected": self.rejected,
            "dead_letters": self.dead_letters or None,
            "joined": self.joined,
            "waiting": self.waiting,
            "generation": self.generation,
            "seconds": round(time.monotonic() - self.started_s, 3),
            "parse_cpu_s": round(self.parse_cpu_s, 3),
        }

    def timed(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The same, counted in parse_cpu_s."""
        each = iter(parts)
        while True:
            since_s = time.thread_time()
            part = next(each, None)
            self.parse_cpu_s += time.thread_time() - since_s
            if part is None:
                return
            yield part


def found(paths: Sequence[Path]) -> list[Path]:
    """The paths as given. Raises CommandError naming the first that is not there."""
    for path in paths:
        if str(path) != "-" and not path.exists():
            raise CommandError(f"{path}: no such file or directory", NOT_FOUND)
    return list(paths)


def checked(how: How) -> How:
    """Raises CommandError for a format or timezone that does not exist, before a file is opened."""
    import zoneinfo

    from engine.sources import FORMATS

    if how.format not in ("auto", *FORMATS):
        raise CommandError(f"no format {how.format!r}; there are auto, {', '.join(FORMATS)}", USAGE)
    try:
        zoneinfo.ZoneInfo(how.timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise CommandError(f"no timezone {how.timezone!r}; an IANA name is like Europe/Madrid", USAGE) from None
    return how


# ---- reading ------------------------------------------------------------------------------------------------------
def sorted_out(paths: Sequence[Path], how: How, inputs: Inputs) -> dict[str, list[Path]]:
    """The files by format, in order. Empty ones are left out with a word; of a directory, so are files that no adapter
    recognises."""
    from engine.errors import SourceError
    from engine.sources.files import walk

    by_format: dict[str, list[Path]] = {}
    for path in paths:
        is_directory = str(path) != "-" and path.is_dir()
        for file in [path] if str(path) == "-" else walk(path):
            try:
                name = inputs.format(file) if how.format == "auto" else how.format
            except SourceError as e:
                if not is_directory:
                    raise
                _say_left_out(str(e).partition(";")[0])
                continue
            if name:
                by_format.setdefault(name, []).append(file)
            else:
                _say_left_out(f"{file}: it is empty")
    return by_format


def parts(paths: Sequence[Path], how: How) -> Iterator[Part]:
    """All files, each format's in the order of time. Raises SourceError for a file that cannot be read."""
    from engine.sources.files import Inputs, sorted_by_time
    from engine.sources.join import Join

    base = spec_of(how)
    with Inputs() as inputs:
        for name, files in sorted_out(found(paths), checked(how), inputs).items():
            source = how.source or name
            join = Join(base.join_pending_max)
            spec = base._replace(name=source, join=join)
            ordered = _in_order(name, files, how, inputs)
            parsed = (one for file in ordered for one in _read(inputs, file, spec, name))
            for one in sorted_by_time(parsed):
                rejects = [_bounded(reject) for reject in one.rejects]
                yield Part(name, source, one.events, rejects, one.actions, one.not_ip)
            _say_passed_over(join)


def _read(inputs: Inputs, file: Path, spec: SourceSpec, name: str) -> Iterator[Parsed]:
    """As inputs.read, with a word where there was nothing: what should have filled a pipe may have failed."""
    parsed = None
    for parsed in inputs.read(file, spec, name):
        yield parsed
    if parsed is None:
        _say_left_out(f"{file}: it is empty")


def _say_left_out(why: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens, which stops nothing
        sys.stderr.write(clean(f"left out: {why}") + "\n")


def _say_passed_over(join: Join) -> None:
    """What was read and became neither event nor reject, on stderr."""
    if join.ignored:
        logs = ", ".join(f"{count:,} of {log}" for log, count in sorted(join.ignored.items())[:20])
        sys.stderr.write(clean(f"records that are no events: {logs}") + "\n")
    if join.dropped:
        sys.stderr.write(f"text of {join.dropped:,} connections came too long before their flows and was dropped\n")
    if join.unclaimed:
        sys.stderr.write(f"text of {join.unclaimed:,} connections found no flow\n")


def _in_order(name: str, files: list[Path], how: How, inputs: Inputs) -> list[Path]:
    """Texts before the flows that they belong to: Zeek's logs by their kind, EVE's by their age."""
    from engine.sources import eve, zeek
    from engine.sources.times import zone

    if name == "zeek":
        return sorted(files, key=lambda file: zeek.order(file, inputs.head(file)))
    if name == "eve" and len(files) > 1:
        return sorted(files, key=lambda file: eve.order(inputs.head(file), zone(how.timezone)))
    return files


def spec_of(how: How) -> SourceSpec:
    """What the adapters need to know, all but the source's name. Raises SourceError, CommandError."""
    from engine.flows.split import Limits
    from engine.sources.base import SourceSpec
    from engine.store.keys import read_key

    return SourceSpec(
        "", sensor=how.sensor, timezone=how.timezone, labels=_labels(how),
        hmac_key=read_key(how.hmac_key_file) if how.hmac_key_file else b"",
        flows=Limits(how.idle_s, how.active_s, tunnels=how.tunnels),
    )  # fmt: skip


def _labels(how: How) -> object | None:
    if how.labels is None:
        return None
    from engine.sources.labels import LabelRules

    found([how.labels])
    return LabelRules.load(how.labels)


def _bounded(reject: Reject) -> Reject:
    """Within the limits of the message."""
    reject.file = reject.file.encode("utf-8", "replace").decode()[-4096:]  # a name may be no UTF-8
    reject.reason = reject.reason[:512]
    reject.record = reject.record[:REJECT_RECORD_BYTES]
    return reject


def events(paths: Sequence[Path], how: How) -> Iterator[FeaturedEvent]:
    """The events alone; at the end what could not be read is counted on stderr, and said that there was no event."""
    read = rejected = 0
    for part in parts(paths, how):
        read, rejected = read + len(part.events), rejected + len(part.rejects)
        yield from part.events
    if not read:
        sys.stderr.write(clean(f"no event in {', '.join(map(str, paths))}") + "\n")
    if rejected:
        sys.stderr.write(f"{rejected:,} records could not be read; `flowkin ingest` would put them into dead letters\n")


# ---- sending ------------------------------------------------------------------------------------------------------
def batches(parts: Iterable[Part]) -> Iterator[Batch]:
    """Cut and join parts into messages within bounds; a message has one format and one source."""
    current, size = Batch("", "", [], [], []), 0
    for part in parts:
        if (part.format, part.source) != (current.format, current.source):
            if size or current.not_ip:
                yield current
            current, size = Batch(part.format, part.source, [], [], []), 0
        current = current._replace(not_ip=current.not_ip + part.not_ip)
        each: Iterator[FeaturedEvent | Reject | FirewallAction]
        each = itertools.chain(part.events, part.rejects, part.actions)
        for item in each:
            more = len(encode(item))
            longest = max(len(current.events), len(current.rejects), len(current.actions))
            if size and (longest >= EVENTS_MAX or size + more > BYTES_MAX):
                yield current
                current, size = Batch(part.format, part.source, [], [], []), 0
            if isinstance(item, FeaturedEvent):
                current.events.append(item)
            elif isinstance(item, FirewallAction):
                current.actions.append(item)
            else:
                current.rejects.append(item)
            size += more
    if size or current.not_ip:
        yield current


def _make(batch: Batch) -> Callable[[int, int], Request]:
    return lambda request_id, left_ms: Ingest(
        request_id, batch.format, batch.events, batch.rejects, batch.source, batch.actions, batch.not_ip
    )


class Patience:
    """How long to go on from a failure without an acknowledgement; time without a failure, as where the files are slow
    to read, does not count."""

    def __init__(self, limit_s: float, sleep: Callable[[float], None]) -> None:
        self.limit_s, self.sleep = limit_s, sleep
        self.reset()

    def reset(self) -> None:
        self.since_s: float | None = None  # the first failure
        self.pause_s = 0.05

    def wait(self, error: ClientError) -> None:
        """Sleep as the engine asked, longer each time it did not say. Raises the error when the limit is reached."""
        now_s = time.monotonic()
        if self.since_s is None:
            self.since_s = now_s
        if now_s - self.since_s > self.limit_s:
            error.args = (f"{error}; gave up after {self.limit_s:.0f} s",)
            raise error
        self.sleep((error.retry_after_ms / 1000 or self.pause_s) * random.uniform(0.8, 1.2))
        self.pause_s = min(2.0, self.pause_s * 2)


def deliver(
    client: Client,
    source: Iterable[Batch],
    summary: Summary,
    meter: Meter,
    *,
    retry_s: float = RETRY_S,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Send all batches, until each is acknowledged or refused for good."""
    unread = iter(source)
    waiting: deque[Batch] = deque()  # to send, before more is read
    under_way: deque[Batch] = deque()  # sent, oldest first
    patience = Patience(retry_s, sleep)
    connected = False
    broken: list[Exception] = []  # why reading the files ended early; raised when all before it is acknowledged

    def makes() -> Iterator[Callable[[int, int], Request]]:
        while not broken or waiting:
            try:
                batch = waiting.popleft() if waiting else next(unread, None)
            except Exception as e:
                broken.append(e)
                return
            if batch is None:
                return
            under_way.append(batch)
            yield _make(batch)

    def begun() -> Iterator[Reply]:
        return client.pipeline(makes(), window=WINDOW, timeout_ms=TIMEOUT_MS)

    replies = begun()
    while True:
        try:
            reply = next(replies, None)
        except (ConnectError, DeadlineError, NotReadyError, OverloadedError) as e:  # the last one: at the Hello
            if type(e) is ConnectError and not connected:
                raise
            connected = True
            waiting.extendleft(reversed(under_way))
            under_way.clear()
            patience.wait(e)
            replies = begun()
            continue
        if reply is None:
            if waiting:
                replies = begun()
                continue
            if broken:
                raise broken[0]
            return
        batch = under_way.popleft()
        connected = True
        if isinstance(reply, Ingested):
            summary.add(reply)
            patience.reset()
            meter.advance(len(batch.events))
        elif isinstance(reply, Failure):
            error = error_of(reply)
            if reply.code not in RETRIED:
                raise error
            waiting.append(batch)
            patience.wait(error)


def ingest(client: Client, paths: Sequence[Path], how: How, meter: Meter) -> Summary:
    """Everything readable is durable when this returns."""
    from engine.limits import YOUNG_OBJECTS_MAX

    gc.set_threshold(YOUNG_OBJECTS_MAX)  # events hold no cycles
    found(paths)
    client.ping()  # before a file is parsed: is anybody there?
    summary = Summary()
    try:
        deliver(client, batches(summary.timed(parts(paths, how))), summary, meter)
    except (Exception, KeyboardInterrupt) as e:
        said = f"{summary.accepted:,} events are stored; the same command again goes on from there"
        if isinstance(e, ClientError):
            e.args = (f"{e}; {said}",)
        elif summary.accepted:
            sys.stderr.write(said + "\n")
        raise
    summary.generation = summary.generation or client.ping().generation
    return summary


# ---- asking -------------------------------------------------------------------------------------------------------
def per_message(options: Options) -> int:
    """Events of a question, so that its answer stays within a frame."""
    each = 1_024 + options.top_k * (1_024 + (13_312 if options.explain else 0))
    return max(1, min(ASK_EVENTS_MAX, BYTES_MAX // each))


def ask(
    client: Client, events: Iterable[FeaturedEvent], options: Options, timeout_ms: int | None
) -> Iterator[tuple[Answer, int]]:
    """(answer, generation) for each event in order; one session, so that context goes on between messages."""
    session = random.getrandbits(52) | 1
    for batch in _messages(events, per_message(options)):
        reply = client.query_events(batch, options=options, session=session, timeout_ms=timeout_ms or TIMEOUT_MS)
        yield from ((answer, reply.generation) for answer in reply.answers)


def classify(
    client: Client, events: Iterable[FeaturedEvent], options: Voting, timeout_ms: int | None
) -> Iterator[tuple[Judgement, int]]:
    """As ask: (judgement, generation)."""
    session = random.getrandbits(52) | 1
    most = max(1, min(CLASSIFY_EVENTS_MAX, BYTES_MAX // ((1 + options.k) * 1_024)))
    for batch in _messages(events, most):
        reply = client.classify((), batch, options=options, session=session, timeout_ms=timeout_ms or TIMEOUT_MS)
        yield from ((judgement, reply.generation) for judgement in reply.judgements)


def _messages(events: Iterable[FeaturedEvent], most: int) -> Iterator[list[FeaturedEvent]]:
    """The events of each question, at most so many, without their records: these are not needed."""
    batch: list[FeaturedEvent] = []
    size = 0
    for item in events:
        item.raw = b""
        more = len(encode(item))
        if batch and (len(batch) >= most or size + more > BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += more
    if batch:
        yield batch


def files_of(what: Sequence[str], how: How) -> list[Path]:
    """The files among what is to be classified: all where a format is given, none where they are ids. Raises
    CommandError where they are both, or a file is not there."""
    paths = [Path(one) for one in what]
    if how.format != "auto":
        return found(paths)
    there = [path for one, path in zip(what, paths, strict=True) if one != "-" and path.exists()]
    if there and len(there) < len(paths):
        missing = next(one for one, path in zip(what, paths, strict=True) if path not in there)
        raise CommandError(f"{there[0]} is a file and {missing} is none: give ids or files, not both", USAGE)
    return there


def metered(answers: Iterable[tuple[T, int]], meter: Meter) -> Iterator[tuple[T, int]]:
    for answer in answers:
        meter.advance(1)
        yield answer


class Peeked(NamedTuple, Generic[T]):
    """The same answers, and whether there is more than one."""

    several: bool
    answers: Iterator[tuple[T, int]]


def peeked(answers: Iterator[tuple[T, int]]) -> Peeked[T]:
    first = list(itertools.islice(answers, 2))
    return Peeked(len(first) > 1, itertools.chain(first, answers))
