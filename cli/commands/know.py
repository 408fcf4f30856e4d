"""What the engine holds and what it is: stats, dead_letters, info."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.options import Words, located, printed, timed

if TYPE_CHECKING:
    from cli.render import Out
    from cli.session import Session

group = click.Group()


@group.command("stats")
@click.option("--features", is_flag=True, help="Every feature of every source: how often it is there, its range.")
@click.option("--source", "sources", metavar="NAME,...", type=Words("NAME,..."), multiple=True,
              help="Every feature of these sources.")  # fmt: skip
@located()
@timed
@printed
def stats(session: Session, out: Out, features: bool, sources: tuple[list[str], ...], timeout_ms: int | None) -> None:
    """Counts, sizes, coverage for each source, dead letters by reason, health.

    Coverage counts the features that a source fills in at least one event; a feature is constant where at least two
    events bear it, all with one value.

    \b
    Examples:
      flowkin stats --json --data-dir ./data
      flowkin stats --features --source eve --data-dir ./data
    """
    from cli import questions
    from cli.answers import stats_document

    names = [name for some in sources for name in some]
    out.stats(stats_document(*questions.stats(session.client(), features, names, timeout_ms)))


@group.command("dead_letters")
@click.option("-n", "--limit", metavar="N", type=click.IntRange(1, 10_000), default=20, show_default=True,
              help="How many.")  # fmt: skip
@click.option("--reason", metavar="TEXT", default="", help="Only those whose reason holds this text.")
@located(socket=False)
@printed
def dead_letters(session: Session, out: Out, limit: int, reason: str) -> None:
    """The newest records that could not be read or were refused, the newest first.

    Read from the data directory, whether an engine runs or not; `flowkin stats` counts all of them by reason. The last
    64 MiB of them are looked at.

    \b
    Examples:
      flowkin dead_letters --data-dir ./data
      flowkin dead_letters -n 1000 --reason 'not JSON' --ndjson --data-dir ./data | jq -r .record
    """
    from cli import questions

    out.letters(questions.letters(session.existing().dead_letters, reason, limit))


@group.command("info")
@located()
@timed
@printed
def info(session: Session, out: Out, timeout_ms: int | None) -> None:
    """What this engine is: versions, spaces, models, limits.

    \b
    Example:
      flowkin info --data-dir ./data
    """
    reply = session.client().info(timeout_ms=timeout_ms)
    out.facts(reply.facts, generation=reply.generation)
