"""Backups: create, list, verify, restore, delete, prune."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.options import PATH, located, printed

if TYPE_CHECKING:
    from pathlib import Path

    from cli.render import Out
    from cli.session import Session

group = click.Group()


@group.group("backup")
def backup() -> None:
    """Backups: create, list, verify, restore, delete, prune.

    A backup is a directory with one generation in it, whole. It is taken while the engine runs, or while it does not.

    \b
    Examples:
      flowkin backup create /backup/flowkin --data-dir ./data
      flowkin backup restore /backup/flowkin/NAME ./data
    """


@backup.command("create")
@click.argument("home", metavar="DIR", type=PATH)
@click.option("--name", metavar="NAME", default="", help="Of the backup.  [default: from time and generation]")
@located(socket=False)
@printed
def backup_create(session: Session, out: Out, home: Path, name: str) -> None:
    """Take a backup as DIR/NAME. Nobody waits for it; it is read back from the disk before it has its name.

    Full row files and indexes that an earlier backup in DIR has are linked from there, all else is copied. Exit status
    7 where a record of the catalog is damaged: it is in the backup as it is, the rest is whole; and where a file that
    no start builds again (dead letters, settings, a model that is not in use) cannot be read and is not in it.

    \b
    Examples:
      flowkin backup create /backup/flowkin --data-dir ./data
      flowkin backup create /backup/flowkin --name before-upgrade --data-dir ./data
    """
    from cli import backups
    from cli.errors import FINDINGS, Quit
    from cli.render import progress

    with progress("backup", unit="files") as meter:
        made = backups.create(session, home, name, meter)
    out.backed_up(made)
    if made["damaged"] or made["lost"]:
        raise Quit(FINDINGS)


@backup.command("list")
@click.argument("home", metavar="DIR", type=PATH)
@printed
def backup_list(out: Out, home: Path) -> None:
    """The backups in a directory, the oldest first. Their files are not looked at: that is `verify`.

    \b
    Example:
      flowkin backup list /backup/flowkin
    """
    from cli import backups

    out.backups(backups.listed(home))


@backup.command("verify")
@click.argument("path", metavar="BACKUP", type=PATH)
@printed
def backup_verify(out: Out, path: Path) -> None:
    """Read every byte of a backup: files, rows and values against their checksums. Exit status 7 where one is wrong.

    \b
    Example:
      flowkin backup verify /backup/flowkin/NAME
    """
    from cli import backups
    from cli.errors import FINDINGS, Quit
    from cli.render import progress

    with progress("verify", unit="files") as meter:
        report = backups.verify(path, meter)
    out.findings(report.findings, report.summary)
    if report.problems:
        raise Quit(FINDINGS)


@backup.command("restore")
@click.argument("path", metavar="BACKUP", type=PATH)
@click.argument("target", metavar="DIR", type=PATH)
@printed
def backup_restore(out: Out, path: Path, target: Path) -> None:
    """Make a data directory of a backup: DIR, which is absent or empty. All is there, or nothing.

    Every file is copied, never linked, and compared with its checksum. Then `flowkin start --data-dir DIR`.

    \b
    Example:
      flowkin backup restore /backup/flowkin/NAME ./data
    """
    from cli import backups
    from cli.render import progress

    with progress("restore", unit="files") as meter:
        restored = backups.restore(path, target, meter)
    out.done(restored, f"{restored['events']:,} events, generation {restored['generation']}, restored to {target}; "
             f"`flowkin start --data-dir {target}` serves them")  # fmt: skip


@backup.command("delete")
@click.argument("path", metavar="BACKUP", type=PATH)
@printed
def backup_delete(out: Out, path: Path) -> None:
    """Remove a backup. Others that share files with it keep them.

    \b
    Example:
      flowkin backup delete /backup/flowkin/NAME
    """
    from engine.maintain.backup import delete

    delete(path)
    out.done({"removed": [path.name]}, f"backup {path} is removed")


@backup.command("prune")
@click.argument("home", metavar="DIR", type=PATH)
@click.option("--keep", metavar="N", type=click.IntRange(1), required=True, help="Keep the N newest.")
@printed
def backup_prune(out: Out, home: Path, keep: int) -> None:
    """Remove all but the newest backups in a directory.

    What cannot be read is left alone. Where each of the N holds damaged records, the newest that holds none stays, too.

    \b
    Example:
      flowkin backup prune /backup/flowkin --keep 7
    """
    from cli.text import plural
    from engine.maintain.backup import prune

    removed = prune(home, keep)
    out.done({"removed": removed}, f"{plural(len(removed), 'backup')} removed: {', '.join(removed) or 'none'}")
