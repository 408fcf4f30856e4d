"""The program: the group of commands, and what is true of all of them. The commands stand in cli/commands."""

from __future__ import annotations

import contextlib
import io
import sys

import click

from cli.group import SETTINGS, Flowkin
from cli.options import located
from cli.session import Session


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).debug = True


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from cli.render import Out
        from engine.version import VERSION

        Out().to.line(f"flowkin {VERSION}")
        ctx.exit()


@click.group(cls=Flowkin, context_settings=SETTINGS)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="What this is.")
@click.option("--debug", is_flag=True, expose_value=False, callback=_debug, help="Show where an error came from.")
@located()
def flowkin(session: Session) -> None:
    """Have we seen this network-security event before, and why do we think so?

    Every command takes --data-dir DIR (or FLOWKIN_DATA_DIR) and --json; names may be typed with - or _.
    Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 denied, 5 no engine, 6 overloaded or late, 7 findings.

    \b
    Examples:
      flowkin start --data-dir /var/lib/flowkin
      flowkin ingest eve.json --data-dir /var/lib/flowkin
      flowkin query_similar ID --explain --data-dir /var/lib/flowkin
      flowkin shell --data-dir /var/lib/flowkin
    """


def main() -> int:
    """The program; its exit status."""
    from cli.run import ended, run

    if isinstance(sys.stdin, io.TextIOWrapper):  # as arguments are: ids and lines that are no UTF-8 get their own error
        sys.stdin.reconfigure(errors="surrogateescape")
    session = Session()
    try:
        return run(sys.argv[1:], session)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            sys.stderr.write("\n")
        return ended(130, session)
    finally:
        session.close()


if __name__ == "__main__":
    sys.exit(main())
