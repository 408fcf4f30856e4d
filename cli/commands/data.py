"""All of the data at once: purge, compact, export."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from cli.options import PATH, PATH_OR_DASH, filtered, located, printed

if TYPE_CHECKING:
    from pathlib import Path

    from cli.render import Out
    from cli.session import Session
    from ipc.messages import Filter

group = click.Group()


@group.command("purge")
@click.argument("ids", metavar="[ID...]", nargs=-1)
@filtered
@click.option("--backups", metavar="DIR", type=PATH, multiple=True,
              help="Then also from every backup in this directory; again for another one.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say how many events it would be; nothing is changed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 86_400), default=3600.0, show_default=True,
              help="Wait at most so long; it goes on.")  # fmt: skip
@located()
@printed
def purge(
    session: Session, out: Out, ids: tuple[str, ...], filter: Filter | None, backups: tuple[Path, ...], dry_run: bool,
    yes: bool, timeout: float,
) -> None:  # fmt: skip
    """Remove events for good: those that the filter flags name, or those of these IDs.

    They are in no answer any more when it returns; so are dead letters, waiting firewall actions and the recent past of
    the addresses that the filter names. `flowkin compact` then removes what the catalog's free pages hold of them.

    A backup that holds some of it is taken anew without them, under its name; that takes room for two copies of it.
    Exit status 7 where one is left as it is. --dry-run does not look into backups.

    With - as an ID they are read from stdin, which takes --yes or --dry-run; where none comes nothing is removed.

    \b
    Examples:
      flowkin purge --addr 203.0.113.7 --dry-run --data-dir ./data
      flowkin purge --addr 203.0.113.7 --yes --data-dir ./data
      flowkin purge --addr 203.0.113.7 --yes --backups /backup/flowkin --data-dir ./data
      flowkin purge --source lab --until 30d --yes --data-dir ./data
      flowkin purge eve/1234567 --yes --data-dir ./data
    """
    from cli import backups as of_backups
    from cli import questions
    from cli.errors import FINDINGS, Quit
    from cli.render import progress
    from cli.text import plural

    wanted = questions.to_purge(ids, filter, not (yes or dry_run), sys.stdin)
    if ids and not wanted:
        said = "0 events purged: no id came from stdin"
        out.done({"generation": session.client().ping().generation, "events": 0}, said)
        return
    facts, generation = questions.purged(session.client(), filter, wanted, dry_run, yes, round(timeout * 1000))
    would = "would be purged" if dry_run else "purged"
    said, left = f"{facts['events']:,} events {would}", []
    if not dry_run:
        said += f", {facts['dead_letters']:,} dead letters ({facts['dead_letters_left']:,} left); now `flowkin compact`"
    if backups and not dry_run:
        with progress("backups", unit="") as meter:
            facts["backups"] = of_backups.purged(session, backups, filter, wanted, meter)
        left = [one for one in facts["backups"] if one["error"]]
        anew = sum(one["changed"] for one in facts["backups"])
        said += f"; {plural(len(facts['backups']), 'backup')} looked at, {anew} taken anew"
        said += "".join(f"; {one['path']} is left as it is: {one['error']}" for one in left)
    out.done({"generation": generation} | facts, said)
    if left:
        raise Quit(FINDINGS)


@group.command("compact")
@located()
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 86_400), default=3600.0, show_default=True,
              help="Wait at most so long; it goes on.")  # fmt: skip
@printed
def compact(session: Session, out: Out, timeout: float) -> None:
    """Copy the catalog into a new file without what was deleted; its space is given back.

    Events are stored and questions answered meanwhile.

    \b
    Example:
      flowkin compact --data-dir ./data
    """
    from cli.render import progress
    from cli.text import size

    with progress("compact", unit=""):
        done = session.client().compact(timeout_ms=round(timeout * 1000))
    facts = done.facts
    said = f"catalog: {size(facts['bytes_after'])}, before {size(facts['bytes_before'])}"
    if facts["waits_for"]:
        said += f"; the old one is still held by {', '.join(facts['waits_for'])}"
    out.done({"generation": done.generation} | facts, said)


@group.command("export")
@click.option("--ndjson", "as_ndjson", metavar="FILE", type=PATH_OR_DASH,
              help="One event a line; can be ingested again. - for stdout.")  # fmt: skip
@click.option("--parquet", metavar="FILE", type=PATH, help="A table: a row an event, a column a field or feature.")
@click.option("--legacy", metavar="DIR", type=PATH, help="FAISS indexes and metadata as the older system had them.")
@filtered
@located()
@click.option("--json", is_flag=True, help="Print one JSON document.")
def export(
    session: Session, as_ndjson: Path | None, parquet: Path | None, legacy: Path | None, filter: Filter | None,
    json: bool,
) -> None:  # fmt: skip
    """Write events to a file: all, or those that pass the filters.

    \b
    Examples:
      flowkin export --ndjson events.ndjson --data-dir ./data
      flowkin export --parquet scans.parquet --family PortScan --since 7d --data-dir ./data
    """
    from cli import files
    from cli.render import Out, progress

    given = [(k, v) for k, v in (("ndjson", as_ndjson), ("parquet", parquet), ("legacy", legacy)) if v is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --ndjson FILE, --parquet FILE, --legacy DIR")
    kind, target = given[0]
    if legacy and filter is not None:
        raise click.UsageError("--legacy writes all events: it takes no filter")
    with progress("export") as meter:
        exported = files.export(session, kind, target, filter, meter)
    if not files.is_stdout(target):
        out = Out("json" if json else "text")
        out.done(exported, f"{exported['events']:,} events in {target}")
