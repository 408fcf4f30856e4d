"""Versions of the embedders: which there are, switching, making new ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import PATH, PATH_OR_DASH, Network, located, printed, reading, timed

if TYPE_CHECKING:
    from cli.feed import How
    from cli.render import Out
    from cli.session import Session

group = click.Group()


@group.group("models", invoke_without_command=True)
@located()
@printed
def models(session: Session, out: Out) -> None:
    """Versions of the embedders: list, show, compare, use, rollback, gc.

    \b
    Examples:
      flowkin models --data-dir ./data
      flowkin models use 2026-05 --data-dir ./data
    """
    if click.get_current_context().invoked_subcommand is None:
        reply = session.client().models()
        out.models(reply.facts, reply.generation)


@models.command("list")
@located()
@timed
@printed
def models_list(session: Session, out: Out, timeout_ms: int | None) -> None:
    """All versions, and which one is in use.

    \b
    Example:
      flowkin models list --data-dir ./data
    """
    reply = session.client().models(timeout_ms=timeout_ms)
    out.models(reply.facts, reply.generation)


@models.command("show")
@click.argument("version", metavar="VERSION")
@located()
@timed
@printed
def models_show(session: Session, out: Out, version: str, timeout_ms: int | None) -> None:
    """One version: how it was fitted, its calibration, its files.

    \b
    Example:
      flowkin models show 2026-05 --data-dir ./data
    """
    from cli import questions

    reply = session.client().models(timeout_ms=timeout_ms)
    out.facts(questions.model_of(reply.facts, version), generation=reply.generation)


@models.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("-n", "--events", "count", metavar="N", type=click.IntRange(100, 20_000), default=3_000,
              show_default=True, help="Draw at most so many.")  # fmt: skip
@click.option("--seed", metavar="S", type=click.IntRange(0), default=0, show_default=True,
              help="Same seed, same events.")  # fmt: skip
@located(socket=False)
@printed
def models_compare(session: Session, out: Out, a: str, b: str, count: int, seed: int) -> None:
    """Compare two versions on stored events of known family: what each finds, costs, and what a switch to B takes.

    A and B: versions of the data directory, ones that ship, or directories (with a /). Each drawn event looks back at
    the drawn events before it. Read from the data directory, whether an engine runs or not; nothing is changed.

    \b
    Examples:
      flowkin models compare v4 2026-05 --data-dir ./data
      flowkin models compare v4 models/2026-05 -n 10000 --json --data-dir ./data
    """
    from cli.render import progress
    from engine.maintain.compare import compare
    from engine.store.recover import map_size

    layout, config = session.existing(), session.config()
    with progress("compare", unit=""):
        found = compare(layout, (a, b), config.network.internal, map_size(config), count, seed, session.cipher())
    out.compared(found)


_WAIT = click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 86_400), default=3600.0,
                     show_default=True, help="Wait at most so long; the switch goes on.")  # fmt: skip


@models.command("use")
@click.argument("version", metavar="VERSION|DIR")
@located()
@_WAIT
@printed
def models_use(session: Session, out: Out, version: str, timeout: float) -> None:
    """Switch to a version; stored events are embedded anew first, while the old one answers.

    A directory that `flowkin train` wrote is given to the engine first. The version before is kept for
    `flowkin models rollback`. A switch outlives a restart; using the version that is in use gives it up.

    \b
    Examples:
      flowkin models use 2026-05 --data-dir ./data
      flowkin models use models/2026-05 --data-dir ./data
    """
    from cli import training
    from cli.render import progress

    if "/" in version:
        version = training.added(session.client(), Path(version))
    with progress(f"switch to {version}", unit=""):
        done = session.client().use_model(version, timeout_ms=round(timeout * 1000))
    out.done({"generation": done.generation, "version": version} | done.facts, f"model {version} is in use")


@models.command("rollback")
@located()
@_WAIT
@printed
def models_rollback(session: Session, out: Out, timeout: float) -> None:
    """Return to the version before the last switch, whose rows are kept; only later events are embedded by it first.

    \b
    Example:
      flowkin models rollback --data-dir ./data
    """
    from cli.render import progress

    with progress("rollback", unit=""):
        done = session.client().rollback_model(timeout_ms=round(timeout * 1000))
    out.done({"generation": done.generation} | done.facts, f"model {done.facts['version']} is in use")


@models.command("gc")
@located()
@timed
@printed
def models_gc(session: Session, out: Out, timeout_ms: int | None) -> None:
    """Remove the rows and indexes that are kept for a rollback. The version itself stays, and can be used anew.

    \b
    Example:
      flowkin models gc --data-dir ./data
    """
    from cli.text import size

    done = session.client().forget_model(timeout_ms=timeout_ms)
    version = done.facts["version"]
    said = f"{size(done.facts['bytes'])} of model {version} freed" if version else "nothing is kept"
    out.done({"generation": done.generation} | done.facts, said)


@group.command("fit")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH_OR_DASH)
@reading()
@click.option("--name", metavar="VERSION", default="", help="Name of the new version.  [default: from the time]")
@click.option("--seed", metavar="S", type=click.IntRange(0), default=0, show_default=True,
              help="Same seed, same model.")  # fmt: skip
@located()
@printed
def fit(session: Session, out: Out, paths: tuple[Path, ...], how: How, name: str, seed: int) -> None:
    """Fit a new version of the embedders on the events of files; nothing of them is stored.

    An engine without events uses it at once; otherwise it waits for `flowkin models use VERSION`.

    \b
    Example:
      flowkin fit labelled.csv --format cicflow --name 2026-05 --data-dir ./data
    """
    from cli import training
    from cli.render import progress

    with progress("fit") as meter:
        fitted = training.fit(session.client(), paths, how, name, seed, meter)
    used = "is in use" if fitted["used"] else f"waits for `flowkin models use {fitted['version']}`"
    out.done(fitted, f"model {fitted['version']}, fitted on {fitted['events']:,} events, {used}")


@group.command("train")
@click.option("--data", "paths", metavar="PATH", multiple=True, required=True, type=PATH,
              help="Files or directories of labelled events; may be repeated.")  # fmt: skip
@click.option("--out", "target", metavar="DIR", required=True, type=PATH, help="The version becomes DIR/VERSION.")
@reading()
@click.option("--name", metavar="VERSION", default="", help="Name of the new version.  [default: from the time]")
@click.option("--seed", metavar="S", type=click.IntRange(0), default=0, show_default=True,
              help="Same seed, same bytes.")  # fmt: skip
@click.option("--internal", metavar="CIDR", multiple=True, type=Network(),
              help="Networks that count as inside.  [default: private ones]")  # fmt: skip
@printed
def train(
    out: Out, paths: tuple[Path, ...], target: Path, how: How, name: str, seed: int, internal: tuple[str, ...]
) -> None:
    """Train a new version of the embedders, with networks, on the events of files. Needs no engine, and minutes.

    \b
    Examples:
      flowkin train --data labelled.csv --format cicflow --out models --name 2026-05
      flowkin models use models/2026-05 --data-dir ./data
    """
    from cli import training
    from cli.render import progress
    from engine.config import CIDRS_INTERNAL

    with progress("train") as meter:
        trained = training.train(paths, how, internal or CIDRS_INTERNAL, name, seed, target, meter)
    out.done(trained, f"model {trained['version']}, trained on {trained['events']:,} events, in {trained['path']}")
