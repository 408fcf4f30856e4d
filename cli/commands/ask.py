"""Ask: by event, by file, by words, in lists; the shell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from cli.options import PATH_OR_DASH, TOP_K_MAX, filtered, located, printed, reading, searching, timed, voting

if TYPE_CHECKING:
    from pathlib import Path

    from cli.feed import How
    from cli.render import Out
    from cli.session import Session
    from ipc.messages import Answers, Filter, Found, Options, Voting

group = click.Group()


def _remember(session: Session, reply: Answers | Found) -> None:
    """For #N in the shell: what was printed last."""
    from cli.answers import event_of, identity
    from ipc.messages import Answers

    if session.interactive:
        shown = [h for a in reply.answers for h in a.hits] if isinstance(reply, Answers) else reply.events
        session.hits = [identity(event_of(one.event)) for one in shown]


@group.command("query_similar")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@searching()
@located()
@printed
def query_similar(
    session: Session, out: Out, ids: tuple[str, ...], options: Options, plan: bool, timeout_ms: int | None
) -> None:
    """Which past events are like this one, how like, in what, and what became of them?

    An ID is the detector's (the newest that bears it), or source/id for one exactly; - reads ids from stdin.

    \b
    Examples:
      flowkin query_similar synthetic_000042 --explain --data-dir ./data
      flowkin query_similar ID -k 20 --space attack --since 7d --class MALICIOUS --data-dir ./data
      flowkin query_similar ID --before --other-episodes --dst 10.0.0.0/8 --dst-port 1-1023 --json --data-dir ./data
      flowkin recent --ndjson | jq -r .event_id | flowkin query_similar - --ndjson
    """
    from cli import questions

    several, wanted = questions.ids_of(ids, sys.stdin)
    window = questions.window(ids, sys.stdin)

    def answers() -> Iterator[Any]:
        for reply in questions.similar(session.client(), wanted, options, timeout_ms, window):
            _remember(session, reply)
            yield from ((answer, reply.generation) for answer in reply.answers)

    out.answers(answers(), several=several, plan=plan)


@group.command("query_event")
@click.argument("path", metavar="PATH", type=PATH_OR_DASH)
@reading("--as-source")
@searching()
@located()
@printed
def query_event(
    session: Session, out: Out, path: Path, how: How, options: Options, plan: bool, timeout_ms: int | None
) -> None:
    """Which past events are like those of this file? Nothing of it is stored.

    The events are asked about in the order of time, each with the recent past that the engine and the file hold.
    One event is shown in full, of several a line each (--explain shows all in full).

    \b
    Examples:
      flowkin query_event alert.json --format eve -k 5 --explain --data-dir ./data
      flowkin query_event today.csv --format cicflow -k 10 --space attack --ndjson --data-dir ./data
    """
    from cli import feed
    from cli.render import progress

    events = feed.events([path], how)
    with progress("query") as meter:
        answers = feed.metered(feed.ask(session.client(), events, options, timeout_ms), meter)
        several, answers = feed.peeked(answers)
        out.answers(answers, several=True, brief=several and not options.explain, plan=plan)


@group.command("classify")
@click.argument("what", metavar="ID...|FILE...", nargs=-1, required=True)
@reading("--as-source")
@voting()
@located()
@printed
def classify(
    session: Session, out: Out, what: tuple[str, ...], how: How, options: Voting, timeout_ms: int | None
) -> None:
    """What is this event, how sure, and has there been anything like it?

    The nearest precedents vote. They bear an analyst's label, or the family that their detector named; labels count
    from the next answer on. IDs are of stored events (- reads them from stdin); events of files are not stored. With
    --format, all are files.

    \b
    Examples:
      flowkin classify synthetic_000042 --data-dir ./data
      flowkin classify today.csv --format cicflow --ndjson --data-dir ./data
      flowkin classify ID --other-episodes --space chronos -k 10 --json --data-dir ./data
      flowkin recent --ndjson | jq -r .event_id | flowkin classify - --ndjson
    """
    from cli import feed, questions
    from cli.render import progress

    paths = feed.files_of(what, how)
    if paths:
        events = feed.events(paths, how)
        with progress("classify") as meter:
            found = feed.metered(feed.classify(session.client(), events, options, timeout_ms), meter)
            several, judgements = feed.peeked(questions.remembered(found, session))
            out.judgements(judgements, several=several, listed=True)
        return
    several, wanted = questions.ids_of(what, sys.stdin)
    window = questions.window(what, sys.stdin)
    found = questions.classified(session.client(), wanted, options, timeout_ms, window)
    out.judgements(questions.remembered(found, session), several=several, listed=several)


@group.command("search")
@click.argument("text", metavar="TEXT", nargs=-1, required=True)
@searching(space="sbert")
@located()
@printed
def search(
    session: Session, out: Out, text: tuple[str, ...], options: Options, plan: bool, timeout_ms: int | None
) -> None:
    """Events that say something like this.

    \b
    Examples:
      flowkin search 'dns tunnelling to a new domain' --data-dir ./data
      flowkin search ssh brute force --since 7d -k 20 --data-dir ./data
    """
    reply = session.client().search_text(" ".join(text), options=options, timeout_ms=timeout_ms)
    _remember(session, reply)
    out.answers(((answer, reply.generation) for answer in reply.answers), several=False, plan=plan)


@group.command("list")
@click.option("-n", "--limit", metavar="N", type=click.IntRange(1), default=100, show_default=True, help="How many.")
@click.option("--all", "everything", is_flag=True, help="All of them, whatever --limit says.")
@click.option("--after", metavar="SEQ", type=click.INT, default=-1, help="Go on after this event's seq.")
@filtered
@timed
@located()
@printed
def list_(
    session: Session,
    out: Out,
    limit: int,
    everything: bool,
    after: int,
    filter: Filter | None,
    timeout_ms: int | None,
) -> None:
    """Stored events in the order of arrival, the oldest first.

    \b
    Examples:
      flowkin list --class MALICIOUS --since 24h --data-dir ./data
      flowkin list --all --ndjson --family DDoS,DoS --dst-port 80,443 --data-dir ./data
    """
    from cli import questions

    pages = questions.pages(session.client(), filter, after, None if everything else limit, timeout_ms)
    out.events(questions.noted(pages, session))


@group.command("recent")
@click.option("-n", "--limit", metavar="N", type=click.IntRange(1, TOP_K_MAX), default=20, show_default=True,
              help="How many.")  # fmt: skip
@click.option("--by", type=click.Choice(["arrival", "event-time"]), default="arrival", show_default=True, help="Order.")
@filtered
@timed
@located()
@printed
def recent(session: Session, out: Out, limit: int, by: str, filter: Filter | None, timeout_ms: int | None) -> None:
    """The newest events, the newest first.

    \b
    Examples:
      flowkin recent --data-dir ./data
      flowkin recent -n 50 --by event-time --class MALICIOUS,SUSPICIOUS --data-dir ./data
    """
    reply = session.client().recent(limit=limit, filter=filter, by_event_time=by == "event-time", timeout_ms=timeout_ms)
    _remember(session, reply)
    out.events([reply])


@group.command("show")
@click.argument("event_id", metavar="ID")
@click.option("--raw", is_flag=True, help="The original record only.")
@located()
@timed
@printed
def show(session: Session, out: Out, event_id: str, raw: bool, timeout_ms: int | None) -> None:
    """Everything about one event: fields, label and history, the 105 features.

    \b
    Examples:
      flowkin show synthetic_000042 --data-dir ./data
      flowkin show eve/1234567 --raw --data-dir ./data
    """
    from cli import questions

    found = questions.one(session.client(), event_id, raw=raw, timeout_ms=timeout_ms)
    out.stored(found.events[0], found.generation, raw=raw)


@group.command("watch")
@filtered
@located()
@partial(printed, json_help="Print JSON, one line for each, as --ndjson: there is no end.")
def watch(session: Session, out: Out, filter: Filter | None) -> None:
    """New events as they come, until Ctrl-C.

    \b
    Examples:
      flowkin watch --class MALICIOUS --data-dir ./data
      flowkin watch --ndjson --data-dir ./data | jq .src_ip
    """
    from cli import questions

    for page in questions.watch(session.client(), filter):
        out.passing(page.events)


@group.command("shell")
@located()
def shell(session: Session) -> None:
    """Ask in a dialogue: the same commands, #N for hit N, completion, history.

    \b
    Examples:
      flowkin shell --data-dir ./data
      echo 'recent -n 5' | flowkin shell --data-dir ./data
    """
    from cli.errors import Quit
    from cli.shell import Shell

    raise Quit(Shell(session).loop())
