"""The command group: names with underscore or hyphen, commands in chapters, a hint for a misspelt one.

Always true
  - A command's file is imported when that command is asked for, all of them for the list of `flowkin --help` only.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

CHAPTERS = {  # name of the command -> its file in cli/commands
    "Run the engine": {
        "serve": "run", "start": "run", "stop": "run", "status": "run", "doctor": "run", "backup": "backup",
        "migrate": "migrate",
    },
    "Put events in": {"ingest": "put", "generate": "put", "label": "put"},
    "Ask": {
        "query_similar": "ask", "query_event": "ask", "classify": "ask", "search": "ask", "list": "ask",
        "recent": "ask", "show": "ask", "watch": "ask", "shell": "ask",
    },
    "Know more": {
        "stats": "know", "dead_letters": "know", "info": "know", "models": "models", "fit": "models",
        "train": "models", "purge": "data", "compact": "data", "export": "data",
    },
}  # fmt: skip
FILES = {name: file for chapter in CHAPTERS.values() for name, file in chapter.items()}
ALIASES = {"similar": "query_similar", "query": "query_similar", "event": "query_event", "ls": "list"}


class Flowkin(click.Group):
    """A click group that finds its commands by CHAPTERS."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("-", "_").lower()
        name = ALIASES.get(name, name)
        if name not in FILES:
            return None
        found: click.Command | None = import_module(f"cli.commands.{FILES[name]}").group.get_command(ctx, name)
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(FILES)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0].replace("-", "_"), self.list_commands(ctx), 2, 0.6)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"no command {args[0]!r}{hint}", ctx)
        name, command, rest = super().resolve_command(ctx, args)
        return command.name if command else name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, FILES))
        for chapter, names in CHAPTERS.items():
            known = [(name, self.get_command(ctx, name)) for name in names]
            rows = [(name.ljust(widest), command.get_short_help_str(90)) for name, command in known if command]
            with formatter.section(chapter):
                formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit(0)
        return super().parse_args(ctx, args)


def token(name: str) -> str:
    """Options (and choices) may be typed with underscores too."""
    return name.replace("_", "-")


SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": token,
    "max_content_width": 100,
}
