"""Put events in: ingest, generate, label."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from cli.options import PATH_OR_DASH, located, printed, reading, timed

if TYPE_CHECKING:
    from pathlib import Path

    from cli.feed import How
    from cli.render import Out
    from cli.session import Session

group = click.Group()


@group.command("ingest")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH_OR_DASH)
@reading()
@located()
@printed
def ingest(session: Session, out: Out, paths: tuple[Path, ...], how: How) -> None:
    """Store the events of files, directories or stdin (-), also .gz and .zst.

    The files are opened as you. Everything readable is durable when it returns; the same file again is all duplicates.
    What cannot be read goes to the dead letters and is counted.

    \b
    Examples:
      flowkin ingest eve.json.gz --data-dir ./data
      flowkin ingest captures/ --format pcap --sensor dmz --data-dir ./data
      zcat conn.log.gz | flowkin ingest - --format zeek --data-dir ./data --json
    """
    from cli import feed
    from cli.render import progress

    with progress("ingest") as meter:
        summary = feed.ingest(session.client(), paths, how, meter)
    out.ingested(summary.document())


@group.command("generate")
@click.option("--events", metavar="N", type=click.IntRange(1, 1 << 40), required=True, help="How many.")
@click.option("--seed", metavar="S", type=click.IntRange(0), default=0, show_default=True,
              help="Same seed, same bytes.")  # fmt: skip
@click.option("--out", "file", metavar="FILE", type=PATH_OR_DASH, required=True,
              help="NDJSON file; - for stdout.")  # fmt: skip
@printed
def generate(out: Out, events: int, seed: int, file: Path) -> None:
    """Write synthetic events, labelled: campaigns, benign look-alikes, overlapping families.

    \b
    Examples:
      flowkin generate --events 100000 --seed 7 --out synthetic.ndjson
      flowkin generate --events 1000 --out - | flowkin ingest - --format ndjson --data-dir ./data
    """
    from cli import files
    from cli.render import progress

    with progress("generate", events) as meter:
        written = files.generate(events, seed, file, meter)
    if not files.is_stdout(file):
        out.done({"events": written, "file": str(file), "seed": seed}, f"{written:,} events in {file}")


def _me() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # as in containers: the uid has no name; OSError since Python 3.13
        return f"uid {os.getuid()}"


@group.command("label")
@click.argument("event_id", metavar="ID")
@click.argument("label", metavar="LABEL")
@click.option("--by", metavar="NAME", default="", help="Who says so.  [default: you]")
@located()
@timed
@printed
def label(session: Session, out: Out, event_id: str, label: str, by: str, timeout_ms: int | None) -> None:
    """Say what an event was; '' takes the label away. The detector's verdict stays as it is.

    \b
    Examples:
      flowkin label synthetic/synthetic_000042 true_positive --by ana --data-dir ./data
      flowkin label ID 'false positive: backup job' --data-dir ./data
    """
    by = by or _me()
    done = session.client().label(event_id, label, by=by, timeout_ms=timeout_ms)
    facts = {"generation": done.generation, "event_id": event_id, "label": label or None, "labelled_by": by}
    sentence = f"{event_id} is labelled {label!r} by {by}" if label else f"{event_id} has no label now"
    out.done(facts | done.facts, sentence)
