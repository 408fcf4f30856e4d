"""Reads that take more than one message: pages, several ids, one event or nothing, watching. No printing."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from cli.errors import FAILED, NOT_FOUND, CommandError
from ipc.calls import within
from ipc.errors import error_of
from ipc.messages import (
    IDS_PER_MESSAGE_MAX,
    Answers,
    Classified,
    Classify,
    Failure,
    Filter,
    Found,
    Judgement,
    Options,
    QuerySimilar,
    Request,
    Voting,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cli.answers import Document
    from cli.session import Session
    from engine.store.cipher import Cipher
    from ipc.client import Client

PAGE = 500
WINDOW = 8
SOURCES = 64  # whose features are asked for in one message


def ids_of(ids: Sequence[str], stdin: TextIO) -> tuple[bool, Iterator[str]]:
    """(several, ids); '-' stands for the lines of stdin."""

    def each() -> Iterator[str]:
        for one in ids:
            if one == "-":
                yield from (line.strip() for line in stdin if line.strip())
            else:
                yield one

    return len(ids) > 1 or "-" in ids, each()


def window(ids: Sequence[str], stdin: TextIO) -> int:
    """How many questions may be under way. One where ids come from what may pause, a pipe or a terminal: each is
    answered at once, and nothing waits for its reader meanwhile."""
    if "-" not in ids:
        return WINDOW
    try:
        return WINDOW if stat.S_ISREG(os.fstat(stdin.fileno()).st_mode) else 1
    except OSError:  # no file at all
        return WINDOW


def to_purge(ids: Sequence[str], filter: Filter | None, asked: bool, stdin: TextIO) -> list[str]:
    """The ids, '-' read; none where the filter says what, or where stdin named none. Raises UsageError."""
    import click

    if (filter is None) == (not ids):  # by what was asked for: stdin that turns out empty leaves no filter alone
        raise click.UsageError("name the events to purge: by filter flags, or by ids")
    if "-" in ids and asked:
        raise click.UsageError("where ids come from stdin nobody can be asked: give --yes or --dry-run")
    return list(ids_of(ids, stdin)[1])


def purged(
    client: Client, filter: Filter | None, wanted: list[str], dry_run: bool, yes: bool, timeout_ms: int
) -> tuple[dict[str, Any], int]:
    """What a purge removed, or would, and the generation; a person is asked first."""
    import click

    if not dry_run and not yes:
        would = _purge(client, filter, wanted, True, timeout_ms)[0]["events"]
        try:
            sure = click.confirm(f"Remove {would:,} events for good?", err=True)
        except click.Abort as e:
            if not isinstance(e.__context__, EOFError):  # Ctrl-C
                raise
            click.echo(err=True)  # the question's line has no end yet
            sure = False
        if not sure:
            raise CommandError("nothing was removed", FAILED)
    return _purge(client, filter, wanted, dry_run, timeout_ms)


def _purge(
    client: Client, filter: Filter | None, wanted: list[str], dry_run: bool, timeout_ms: int
) -> tuple[dict[str, Any], int]:
    """As many ids at once as a message holds."""
    total: dict[str, Any] = {}
    for at in range(0, max(1, len(wanted)), IDS_PER_MESSAGE_MAX):
        some = wanted[at : at + IDS_PER_MESSAGE_MAX]
        done = client.purge(filter=filter, ids=some, dry_run=dry_run, timeout_ms=timeout_ms)
        added = {name: total[name] + done.facts[name] for name in ("events", "dead_letters") if name in total}
        total = done.facts | added
    return total, done.generation


def similar(
    client: Client, ids: Iterator[str], options: Options, timeout_ms: int | None, window: int = WINDOW
) -> Iterator[Answers]:
    """One reply for each id, in order."""
    first = next(ids, None)
    second = next(ids, None) if window > 1 else None
    if first is not None and second is None:  # one by one they are tried again when a reader leaves
        for one in itertools.chain([first], ids):
            yield client.query_similar(one, options=options, timeout_ms=timeout_ms)
        return

    def make(one: str) -> Callable[[int, int], Request]:
        return lambda request_id, left_ms: QuerySimilar(request_id, one, within(options, left_ms))

    makes = (make(one) for one in itertools.chain([first, second], ids) if one is not None)
    for reply in client.pipeline(makes, window=window, timeout_ms=timeout_ms):
        if isinstance(reply, Failure):
            raise error_of(reply)
        if isinstance(reply, Answers):
            yield reply


def classified(
    client: Client, ids: Iterator[str], options: Voting, timeout_ms: int | None, window: int = WINDOW
) -> Iterator[tuple[Judgement, int]]:
    """(judgement, generation) of each id, in order."""
    first = next(ids, None)
    second = next(ids, None) if window > 1 else None
    if first is not None and second is None:  # one by one they are tried again when a reader leaves
        for one in itertools.chain([first], ids):
            reply = client.classify([one], options=options, timeout_ms=timeout_ms)
            yield reply.judgements[0], reply.generation
        return

    def make(one: str) -> Callable[[int, int], Request]:
        return lambda request_id, left_ms: Classify(request_id, [one], [], within(options, left_ms))

    makes = (make(one) for one in itertools.chain([first, second], ids) if one is not None)
    for answer in client.pipeline(makes, window=window, timeout_ms=timeout_ms):
        if isinstance(answer, Failure):
            raise error_of(answer)
        if isinstance(answer, Classified):
            yield from ((judgement, answer.generation) for judgement in answer.judgements)


def remembered(judgements: Iterable[tuple[Judgement, int]], session: Session) -> Iterator[tuple[Judgement, int]]:
    """The same; a shell remembers the precedents of the last one."""
    from cli.answers import event_of, identity

    for judgement, generation in judgements:
        if session.interactive:
            session.hits = [identity(event_of(p.hit.event)) for p in judgement.precedents]
        yield judgement, generation


def pages(
    client: Client, filter: Filter | None, after: int, limit: int | None, timeout_ms: int | None
) -> Iterator[Found]:
    """`limit` events after that seq, or all there are."""
    left = limit
    while left is None or left > 0:
        page = client.list(
            filter=filter, after_seq=after, limit=PAGE if left is None else min(PAGE, left), timeout_ms=timeout_ms
        )
        yield page
        if left is not None:
            left -= len(page.events)
        if page.next_seq < 0 or page.next_seq <= after:
            return
        after = page.next_seq


def noted(found: Iterable[Found], session: Session) -> Iterator[Found]:
    """The same pages; a shell remembers what they held."""
    from cli.answers import event_of, identity

    hits: list[str] = []
    for page in found:
        if session.interactive:
            hits += [identity(event_of(stored.event)) for stored in page.events]
            session.hits = hits
        yield page


def one(client: Client, event_id: str, *, raw: bool, timeout_ms: int | None) -> Found:
    """That event with features, or with its record. Raises CommandError where there is none."""
    found = client.get([event_id], features=not raw, raw=raw, timeout_ms=timeout_ms)
    if not found.events:
        raise CommandError(f"no event {event_id!r}; `flowkin recent` and `flowkin list` name stored ones", NOT_FOUND)
    return found


def watch(client: Client, filter: Filter | None) -> Iterator[Found]:
    """What arrives from now on."""
    newest = client.recent(limit=1)
    after = newest.events[0].seq if newest.events else -1
    for _ in client.watch(after_generation=newest.generation):
        for page in pages(client, filter, after, None, None):
            if page.events:
                after = max(after, page.events[-1].seq)
                yield page


def stats(
    client: Client, features: bool, sources: Sequence[str], timeout_ms: int | None
) -> tuple[Mapping[str, Any], int]:
    """(facts, generation). features: with every feature of all sources, or of those named; of what is named, only that.
    Raises CommandError for a source that is not there."""
    reply = client.stats(timeout_ms=timeout_ms)
    facts, generation = reply.facts, reply.generation
    if not features and not sources:
        return facts, generation
    rows = {row["name"]: row for row in facts["sources"]}
    if missing := [name for name in sources if name not in rows]:
        raise CommandError(f"no source {missing[0]!r}; there are {', '.join(rows) or 'none'}", NOT_FOUND)
    names = list(dict.fromkeys(sources or rows))
    columns: dict[str, Any] = {}
    for at in range(0, len(names), SOURCES):
        some = names[at : at + SOURCES]
        reply = client.stats(features=some, timeout_ms=timeout_ms)
        generation = reply.generation
        columns |= reply.facts["features"]
        rows |= {row["name"]: row for row in reply.facts["sources"] if row["name"] in some}
    return {**facts, "sources": [rows[name] for name in names], "features": columns}, generation


def letters(path: Path, reason: str, limit: int, cipher: Cipher | None = None) -> Iterator[Document]:
    """The newest dead letters of a file whose reason holds `reason`, the newest first. Raises OSError, KeyFileError."""
    from cli.answers import letter_document
    from engine.store.dead_letters import newest

    found = (letter for letter in newest(path, cipher) if reason.lower() in letter.reason.lower())
    with contextlib.suppress(FileNotFoundError):  # there never was one
        yield from map(letter_document, itertools.islice(found, limit))


def model_of(facts: Mapping[str, Any], version: str) -> Mapping[str, Any]:
    """One version's card, and whether it is in use."""
    versions: Mapping[str, Any] = facts.get("versions", {})
    if version not in versions:
        raise CommandError(f"no model {version!r}; there are {', '.join(versions) or 'none'}", NOT_FOUND)
    return {"version": version, "in_use": version == facts.get("current"), **versions[version]}
