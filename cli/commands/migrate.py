"""A data directory becomes what the settings ask for: migrate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.options import PATH, located, printed

if TYPE_CHECKING:
    from pathlib import Path

    from cli.render import Out
    from cli.session import Session

group = click.Group()


@group.command("migrate")
@located(socket=False)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--to", type=click.Choice(["plain", "encrypted"]), default=None,
              help="What it is to be.  [default: as store.key_file says; `plain` only by name]")  # fmt: skip
@click.option("--from-key-file", metavar="FILE", type=PATH,
              help="The key that it is encrypted with, where store.key_file holds another.")  # fmt: skip
@click.option("--config", metavar="FILE", type=PATH, help="Settings.  [env: FLOWKIN_CONFIG]")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Any setting, e.g. store.key_file=PATH.")
@printed
def migrate(
    session: Session, out: Out, dry_run: bool, to: str | None, from_key_file: Path | None, config: Path | None,
    settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Encrypt the data directory of a stopped engine, change its key, decrypt it.

    Catalog and dead letters are written anew beside the old ones and compared with them; then one rename puts them in
    their place, and the old ones are removed. Killed at any time, the same command goes on. Answers stay the same.

    \b
    Examples:
      flowkin migrate --dry-run --data-dir ./data
      flowkin migrate --set store.key_file=/etc/flowkin/key --data-dir ./data
      flowkin migrate --from-key-file /etc/flowkin/old-key --data-dir ./data
      flowkin migrate --to plain --data-dir ./data
    """
    from cli.render import progress
    from cli.text import plural, size
    from engine.maintain.migrate import run

    layout = session.existing()
    loaded = session.config(config, settings=settings)
    old = str(from_key_file.absolute()) if from_key_file else ""
    with progress("migrate", unit="values") as meter:
        done = run(layout, loaded, to=to or "", from_key_file=old, dry_run=dry_run, advance=meter.advance)
    if not done["steps"]:
        out.done(done, f"nothing to migrate: format {done['from_format']}, {_key(done['from_key_id'])}")
        return
    said = f"format {done['from_format']}, {_key(done['from_key_id'])} -> format {done['to_format']}, "
    said += f"{_key(done['to_key_id'])}: {'; '.join(done['steps'])}; {plural(done['values'], 'value')}"
    if dry_run:
        files = ", ".join(f"{file['path']} (about {size(file['bytes'])})" for file in done["files"])
        said = f"would be done: {said}; to be written: {files}; {size(done['bytes_free'])} are free"
        said += "; too little" if done["bytes_free"] < done["bytes_needed"] else ""
        said += "; a copy that was begun would be gone on with" if done["resumed"] else ""
    else:
        said += f"; {size(done['bytes_written'])} written"
        left_out = done["dead_letters_left_out"]
        said += f"; {plural(left_out, 'damaged dead letter')} left out" if left_out else ""
    out.done(done, said)


def _key(key_id: str) -> str:
    return f"key {key_id}" if key_id else "not encrypted"
