"""Run the engine: serve, start, stop, status, doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.options import PATH, located, printed, timed

if TYPE_CHECKING:
    from pathlib import Path

    from cli.render import Out
    from cli.session import Session

group = click.Group()
_READERS = click.option("--readers", metavar="N", type=click.IntRange(1, 64), help="Reader processes.")
_CONFIG = click.option("--config", metavar="FILE", type=PATH, help="Settings.  [env: FLOWKIN_CONFIG]")
_SET = click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Any setting, e.g. readers.count=4.")


@group.command("serve")
@located(socket=False)
@_READERS
@_CONFIG
@_SET
def serve(session: Session, readers: int | None, config: Path | None, settings: tuple[str, ...]) -> None:
    """Run the engine in the foreground.

    Creates the data directory; a line beginning READY on stderr says that every worker serves. SIGTERM ends it.

    \b
    Examples:
      flowkin serve --data-dir ./data
      flowkin serve --data-dir ./data --readers 4 --set ingest.save_after_ms=20
    """
    from cli.errors import USAGE, CommandError, Quit
    from engine.run.supervisor import run

    loaded = session.config(config, {"readers.count": readers}, settings)
    if not loaded.data_dir:
        raise CommandError("no data directory: give --data-dir DIR or set FLOWKIN_DATA_DIR", USAGE)
    raise Quit(run(loaded))


@group.command("start")
@located(socket=False)
@_READERS
@_CONFIG
@_SET
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 3600), default=120.0, show_default=True,
              help="Wait for READY at most so long.")  # fmt: skip
@printed
def start(
    session: Session, out: Out, readers: int | None, config: Path | None, settings: tuple[str, ...], timeout: float
) -> None:
    """Run the engine in the background.

    Returns when every worker serves. What the engine says goes to DIR/run/engine.log.

    \b
    Examples:
      flowkin start --data-dir ./data
      flowkin start --data-dir ./data --readers 4
    """
    from cli import process

    session.config(config, {"readers.count": readers}, settings)  # a bad setting is refused here, not in a log
    args = ["serve", "--data-dir", str(session.layout.data_dir)]
    args += ["--readers", str(readers)] if readers else []
    args += ["--config", str(config.absolute())] if config else []
    args += [word for setting in settings for word in ("--set", setting)]
    pid = process.start(session.layout, args, timeout_s=timeout)
    log = process.log_path(session.layout)
    facts = {"pid": pid, "data_dir": str(session.layout.data_dir), "log": str(log)}
    out.done(facts, f"engine started (pid {pid}), log in {log}")


@group.command("stop")
@located(socket=False)
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 3600), default=60.0, show_default=True,
              help="Wait for its end at most so long.")  # fmt: skip
@printed
def stop(session: Session, out: Out, timeout: float) -> None:
    """Stop the engine; what is under way is finished and saved.

    \b
    Example:
      flowkin stop --data-dir ./data
    """
    from cli import process
    from cli.errors import NOT_REACHABLE, CommandError

    pid = process.stop(session.existing(), timeout_s=timeout)
    if pid is None:
        raise CommandError(f"no engine runs on {session.layout.data_dir}", NOT_REACHABLE)
    out.done({"pid": pid, "stopped": True}, f"engine stopped (pid {pid})")


@group.command("status")
@located()
@timed
@printed
def status(session: Session, out: Out, timeout_ms: int | None) -> None:
    """Does an engine serve here, and what is it?

    \b
    Example:
      flowkin status --data-dir ./data
    """
    reply = session.client().info(timeout_ms=timeout_ms)
    out.facts(reply.facts, running=True, generation=reply.generation)


@group.command("doctor")
@located(socket=False)
@click.option("--deep", is_flag=True, help="Read and check every byte.")
@click.option("--fix", is_flag=True, help="Repair what can be made again: derived files only.")
@click.option("--quality", is_flag=True, help="Measure recall, neighbours, drift and coverage, now.")
@click.option("--sample", metavar="N", type=click.IntRange(50, 10_000), default=None,
              help="With --quality: so many events are looked up.  [default: quality.sample]")  # fmt: skip
@printed
def doctor(session: Session, out: Out, deep: bool, fix: bool, quality: bool, sample: int | None) -> None:
    """Check a data directory, running or not.

    Exit status 7 where it found problems. An upgrade trigger that fires is a note, with what to do.

    \b
    Examples:
      flowkin doctor --data-dir ./data
      flowkin doctor --data-dir ./data --deep --json
      flowkin doctor --data-dir ./data --quality --sample 1000
    """
    from cli import checkup
    from cli.errors import FINDINGS, Quit

    if sample and not quality:
        raise click.UsageError("--sample needs --quality")
    report = checkup.run(session, deep=deep, fix=fix, quality=quality, sample=sample or 0)
    out.findings(report.findings, report.summary)
    if report.problems:
        raise Quit(FINDINGS)
